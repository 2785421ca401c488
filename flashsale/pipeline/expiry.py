"""Expiry: holds past their deadline go back, in sets, by Valkey's clock.

A payer is judged by the arrival of the event: a sweep begins when all events are applied that had arrived by the clock
it goes by. What was swept is remembered, so that an idle sweep looks at the orders of the last second only.
"""

from __future__ import annotations

import time

import structlog

from flashsale import metrics
from flashsale.ledger import life, open_holds, partitions, set_aside
from flashsale.ledger.life.sweeps import Swept
from flashsale.ledger.open_holds import Stretch
from flashsale.ledger.pool import Connection
from flashsale.pipeline.care import reason_of
from flashsale.pipeline.catalogues import Catalogues
from flashsale.pipeline.duty import Duty, is_away
from flashsale.pipeline.payment_events import events_applied
from flashsale.reservation import commands, server

log = structlog.get_logger(__name__)

EXPIRY_LOCK = 0x666C6578
LIMIT = 1000  # orders of one transaction: a tenth of a second at most, in which nobody else changes many payments
EVENTS_POLL_S = 0.05
EVENTS_SAY_S = 10.0  # events that stay unapplied for this long are worth a line in the log


class Expiry(Duty):
    """Sweeps one partition's orders."""

    name = "expiry"
    lock = EXPIRY_LOCK

    def __init__(
        self, redis_url: str, database_url: str, *, sweep_s: float = 1, grace_s: float = 60, partition: int = 0
    ) -> None:
        """`sweep_s`: pause between sweeps; `grace_s`: how long an open intent waits for an absent provider."""
        super().__init__(database_url, partition=partition)
        self._client = server.connect(redis_url, connections=2)
        self._catalogues = Catalogues(partition)
        self._sweep_s = sweep_s
        self._grace_ms = round(grace_s * 1000)
        self._from_ms: dict[int, int] = {}  # by length of hold: nothing older of it is left

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._client.aclose()

    async def work(self, connection: Connection) -> None:
        self._from_ms.clear()
        while not self.stopping.is_set():
            until_ms = await commands.clock(self._client)
            if await self._judged(until_ms):
                await self.sweep(connection, until_ms)
            await self.pause(self._sweep_s)

    async def _judged(self, until_ms: int) -> bool:
        """Waits until the events that had arrived by `until_ms` are applied; False where it is time to stop."""
        said = time.monotonic()
        while not await events_applied(self._client, until_ms):
            if time.monotonic() - said > EVENTS_SAY_S:
                said = time.monotonic()
                log.warning("expiry waits: payment events are not applied yet", until_ms=until_ms)
            await self.pause(EVENTS_POLL_S)
            if self.stopping.is_set():
                return False
        return True

    async def sweep(self, connection: Connection, until_ms: int) -> int:
        """Expires what is past its deadline at `until_ms` and in the ledger; returns how many orders."""
        expired = 0
        for hold_ms in await self._catalogues.holds_ms(connection):
            expired += await self._sweep_length(connection, until_ms, hold_ms)
        if expired:
            metrics.EXPIRED.inc(expired)
            log.info("holds expired", orders=expired)
        return expired

    async def _sweep_length(self, connection: Connection, until_ms: int, hold_ms: int) -> int:
        """The same of holds of that length: those past their deadline are the oldest, one after the other."""
        partition = await partitions.get(connection, self._partition)
        if partition is None:
            return 0
        upto_ms = until_ms - hold_ms
        from_ms = self._from_ms.get(hold_ms, 0)
        # What is not in the ledger yet is younger than the mark: it is looked at when it is there.
        done_ms = min(upto_ms + 1, partition.mark[0])
        expired = 0
        while from_ms <= upto_ms and not self.stopping.is_set():
            stretch = await open_holds.past_deadline(connection, from_ms, upto_ms, until_ms, LIMIT)
            if stretch is None:
                break
            began = time.monotonic()
            try:
                swept = await self._expire(connection, until_ms, stretch, LIMIT)
            except Exception as fault:
                if is_away(fault):
                    raise
                swept = await self._expire_carefully(connection, until_ms, stretch)
            expired += swept.expired
            await self.pause(time.monotonic() - began)  # a wave of expired holds leaves PostgreSQL half of its time
            if swept.more and swept.expired:
                from_ms = stretch.first_ms  # more orders of one millisecond than a transaction takes
                continue
            if swept.expired < stretch.orders:
                done_ms = min(done_ms, stretch.first_ms)  # some wait for the provider, or are in other hands
            from_ms = stretch.last_ms + 1
        if self.stopping.is_set():
            return expired
        self._from_ms[hold_ms] = max(self._from_ms.get(hold_ms, 0), done_ms)
        return expired

    async def _expire(
        self, connection: Connection, until_ms: int, stretch: Stretch, limit: int, only: str | None = None
    ) -> Swept:
        async with connection.transaction():
            return await life.expire(
                connection,
                until_ms,
                grace_ms=self._grace_ms,
                limit=limit,
                from_ms=stretch.first_ms,
                upto_ms=stretch.last_ms,
                only=only,
            )

    async def _expire_carefully(self, connection: Connection, until_ms: int, stretch: Stretch) -> Swept:
        """The same, order by order: one that can't expire is set aside, and the others do. Slow; only for a stretch
        that holds such an order."""
        expired = waiting = 0
        for order_id in await open_holds.in_stretch(connection, stretch, until_ms, LIMIT):
            self.beat()
            try:
                swept = await self._expire(connection, until_ms, stretch, 2, order_id)
            except Exception as fault:
                if is_away(fault):
                    raise
                log.error("an order that is past its deadline is set aside", order=order_id, exc_info=fault)
                metrics.SET_ASIDE.labels(set_aside.EXPIRY).inc()
                await set_aside.put(connection, set_aside.EXPIRY, [(order_id, reason_of(fault))], until_ms)
                continue
            expired, waiting = expired + swept.expired, waiting + swept.waiting
        return Swept(expired, waiting, False, None)
