"""The ledger writer: takes a partition's journal to PostgreSQL, each entry exactly once.

One transaction stores the rows and moves the mark from where the writer read it, under the epoch it read: whoever was
killed between any two steps, the next writer begins at the mark, if the journal still goes on there. While one chunk
commits, the next is read. Behind the mark the journal is trimmed. What an entry is as rows says `journal_rows.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import structlog

from flashsale import metrics
from flashsale.ledger import dead_letters, life, movements, orders, outbox, partitions
from flashsale.ledger.dead_letters import DeadLetter
from flashsale.ledger.partitions import Partition
from flashsale.ledger.pool import REFUSED, Connection, LedgerAway
from flashsale.pipeline.duty import VALKEY_LOST, Duty
from flashsale.pipeline.journal_rows import (
    Damaged,
    JournalItem,
    Line,
    copy_text,
    copy_text_of_lines,
    each_line,
    movement_rows,
    read_journal,
    told,
)
from flashsale.reservation import commands, keys, server
from flashsale.reservation.movements import Entry, VersionSet

log = structlog.get_logger(__name__)

WRITER_LOCK = 0x666C7772  # with the partition the advisory lock's two keys; any number that is this house's alone
FIT_POLL_S = 0.2  # where the journal does not follow the mark, the two are compared again after this
BLOCK_MS = 1000  # an idle journal is asked again after this; below the client's answer timeout
ENTRIES_MAX = 200  # entries a read: should all of them turn out to be full batches, it is some 25 MB
TRIM_PAUSE_S = 0.1  # each trim is a write to Valkey's log: at most ten a second, whatever the load

COLLECTED = b"\t\\N\tt\t"
"""What a record has where nobody but the shopper ordered and the channel has the money (`agent`, `collected`): no other
columns can be NULL and true side by side, so that a chunk without it has no such order."""

# And asyncpg of a movement that it can't encode.
UNFIT: tuple[type[Exception], ...] = (*REFUSED, OverflowError, ValueError)


class MarkMoved(Exception):
    """The partition's row is not what the writer read: another writer, epoch or process of Valkey. Nothing was
    stored."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What one transaction stored: the partition as it is now, rows, journal entries, dead letters."""

    partition: Partition
    rows: int
    entries: int
    dead: int


async def store_entries(connection: Connection, partition: Partition, items: Sequence[JournalItem]) -> Stored:
    """Stores entries that follow the partition's mark, and moves it, in one transaction.

    A line that PostgreSQL refuses becomes a dead letter; everything else is stored. What the outbox waited for is told
    it. Raises MarkMoved, or asyncpg's errors for what is not a line's fault; then nothing was stored.
    """
    rows = movement_rows(partition.id, items)
    text, lines = copy_text(partition.id, items)
    damaged = [
        DeadLetter(partition.id, item.ms, item.seq, 0, item.payload, item.error)
        for item in items
        if isinstance(item, Damaged)
    ]
    try:
        async with connection.transaction():
            if text and await orders.copy(connection, text) != lines:
                raise asyncpg.DataError("COPY took another number of rows than there are lines")
            if rows:
                await movements.store(connection, rows)
            if damaged:
                await dead_letters.store(connection, damaged)
            if COLLECTED in text:
                await life.pay_collected(connection, partition.id, partition.mark, (items[-1].ms, items[-1].seq))
            await _tell_outbox(connection, items)
            moved = await _move_mark(connection, partition, items)
        return Stored(moved, lines, len(items), len(damaged))
    except UNFIT:
        return await _store_carefully(connection, partition, items, damaged)


async def _store_carefully(
    connection: Connection, partition: Partition, items: Sequence[JournalItem], damaged: list[DeadLetter]
) -> Stored:
    """The same, narrowing down what is refused to the single line. Slow; only for chunks that hold such a line."""
    letters = list(damaged)
    async with connection.transaction():
        lines = list(each_line(items))
        stored = await _copy_or_bisect(connection, partition.id, lines, letters)
        for item in items:
            if isinstance(item, Entry) and item.movement is not None:
                try:
                    async with connection.transaction():
                        await movements.store(connection, movement_rows(partition.id, [item]))
                except UNFIT as fault:
                    payload = repr(item.movement).encode()
                    letters.append(DeadLetter(partition.id, item.ms, item.seq, 0, payload, str(fault)))
        if letters:
            await dead_letters.store(connection, letters)
        await life.pay_collected(connection, partition.id, partition.mark, (items[-1].ms, items[-1].seq))
        await _tell_outbox(connection, items)
        moved = await _move_mark(connection, partition, items)
    for letter in letters:
        log.error(
            "a journal line could not be stored: it lies in dead_letter",
            journal=f"{letter.journal_ms}-{letter.journal_seq}", line=letter.line, error=letter.error,
        )  # fmt: skip
    return Stored(moved, stored, len(items), len(letters))


