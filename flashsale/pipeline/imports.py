"""Applies the catalogues that merchants sent, each when its time has come, one after the other.

What was under way when a worker died is queued still, and has changed nothing: it is done again from the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from flashsale import metrics
from flashsale.ledger import imports, set_aside
from flashsale.ledger.imports import ImportRow
from flashsale.ledger.pool import Connection
from flashsale.pipeline.care import reason_of
from flashsale.pipeline.duty import LOST, Duty, is_away

log = structlog.get_logger(__name__)

POLL_S = 0.5
ATTEMPTS_MAX = 5
"""An import that so many workers died of in the middle (out of memory, say) is set aside: one that is merely killed
beside it does not do so five times in a row."""

Apply = Callable[[Connection, ImportRow], Awaitable[ImportRow]]
"""Applies one import and writes down what became of it; puts it off by raising one of LOST."""


class WorkersDied(Exception):
    """An import was taken up again and again by workers that then were gone."""


class Imports(Duty):
    """The worker's part in imports; `apply` does one. One that makes it fail is `failed`, and set aside."""

    name = "imports"
    lock = 0x666C696D
    statement_s = 600.0  # a million rows are taken over in one statement
    silent_s = 1800.0  # one import is one step: some statements, and a file that is read in between

    def __init__(self, database_url: str, apply: Apply) -> None:
        super().__init__(database_url)
        self._apply = apply

    async def work(self, connection: Connection) -> None:
        while not self.stopping.is_set():
            found = await imports.due(connection, time.time_ns() // 1_000_000)
            if found is None:
                await self.pause(POLL_S)
                continue
            attempts = await imports.begin(connection, found.number)
            if attempts > ATTEMPTS_MAX:
                await self._set_aside(connection, found, WorkersDied(f"{ATTEMPTS_MAX} workers died of it"))
                continue
            try:
                ended = await self._apply(connection, found)
            except asyncio.CancelledError:  # the worker stops
                with contextlib.suppress(*LOST):
                    await imports.put_back(connection, found.number)
                raise
            except Exception as fault:
                if is_away(fault):
                    with contextlib.suppress(*LOST):
                        await imports.put_back(connection, found.number)
                    raise
                # Whatever it is, later imports are not held up by it, nor is anything else.
                await self._set_aside(connection, found, fault)
                continue
            log.info(
                "a catalogue was taken in",
                imported=ended.id,
                merchant=ended.merchant,
                status=ended.status,
                rows=ended.rows,
                faults=ended.faults,
            )

    async def _set_aside(self, connection: Connection, found: ImportRow, fault: Exception) -> None:
        log.error("an import failed: it is set aside", imported=found.id, merchant=found.merchant, exc_info=fault)
        metrics.SET_ASIDE.labels(set_aside.IMPORT).inc()
        now_ms = time.time_ns() // 1_000_000
        async with connection.transaction():
            await imports.fail(
                connection, found.number, "It could not be taken in; whoever runs the engine is told.", now_ms
            )
            await set_aside.put(connection, set_aside.IMPORT, [(found.id, reason_of(fault))], now_ms)
