"""The audit finds what a promise ledger may have wrong, and a ledger from before there was one is brought up to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module

import pytest

from flashsale.embedded import ValkeyServer
from flashsale.sale.market import MARKETS
from tests.integration.parcels import KETTLE, NOODLES, Parcels, cutoff_ms, lane_of, noon_there_ms

DAY_MS = 86_400_000


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Parcels]:
    """With four parcels that came to their end: on time, late on account of the hour alone, not at all, restated."""
    async with Parcels(valkey_memory.url, ledger) as shop:
        await shop.open()
        on_time, late, failed = [await shop.ordered(KETTLE, "NZ") for _ in range(3)]
        restated = await shop.ordered(NOODLES)
        paid_ms = await shop.now_ms()
        await shop.paid_at(paid_ms, on_time, late, failed)
        row = await shop.row(restated)
        await shop.paid_at(cutoff_ms(lane_of("tmall-supermarket-hk"), row["dispatch_day"]), restated)
        by = (await shop.row(on_time))["promised_by"]
        last_ms = noon_there_ms("Pacific/Auckland", by.toordinal() - 719_163) + DAY_MS // 2 - 1
        await shop.arrives(on_time, last_ms)
        await shop.arrives(late, last_ms + 1)
        await shop.arrives(failed, last_ms, delivered=False)
        await shop.arrives(restated, paid_ms + 30 * DAY_MS)
        await shop.drain()
        yield shop


@pytest.mark.parametrize(
    ("damage", "faults"),
    [
        ("SELECT 1", []),
        ("DELETE FROM promise WHERE NOT delivered", ["its parcel came to its end, and the promise ledger does not"]),
        (
            "INSERT INTO promise SELECT 'x' || order_id, lane_number, market, promised_by, restated_by, delivered,"
            " ended_ms, ended_on, on_time FROM promise WHERE NOT delivered",
            ["the promise ledger has the end of its parcel, the order has none"],
        ),
        ("UPDATE promise SET on_time = NOT on_time WHERE market = 'NZ'", ["its promise was judged wrongly"] * 3),
        ("UPDATE promise SET ended_on = ended_on + 1 WHERE on_time", ["its parcel ended on"]),
        ("UPDATE promise SET ended_ms = ended_ms + 1 WHERE on_time", ["its parcel ended on"]),
        ("UPDATE promise SET restated_by = NULL WHERE market = 'HK'", ["the promise ledger has another lane"]),
        ("UPDATE promise SET market = 'AU' WHERE NOT delivered", ["the promise ledger has another lane"]),
        (
            "WITH gone AS (UPDATE promise SET restated_by = NULL) UPDATE orders SET restated_by = NULL",
            ["its promise is not made again, its history says"],
        ),
        (
            "WITH gone AS (UPDATE promise SET promised_by = restated_by WHERE market = 'HK')"
            " UPDATE orders SET promised_by = restated_by WHERE market = 'HK'",
            ["its promise was made again for no later day"],
        ),
    ],
)  # fmt: skip
async def test_the_audit_names_what_is_wrong(shop: Parcels, damage: str, faults: list[str]) -> None:
    await shop.ledger.execute(damage)
    found = [fault for fault in await shop.faults() if fault.startswith("promise ")]
    named = [each for each in found if not each.startswith("promise None")]
    assert len(named) == len(found)  # each names its order
    for expected in faults:
        match = next((each for each in found if expected in each), None)
        assert match is not None, (expected, found)
        found.remove(match)
    assert found == []


async def test_parcels_from_before_the_promise_ledger_are_entered(shop: Parcels) -> None:
    before = await shop.ledger.fetch("SELECT * FROM promise ORDER BY order_id")
    assert [row["on_time"] for row in before].count(True) == 1 and len(before) == 4
    await shop.ledger.execute("TRUNCATE promise")
    step = import_module("flashsale.ledger.migrations.versions.0006_promises")
    await shop.ledger.execute(step.EARLIER, list(MARKETS), [market.zone for market in MARKETS.values()])
    assert await shop.ledger.fetch("SELECT * FROM promise ORDER BY order_id") == before
    assert await shop.faults() == []
