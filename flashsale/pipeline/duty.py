"""A duty: work that one worker does at a time, while it holds an advisory lock; the others stand by.

Whoever holds the lock has a connection of its own to the ledger. A server that is lost is no fault: the duty begins
again when it is back, from what ledger and Valkey then say.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import asyncpg
import redis.exceptions
import structlog
from redis.exceptions import RedisError

from flashsale.ledger.pool import CONNECTION_LOST, ROLLED_BACK, Connection, LedgerAway, connect

log = structlog.get_logger(__name__)

STANDBY_POLL_S = 0.2  # a stand-by takes over within this after the holder's connection is gone
BACKOFF_S = (0.05, 1.0)  # first and longest pause after a loss
STATEMENT_S = 100.0
"""A duty's statement may take so long. Duties work in steps of a second at most; a busy disk, or a migration's lock,
makes some of them slower."""
SILENT_S = 120.0
"""A duty that gives no sign of life for so long hangs: longer than a statement may take."""
VALKEY_LOST = (OSError, RedisError, TimeoutError)
LOST: tuple[type[BaseException], ...] = (*CONNECTION_LOST, *VALKEY_LOST, LedgerAway, asyncpg.PostgresError)
"""Where a server is lost, and whatever else PostgreSQL and Valkey may say in the middle of a step: done again later."""

AWAY: tuple[type[BaseException], ...] = (
    *CONNECTION_LOST,
    LedgerAway,
    ROLLED_BACK,
    OSError,
    TimeoutError,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.MaxConnectionsError,
)
"""Where a server is lost or can't just now: no fault of the duty's, it waits. Anything else is one, and is told."""

BUSY = ("LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "MISCONF", "OOM", "READONLY", "NOREPLICAS")
"""First words of Valkey's errors that pass."""


def is_away(fault: BaseException) -> bool:
    """Whether a server is away or can't just now, as against a fault of what was asked of it."""
    if isinstance(fault, asyncpg.QueryCanceledError):  # it took longer than it may, and would again
        return False
    return isinstance(fault, AWAY) or (
        isinstance(fault, redis.exceptions.ResponseError) and str(fault).startswith(BUSY)
    )


class Duty:
    """Subclasses say what the work is; `name` is how logs call it, `lock` a number that is this duty's alone."""

    name: str
    lock: int
    statement_s = STATEMENT_S
    silent_s = SILENT_S

    def __init__(self, database_url: str, *, partition: int = 0) -> None:
        self._database_url = database_url
        self._partition = partition
        self.stopping = asyncio.Event()
        self.working = False
        """Whether this one holds the lock and works; False: it stands by or waits for a server."""
        self.beat_at = time.monotonic()
        """When it gave its last sign of life, by the monotonic clock."""

    def beat(self) -> None:
        """A sign of life, between two steps: each takes less than `silent_s`."""
        self.beat_at = time.monotonic()

    async def work(self, connection: Connection) -> None:
        """The work itself, until `stopping` is set. Raises one of LOST where a server is lost."""
        raise NotImplementedError

    async def run(self) -> None:
        """Works until stop(); begins again after every loss. Raises what is no loss."""
        pause = BACKOFF_S[0]
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                await self._hold_and_work()
            except LOST as fault:
                if not is_away(fault):
                    raise
                log.warning("a duty waits", duty=self.name, reason=f"{type(fault).__name__}: {fault}")
            if time.monotonic() - began > BACKOFF_S[1]:
                pause = BACKOFF_S[0]
            await self.pause(pause)
            pause = min(2 * pause, BACKOFF_S[1])

    def stop(self) -> None:
        """Ends run() when the step under way is done."""
        self.stopping.set()

    async def pause(self, seconds: float) -> None:
        """Waits, unless it is time to stop."""
        self.beat()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        self.beat()

    async def _hold_and_work(self) -> None:
        self.beat()
        connection = await connect(self._database_url, statement_s=self.statement_s)
        try:
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", self.lock, self._partition):
                await self.pause(STANDBY_POLL_S)
                if self.stopping.is_set():
                    return
            self.working = True
            log.info("a duty is taken up", duty=self.name, partition=self._partition)
            await self.work(connection)
        finally:
            self.working = False
            connection.terminate()
