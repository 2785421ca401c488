"""Valkey's data deleted, cut or soiled: no order is taken until it is rebuilt or repaired, and then nothing is missing.

`FLASHSALE_FULL=1` cuts the log at each of its last 512 bytes (several minutes) instead of at a seeded sample.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from flashsale import merchandising
from flashsale.audit import audit
from flashsale.embedded import ValkeyServer
from flashsale.reservation import commands, server
from tests import corpora
from tests.conftest import Engine
from tests.integration.shop import FAN, FRIDGE, KETTLE, Shop
from tests.wire import ask, get, post_order

TAIL_BYTES = 512
SAMPLE = 10  # cuts of a run that is not full
SEED = 1106
WITHIN_S = 30

# --- the engine as a whole ---

SALE = """
[sale]
id = "{sale}"
name = "Damaged"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2099-01-01T00:00:00Z
hold_seconds = 900
[[offers]]
sku = "KETTLE"
brand = "Joyoung"
title = {{ en = "kettle" }}
stock = 1000
quota = 2
weight_g = 900
prices = {{ SG = "20.50" }}
"""


def body(quantity: int) -> bytes:
    lines = [{"sku": "KETTLE", "quantity": quantity}]
    return json.dumps({"sale": "damaged", "lines": lines, "market": "SG"}).encode()


def valkey_directory(engine: Engine) -> Path:
    return engine.data_dir / "valkey"


def last_log(directory: Path) -> Path:
    """The log that Valkey writes now."""
    return max((directory / "appendonlydir").glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[2]))


class Sold:
    """Orders of a sale of 1,000 kettles, and whether an engine still knows each of them."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        file = directory / "damaged.toml"
        file.write_text(SALE.format(sale="damaged"))
        engine.command("sale", "create", str(file))
        self.tokens = engine.command("token", "shopper", "s", "--count", "400").stdout.split()
        self.orders: dict[int, Any] = {}

    async def sell(self, count: int) -> None:
        """So many more orders of one or two kettles, each of a shopper of its own."""
        first = len(self.orders)
        for number in range(first, first + count):
            (answer,) = await ask(self.engine.port, post_order(body(1 + number % 2), self.tokens[number], f"k{number}"))
            assert answer.status == 201, answer.body
            self.orders[number] = answer.json()

    async def into_ledger(self) -> None:
        """Returns when the ledger has all of them."""
        async with asyncio.timeout(WITHIN_S):
            while (await self.audited())["backlog"]:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)

    async def audited(self) -> dict[str, Any]:
        done = await asyncio.to_thread(self.engine.command, "audit", "--json", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout)["counts"])

    async def nothing_is_missing(self) -> None:
        """Stock right to the unit, every old key replays, nobody gets more than the quota, the audit is green."""
        port, taken = self.engine.port, sum(1 + number % 2 for number in self.orders)
        (stock,) = await ask(port, get("/v1/sales/damaged/stock"))
        assert stock.json()["stock"]["KETTLE"] == {
            "supply": 1000, "available": 1000 - taken, "held": taken, "sold": 0,
        }  # fmt: skip
        for number, first in self.orders.items():
            again, more, shown = await ask(
                port,
                post_order(body(1 + number % 2), self.tokens[number], f'"k{number}"'),
                post_order(body(2), self.tokens[number], f"more-{number}"),
                get(f"/v1/orders/{first['id']}", self.tokens[number]),
            )
            assert (again.status, again.headers.get("idempotent-replayed")) == (201, "true")
            assert again.json() == first
            assert (more.status, more.problem) == (409, "quota-exceeded")
            assert more.json()["used"] == 1 + number % 2
            assert shown.json().items() >= first.items()
        await self.audited()


@pytest.fixture
async def sold(make_engine: Callable[..., Engine], tmp_path: Path) -> Sold:
    """An engine with 40 orders, all of them in the ledger."""
    made = Sold(make_engine().start(), tmp_path)
    await made.sell(40)
    await made.into_ledger()
    return made


