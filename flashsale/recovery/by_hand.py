"""`flashsale recover` as a function: verify, and rebuild where Valkey differs or where it is told to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import redis.asyncio

from flashsale.ledger import lost_orders
from flashsale.ledger.pool import connect
from flashsale.recovery.plan import BY_HAND, CannotRebuild, Plan, plan
from flashsale.recovery.rebuild import rebuild
from flashsale.recovery.verdict import Verdict, accept, verify
from flashsale.recovery.writing import Progress
from flashsale.reservation import server

REBUILD_LOCK = 0x666C7262  # with the partition an advisory lock's two keys: one rebuilder at a time
LOST_NAMED = 1000  # orders that an outcome names one by one; the ledger has them all, in lost_order


@dataclass(slots=True)
class Recovered:
    """What `flashsale recover` did, and whether Valkey may serve now. `reason`: why it was, or was not, rebuilt.

    `plan`: what a dry run found. `taken`: orders that only Valkey's journal had; `lost`: those of which nothing but a
    hold was left, each with its sale and what its sale's lost orders held together; `copy`: the file that keeps what
    Valkey held before; `notices`: what can't be mended.
    """

    ok: bool = False
    rebuilt: bool = False
    reason: str | None = None
    shortcomings: list[str] = field(default_factory=list)
    epoch: int = 0
    orders: int = 0
    saved: int = 0
    taken: int = 0
    lost: list[dict[str, Any]] = field(default_factory=list)
    copy: str | None = None
    notices: list[str] = field(default_factory=list)
    plan: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def recover(
    redis_url: str,
    database_url: str,
    *,
    durability: str,
    backlog_max_bytes: int = 0,
    force: bool = False,
    dry_run: bool = False,
    set_aside: Path | None = None,
    partition: int = 0,
    progress: Progress | None = None,
) -> Recovered:
    """Verifies Valkey and rebuilds it where it differs; with `force` in any case, except where it can't be written
    again. `dry_run`: looks only. `set_aside`: the directory in which a copy is kept of what Valkey alone knows. Raises
    one of LOST where a server is away."""
    client = server.connect(redis_url, connections=2)
    try:
        ledger = await connect(database_url)
        try:
            # Waits for a guard that is at work: what it repairs needs no second repair.
            await ledger.execute("SELECT pg_advisory_lock($1, $2)", REBUILD_LOCK, partition)
            limits: dict[str, Any] = {
                "durability": durability,
                "backlog_max_bytes": backlog_max_bytes,
                "partition": partition,
            }
            if dry_run:
                verdict = await verify(client, ledger, **limits)
                return _planned(verdict, await plan(client, ledger, partition))
            return await _recover(client, ledger, limits, force, set_aside, progress)
        finally:
            ledger.terminate()
    finally:
        await client.aclose()


def _planned(verdict: Verdict, made: Plan) -> Recovered:
    """What a dry run says: fine is what is sound, or what `flashsale recover` would mend unasked."""
    unasked = verdict.differs is None or not (made.refusals or made.doubts or verdict.doubt)
    return Recovered(
        ok=unasked and not verdict.shortcomings,
        reason=verdict.differs,
        shortcomings=verdict.shortcomings,
        epoch=verdict.epoch,
        notices=made.notices,
        plan=made.as_dict(),
    )


async def _recover(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    limits: dict[str, Any],
    force: bool,
    set_aside: Path | None,
    progress: Progress | None,
) -> Recovered:
    verdict = await (verify if force else accept)(client, ledger, **limits)
    outcome = Recovered(reason=verdict.differs, shortcomings=verdict.shortcomings, epoch=verdict.epoch)
    if verdict.shortcomings:
        return outcome
    if verdict.doubt is not None and not force:
        outcome.reason = f"{verdict.differs}; {verdict.doubt} {BY_HAND}"
        return outcome
    if verdict.differs is not None or force:
        outcome.reason = verdict.differs or "told to"
        try:
            rebuilt = await rebuild(
                client, ledger, partition=limits["partition"], set_aside=set_aside, told=force, progress=progress
            )
        except CannotRebuild as fault:
            outcome.reason = f"{outcome.reason}; {fault}"
            return outcome
        outcome.rebuilt, outcome.orders, outcome.saved = True, rebuilt.orders, rebuilt.saved
        outcome.taken, outcome.notices = rebuilt.taken.orders, rebuilt.notices
        outcome.copy = str(rebuilt.copy) if rebuilt.copy is not None else None
        if rebuilt.taken.lost:
            outcome.lost = [lost.as_dict() for lost in await lost_orders.first(ledger, LOST_NAMED)]
        verdict = await accept(client, ledger, **limits)
        outcome.epoch, outcome.shortcomings = verdict.epoch, verdict.shortcomings
        if verdict.differs is not None:
            outcome.reason = f"{outcome.reason}; and rebuilt: {verdict.differs}"
    outcome.ok = verdict.sound
    return outcome
