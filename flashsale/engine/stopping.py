"""How an engine ends: front ends (they drain), worker, sandbox, Valkey, PostgreSQL, each before the next is asked.

Stopping may take 20 s. Each part's end is counted from the signal, not from the end of the part before it, so that
whatever hangs, they are not added up: PostgreSQL, the last, is asked in any case. 2 s are a busy machine's.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess

import structlog

from flashsale import tether
from flashsale.embedded import PostgresServer
from flashsale.engine.parts import DRAIN_GRACE_S, KILLED_WITHIN_S, stopped
from flashsale.engine.roster import Roster

log = structlog.get_logger("flashsale.supervisor")

PATIENCE_S = 2.5  # with worker and Valkey, once asked
WORKER_GONE_BY_S = 13.0
VALKEY_GONE_BY_S = 15.0
POSTGRES_FAST_BY_S = 16.5  # its checkpoint; then it must replay its log at the next start
POSTGRES_GONE_BY_S = 17.5


async def stop_in_order(roster: Roster, began: float) -> None:
    """Ask each part to end, kill what does not. began: when the engine was asked, on the loop's clock (s)."""
    clock = asyncio.get_running_loop().time
    drained_at = began + roster.settings.drain_timeout_s + DRAIN_GRACE_S
    await asyncio.gather(*(stopped(front, (signal.SIGTERM, drained_at)) for front in roster.fronts))
    for part in filter(None, (roster.worker, roster.sandbox)):
        await stopped(part, (signal.SIGTERM, min(clock() + PATIENCE_S, began + WORKER_GONE_BY_S)))
    if roster.valkey is not None:
        await stopped(roster.valkey, (signal.SIGTERM, min(clock() + PATIENCE_S, began + VALKEY_GONE_BY_S)))
    if roster.postgres is not None:
        fast, at_once = (signal.SIGINT, began + POSTGRES_FAST_BY_S), (signal.SIGQUIT, began + POSTGRES_GONE_BY_S)
        await stopped(roster.postgres, fast, at_once)
        end_orphans(roster.postgres)
    for server in (roster.valkey, roster.postgres):
        if server is not None:
            server.tidy()


def kill_all(roster: Roster) -> None:
    """A second signal: nobody waits any more. PostgreSQL gets its immediate shutdown, so that its children go."""
    for part in (*roster.fronts, roster.worker, roster.sandbox, roster.valkey):
        if part is not None and part.process is not None and part.process.poll() is None:
            part.process.kill()
            part.process.wait()
    postgres = roster.postgres
    if postgres is not None and postgres.process is not None and postgres.process.poll() is None:
        postgres.process.send_signal(signal.SIGQUIT)
        try:
            postgres.process.wait(KILLED_WITHIN_S)
        except subprocess.TimeoutExpired:
            postgres.process.kill()
            postgres.process.wait()
        end_orphans(postgres)


def end_orphans(postgres: PostgresServer) -> None:
    """PostgreSQL's own processes end with it, unless they hang."""
    for pid, started in tether.living_in(postgres.directory, postgres.program):
        log.warning("part.killed", name="postgres", pid=pid)
        tether.send(pid, started, signal.SIGKILL)
