"""A shop that sends parcels: next day to Hong Kong for its groceries, by the usual lanes for the rest."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from flashsale import merchandising
from flashsale.ledger import life
from flashsale.reservation import commands
from flashsale.reservation.batch import arguments, script_keys
from flashsale.sale.order import Line, OrderRequest
from flashsale.sale.payment import IntentState, PaymentFact
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from flashsale.sale.shipping.calendars import day_of
from flashsale.sale.shipping.lanes import Lane
from flashsale.sale.world import packaged
from tests.integration.life import Life
from tests.integration.shop import RESERVE

NOODLES, KETTLE = "NOODLES", "KETTLE"
FILE = """
[sale]
id = "sale"
name = "A sale"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2099-01-01T00:00:00Z
ships_from = "CN"
hold_seconds = 900
[[offers]]
sku = "NOODLES"
brand = "Shop"
title = { en = "noodles" }
stock = 100000
quota = 0
weight_g = 1000
hs_code = "190230"
origin = "CN"
service = "supermarket"
prices = { HK = "9.50" }
[[offers]]
sku = "KETTLE"
brand = "Joyoung"
title = { en = "kettle" }
stock = 100000
quota = 0
weight_g = 1000
hs_code = "851660"
origin = "CN"
prices = { HK = "120.00", SG = "20.50", NZ = "31.00" }
"""


def lane_of(lane_id: str) -> Lane:
    """The packaged lane."""
    lane = packaged().lanes.lane(lane_id)
    assert lane is not None
    return lane


def cutoff_ms(lane: Lane, dispatch_day: int) -> int:
    """When that day's parcels are handed over, worked out from the lane's own clock."""
    at = datetime.combine(day_of(dispatch_day), time(), ZoneInfo(lane.zone)) + timedelta(seconds=lane.cutoff_s)
    return round(at.astimezone(UTC).timestamp() * 1000)


def noon_there_ms(zone: str, day: int) -> int:
    """Noon of a day (since 1970-01-01) in a zone."""
    return round(datetime.combine(day_of(day), time(12), ZoneInfo(zone)).timestamp() * 1000)


class Parcels(Life):
    """The sale, and orders from their making to the door at whatever time a test says."""

    async def open(self, sale_id: str = "sale") -> None:
        assert (await self.recover()).ok
        await merchandising.create(self.valkey, self.ledger, parse_sale_file(FILE, "sale.toml"), FILE)

    async def ordered(
        self, sku: str = NOODLES, market: str = "HK", *, units: int = 1, lane: str | None = None, **of_order: Any
    ) -> str:
        """The id of an order that is in the ledger, taken now."""
        catalogue, partition = await commands.load_catalogue(self.valkey), await commands.read_partition(self.valkey)
        assert catalogue is not None and partition is not None
        sale = catalogue.sale("sale")
        assert sale is not None
        order = Order()
        order.shopper, order.key = "anna", f"k-{next(self._keys)}"
        for name, value in of_order.items():
            setattr(order, name, value)
        lines = [Line(sku=sku, quantity=units)]
        order.request = OrderRequest(sale="sale", market=market, channel="tmall-world", lane=lane, lines=lines)
        priced = PricedSale(sale, catalogue.version, 0, catalogue.world, await self.now_ms())
        priced.identify(order)
        priced.price(order)
        values = [partition.epoch, catalogue.version, *arguments([order])]
        answer = await RESERVE.run(self.valkey, script_keys(0, "sale"), values)
        assert answer[0] == b"A", answer
        await self.write()
        return order.id

    async def row(self, order_id: str) -> Any:
        return await self.ledger.fetchrow("SELECT * FROM orders WHERE id = $1", order_id)

    async def paid_at(self, at_ms: int, *order_ids: str) -> None:
        """Cards are authorised for these orders, and the ledger hears of all at once, at that time."""
        facts = []
        for order_id in order_ids:
            if not await self.ledger.fetchval("SELECT count(*) FROM payment WHERE order_id = $1", order_id):
                await self.begin_payment(order_id)
            amount = await self.ledger.fetchval("SELECT amount FROM payment WHERE order_id = $1", order_id)
            intent = f"pi_{order_id}"
            facts.append(
                PaymentFact(
                    order_id, intent, IntentState.AUTHORISED, "card", amount, 0, None, None, None, "evt_1"
                )
            )  # fmt: skip
        async with self.ledger.transaction():
            await life.apply_facts(self.ledger, facts, at_ms)

    async def arrives(self, order_id: str, at_ms: int, delivered: bool = True) -> None:
        """A paid order goes out, and its parcel is there at that time, or can't be delivered."""
        async with self.ledger.transaction():
            await life.ship(self.ledger, order_id, None, at_ms - 3_600_000)
        async with self.ledger.transaction():
            await life.deliver(self.ledger, order_id, delivered, at_ms)