async def never_ready_unverified(engine: Engine) -> None:
    """Returns at the first 200 of /readyz; until then every order is refused. It may not come before the rebuild."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                (answer,) = await ask(engine.port, get("/readyz"))
            except (OSError, ValueError):
                await asyncio.sleep(0.01)
                continue
            if answer.status == 200:
                return
            assert answer.json()["reasons"] != []
            (refused,) = await ask(engine.port, post_order(body(1), "no token is looked at", "k")) or [None]
            assert refused is None or refused.status in (503, 401), refused.body  # 401: it became ready in between
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_deleted_data_is_rebuilt_and_again_after_a_kill(sold: Sold) -> None:
    engine = sold.engine
    draw = random.Random(SEED)
    assert engine.stop() == 0
    shutil.rmtree(valkey_directory(engine))
    engine.spawn()
    await never_ready_unverified(engine)
    await sold.nothing_is_missing()
    await sold.sell(5)
    for _ in range(4 if corpora.FULL else 1):  # killed during the rebuild or right after it, whole
        await sold.into_ledger()
        assert engine.process is not None
        engine.process.kill()
        engine.process.wait()
        shutil.rmtree(valkey_directory(engine))
        engine.spawn()
        await until_valkey_answers(engine)
        await asyncio.sleep(draw.uniform(0, 0.6))
        engine.process.kill()
        engine.process.wait()
        engine.spawn()
        await never_ready_unverified(engine)
        await sold.nothing_is_missing()
        await sold.sell(2)
    assert engine.stop() == 0


async def until_valkey_answers(engine: Engine) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                with redis.Redis.from_url(f"unix://{valkey_directory(engine)}/valkey.sock") as client:
                    client.ping()
                return
            except redis.RedisError:
                await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "zeros"])
async def test_a_log_damaged_while_the_engine_was_killed(sold: Sold, damage: str) -> None:
    engine = sold.engine
    draw = random.Random(SEED)
    for _ in range(8 if corpora.FULL else 1):
        await sold.into_ledger()
        assert engine.process is not None
        engine.process.kill()
        engine.process.wait()
        log = last_log(valkey_directory(engine))
        with log.open("r+b") as file:
            if damage == "cut":
                file.truncate(log.stat().st_size - draw.randint(1, TAIL_BYTES))
            else:
                file.seek(0, 2)
                file.write(bytes(TAIL_BYTES))
        engine.spawn()
        await never_ready_unverified(engine)
        await sold.nothing_is_missing()
        await sold.sell(3)
    assert engine.stop() == 0


@pytest.mark.slow
async def test_a_killed_valkey_with_a_damaged_log_comes_back_under_up(sold: Sold) -> None:
    """Only Valkey dies; its log gets 512 zeros before the supervisor starts it again, and loses its end the next time.
    Whether the damage is in time for the start is the scheduler's: either way nothing may be missing."""
    engine = sold.engine
    for zeros in (True, False):
        await sold.into_ledger()
        running = json.loads((engine.data_dir / "run.json").read_text())
        log = last_log(valkey_directory(engine))
        os.kill(running["valkey"]["pid"], signal.SIGKILL)
        with log.open("r+b") as file:
            if zeros:
                file.seek(0, 2)
                file.write(bytes(TAIL_BYTES))
            else:
                file.truncate(log.stat().st_size - TAIL_BYTES // 2)
        await until_red(engine)
        await never_ready_unverified(engine)
        await sold.nothing_is_missing()
        await sold.sell(3)
    assert engine.stop() == 0


async def until_red(engine: Engine) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await asyncio.to_thread(engine.is_ready):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


# --- each byte of a log's end: the same servers and the same recovery, without the processes around them ---


class Kept(NamedTuple):
    """A Valkey that was killed, what it knew, and the ledger's mark of that moment."""

    valkey: ValkeyServer
    shop: Shop
    log: bytes
    knew: dict[str, dict[bytes, bytes]]
    partition: Any
    bought: list[tuple[str, str]]


@pytest.fixture
async def kept(own_valkey: Callable[..., ValkeyServer], ledger: str) -> AsyncIterator[Kept]:
    valkey = own_valkey("kept")
    valkey.start()
    async with Shop(valkey.url, ledger, "fsync") as shop:
        await shop.open()
        bought = []
        for number in range(30):
            lines = [(FRIDGE, 1 + number % 2)] + ([(KETTLE, 3)] if number % 3 == 0 else [])
            assert (await shop.buy(f"s-{number}", *lines, key=f"k-{number}"))[0] == "A"
            bought.append((f"s-{number}", f"k-{number}"))
        await merchandising.suspend(shop.valkey, "sale", FAN)
        await merchandising.set_stock(shop.valkey, "sale", KETTLE, to=450, expect=500)
        for number in range(2):  # the last of the log: an order of two lines, the second with its trim behind it
            assert (await shop.buy(f"last-{number}", (FRIDGE, 2), (KETTLE, 1), key="k"))[0] == "A"
            await shop.write()
            if number == 0:
                await shop.trim()
        knew, row = await shop.dump(), await shop.ledger.fetchrow("SELECT * FROM partition WHERE id = 0")
        valkey.kill()
        yield Kept(valkey, shop, last_log(valkey.directory).read_bytes(), knew, row, bought)


async def damaged(kept: Kept, log: bytes) -> None:
    """Starts on that log and judges: nothing is taken before it is verified, then nothing is missing, and the same
    after one more kill."""
    valkey, shop = kept.valkey, kept.shop
    last_log(valkey.directory).write_bytes(log)
    columns = ("epoch", "mark_ms", "mark_seq", "mark_bytes")
    assignments = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, 1))
    values = [kept.partition[name] for name in columns]
    await shop.ledger.execute(f"UPDATE partition SET {assignments} WHERE id = 0", *values)  # noqa: S608 - our columns
    for again in (False, True):
        valkey.start()
        async with Shop(valkey.url, shop.database_url, "fsync") as after:
            state = await commands.read_partition(after.valkey)
            assert state is None or state.run_id != await server.run_id(after.valkey), "taken before it was verified"
            outcome = await after.recover()
            assert outcome.ok, outcome
            assert not (again and outcome.rebuilt), outcome
            assert await after.dump() == kept.knew
            for shopper, key in (kept.bought[1], ("last-1", "k")):
                lines = [(FRIDGE, 2), (KETTLE, 1)] if key == "k" else [(FRIDGE, 2)]
                assert (await after.buy(shopper, *lines, key=key))[0] == "R"
            assert (await audit(after.redis_url, after.database_url)).faults == []
        valkey.kill()


