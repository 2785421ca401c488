"""The payment provider's events, applied to the ledger in batches, each exactly once in effect.

The stream is read from its beginning, a batch is applied in one transaction, and only then cut off: whoever is killed
between any two steps, the next one applies again what the first has applied, which changes nothing (a fact counts by
its rank). So what is no longer in the stream has been applied, whoever did it. While one batch commits, the next is
read and decoded. An event that can't be understood or stored is set aside alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import redis.asyncio
import structlog

from flashsale import metrics
from flashsale.ledger import damaged_events
from flashsale.ledger.damaged_events import DamagedEvent
from flashsale.ledger.life import Applied
from flashsale.ledger.pool import Connection, LedgerAway
from flashsale.partners.payments.provider import FOREIGN, ForeignEvent
from flashsale.pipeline.careful import apply_carefully
from flashsale.pipeline.duty import Duty
from flashsale.reservation import keys, server
from flashsale.reservation.events import Entry, EntryId, read_events, trim_events
from flashsale.sale.payment import Fact

log = structlog.get_logger(__name__)

BATCH_EVENTS = 1000  # about so many facts a transaction: beyond it a statement gains nothing, and others wait longer
ENTRIES_MAX = 200  # entries a read: an entry is what one front kept at once, often a single event
BLOCK_MS = 500  # an idle stream is asked again after this; below the client's answer timeout

FactsOf = Callable[[bytes], Fact | ForeignEvent | None]
"""How a provider's adapter reads an event's body; raises ValueError for what is none."""


class Told(NamedTuple):
    """A fact and the event that told it."""

    fact: Fact
    entry: EntryId
    place: int
    body: bytes


class Batch(NamedTuple):
    """What was read at once. `facts` are without repetitions; the other numbers are of events."""

    facts: list[Told]
    damaged: list[DamagedEvent]
    repeated: int
    foreign: int
    unknown: int
    last: EntryId


async def events_applied(client: redis.asyncio.Redis, until_ms: int) -> bool:
    """Whether every event that had arrived by `until_ms` (Valkey's clock) is in the ledger, whichever process put it
    there: what is applied is cut off, and only that."""
    oldest: Any = await client.xrange(keys.PAYMENT_EVENTS, "-", f"{until_ms}", count=1)
    return not oldest


def decode(entries: Sequence[Entry], facts_of: FactsOf) -> Batch:
    """What the entries tell. Never fails: what can't be read is `damaged`."""
    facts: dict[Fact, Told] = {}
    damaged: list[DamagedEvent] = []
    repeated = foreign = unknown = 0
    for entry in entries:
        for place, body in enumerate(entry.bodies):
            try:
                fact = facts_of(body)
            except Exception as fault:  # whatever the adapter stumbles over, the other events go on
                damaged.append(DamagedEvent(*entry.id, place, body, str(fault) or type(fault).__name__))
                continue
            if fact is None:
                unknown += 1
            elif fact is FOREIGN:
                foreign += 1
            elif fact in facts:
                repeated += 1
            else:
                facts[fact] = Told(fact, entry.id, place, body)
    return Batch(list(facts.values()), damaged, repeated, foreign, unknown, entries[-1].id)


async def apply(connection: Connection, batch: Batch, now_ms: int) -> tuple[Applied, list[DamagedEvent]]:
    """Applies a batch in one transaction; answers what changed and what was set aside."""
    async with connection.transaction():
        applied, unfit = await apply_carefully(connection, [told.fact for told in batch.facts], now_ms)
        refused = [(batch.facts[place], error) for place, error in unfit]
        damaged = [
            *batch.damaged,
            *(DamagedEvent(*told.entry, told.place, told.body, error) for told, error in refused),
        ]
        if damaged:
            await damaged_events.store(connection, damaged)
    return applied, damaged


class PaymentEvents(Duty):
    """Takes the stream of events to the ledger. `facts_of` is the provider's adapter's."""

    name = "payment events"
    lock = 0x666C7065

    def __init__(
        self, redis_url: str, database_url: str, facts_of: FactsOf, *, batch_events: int = BATCH_EVENTS
    ) -> None:
        super().__init__(database_url)
        self._client = server.connect(redis_url, connections=2)  # one reads, one trims
        self._facts_of = facts_of
        self._batch_events = batch_events
        self._count = 1  # entries a read; follows the events in an entry

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._client.aclose()

    async def work(self, connection: Connection) -> None:
        lost = asyncio.Event()  # an idle one too must see a PostgreSQL that came back as another: its lock is gone
        connection.add_termination_listener(lambda _: lost.set())
        reading = asyncio.create_task(self._read((0, 0)))
        try:
            while (batch := await self._next(reading, lost)) is not None:
                reading = asyncio.create_task(self._read(batch.last))  # it arrives while this one commits
                began = time.monotonic()
                applied, damaged = await apply(connection, batch, time.time_ns() // 1_000_000)
                self._account(batch, applied, damaged, time.monotonic() - began)
                await trim_events(self._client, batch.last)
        finally:
            await server.ended(reading)

    async def _next(self, reading: asyncio.Task[Batch], lost: asyncio.Event) -> Batch | None:
        """What `reading` brings; None when it is time to stop. Raises LedgerAway when PostgreSQL hangs up."""
        others = [asyncio.create_task(event.wait()) for event in (self.stopping, lost)]
        try:
            if not self.stopping.is_set():
                await asyncio.wait({reading, *others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for other in others:
                other.cancel()
        if self.stopping.is_set():
            return None
        if lost.is_set():
            raise LedgerAway("PostgreSQL closed the connection")
        return reading.result()

    async def _read(self, after: EntryId) -> Batch:
        """The next batch. Waits for ever."""
        while True:
            self.beat()
            entries = await read_events(self._client, after, self._count, BLOCK_MS)
            if entries:
                events = sum(len(entry.bodies) for entry in entries)
                self._count = max(1, min(ENTRIES_MAX, self._batch_events * len(entries) // max(1, events)))
                return decode(entries, self._facts_of)

    def _account(self, batch: Batch, applied: Applied, damaged: Sequence[DamagedEvent], seconds: float) -> None:
        refused = len(damaged) - len(batch.damaged)
        foreign = batch.foreign + applied.foreign
        duplicate = batch.repeated + applied.duplicate
        changed = len(batch.facts) - refused - applied.foreign - applied.duplicate
        lag_s = max(0.0, time.time() - batch.last[0] / 1000)
        counts = {
            "applied": changed,
            "duplicate": duplicate,
            "foreign": foreign,
            "unknown": batch.unknown,
            "damaged": len(damaged),
        }
        metrics.observe_payment_events(counts, seconds, lag_s)
        for event in damaged:
            log.error(
                "a payment event could not be applied: it lies in damaged_event",
                entry=f"{event.event_ms}-{event.event_seq}", place=event.place, error=event.error,
            )  # fmt: skip
