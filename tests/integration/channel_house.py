"""A house whose sale is sold through channels too: their orders decided by the real script, written, and paid."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from flashsale import merchandising
from flashsale.ledger.life.collected import pay_collected
from flashsale.reservation import commands
from flashsale.reservation.batch import arguments, script_keys
from flashsale.sale.channels import shopper_of
from flashsale.sale.order import OrderRequest, from_json
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests.integration.house import RESERVE, SALE, House, open_house

OFFERS = """
[[offers]]
sku = "FRIDGE"
brand = "Haier"
title = { en = "Fridge", zh = "冰箱" }
stock = 10
quota = 0
weight_g = 68000
prices = { SG = "899.00", TH = "18990" }
guarantees = { lazada-sg = 4, lazada-th = 1 }
[[offers]]
sku = "KETTLE"
brand = "Joyoung"
title = { en = "Kettle" }
stock = 20
quota = 0
weight_g = 900
prices = { SG = "20.50" }
"""
FRIDGE, KETTLE = ("FRIDGE", 1), ("KETTLE", 2)
ADDRESS = {"country": "SG", "name": "王小明", "street": "1 Orchard Road", "city": "Singapore", "postcode": "238823"}


class ChannelHouse(House):
    """The house, and channels that order."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._references = itertools.count(1)

    async def channel_order(
        self,
        channel: str,
        *lines: tuple[str, int],
        shopper: str = "s1",
        market: str = "SG",
        paid: bool = True,
        collected: bool = False,
    ) -> str:
        """The id of an order of the channel's that the ledger has; paid by card unless the channel has `collected`."""
        catalogue = await commands.load_catalogue(self.valkey)
        assert catalogue is not None
        sale = catalogue.sale("night")
        assert sale is not None
        body = {
            "sale": "night",
            "market": market,
            "channel": channel,
            "ship_to": ADDRESS | {"country": market},
            "lines": [{"sku": sku, "quantity": n} for sku, n in lines],
        }
        order = Order()
        order.request = request = from_json(orjson.dumps(body))
        assert isinstance(request, OrderRequest)
        order.shopper, order.key = shopper_of(channel, shopper), f"ref-{next(self._references)}"
        order.collected = collected
        priced = PricedSale(sale, catalogue.version, 0, catalogue.world, time.time_ns() // 1_000_000)
        priced.identify(order)
        priced.price(order)
        partition = await commands.read_partition(self.valkey)
        assert partition is not None
        answer = await RESERVE.run(
            self.valkey, script_keys(0, "night"), [partition.epoch, catalogue.version, *arguments([order])]
        )
        assert answer[0] == b"A", answer
        await self.settle()
        if collected:
            async with self.ledger.transaction():
                assert await pay_collected(self.ledger, 0, (0, 0), (2**62, 0)) == 1
        elif paid:
            await self.pay(order.id)
        return order.id

    def of(self, channel: str) -> dict[str, str]:
        return self.token(channel, "channel")

    @property
    def admin(self) -> dict[str, str]:
        return self.token("boss", "admin")


@asynccontextmanager
async def open_channel_house(redis_url: str, ledger_url: str) -> AsyncIterator[ChannelHouse]:
    async with open_house(redis_url, ledger_url, ChannelHouse) as house:
        assert isinstance(house, ChannelHouse)
        text = SALE + OFFERS
        await merchandising.create(house.valkey, house.ledger, parse_sale_file(text, "night.toml"), text)
        yield house
