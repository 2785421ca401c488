"""`flashsale recover` as a function: verify, and rebuild where Valkey differs or where it is told to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import asyncpg
import redis.asyncio

from flashsale.ledger.pool import connect
from flashsale.recovery.rebuild import rebuild
from flashsale.recovery.verdict import accept, verify
from flashsale.recovery.writing import Progress
from flashsale.reservation import server

REBUILD_LOCK = 0x666C7262  # with the partition an advisory lock's two keys: one rebuilder at a time


@dataclass(slots=True)
class Recovered:
    """What `flashsale recover` did, and whether Valkey may serve now. `reason`: why it was, or was not, rebuilt."""

    ok: bool = False
    rebuilt: bool = False
    reason: str | None = None
    shortcomings: list[str] = field(default_factory=list)
    epoch: int = 0
    orders: int = 0
    saved: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def recover(
    redis_url: str,
    database_url: str,
    *,
    durability: str,
    backlog_max_bytes: int = 0,
    force: bool = False,
    partition: int = 0,
    progress: Progress | None = None,
) -> Recovered:
    """Verifies Valkey and rebuilds it where it differs; with `force` in any case. Raises one of LOST where a server is
    away."""
    client = server.connect(redis_url, connections=2)
    try:
        ledger = await connect(database_url)
        try:
            # Waits for a guard that is at work: what it repairs needs no second repair.
            await ledger.execute("SELECT pg_advisory_lock($1, $2)", REBUILD_LOCK, partition)
            return await _recover(client, ledger, durability, backlog_max_bytes, force, partition, progress)
        finally:
            ledger.terminate()
    finally:
        await client.aclose()


async def _recover(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    durability: str,
    backlog_max_bytes: int,
    force: bool,
    partition: int,
    progress: Progress | None,
) -> Recovered:
    limits: dict[str, Any] = {
        "durability": durability,
        "backlog_max_bytes": backlog_max_bytes,
        "partition": partition,
    }
    verdict = await (verify if force else accept)(client, ledger, **limits)
    outcome = Recovered(reason=verdict.differs, shortcomings=verdict.shortcomings, epoch=verdict.epoch)
    if verdict.shortcomings:
        return outcome
    if verdict.doubt is not None and not force:
        outcome.reason = f"{verdict.differs}; {verdict.doubt} --force rebuilds from it all the same"
        return outcome
    if verdict.differs is not None or force:
        outcome.reason = verdict.differs or "told to"
        rebuilt = await rebuild(client, ledger, partition=partition, progress=progress)
        outcome.rebuilt, outcome.orders, outcome.saved = True, rebuilt.orders, rebuilt.saved
        verdict = await accept(client, ledger, **limits)
        outcome.epoch, outcome.shortcomings = verdict.epoch, verdict.shortcomings
    outcome.ok = verdict.sound
    return outcome
