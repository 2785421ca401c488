"""Parcels from the payment to the door: booked at a real sandbox over HTTP, carried, told of, lost, and asked about."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flashsale.embedded import ValkeyServer
from tests.integration.carrier_house import CarrierHouse, carriers, open_carrier_house, until, worker


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[CarrierHouse]:
    async with open_carrier_house(valkey_memory.url, ledger) as house:
        yield house


async def test_a_paid_order_is_booked_picked_up_and_delivered(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        order = await shop.place(("KETTLE", 2), ("FAN", 1))
        waybill = await shop.booked(order)
        (booked,) = (await sandbox.read("parcels"))["parcels"]
        assert booked == {
            "reference": order, "waybill": waybill, "carrier": "cainiao", "country": "SG", "status": "booked",
        }  # fmt: skip
        assert await shop.order_is(order, "paid")  # a label is no parcel on its way

        await sandbox.control(f"parcels/{waybill}/advance")
        await until(lambda: shop.order_is(order, "shipped"))
        await sandbox.control(f"parcels/{waybill}/deliver")
        await until(lambda: shop.order_is(order, "delivered"))
        tracking = await shop.get(f"/v1/orders/{order}/tracking", **shop.token("ann"))
        assert (tracking["carrier"], tracking["waybill"], tracking["status"]) == ("cainiao", waybill, "delivered")
        codes = [event["code"] for event in tracking["events"]]
        assert codes == ["picked_up", "in_transit", "customs", "out_for_delivery", "delivered"]
