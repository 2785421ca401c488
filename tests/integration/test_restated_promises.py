"""A promise is made again at a payment behind the parcel's cut-off, and both are kept; else the first one holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from flashsale.embedded import ValkeyServer
from flashsale.front.order_document import whole
from flashsale.ledger import dossier
from flashsale.ledger.life.restating import Promised, restated
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.payment import IntentState
from flashsale.sale.shipping.calendars import day_number, day_of
from flashsale.sale.world import packaged
from tests.integration.parcels import KETTLE, NOODLES, Parcels, cutoff_ms, lane_of

SUPERMARKET = lane_of("tmall-supermarket-hk")


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Parcels]:
    async with Parcels(valkey_memory.url, ledger) as shop:
        await shop.open()
        yield shop


async def detail_of(shop: Parcels, order_id: str) -> dict[str, Any]:
    """What the history says of the payment."""
    found: dict[str, Any] = json.loads(
        await shop.ledger.fetchval("SELECT detail FROM history WHERE order_id = $1 AND event = 'order.paid'", order_id)
    )
    return found


def next_promise(dispatch_day: int) -> date:
    """What the supermarket's lane promises on the next day that it dispatches."""
    days = next(each for each in packaged().lanes.calendars if each.id == SUPERMARKET.calendar)
    return day_of(days.working_day(dispatch_day + 1) + 1)


async def test_the_supermarket_s_next_day_is_made_again_from_the_cut_off_on(shop: Parcels) -> None:
    early, late = await shop.ordered(NOODLES), await shop.ordered(NOODLES)
    row = await shop.row(early)
    assert (row["lane_number"], row["promised_by"]) == (SUPERMARKET.number, day_of(row["dispatch_day"] + 1))
    cutoff = cutoff_ms(SUPERMARKET, row["dispatch_day"])
    await shop.paid_at(cutoff - 1, early)
    await shop.paid_at(cutoff, late)
    rows = [await shop.row(order) for order in (early, late)]
    first, second = row["promised_by"], next_promise(row["dispatch_day"])
    assert [(each["status"], each["promised_by"], each["restated_by"]) for each in rows] == [
        ("paid", first, None),
        ("paid", first, second),
    ]
    assert second > first
    assert await detail_of(shop, early) == {"method": "card", "source": "evt_1"}
    both = {"promised_by": first.isoformat(), "restated_by": second.isoformat()}
    assert await detail_of(shop, late) == {"method": "card", "source": "evt_1", **both}
    # The parcel stays counted on the day that it was held for.
    assert rows[1]["dispatch_day"] == row["dispatch_day"]
    await shop.drain()
    assert await shop.faults() == []
    sale, _ = await shop.sale()
    documents = [whole(found, sale) for order in (early, late) if (found := await dossier.read(shop.ledger, order))]
    assert [(each["promised_by"], each.get("restated_by")) for each in documents] == [
        (first.isoformat(), None),
        (first.isoformat(), second.isoformat()),
    ]
    assert [each["next"]["by"] for each in documents] == [first.isoformat(), second.isoformat()]
    assert ["after the day's cut-off" in each["next"]["why"] for each in documents] == [False, True]
    assert [entry.get("detail", {}).get("restated_by") for entry in documents[1]["history"]] == [
        None,
        second.isoformat(),
    ]


async def test_of_orders_that_are_paid_together_each_has_its_own_lane_s_promise(shop: Parcels) -> None:
    """One batch: two lanes with cut-offs hours apart, three countries, a part cancelled, one paid before."""
    noodles = await shop.ordered(NOODLES, units=3)
    cut_short = await shop.ordered(NOODLES, units=3)
    slow = await shop.ordered(KETTLE, "SG", lane="cainiao-standard")
    quick = await shop.ordered(KETTLE, "NZ", lane="ems-parcel")
    await shop.begin_payment(cut_short)
    await shop.cancel(cut_short, [(0, 1)])
    ids = [noodles, cut_short, slow, quick]
    rows = {order: await shop.row(order) for order in ids}
    # When the supermarket's day and the post's are over, whichever comes first, and Cainiao's is not.
    lanes = {noodles: SUPERMARKET, cut_short: SUPERMARKET, quick: lane_of("ems-parcel")}
    at_ms = max(cutoff_ms(lane, rows[order]["dispatch_day"]) for order, lane in lanes.items())
    still = at_ms < cutoff_ms(lane_of("cainiao-standard"), rows[slow]["dispatch_day"])
    await shop.paid_at(at_ms, *ids)
    assert {(await shop.row(order))["status"] for order in ids} == {"paid"}
    for order in ids:
        lane_now = next(
            each
            for each in packaged().lanes.at(rows[order]["market"], "CN", at_ms)
            if each.number == rows[order]["lane_number"]
        )
        expected = None if order == slow and still else date.fromisoformat(lane_now.promised_by)
        restated = (await shop.row(order))["restated_by"]
        assert restated == expected, order
        assert (await detail_of(shop, order)).get("restated_by") == (expected and expected.isoformat())
    assert await shop.faults() == []


async def test_told_again_an_order_is_restated_no_second_time(shop: Parcels) -> None:
    order = await shop.ordered(NOODLES)
    row = await shop.row(order)
    await shop.paid_at(cutoff_ms(SUPERMARKET, row["dispatch_day"]), order)
    restated = (await shop.row(order))["restated_by"]
    later = cutoff_ms(SUPERMARKET, row["dispatch_day"] + 5)
    await shop.paid_at(later, order)
    fact = {"authorised": row["total"], "captured": row["total"]}
    await shop.told(order, IntentState.CAPTURED, **fact)
    assert (await shop.row(order))["restated_by"] == restated
    assert await shop.ledger.fetchval("SELECT count(*) FROM history WHERE event = 'order.paid'") == 1


