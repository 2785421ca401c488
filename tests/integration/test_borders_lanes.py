"""Orders that the hot path itself sends across a border: their lane's day, duty and tax through the whole life."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flashsale import merchandising
from flashsale.embedded import ValkeyServer
from flashsale.reservation.limits import LaneDay
from flashsale.sale.payment import IntentState
from flashsale.sale.salefile import parse_sale_file
from flashsale.sale.world import packaged
from tests.integration.borders import Borders
from tests.integration.shop import FILE, FRIDGE, KETTLE


class Abroad(Borders):
    """The shop's sale with parcels that leave China."""

    async def open(self, sale_id: str = "sale") -> None:
        assert (await self.recover()).ok
        text = FILE.format(id=sale_id).replace("hold_seconds", 'ships_from = "CN"\nhold_seconds')
        text = text.replace("weight_g = 1\n", 'weight_g = 1000\nhs_code = "851660"\norigin = "CN"\n')
        await merchandising.create(self.valkey, self.ledger, parse_sale_file(text, "sale.toml"), text)


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Abroad]:
    async with Abroad(valkey_memory.url, ledger) as shop:
        await shop.open()
        yield shop


async def test_a_parcel_is_given_back_and_taken_again_for_the_day_that_it_then_leaves(shop: Abroad) -> None:
    order = await shop.bought("anna", (KETTLE, 2), (FRIDGE, 1))
    row = await shop.row(order)
    day = LaneDay(row["lane_number"], row["dispatch_day"])
    assert row["total"] == sum(a * b for a, b in zip(row["prices"], row["quantities"], strict=True)) + row[
        "shipping"
    ] + sum([*row["duties"], *row["taxes"]])
    assert await shop.limits() == {day: 1}
    await shop.begin_payment(order)
    await shop.told(order, IntentState.CLOSED)
    assert await shop.expire() == 1
    await shop.drain()
    assert await shop.limits() == {}
    # As if it had been accepted days ago: it leaves on the day that is next now.
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
    assert await shop.status(order) == "paid"
    assert (await shop.row(order))["dispatch_day"] == day.day
    assert await shop.limits() == {day: 1}
    assert await shop.faults() == []
    await shop.valkey.flushall()
    assert (await shop.recover()).ok
    assert await shop.limits() == {day: 1}
    await shop.cancel(order)
    await shop.drain()
    assert await shop.limits() == {}
    assert await shop.faults() == []


async def test_a_lane_that_has_more_parcels_than_it_carries_is_named(shop: Abroad) -> None:
    order = await shop.bought("anna", (KETTLE, 1))
    row = await shop.row(order)
    lane = packaged().lanes.lane(row["lane"])
    assert lane is not None
    await shop.ledger.execute(
        "INSERT INTO movement SELECT partition, journal_ms, journal_seq, 'lane', sale, NULL, -$2::int8, id,"
        " jsonb_build_object('lane', lane_number, 'day', dispatch_day, 'number', 2) FROM orders WHERE id = $1",
        order,
        lane.capacity,
    )
    faults = await shop.faults()
    assert any(f"lane {lane.number} has {lane.capacity + 1} parcels" in fault for fault in faults), faults
