"""The sale commands over a real ledger and a real Valkey: what they change, what they refuse, what a crash leaves."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashsale import merchandising
from flashsale.commands.sale import app
from flashsale.embedded import ValkeyServer
from flashsale.ledger import pool, sales
from flashsale.merchandising import CommandRefused
from flashsale.reservation import commands, keys, server
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.salefile import SaleFileFaults, parse_sale_file
from tests.conftest import FLASHSALE

FILE = """[sale]
id = "night"
name = "Night sale"
opens_at = 2026-11-10T16:00:00Z
closes_at = 2096-11-11T16:00:00Z
hold_seconds = 900

[[offers]]
sku = "FRIDGE"
brand = "Haier"
title = { en = "Fridge" }
stock = 1000
quota = 2
weight_g = 68000
prices = { SG = "899.00" }
"""
OFFER = """
[[offers]]
sku = "KETTLE"
brand = "Joyoung"
title = { en = "Kettle" }
stock = 5
quota = 0
weight_g = 1200
prices = { SG = "59.90", MY = "189.00" }
"""
UPCOMING = FILE.replace("opens_at = 2026", "opens_at = 2095")
EPOCH = 4


class Desk:
    """Both servers and the commands on them."""

    def __init__(self, valkey: Any, ledger: Any) -> None:
        self.valkey, self.ledger = valkey, ledger

    async def verify(self) -> None:
        """What the guard does when it has built a Valkey."""
        fields = {"epoch": EPOCH, "run_id": await server.run_id(self.valkey)}
        await self.valkey.hset(keys.partition(0), mapping=fields)

    async def create(self, text: str = FILE) -> bool:
        return await merchandising.create(self.valkey, self.ledger, parse_sale_file(text, "night.toml"), text)

    async def update(self, text: str) -> bool:
        return await merchandising.update(self.valkey, self.ledger, parse_sale_file(text, "night.toml"), text)

    async def state(self) -> commands.SaleState:
        state = await commands.read_state(self.valkey, "night")
        assert state is not None
        return state

    async def catalogue(self) -> Catalogue:
        catalogue = await commands.load_catalogue(self.valkey)
        assert catalogue is not None
        return catalogue

    async def everything(self) -> tuple[Any, ...]:
        rows = await self.ledger.fetch("SELECT version FROM catalogue ORDER BY 1")
        files = await self.ledger.fetch("SELECT id, file, key FROM sale ORDER BY 1")
        return rows, files, await self.valkey.xlen(keys.journal(0)), await commands.read_partition(self.valkey)


@pytest.fixture
async def desk(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Desk]:
    valkey, connection = server.connect(valkey_memory.url), await pool.connect(ledger)
    made = Desk(valkey, connection)
    await made.verify()
    yield made
    await connection.close()
    await valkey.aclose()


async def test_a_created_sale_can_be_sold(desk: Desk) -> None:
    assert await desk.create()
    state = await desk.state()
    assert (state.status, state.supply, state.available) == ("open", (1000,), (1000,))
    sale = (await desk.catalogue()).sale("night")
    assert sale is not None and len(sale.key) == 32
    row = await sales.get(desk.ledger, "night")
    assert row is not None and (row.number, row.key, row.file) == (sale.number, sale.key, FILE)
    assert await sales.offers(desk.ledger, row.number) == ["FRIDGE"]


async def test_the_same_file_again_changes_nothing(desk: Desk) -> None:
    await desk.create()
    before = await desk.everything()
    assert not await desk.create()
    assert not await desk.create("# a remark\n" + FILE)
    assert not await desk.update(FILE)
    assert await desk.everything() == before


async def test_another_file_under_the_same_id_is_refused(desk: Desk) -> None:
    await desk.create()
    before = await desk.everything()
    with pytest.raises(CommandRefused, match="another file"):
        await desk.create(FILE.replace("899.00", "898.00"))
    assert await desk.everything() == before
    await desk.update(FILE.replace("899.00", "898.00"))
    with pytest.raises(CommandRefused, match="since updated from another file"):
        await desk.create()


async def test_a_create_that_only_reached_the_ledger_is_finished_by_the_next(desk: Desk) -> None:
    await desk.create()
    row = await sales.get(desk.ledger, "night")
    await desk.valkey.flushall()
    with pytest.raises(CommandRefused, match="not verified"):
        await desk.create()
    await desk.verify()
    assert not await desk.create()
    assert (await desk.state()).available == (1000,)
    sale = (await desk.catalogue()).sale("night")
    assert row is not None and sale is not None and sale.key == row.key


async def test_an_update_that_only_reached_the_ledger_is_finished_by_any_other(desk: Desk) -> None:
    await desk.create()
    changed = FILE.replace("2096", "2097").replace("899.00", "799.00") + OFFER
    # The process dies here: Valkey refuses it, as it would be gone.
    await desk.valkey.hset(keys.partition(0), "run_id", "x")
    with pytest.raises(CommandRefused, match="is stored; Valkey gets it at the next"):
        await desk.update(changed)
    await desk.verify()
    assert (await desk.state()).supply == (1000,)
    await desk.create(FILE.replace('"night"', '"day"'))
    state, sale = await desk.state(), (await desk.catalogue()).sale("night")
    assert sale is not None and sale.offers[0].prices == {"SG": 79900}
    assert state.supply == (1000, 5)
    assert state.closes_at_ms == sale.closes_at_ms == parse_sale_file(changed, "").closes_at_ms


async def test_an_update_adds_an_offer_and_changes_a_price(desk: Desk) -> None:
    await desk.create()
    old = await desk.catalogue()
    assert await desk.update(FILE.replace("899.00", "799.00") + OFFER)
    new = await desk.catalogue()
    sale = new.sale("night")
    assert sale is not None and new.version == old.version + 1
    assert [offer.prices["SG"] for offer in sale.offers] == [79900, 5990]
    assert (await desk.state()).available == (1000, 5)
    # A replay is priced at its own version.
    assert await commands.load_catalogue(desk.valkey, old.version) == old


async def test_an_update_never_takes_away(desk: Desk) -> None:
    await desk.create(FILE + OFFER)
    before = await desk.everything()
    with pytest.raises(SaleFileFaults):
        await desk.update(FILE)
    with pytest.raises(SaleFileFaults):
        await desk.update(FILE.replace("stock = 1000", "stock = 999") + OFFER)
    with pytest.raises(CommandRefused, match="no sale 'day'"):
        await desk.update(FILE.replace('"night"', '"day"'))
    assert await desk.everything() == before


async def test_open_opens_now_and_another_price_does_not_undo_it(desk: Desk) -> None:
    await desk.create(UPCOMING)
    assert (await merchandising.show(desk.valkey, "night")).phase == "upcoming"
    window = await merchandising.open_now(desk.valkey, desk.ledger, "night")
    state = await desk.state()
    assert window.status == "open" and state.opens_at_ms == window.opens_at_ms <= state.now_ms
    sale = (await desk.catalogue()).sale("night")
    assert sale is not None and sale.opens_at_ms == window.opens_at_ms
    await desk.update(UPCOMING.replace("899.00", "799.00"))
    assert (await desk.state()).opens_at_ms == window.opens_at_ms
    await desk.update(UPCOMING.replace("899.00", "799.00").replace("opens_at = 2095", "opens_at = 2094"))
    assert (await merchandising.show(desk.valkey, "night")).phase == "upcoming"


async def test_pause_resume_and_close_which_is_final(desk: Desk) -> None:
    await desk.create()
    assert (await merchandising.pause(desk.valkey, "night")).status == "paused"
    assert (await merchandising.pause(desk.valkey, "night")).entry == ""
    assert (await merchandising.resume(desk.valkey, "night")).status == "open"
    assert (await merchandising.close(desk.valkey, "night")).status == "closed"
    assert (await merchandising.close(desk.valkey, "night")).status == "closed"
    for change in (merchandising.pause, merchandising.resume):
        with pytest.raises(CommandRefused, match="final"):
            await change(desk.valkey, "night")
    with pytest.raises(CommandRefused, match="final"):
        await merchandising.open_now(desk.valkey, desk.ledger, "night")
    closed_at = (await desk.state()).closes_at_ms
    await desk.update(FILE.replace("2096", "2097"))
    state = await desk.state()
    assert (state.status, state.closes_at_ms) == ("closed", closed_at)


async def test_stock_is_compared_and_set(desk: Desk) -> None:
    await desk.create()
    level = await merchandising.set_stock(desk.valkey, "night", "FRIDGE", to=1500, expect=1000)
    assert level[:2] == (1500, 1500)
    await desk.valkey.hincrby(keys.stock(0, "night"), "0", -100)
    before = await desk.everything()
    with pytest.raises(CommandRefused, match="the supply is 1500, of which 100 taken; expected 1000"):
        await merchandising.set_stock(desk.valkey, "night", "FRIDGE", to=1500, expect=1000)
    with pytest.raises(CommandRefused, match="100 of 1500 are taken"):
        await merchandising.set_stock(desk.valkey, "night", "FRIDGE", to=99, expect=1500)
    with pytest.raises(CommandRefused, match="no SKU NONE"):
        await merchandising.set_stock(desk.valkey, "night", "NONE", to=1, expect=1)
    assert await desk.everything() == before
    level = await merchandising.set_stock(desk.valkey, "night", "FRIDGE", to=100, expect=1500)
    assert level[:2] == (100, 0)


async def test_a_suspended_sku_comes_back(desk: Desk) -> None:
    await desk.create(FILE + OFFER)
    assert await merchandising.suspend(desk.valkey, "night", "KETTLE")
    assert not await merchandising.suspend(desk.valkey, "night", "KETTLE")
    assert (await desk.state()).suspended == {1}
    assert await merchandising.unsuspend(desk.valkey, "night", "KETTLE")
    assert (await desk.state()).suspended == frozenset()


async def test_many_creates_at_once_each_get_their_number(desk: Desk, valkey_memory: ValkeyServer, ledger: str) -> None:
    async def create(name: str) -> bool:
        connection = await pool.connect(ledger)
        try:
            text = FILE.replace('"night"', f'"{name}"')
            return await merchandising.create(desk.valkey, connection, parse_sale_file(text, ""), text)
        finally:
            await connection.close()

    names = [f"night-{place % 6}" for place in range(12)]
    assert sum(await asyncio.gather(*map(create, names))) == 6
    catalogue = await desk.catalogue()
    assert {sale.id for sale in catalogue.sales} == set(names)
    assert [sale.number for sale in catalogue.sales] == [1, 2, 3, 4, 5, 6]
    views = await merchandising.list_sales(desk.valkey)
    assert [view.state.available for view in views] == [(1000,)] * 6


async def test_the_demo_sale_is_made_once_and_open_for_30_days(desk: Desk) -> None:
    assert await merchandising.ensure_demo_sale(desk.valkey, desk.ledger)
    view = await merchandising.show(desk.valkey, "double11")
    assert view.phase == "open"
    assert view.state.closes_at_ms - view.state.opens_at_ms == 30 * 86_400_000
    assert sum("SG" in offer.prices for offer in view.sale.offers) >= 50
    await merchandising.close(desk.valkey, "double11")
    assert not await merchandising.ensure_demo_sale(desk.valkey, desk.ledger)
    assert (await merchandising.show(desk.valkey, "double11")).phase == "closed"


def addresses(redis_url: str, database_url: str) -> dict[str, str]:
    """The environment of a command that finds its servers there and nowhere else."""
    return {"FLASHSALE_REDIS_URL": redis_url, "FLASHSALE_DATABASE_URL": database_url}


def flashsale(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """`flashsale sale …` in this process, for a new one takes a second to import: exit status, stdout, stderr."""
    done = CliRunner().invoke(app, list(arguments), env=environment)
    return done.exit_code, done.stdout, done.stderr


async def test_the_command_line(desk: Desk, valkey_memory: ValkeyServer, ledger: str, tmp_path: Path) -> None:
    environment = addresses(valkey_memory.url, ledger)

    async def sale(*arguments: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(flashsale, environment, *arguments)

    file = tmp_path / "night.toml"
    file.write_text(UPCOMING + OFFER)
    assert [(await sale(*words))[0] for words in (("--help",), ("nonsense",), ("create", "absent"))] == [0, 2, 2]
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"Example: flashsale sale {name}" in (await sale(name, "--help"))[1]
    assert "Example: flashsale sale " in (await sale("--help"))[1]
    assert (await sale("create", str(file), "--as", "NO id"))[:2] == (2, "")

    code, out, _ = await sale("create", str(file), "--as", "late", "--json")
    assert (code, json.loads(out)) == (0, {"sale": "late", "created": True, "offers": 2})
    assert (await sale("create", str(file), "--as", "late"))[0] == 0
    file.write_text(file.read_text().replace("899.00", "898.00"))
    code, out, err = await sale("create", str(file), "--as", "late")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert (await sale("update", str(file), "--as", "late"))[0] == 0

    code, out, _ = await sale("stock", "late", "KETTLE", "--to", "9", "--expect", "5", "--json")
    assert (code, json.loads(out)) == (0, {"sale": "late", "sku": "KETTLE", "supply": 9, "available": 9})
    code, out, err = await sale("stock", "late", "KETTLE", "--to", "9", "--expect", "5")
    assert (code, err) == (1, "KETTLE: the supply is 9, of which 0 taken; expected 5\n")
    assert (await sale("suspend", "late", "KETTLE"))[0] == 0
    assert (await sale("open", "late"))[0] == 0
    code, out, _ = await sale("show", "late", "--json")
    shown = json.loads(out)
    assert (shown["phase"], [offer["suspended"] for offer in shown["offers"]]) == ("open", [False, True])
    code, out, _ = await sale("list")
    assert code == 0 and out.startswith("late ")
    code, _, err = await sale("pause", "absent")
    assert (code, err) == (1, "there is no sale 'absent'; there are: late\n")

    file.write_text(FILE.replace("stock = 1000", "stock = -1").replace('"899.00"', '"1.234"'))
    code, _, err = await sale("create", str(file))
    assert code == 1 and [line.split(": ")[0] for line in err.splitlines()] == [f"{file}:12", f"{file}:15"]
    code, out, _ = await sale("create", str(file), "--json")
    assert code == 1 and [fault["line"] for fault in json.loads(out)["faults"]] == [12, 15]


async def test_servers_that_are_away_are_one_line(tmp_path: Path) -> None:
    nowhere = addresses(f"unix://{tmp_path}/valkey.sock", f"postgresql://u:p@/x?host={tmp_path}")
    (tmp_path / "night.toml").write_text(FILE)
    for arguments in (("list",), ("create", str(tmp_path / "night.toml"))):
        code, out, err = await asyncio.to_thread(flashsale, nowhere, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert ":p@" not in err


async def test_the_command_as_it_is_installed(desk: Desk, valkey_memory: ValkeyServer, ledger: str) -> None:
    await desk.create()
    process = await asyncio.create_subprocess_exec(
        str(FLASHSALE), "sale", "list", "--json",
        env=os.environ | addresses(valkey_memory.url, ledger), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert [sale["sale"] for sale in json.loads(out)["sales"]] == ["night"]