async def _tell_outbox(connection: Connection, items: Sequence[JournalItem]) -> None:
    """Clears the outbox rows of which the entries came; one that waits for an answer gets it."""
    heard = told(items)
    if heard.done:
        await outbox.done(connection, heard.done)
    if heard.taken:
        await outbox.told(connection, heard.taken)


async def copy_carefully(
    connection: Connection, partition: int, items: Sequence[JournalItem], table: str
) -> list[DeadLetter]:
    """Copies the entries' orders into `table`, of the shape of `orders`; what PostgreSQL refuses comes back. Call it in
    a transaction."""
    letters: list[DeadLetter] = []
    await _copy_or_bisect(connection, partition, list(each_line(items)), letters, table)
    return letters


async def _copy_or_bisect(
    connection: Connection, partition: int, lines: Sequence[Line], letters: list[DeadLetter], table: str = "orders"
) -> int:
    """Stores the lines that PostgreSQL takes, appends the others to `letters`; returns how many were stored."""
    if not lines:
        return 0
    try:
        async with connection.transaction():  # a savepoint
            stored = await orders.copy(connection, copy_text_of_lines(partition, lines), table)
            if stored != len(lines):
                raise asyncpg.DataError("COPY took another number of rows than there are lines")
            return stored
    except UNFIT as fault:
        if len(lines) == 1:
            line = lines[0]
            letters.append(DeadLetter(partition, line.ms, line.seq, line.number, line.record, str(fault)))
            return 0
    middle = len(lines) // 2
    first = await _copy_or_bisect(connection, partition, lines[:middle], letters, table)
    return first + await _copy_or_bisect(connection, partition, lines[middle:], letters, table)


async def _move_mark(connection: Connection, partition: Partition, items: Sequence[JournalItem]) -> Partition:
    mark_bytes, version = partition.mark_bytes, partition.version
    for item in items:
        if isinstance(item, Entry):
            mark_bytes = item.written
            if isinstance(item.movement, VersionSet):
                version = item.movement.version
    mark = (items[-1].ms, items[-1].seq)
    if not await partitions.move_mark(connection, partition, mark, mark_bytes, version):
        at = f"{partition.mark[0]}-{partition.mark[1]}"
        raise MarkMoved(f"no longer at {at}, epoch {partition.epoch}, Valkey {partition.run_id}")
    return replace(partition, mark=mark, mark_bytes=mark_bytes, version=version)


