"""'Sold out, but holds may return': tells Valkey of each sold-out SKU when the first unpaid hold of it runs out.

reserve.lua gives that time to whoever is refused. The first hold of a SKU is found in the ledger by one look at
the oldest reserved orders, now and then at all of them, and remembered while that order stays reserved.
"""

from __future__ import annotations

import time
from functools import partial

import structlog

from flashsale.ledger import open_holds, orders, partitions
from flashsale.ledger.open_holds import Deadline
from flashsale.ledger.partitions import Partition
from flashsale.ledger.pool import Connection
from flashsale.pipeline.care import each_alone
from flashsale.pipeline.duty import Duty
from flashsale.reservation import commands, server
from flashsale.sale.catalogue import Catalogue

log = structlog.get_logger(__name__)

HOLDS_LOCK = 0x666C6872
LOOK_S = 1.0
OLDEST = 10_000  # orders among which the first hold of most SKUs is found, in some 20 ms
REST = 9  # a look at all orders that took 0.3 s is followed by 2.7 s without one, however many SKUs sell out


class HoldsMayReturn(Duty):
    """Publishes one partition's earliest deadlines, about once a second."""

    name = "holds-may-return"
    lock = HOLDS_LOCK

    def __init__(self, redis_url: str, database_url: str, *, partition: int = 0) -> None:
        super().__init__(database_url, partition=partition)
        self._client = server.connect(redis_url, connections=2)
        self._catalogue: Catalogue | None = None
        self._first: dict[int, dict[int, Deadline]] = {}  # by sale and SKU
        self._told: dict[int, dict[int, int]] = {}
        self._under: tuple[int, str | None] | None = None
        self._from_ms = 0  # nothing older is reserved
        self._rested_at: dict[int, float] = {}  # by sale

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._client.aclose()

    async def work(self, connection: Connection) -> None:
        self._told.clear()
        self._from_ms = 0
        while not self.stopping.is_set():
            try:
                await self.look(connection)
            except commands.Refusal as refusal:
                self._told.clear()
                log.info("earliest deadlines are not published", reason=str(refusal))
            await self.pause(LOOK_S)

    async def look(self, connection: Connection) -> None:
        """Publishes what changed since the last look, in every sale that takes orders."""
        partition = await partitions.get(connection, self._partition)
        if partition is None or partition.epoch == 0:
            return
        if self._under != (partition.epoch, partition.run_id):
            self._under = (partition.epoch, partition.run_id)
            self._told.clear()
        sales = await self._sales()
        await each_alone(
            {sale_id: partial(self._look_at, connection, partition, number, sale_id) for number, sale_id in sales}
        )

    async def _look_at(self, connection: Connection, partition: Partition, number: int, sale_id: str) -> None:
        """Publishes what changed in one sale."""
        reading = await commands.read_sale(self._client, sale_id, self._partition)
        if reading is None:
            return
        wanted: list[int] = []
        if reading.phase in ("open", "paused") and 0 in reading.common:
            sold = await orders.sold_units(connection, number)
            wanted = [
                sku
                for sku, (supply, common) in enumerate(zip(reading.supply, reading.common, strict=True))
                if common == 0 and supply > sold.get(sku, 0)
            ]
        deadlines = await self._deadlines(connection, partition, number, wanted)
        if deadlines != self._told.get(number, None if wanted else {}):
            await commands.set_returns(
                self._client,
                epoch=partition.epoch, sale_id=sale_id, deadlines=deadlines, partition=self._partition,
            )  # fmt: skip
            self._told[number] = deadlines

    async def _sales(self) -> list[tuple[int, str]]:
        state = await commands.read_partition(self._client, self._partition)
        version = state.version if state is not None else 0
        if self._catalogue is None or self._catalogue.version != version:
            self._catalogue = await commands.load_catalogue(self._client, version, self._partition)
        return [] if self._catalogue is None else [(sale.number, sale.id) for sale in self._catalogue.sales]

    async def _deadlines(
        self, connection: Connection, partition: Partition, sale: int, wanted: list[int]
    ) -> dict[int, int]:
        """The first deadline of each wanted SKU that has one."""
        known = {sku: first for sku, first in self._first.get(sale, {}).items() if sku in set(wanted)}
        due = await open_holds.still_due(connection, [first.order_id for first in known.values()]) if known else {}
        known = {sku: first for sku, first in known.items() if due.get(first.order_id) == first.at_ms}
        unknown = [sku for sku in wanted if sku not in known]
        if unknown:
            # Read before the orders: what the ledger gets from here on is not older than the mark.
            self._from_ms = await open_holds.oldest(connection, self._from_ms) or partition.mark[0]
            known |= await open_holds.first_deadlines(connection, sale, unknown, self._from_ms, OLDEST)
            unknown = [sku for sku in unknown if sku not in known]
        if unknown and time.monotonic() >= self._rested_at.get(sale, 0):
            began = time.monotonic()
            known |= await open_holds.first_deadlines(connection, sale, unknown, self._from_ms)
            self._rested_at[sale] = time.monotonic() + REST * (time.monotonic() - began)
        self._first[sale] = known
        return {sku: first.at_ms for sku, first in known.items()}
