"""A shop that sells across borders: channels with guarantees, parcels on a lane's day, imports of an identity.

Guarantees are drawn by the real script. Lane and import limit are put upon an order that is in the ledger, with
Valkey's counters, as reserve.lua would have counted them.
"""

from __future__ import annotations

from typing import Any, cast

from msgspec.structs import replace

from flashsale import merchandising
from flashsale.reservation import commands, keys
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.limits import IdentityYear, LaneDay, identity_field, lane_field, parse
from flashsale.sale.channels import Channel
from flashsale.sale.order import Line, OrderRequest
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from flashsale.sale.world import packaged
from tests.integration.life import Life
from tests.integration.shop import FILE, KETTLE, RESERVE

SG = cast(Channel, packaged().channel("lazada-sg"))
LANE, BUYER = LaneDay(7, 20_000), IdentityYear(bytes(range(10)), 2026)
GUARANTEED = 300  # of the 500 kettles
KETTLES = 1  # their index


class Borders(Life):
    """The shop's sale, its second offer with a guarantee for one channel."""

    async def open(self, sale_id: str = "sale") -> None:
        assert (await self.recover()).ok
        text = FILE.format(id=sale_id)
        file = parse_sale_file(text, "sale.toml")
        fridge, kettle, fan = file.offers
        file = replace(file, offers=(fridge, replace(kettle, guarantees={SG.id: GUARANTEED}), fan))
        await merchandising.create(self.valkey, self.ledger, file, text)

    async def order(
        self,
        shopper: str,
        *lines: tuple[str, int],
        channel: str | None = SG.id,
        collected: bool = False,
        agent: str | None = None,
    ) -> tuple[str, str]:
        """(outcome letter, order id) of one order of the channel."""
        catalogue = await commands.load_catalogue(self.valkey)
        partition = await commands.read_partition(self.valkey)
        assert catalogue is not None and partition is not None
        sale = catalogue.sale("sale")
        assert sale is not None
        asked = [Line(sku=sku, quantity=units) for sku, units in lines or ((KETTLE, 2),)]
        order = Order()
        order.shopper, order.key, order.agent, order.collected = shopper, f"k-{next(self._keys)}", agent, collected
        order.request = OrderRequest(sale="sale", market="SG", channel=channel, lines=asked)
        priced = PricedSale(sale, catalogue.version, 0, catalogue.world, await self.now_ms())
        priced.identify(order)
        priced.price(order)
        values = [partition.epoch, catalogue.version, *arguments([order])]
        answer = await RESERVE.run(self.valkey, script_keys(0, "sale"), values)
        return answer[0].decode(), order.id

    async def bought(self, shopper: str, *lines: tuple[str, int], across: bool = False, **options: Any) -> str:
        """The id of an order that is in the ledger; `across`: with a parcel and imports of 1,000."""
        outcome, order_id = await self.order(shopper, *lines, **options)
        assert outcome == "A", outcome
        await self.write()
        if across:
            await self.ledger.execute(
                "UPDATE orders SET lane_number = $2, dispatch_day = $3, identity = $4, limit_year = $5,"
                " limit_use = 1000 WHERE id = $1",
                order_id, LANE.lane, LANE.day, BUYER.identity, BUYER.year,
            )  # fmt: skip
            await self.valkey.hincrby(keys.limits(0), lane_field(*LANE), 1)
            await self.valkey.hincrby(keys.limits(0), identity_field(*BUYER), 1000)
        return order_id

    async def kettles(self) -> tuple[int, int]:
        """What is left of the common pool, and of the guarantee."""
        reading = await commands.read_sale(self.valkey, "sale")
        assert reading is not None
        return reading.common[KETTLES], reading.guarantees[KETTLES, SG.number]

    async def limits(self) -> dict[LaneDay | IdentityYear, int]:
        """What is used of each limit."""
        found = await self.valkey.hgetall(keys.limits(0))
        return {parse(field): int(used) for field, used in found.items() if int(used)}

    async def row(self, order_id: str) -> Any:
        return await self.ledger.fetchrow("SELECT * FROM orders WHERE id = $1", order_id)
