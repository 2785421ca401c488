"""Catalogues taken into a sale, side by side, and by a worker: supplies, the audit, recovery, and deaths midway."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from flashsale.audit import audit
from flashsale.embedded import ValkeyServer
from flashsale.importing import Outcome, Wanted, importer, take_in
from flashsale.ledger import imports
from flashsale.pipeline.imports import Imports
from flashsale.sale.products.product import Finding
from tests.integration.shop import FRIDGE, Shop

COLUMNS = ("Handle", "Title", "Variant SKU", "Variant Price", "Variant Inventory Qty", "Expected Inventory Qty",
           "Variant Grams")  # fmt: skip
PRODUCT_LOCK = 0x666C7064  # ledger/products.py's
WORKER = """
import asyncio, sys
from flashsale.importing import importer
from flashsale.pipeline.imports import Imports
asyncio.run(Imports(sys.argv[2], importer(sys.argv[1])).run())
"""


def table(*rows: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    file = csv.writer(text)
    file.writerow(COLUMNS)
    file.writerows(rows)
    return text.getvalue().encode()


def lamp(sku: str = "LAMP", price: str = "9.99", stock: object = 10, expect: object = "") -> tuple[object, ...]:
    return (sku.lower(), f"A {sku}", sku, price, stock, expect, 400)


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Shop]:
    async with Shop(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


async def take(
    shop: Shop, data: bytes, *, merchant: str = "lux", sale: str | None = "sale", market: str = "SG"
) -> tuple[Outcome, list[Finding]]:
    said: list[Finding] = []
    ledger = await asyncpg.connect(shop.database_url)
    try:
        wanted = Wanted(merchant, market, sale)
        return await take_in(ledger, shop.valkey, io.BytesIO(data), wanted, say=said.append), said
    finally:
        await ledger.close()


async def products(shop: Shop, *fields: str) -> list[tuple[Any, ...]]:
    rows = await shop.ledger.fetch(f"SELECT {', '.join(fields)} FROM product ORDER BY merchant, sku")  # noqa: S608
    return [tuple(row) for row in rows]


async def is_sound(shop: Shop) -> None:
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


# --- into a sale ---


async def test_products_are_sold_audited_recovered_and_sold_again(shop: Shop) -> None:
    assert (await shop.buy("ann", (FRIDGE, 1)))[0] == "A"  # the sale runs
    outcome, said = await take(shop, table(lamp("LAMP", stock=3), lamp("DESK", price="100.00")))
    assert (outcome.offers, outcome.faults, said) == (2, 0, [])
    assert (await shop.buy("ann", ("LAMP", 2), ("DESK", 1)))[0] == "A"
    assert (await shop.buy("bob", ("LAMP", 2)))[0] != "A"  # one is left
    await shop.write()
    await is_sound(shop)
    await shop.valkey.flushall()
    assert (await shop.recover()).ok
    await is_sound(shop)
    assert (await shop.buy("bob", ("LAMP", 1)))[0] == "A"
    assert (await shop.buy("cid", ("LAMP", 1)))[0] != "A"
    await shop.write()
    await is_sound(shop)


async def test_a_supply_is_set_only_from_what_it_is_and_never_below_what_is_sold(shop: Shop) -> None:
    await take(shop, table(lamp(stock=10)))
    for number in range(6):
        assert (await shop.buy(f"s{number}", ("LAMP", 1)))[0] == "A"
    kept, said = await take(shop, table(lamp(stock=50)))  # nothing is said of what it is believed to be
    assert (kept.stock_edits, [each.code for each in said]) == (0, ["stock-kept"])
    wrong, said = await take(shop, table(lamp(price="1.00", stock=50, expect=4)))
    assert (wrong.applied, [(each.row, each.code) for each in said]) == (False, [(2, "stock-changed")])
    assert "is 10, not 4" in said[0].message
    less, said = await take(shop, table(lamp(stock=5, expect=10)))  # six are sold
    assert (less.stock_edits, [each.code for each in said]) == (0, ["stock-changed"]) and less.error
    right, _ = await take(shop, table(lamp(stock=8, expect=10)))
    assert (right.stock_edits, right.faults) == (1, 0)
    again, _ = await take(shop, table(lamp(stock=8, expect=10)))  # as after the death of a worker
    assert again.faults == 0
    taken = [(await shop.buy(f"t{number}", ("LAMP", 1)))[0] for number in range(4)]
    assert taken.count("A") == 2  # eight in all
    await shop.write()
    await is_sound(shop)


async def test_buyers_and_a_supply_that_is_set_never_oversell(shop: Shop) -> None:
    await take(shop, table(lamp(stock=40)))

    async def buy() -> int:
        return [(await shop.buy(f"s{number}", ("LAMP", 1)))[0] for number in range(80)].count("A")

    async def edit() -> int:
        supply = 40
        for to in (50, 45, 60, 30, 55):
            outcome, _ = await take(shop, table(lamp(stock=to, expect=supply)))
            if outcome.stock_edits:
                supply = to
        return supply

    sold, supply = await asyncio.gather(buy(), edit())
    left = [(await shop.buy(f"t{number}", ("LAMP", 1)))[0] for number in range(80)].count("A")
    assert sold + left == supply
    await shop.write()
    await is_sound(shop)


async def test_another_merchant_s_offer_is_not_touched(shop: Shop) -> None:
    await take(shop, table(lamp(price="9.99")))
    sale, version = await shop.sale()
    outcome, said = await take(shop, table(lamp(price="0.01"), lamp("DESK")), merchant="dim")
    assert [(each.row, each.code) for each in said] == [(2, "not-yours")]
    assert not outcome.applied and await products(shop, "merchant", "sku") == [("lux", "LAMP")]
    assert await shop.sale() == (sale, version)
    house, said = await take(shop, table(lamp(FRIDGE, price="0.01")))  # the platform's own
    assert not house.applied and [each.code for each in said] == ["not-yours"]


async def test_a_second_market_s_price_joins_the_offer(shop: Shop) -> None:
    await take(shop, table(lamp(price="9.99")))
    await take(shop, table(lamp(price="31.50", stock="")), market="MY")
    offer = (await shop.sale())[0].by_sku["LAMP"]
    assert (offer.prices, offer.merchant) == ({"SG": 999, "MY": 3150}, "lux")


# --- side by side ---


async def test_two_imports_of_one_merchant_are_one_after_the_other(shop: Shop) -> None:
    first, second = (
        table(*(lamp(f"S{number}", price=price, stock=stock) for number in order))
        for price, stock, order in (("1.00", 1, range(1500)), ("2.00", 2, range(1499, -1, -1)))
    )
    done = await asyncio.gather(take(shop, first, sale=None), take(shop, second, sale=None))
    assert sorted((outcome.created, outcome.updated) for outcome, _ in done) == [(0, 1500), (1500, 0)]
    later = 1 if done[1][0].updated else 0
    assert set(await products(shop, "prices ->> 'SG'", "stock")) == {(("100", 1), ("200", 2))[later]}


# --- by a worker ---


async def queued(shop: Shop, data: bytes, at_ms: int = 0) -> int:
    async with shop.ledger.transaction():
        row = await imports.add(
            shop.ledger, merchant="lux", market="SG", sale=None, decimal_mark=None, dry_run=False, parts=1,
            at_ms=at_ms, now_ms=0,
        )  # fmt: skip
        assert row is not None
        return (await imports.put_part(shop.ledger, row, 1, data)).number


async def ended(shop: Shop, number: int, within_s: float = 20) -> imports.ImportRow:
    deadline = time.monotonic() + within_s
    while True:
        row = await imports.get(shop.ledger, "lux", number)
        assert row is not None
        if row.status in imports.ENDED:
            return row
        assert time.monotonic() < deadline, row
        await asyncio.sleep(0.05)


async def test_a_worker_applies_what_is_due_and_not_before(shop: Shop) -> None:
    now_ms = int(time.time() * 1000)
    later = await queued(shop, table(lamp(price="2.00")), now_ms + 2000)
    first = await queued(shop, table(lamp(price="1.00")))
    never = await queued(shop, table(lamp(price="3.00")), now_ms + 3_600_000)
    duty = Imports(shop.database_url, importer(shop.redis_url))
    working = asyncio.create_task(duty.run())
    assert (await ended(shop, first)).created == 1
    assert await products(shop, "prices ->> 'SG'") == [("100",)]
    row = await ended(shop, later)
    assert (row.updated, row.finished_ms is not None and row.finished_ms >= now_ms + 2000) == (1, True)
    assert await products(shop, "prices ->> 'SG'") == [("200",)]
    duty.stop()
    await working
    waiting = await imports.get(shop.ledger, "lux", never)
    assert waiting is not None and waiting.status == "queued"


async def test_a_worker_killed_midway_leaves_nothing_and_the_next_does_it_once(shop: Shop) -> None:
    number = await queued(shop, table(*(lamp(f"S{n}", stock=n) for n in range(20_000))))
    killed = worker(shop)
    try:
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND granted"
        deadline = time.monotonic() + 20
        while not await shop.ledger.fetchval(held, PRODUCT_LOCK):
            assert killed.poll() is None and time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    row = await imports.get(shop.ledger, "lux", number)
    assert row is not None and row.status == "queued"
    assert await products(shop, "sku") == []
    following = worker(shop)
    try:
        assert (await ended(shop, number, 30)).created == 20_000
    finally:
        following.terminate()
        following.wait()
    assert len(await products(shop, "sku")) == 20_000
    assert await shop.ledger.fetchval("SELECT count(*) FROM import_part") == 0


async def test_an_import_whose_end_was_not_written_down_is_applied_once(shop: Shop) -> None:
    """The worker died between the two: it is done again, and finds all as it should be."""
    await take(shop, table(lamp(stock=5)), sale=None)
    edit = table(lamp(stock=7, expect=5))
    await take(shop, edit, sale=None)
    number = await queued(shop, edit)
    row = await imports.get(shop.ledger, "lux", number)
    assert row is not None
    done = await importer(shop.redis_url)(shop.ledger, row)
    assert (done.status, done.unchanged, done.faults) == ("applied", 1, 0)
    assert await products(shop, "stock") == [(7,)]


def worker(shop: Shop) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, shop.redis_url, shop.database_url])