async def test_a_late_payment_is_promised_what_its_new_day_allows(shop: Parcels) -> None:
    order = await shop.ordered(NOODLES)
    row = await shop.row(order)
    await shop.begin_payment(order)
    await shop.told(order, IntentState.CLOSED)
    assert await shop.expire() == 1
    await shop.drain()
    # As if it had been accepted three days ago: its units and its room are taken again now.
    await shop.ledger.execute(
        "UPDATE orders SET dispatch_day = dispatch_day - 3, promised_by = promised_by - 3 WHERE id = $1", order
    )
    await shop.ledger.execute(
        "UPDATE movement SET detail = jsonb_set(detail, '{day}', to_jsonb((detail ->> 'day')::int - 3))"
        " WHERE order_id = $1 AND kind = 'lane'",
        order,
    )
    await shop.ledger.execute("UPDATE payment SET state = 'open', rank = 0 WHERE order_id = $1", order)
    await shop.told(order, IntentState.AUTHORISED, authorised=row["total"])
    await shop.drain()
    found = await shop.row(order)
    assert found["status"] == "paid"
    assert found["promised_by"] == row["promised_by"] - timedelta(days=3)
    assert found["restated_by"] == day_of(found["dispatch_day"] + 1) > found["promised_by"]
    said = await detail_of(shop, order)
    assert (said["late"], said["restated_by"]) == (True, found["restated_by"].isoformat())
    assert await shop.faults() == []


async def test_a_late_payment_on_the_same_day_keeps_its_promise(shop: Parcels) -> None:
    order = await shop.ordered(NOODLES)
    row = await shop.row(order)
    await shop.begin_payment(order)
    await shop.told(order, IntentState.CLOSED)
    assert await shop.expire() == 1
    await shop.drain()
    await shop.ledger.execute("UPDATE payment SET state = 'open', rank = 0 WHERE order_id = $1", order)
    await shop.told(order, IntentState.AUTHORISED, authorised=row["total"])
    await shop.drain()
    found = await shop.row(order)
    # The test may itself run over the cut-off: then the parcel is another day's, and so is its promise.
    moved = found["dispatch_day"] != row["dispatch_day"]
    assert (found["status"], found["restated_by"] is not None) == ("paid", moved)


async def test_what_a_channel_collected_is_paid_as_it_comes_and_keeps_its_promise(shop: Parcels) -> None:
    order = await shop.ordered(NOODLES, collected=True)
    row = await shop.row(order)
    assert (row["status"], row["restated_by"]) == ("paid", None)
    await shop.paid_at(cutoff_ms(SUPERMARKET, row["dispatch_day"]))
    assert (await shop.row(order))["restated_by"] is None


async def test_a_lane_that_the_catalogue_does_not_know_restates_nothing(shop: Parcels) -> None:
    order = await shop.ordered(NOODLES)
    await shop.ledger.execute("UPDATE orders SET lane_number = 999 WHERE id = $1", order)
    row = await shop.row(order)
    await shop.paid_at(cutoff_ms(SUPERMARKET, row["dispatch_day"] + 9), order)
    found = await shop.row(order)
    assert (found["status"], found["restated_by"]) == ("paid", None)


# --- many at once, against plain Python ---

LANES = packaged().lanes
SOONER = replace(LANES, lanes=tuple(replace(lane, cutoff_s=3600) for lane in LANES.lanes))  # all at one in the morning
BOOKS = {1: LANES, 2: SOONER}
TODAY = day_number(date(2026, 11, 11))
routes = st.sampled_from([(lane.number, country) for lane in LANES.lanes for country in lane.routes])
orders_paid = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), routes, st.integers(TODAY - 12, TODAY + 3), st.booleans()), max_size=40
)


def expected(version: int, number: int, country: str, dispatch_day: int, at_ms: int) -> date | None:
    """By the clock on the wall: is the day's cut-off over, on what day will the next van leave."""
    book = BOOKS.get(version)
    if book is None:
        return None
    lane = next(lane for lane in book.lanes if lane.number == number)
    if at_ms < cutoff_ms(lane, dispatch_day):
        return None
    calendar = next(each for each in book.calendars if each.id == lane.calendar)
    day = dispatch_day
    while not (calendar.works(day) and at_ms < cutoff_ms(lane, day)):
        day += 1
    return day_of(day + lane.routes[country].days)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paid=orders_paid, hour=st.integers(-30, 30), edge=st.sampled_from([-1, 0, 1]))
def test_each_order_of_a_batch_is_restated_by_its_own_catalogue_s_lanes(
    ledger: str, paid: list[tuple[int, tuple[int, str], int, bool]], hour: int, edge: int
) -> None:
    at_ms = TODAY * 86_400_000 + hour * 3_600_000 + edge
    batch = [
        Promised(f"o{place}", country, version, number, day, date(2026, 1, 1) if promised else None)
        for place, (version, (number, country), day, promised) in enumerate(paid)
    ]
    wanted = {
        order.order_id: by
        for order in batch
        if order.promised_by is not None
        and order.lane_number is not None
        and order.dispatch_day is not None
        and (by := expected(order.catalogue_version, order.lane_number, order.market, order.dispatch_day, at_ms))
    }

    async def found() -> dict[str, date]:
        connection = await asyncpg.connect(ledger)
        try:
            for version, book in BOOKS.items():
                document = Catalogue(version, (), replace(packaged(), lanes=book)).encode()
                await connection.execute(
                    "INSERT INTO catalogue (version, document) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    version,
                    document,
                )
            return await restated(connection, batch, at_ms)
        finally:
            await connection.close()

    assert asyncio.run(found()) == wanted
