"""Channels' guarantees shrink as their sales near the end: what exceeds the rule goes to the common pool.

The rule is the channel's (sale/channels.py), the clock and the window are Valkey's. What a guarantee may keep only
falls, so that a move that is late moves the same units, and one that is made again moves none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import structlog

from flashsale.ledger.pool import Connection
from flashsale.pipeline.care import each_alone
from flashsale.pipeline.duty import Duty
from flashsale.reservation import commands, server
from flashsale.reservation.commands import SaleReading
from flashsale.sale.catalogue import Catalogue, Sale

log = structlog.get_logger(__name__)

GUARANTEES_LOCK = 0x666C6775
LOOK_S = 1.0  # a unit is the common pool's within this after the rule gave it up


def caps(catalogue: Catalogue, sale: Sale, reading: SaleReading) -> Iterator[tuple[int, int, int]]:
    """(offer index, channel number, units that it may keep) of each guarantee that has more at the reading's time."""
    for offer in sale.offers:
        for name, initial in offer.guarantees.items():
            channel = catalogue.world.channel(name)
            if channel is None:  # no longer there: nobody draws on it
                continue
            keeps = channel.guarantee_left(initial, reading.opens_at_ms, reading.closes_at_ms, reading.now_ms)
            if reading.guarantees.get((offer.index, channel.number), 0) > keeps:
                yield offer.index, channel.number, keeps


class Guarantees(Duty):
    """Shrinks the guarantees of one partition's sales."""

    name = "guarantees"
    lock = GUARANTEES_LOCK

    def __init__(self, redis_url: str, database_url: str, *, partition: int = 0) -> None:
        super().__init__(database_url, partition=partition)
        self._client = server.connect(redis_url, connections=1)
        self._catalogue: Catalogue | None = None

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._client.aclose()

    async def work(self, connection: Connection) -> None:
        while not self.stopping.is_set():
            try:
                await self.shrink()
            except commands.Refusal as refusal:
                log.info("guarantees are not shrunk", reason=str(refusal))
            await self.pause(LOOK_S)

    async def shrink(self) -> int:
        """Moves what the rules no longer leave the channels, in every sale that guarantees something; returns how many
        units moved. Raises commands.Refusal where Valkey refuses scripts."""
        state = await commands.read_partition(self._client, self._partition)
        if state is None:
            return 0
        if self._catalogue is None or self._catalogue.version != state.version:
            self._catalogue = await commands.load_catalogue(self._client, state.version, self._partition)
        catalogue, moved = self._catalogue, 0

        async def one(sale: Sale) -> None:
            nonlocal moved
            moved += await self._shrink_sale(catalogue, sale, state.epoch)  # type: ignore[arg-type]  # it has one

        sales = [
            sale
            for sale in (catalogue.sales if catalogue is not None else ())
            if any(offer.guarantees for offer in sale.offers)
        ]
        await each_alone({sale.id: partial(one, sale) for sale in sales})
        return moved

    async def _shrink_sale(self, catalogue: Catalogue, sale: Sale, epoch: int) -> int:
        reading = await commands.read_sale(self._client, sale.id, self._partition)
        if reading is None:
            return 0
        beyond, moved = list(caps(catalogue, sale, reading)), 0
        for first in range(0, len(beyond), commands.CAPS_MAX):
            moved += await commands.move_pool(
                self._client,
                partition=self._partition, epoch=epoch, sale_id=sale.id,
                caps=beyond[first : first + commands.CAPS_MAX],
            )  # fmt: skip
        if moved:
            log.info("guarantees shrank", sale=sale.id, units=moved)
        return moved
