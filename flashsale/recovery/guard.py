"""Watches one Valkey: verifies each new process of it against the ledger, and rebuilds what is empty or old."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import asyncpg
import structlog

from flashsale.ledger import partitions
from flashsale.ledger.pool import connect
from flashsale.recovery import before
from flashsale.recovery.by_hand import REBUILD_LOCK
from flashsale.recovery.plan import BY_HAND, CannotRebuild
from flashsale.recovery.rebuild import rebuild
from flashsale.recovery.verdict import LOST, Verdict, accept
from flashsale.reservation import server

log = structlog.get_logger(__name__)

REFUSED_FOR_S = 30.0  # a rebuild that was refused is planned anew after this, or when either side changes
POLL_S = 0.25  # a restarted Valkey is noticed within this
BACKOFF_S = (0.1, 1.0)  # first and longest pause while a server is away


class Guard:
    """Watches one Valkey: verifies each new process of it against the ledger, and rebuilds what is empty or old."""

    def __init__(
        self,
        redis_url: str,
        database_url: str,
        *,
        durability: str,
        backlog_max_bytes: int = 0,
        automatic: bool = True,
        set_aside: Path | None = None,
        partition: int = 0,
    ) -> None:
        """`automatic`: rebuild without being told. The first initialisation, of an empty Valkey by a ledger that never
        had one, needs no telling. `set_aside`: where a copy is kept of what a rebuild that was told to would lose."""
        self._client = server.connect(redis_url, connections=2)
        self._database_url = database_url
        self._durability = durability
        self._backlog_max_bytes = backlog_max_bytes
        self._automatic = automatic
        self._set_aside = set_aside
        self._refused: tuple[object, str, float] | None = None
        self._partition = partition
        self._stopping = asyncio.Event()
        self.reasons: list[str] = ["Valkey was not looked at yet"]
        """Why this Valkey is not accepted, a line each; empty while it is."""

    async def run(self) -> None:
        """Guards until stop(); a server that is away is asked again for ever."""
        pause = BACKOFF_S[0]
        try:
            while not self._stopping.is_set():
                try:
                    reasons = await self._look()
                    pause = POLL_S
                except LOST as fault:
                    reasons = [f"{type(fault).__name__}: {fault}"]
                    pause = min(2 * pause, BACKOFF_S[1])
                if reasons and reasons != self.reasons:
                    log.warning("Valkey is not accepted", reasons=reasons)
                self.reasons = reasons
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
        finally:
            await self._client.aclose()

    def stop(self) -> None:
        """Ends run(), after a rebuild that is under way."""
        self._stopping.set()

    async def _look(self) -> list[str]:
        here = await before.look(self._client, self._partition)
        if here.state is not None and not here.phase and here.state.run_id == await server.run_id(self._client):
            return []
        ledger = await connect(self._database_url)
        try:
            return await self._attend(ledger)
        finally:
            ledger.terminate()  # gives the lock back whatever state the connection is in

    async def _attend(self, ledger: asyncpg.Connection[asyncpg.Record]) -> list[str]:
        if not await ledger.fetchval("SELECT pg_try_advisory_lock($1, $2)", REBUILD_LOCK, self._partition):
            return ["another worker verifies Valkey"]
        verdict = await self._accept(ledger)
        if verdict.shortcomings:
            return verdict.shortcomings
        if verdict.differs is not None:
            first = verdict.epoch == 0 and verdict.doubt is None
            if verdict.doubt is not None:
                return [f"{verdict.differs}; {verdict.doubt} {BY_HAND}"]
            if not (self._automatic or first):
                return [f"{verdict.differs}; rebuilding is not automatic here: run `flashsale recover`"]
            if (refused := await self._still_refused(ledger)) is not None:
                return [f"{verdict.differs}; {refused}"]
            log.warning("Valkey is not as the ledger knows it", reason=verdict.differs)
            try:
                await rebuild(self._client, ledger, partition=self._partition, set_aside=self._set_aside)
            except CannotRebuild as fault:
                self._refused = (await self._position(ledger), str(fault), time.monotonic() + REFUSED_FOR_S)
                return [f"{verdict.differs}; {fault}"]
            verdict = await self._accept(ledger)
            if not verdict.sound:
                return [*verdict.shortcomings, *([verdict.differs] if verdict.differs else [])]
        log.info("Valkey is verified", run_id=verdict.run_id, epoch=verdict.epoch)
        return []

    async def _still_refused(self, ledger: asyncpg.Connection[asyncpg.Record]) -> str | None:
        """Why the last plan was refused, while neither side has changed: a plan reads every hold and every order."""
        if self._refused is None or time.monotonic() > self._refused[2]:
            return None
        position, reason, _ = self._refused
        return reason if position == await self._position(ledger) else None

    async def _position(self, ledger: asyncpg.Connection[asyncpg.Record]) -> object:
        """Where both sides stand."""
        here = await before.look(self._client, self._partition)
        return await server.run_id(self._client), here, await partitions.get(ledger, self._partition)

    async def _accept(self, ledger: asyncpg.Connection[asyncpg.Record]) -> Verdict:
        return await accept(
            self._client,
            ledger,
            durability=self._durability,
            backlog_max_bytes=self._backlog_max_bytes,
            partition=self._partition,
        )