async def test_a_log_cut_at_any_of_its_last_bytes(kept: Kept) -> None:
    cuts = range(1, TAIL_BYTES + 1)
    chosen = cuts if corpora.FULL else sorted({1, 2, TAIL_BYTES, *random.Random(SEED).sample(cuts, SAMPLE)})
    began = time.monotonic()
    for cut in chosen:
        await damaged(kept, kept.log[:-cut])
    print(f"{len(chosen)} cuts in {time.monotonic() - began:.0f} s")


async def test_zeros_at_a_logs_end(kept: Kept) -> None:
    for zeros in (1, 511, TAIL_BYTES):
        await damaged(kept, kept.log + bytes(zeros))
    await damaged(kept, kept.log[: -TAIL_BYTES // 2] + bytes(TAIL_BYTES))


# --- a Valkey of one's own that would lose orders ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong", "right"), [("maxmemory-policy", "allkeys-lru", "noeviction"), ("appendonly", "no", "yes")]
)
async def test_a_given_valkey_that_would_lose_orders(
    make_engine: Callable[..., Engine], own_valkey: Callable[..., ValkeyServer], name: str, wrong: str, right: str
) -> None:
    """Refused at the start in one line; and when it is changed behind our back, red with that reason until mended."""
    valkey = own_valkey("given")
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set(name, wrong)
        engine = make_engine(FLASHSALE_REDIS_URL=valkey.url)
        process = engine.spawn()
        assert await asyncio.to_thread(process.wait, WITHIN_S) == 1
        (line,) = [line for line in engine.errors.read_text().splitlines() if "refused" in line]
        assert ("maxmemory-policy" if name == "maxmemory-policy" else "append-only") in line

        client.config_set(name, right)
        await asyncio.to_thread(engine.start)
        client.config_set(name, wrong)
        await until_red(engine)
        (answer,) = await ask(engine.port, get("/readyz"))
        (reason,) = answer.json()["reasons"]
        assert ("maxmemory-policy" if name == "maxmemory-policy" else "append-only") in reason
        (order,) = await ask(engine.port, post_order(body(1), engine.token("shopper", "ann"), "k"))
        assert (order.status, order.problem) == (503, "overloaded")
        client.config_set(name, right)
        await asyncio.to_thread(engine.wait_until_ready)
        assert await asyncio.to_thread(engine.stop) == 0
