"""The ledger writer against a bare COPY of the same rows into a table of the same shape (its indexes included).

A journal of ≥ 300,000 orders is made while the writer is halted (SIGSTOP); then it runs, and the mark is timed from its
first move to its last. The writer and the client of the bare COPY have the front's core, PostgreSQL the other one.
The bare COPY is one statement and one transaction: the writer's many, each with its mark and its own flush to disk.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise

import asyncpg

from bench.bench import Bench
from bench.engine import CATCH_UP_S, JOURNAL, Engine
from bench.load import run_wrk
from bench.machine import FRONT_CORE, OTHER_CORE, BenchFault, pin
from flashsale.ledger.orders import COPY_COLUMNS

FIGURES = ("ledger",)
ORDERS = 300_000
POLL_S = 0.005
READ_ENTRIES = 500  # of the journal at once

EntryId = tuple[int, int]


@dataclass(frozen=True)
class Journal:
    """The journal's orders as the ledger's rows: the bytes of each entry, and how many rows lie up to an entry."""

    chunks: list[bytes]
    rows_up_to: dict[EntryId, int]

    @property
    def rows(self) -> int:
        return max(self.rows_up_to.values())


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    with Engine(bench.new_folder("ledger"), "memory") as engine:
        bench.load_engine(engine, bench.warm_up_s)
        pin(engine.pids("worker"), FRONT_CORE)
        pin([os.getpid()], FRONT_CORE)
        try:
            for _ in range(bench.repeat):
                journal = _fill(bench, engine)
                writer = asyncio.run(_drain(engine, journal))
                copy = asyncio.run(_bare_copy(engine, journal))
                cpu = {name: round(rate) for name, rate in (("writer_rows_s", writer), ("copy_rows_s", copy))}
                bench.note("ledger", rows=journal.rows, **cpu)
                bench.add("ledger", writer / copy)
        finally:
            pin([os.getpid()], OTHER_CORE)


def _fill(bench: Bench, engine: Engine) -> Journal:
    """Halts the writer and sends orders until the journal has enough."""
    engine.catch_up()
    for pid in engine.pids("worker"):
        os.kill(pid, signal.SIGSTOP)
    after = engine.last_entry()
    while (journal := _read(engine, after)).rows_up_to == {} or journal.rows < bench.sized(ORDERS):
        sale = engine.create_sale(bench.new_sale())
        seen = run_wrk(engine.port, bench.engine_plan(sale, bench.seconds), bench.seconds)
        if seen.refused or seen.broken:
            raise BenchFault(f"filling the journal: {seen}")
    return journal


def _read(engine: Engine, after: EntryId) -> Journal:
    chunks: list[bytes] = []
    rows_up_to: dict[EntryId, int] = {}
    rows, last = 0, f"{after[0]}-{after[1]}"
    while entries := engine.valkey.xrange(JOURNAL, min=f"({last}", count=READ_ENTRIES):
        for entry, fields in entries:
            last = entry.decode()
            ms, _, seq = last.partition("-")
            records = fields.get(b"o", b"")
            rows += records.count(b"\n")
            chunks.append(records.replace(b"\n", f"\t0\t{ms}\t{seq}\n".encode()))
            rows_up_to[int(ms), int(seq)] = rows
    return Journal(chunks, rows_up_to)


async def _drain(engine: Engine, journal: Journal) -> float:
    """Lets the writer go on; rows/s between the mark's first move and its last."""
    ledger = await asyncpg.connect(engine.ledger)
    try:
        query = await ledger.prepare("SELECT mark_ms, mark_seq FROM partition WHERE id = 0")
        start = tuple(await query.fetchrow())
        moves: list[tuple[float, EntryId]] = []
        for pid in engine.pids("worker"):
            os.kill(pid, signal.SIGCONT)
        end = time.monotonic() + CATCH_UP_S
        while not moves or journal.rows_up_to.get(moves[-1][1], 0) < journal.rows:
            if time.monotonic() > end:
                raise BenchFault("the ledger writer does not reach the journal's end")
            mark = tuple(await query.fetchrow())
            if mark != start and (not moves or mark != moves[-1][1]):
                moves.append((time.perf_counter(), mark))
            await asyncio.sleep(POLL_S)
    finally:
        await ledger.close()
    (first_at, first), (last_at, _) = moves[0], moves[-1]
    _check_order([mark for _, mark in moves])
    return (journal.rows - journal.rows_up_to[first]) / (last_at - first_at)


def _check_order(marks: list[EntryId]) -> None:
    if any(later <= earlier for earlier, later in pairwise(marks)):
        raise BenchFault("the ledger's mark went back")


async def _bare_copy(engine: Engine, journal: Journal) -> float:
    """Rows/s of one COPY of the same bytes into an empty table like `orders`."""

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in journal.chunks:
            yield chunk

    ledger = await asyncpg.connect(engine.ledger)
    try:
        await ledger.execute("CREATE TABLE bare_copy (LIKE orders INCLUDING ALL)")
        began = time.perf_counter()
        await ledger.copy_to_table("bare_copy", source=chunks(), columns=COPY_COLUMNS, format="text")
        took_s = time.perf_counter() - began
        rows = await ledger.fetchval("SELECT count(*) FROM bare_copy")
        await ledger.execute("DROP TABLE bare_copy")
    finally:
        await ledger.close()
    if rows != journal.rows:
        raise BenchFault(f"{rows} of {journal.rows} rows copied")
    return journal.rows / took_s
