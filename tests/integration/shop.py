"""A sale on real servers for the tests of audit and recovery: the real script decides orders, without a front."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any

import asyncpg
import redis.asyncio

from flashsale import merchandising
from flashsale.ledger import partitions
from flashsale.pipeline.journal_rows import read_journal
from flashsale.pipeline.ledger_writer import store_entries
from flashsale.recovery import Recovered, recover
from flashsale.reservation import commands, server
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.scripts import Script
from flashsale.sale.catalogue import Sale
from flashsale.sale.order import Line, OrderRequest
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file

RESERVE = Script("reserve")
FILE = """
[sale]
id = "{id}"
name = "A sale"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2099-01-01T00:00:00Z
hold_seconds = 900
[[offers]]
sku = "FRIDGE"
brand = "Haier"
title = {{ en = "fridge" }}
stock = 1000
quota = 2
weight_g = 1
prices = {{ SG = "899.00" }}
[[offers]]
sku = "KETTLE"
brand = "Joyoung"
title = {{ en = "kettle" }}
stock = 500
quota = 0
weight_g = 1
prices = {{ SG = "20.50" }}
[[offers]]
sku = "FAN"
brand = "Midea"
title = {{ en = "fan" }}
stock = 3
quota = 1
weight_g = 1
prices = {{ SG = "10.00" }}
"""
FRIDGE, KETTLE, FAN = "FRIDGE", "KETTLE", "FAN"


class Shop:
    """One sale, a client of each server, and the buttons that a test presses."""

    def __init__(self, redis_url: str, database_url: str, durability: str = "memory") -> None:
        self.redis_url, self.database_url, self.durability = redis_url, database_url, durability
        self._keys = itertools.count()

    async def __aenter__(self) -> Shop:
        self.valkey = server.connect(self.redis_url)
        self.ledger = await asyncpg.connect(self.database_url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.valkey.aclose()
        self.ledger.terminate()

    async def open(self, sale_id: str = "sale") -> None:
        assert (await self.recover()).ok
        text = FILE.format(id=sale_id)
        await merchandising.create(self.valkey, self.ledger, parse_sale_file(text, "sale.toml"), text)

    async def recover(self, **options: Any) -> Recovered:
        return await recover(self.redis_url, self.database_url, durability=self.durability, **options)

    async def sale(self, sale_id: str = "sale") -> tuple[Sale, int]:
        catalogue = await commands.load_catalogue(self.valkey)
        assert catalogue is not None
        sale = catalogue.sale(sale_id)
        assert sale is not None
        return sale, catalogue.version

    async def buy(
        self,
        shopper: str,
        *lines: tuple[str, int],
        key: str | None = None,
        sale_id: str = "sale",
        epoch: int | None = None,
        client: redis.asyncio.Redis | None = None,
    ) -> tuple[str, str]:
        """(outcome letter, order id) of one order; ("fenced", id) where the script is."""
        sale, version = await self.sale(sale_id)
        order = Order()
        order.shopper, order.key = shopper, key or f"key-{next(self._keys)}"
        order.request = OrderRequest(sale=sale_id, market="SG", lines=[Line(sku=sku, quantity=n) for sku, n in lines])
        priced = PricedSale(sale, version)
        priced.identify(order)
        priced.price(order)
        names = script_keys(0, sale_id)
        if epoch is None:
            partition = await commands.read_partition(self.valkey)
            epoch = partition.epoch if partition is not None else 0
        answer = await RESERVE.run(client or self.valkey, names, [epoch, version, *arguments([order])])
        return answer[0].decode(), order.id

    async def write(self) -> None:
        """What the ledger writer does with all that is in the journal; not trimmed."""
        while True:
            known = await partitions.get(self.ledger, 0)
            assert known is not None
            items = await read_journal(self.valkey, 0, known.mark, 100)
            if not items:
                return
            await store_entries(self.ledger, known, items)

    async def trim(self) -> None:
        known = await partitions.get(self.ledger, 0)
        assert known is not None
        await commands.trim(self.valkey, partition=0, epoch=known.epoch, mark=known.mark, written=known.mark_bytes)

    async def dump(self) -> dict[str, dict[bytes, bytes]]:
        """Every hash of the partition's sales, and the catalogue in force."""
        found: dict[str, dict[bytes, bytes]] = {}
        async for name in self.valkey.scan_iter(match="{p00}:*:*"):
            found[name.decode()] = await self.valkey.hgetall(name)
        return found