class LedgerWriter(Duty):
    """Writes one partition's journal to the ledger while it holds the partition's advisory lock; else stands by."""

    name = "ledger writer"
    lock = WRITER_LOCK

    def __init__(self, redis_url: str, database_url: str, *, rows: int = 5000, partition: int = 0) -> None:
        """`rows`: order rows a transaction, about."""
        super().__init__(database_url, partition=partition)
        self._client = server.connect(redis_url, connections=2)  # one reads, one trims
        self._rows = rows
        self._count = 16  # entries a read; follows the size of the entries
        self._trim_to: Partition | None = None
        self._trim_wanted = asyncio.Event()
        self.writing = False
        """Whether this one has the duty and the journal fits the ledger; False: it stands by or waits for a server."""

    async def run(self) -> None:
        """Writes until stop(); every lost connection is tried again for ever."""
        try:
            await super().run()
        finally:
            await self._client.aclose()

    async def work(self, connection: Connection) -> None:
        """Writes, once the journal goes on at the mark, until stop() or somebody else moved the partition's row."""
        trimming: asyncio.Task[None] | None = None
        try:
            partition = await self._fitting(connection)
            if partition is None:
                return
            trimming = asyncio.create_task(self._trim())
            self.writing = True
            await self._write(connection, partition)
            await self._trim_now()  # told to stop: what is committed needs no place in the journal
        except MarkMoved as moved:
            log.info("the ledger's partition was changed by another: it is read again", reason=str(moved))
        finally:
            self.writing = False
            if trimming is not None:
                await server.ended(trimming)

    async def _fitting(self, connection: Connection) -> Partition | None:
        """The partition, once Valkey's journal goes on where the ledger's mark stands; None when this one is to stop.

        What is written behind a gap would hide the gap: from then on the ledger would look whole.
        """
        said = ""
        while not self.stopping.is_set():
            # Valkey first: the mark only grows, so that a gap between the two is one.
            state = await commands.read_partition(self._client, self._partition)
            partition = await partitions.ensure(connection, self._partition)
            say = log.info
            if state is None:
                fault = "Valkey is empty"
            elif state.trimmed > partition.mark_bytes:
                # Fronts close their doors within a heartbeat, and the guard looks why: it alone opens them again.
                await self._unverify()
                fault = f"the journal is cut {state.trimmed - partition.mark_bytes} bytes beyond the ledger's mark"
                say = log.error
            elif state.epoch != partition.epoch:
                fault = f"Valkey is of epoch {state.epoch}, the ledger of {partition.epoch}"
            else:
                return partition
            if fault != said:
                say("the ledger writer does not write", reason=fault)
                said = fault
            await self.pause(FIT_POLL_S)
        return None

    async def _unverify(self) -> None:
        reply: Any = self._client.hdel(keys.partition(self._partition), "run_id")
        await reply

    async def _write(self, connection: Connection, partition: Partition) -> None:
        self._wish_trim(partition)  # what was committed before a crash may still lie in the journal
        lost = asyncio.Event()  # an idle writer too must see a PostgreSQL that came back as another
        connection.add_termination_listener(lambda _: lost.set())
        reading = asyncio.create_task(self._read(partition.mark))
        try:
            while items := await self._next(reading, lost):
                # The next chunk arrives while this one commits.
                reading = asyncio.create_task(self._read((items[-1].ms, items[-1].seq)))
                began = time.monotonic()
                stored = await store_entries(connection, partition, items)
                partition = stored.partition
                self._wish_trim(partition)
                lag_s = max(0.0, time.time() - partition.mark[0] / 1000)
                metrics.observe_ledger(stored.rows, stored.entries, time.monotonic() - began, lag_s)
                if stored.dead:
                    metrics.LEDGER_DEAD_LETTERS.inc(stored.dead)
        finally:
            await server.ended(reading)

    async def _next(self, reading: asyncio.Task[list[JournalItem]], lost: asyncio.Event) -> list[JournalItem]:
        """What `reading` brings; nothing when this writer is to stop. Raises LedgerAway when PostgreSQL hangs up."""
        if self.stopping.is_set():
            return []
        others = [asyncio.create_task(event.wait()) for event in (self.stopping, lost)]
        try:
            await asyncio.wait({reading, *others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for other in others:
                other.cancel()
        if self.stopping.is_set():
            return []
        if lost.is_set():
            raise LedgerAway("PostgreSQL closed the connection")
        return reading.result()

    async def _read(self, after: tuple[int, int]) -> list[JournalItem]:
        """The next chunk: entries of about `rows` rows. Waits for ever."""
        while True:
            self.beat()
            items = await read_journal(self._client, self._partition, after, self._count, BLOCK_MS)
            if items:
                size = sum(item.records.count(b"\n") for item in items if isinstance(item, Entry))
                self._count = max(1, min(ENTRIES_MAX, self._rows * len(items) // max(1, size)))
                return items

    def _wish_trim(self, partition: Partition) -> None:
        self._trim_to = partition
        self._trim_wanted.set()

    async def _trim(self) -> None:
        """Cuts the journal behind the newest mark, now and then."""
        while True:
            await self._trim_wanted.wait()
            await self._trim_now()
            await asyncio.sleep(TRIM_PAUSE_S)

    async def _trim_now(self) -> None:
        self._trim_wanted.clear()
        wanted = self._trim_to
        if wanted is None or wanted.mark == (0, 0):
            return
        try:
            await commands.trim(
                self._client, partition=wanted.id, epoch=wanted.epoch, mark=wanted.mark, written=wanted.mark_bytes
            )
        except commands.Refusal as refusal:
            log.warning("the journal was not trimmed", reason=str(refusal))
        except VALKEY_LOST as fault:
            log.warning("the journal was not trimmed", reason=f"{type(fault).__name__}: {fault}")
            self._trim_wanted.set()
        except Exception:  # a fault of ours: writing goes on, and the journal grows until somebody reads this
            log.exception("the journal was not trimmed")
