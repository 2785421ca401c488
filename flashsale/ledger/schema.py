"""Whether a database has the tables of this release, told in one line where it has not.

Only `flashsale up` and `flashsale migrate` change tables (migrate.py); a worker waits for them, and neither it nor a
front works on those of a newer release, whose meaning it does not know.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from functools import cache
from pathlib import Path

import asyncpg
import structlog

from flashsale.ledger.pool import LedgerAway, connect

log = structlog.get_logger(__name__)

LOOK_S = 1.0
VERSIONS = Path(__file__).parent / "migrations" / "versions"


class NewerLedger(Exception):
    """The ledger is a newer release's; one line."""


class State(StrEnum):
    """How the database's tables stand to this release's."""

    FIT = "fit"
    READ_ONLY = "read-only"
    EMPTY = "empty"
    OLDER = "older"
    NEWER = "newer"


@cache
def head() -> str:
    """The newest revision that this release knows. Migrations are named after their number, of four digits."""
    return max(path.name[:4] for path in VERSIONS.glob("[0-9][0-9][0-9][0-9]_*.py"))


async def revision(connection: asyncpg.Connection[asyncpg.Record]) -> str | None:
    """The database's revision; None where it has no tables of ours."""
    try:
        found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    except asyncpg.UndefinedTableError:
        return None
    return found


async def state(connection: asyncpg.Connection[asyncpg.Record]) -> State:
    """How the database stands to this release."""
    there = await revision(connection)
    if there is None:
        return State.EMPTY
    if there != head():
        return State.NEWER if there > head() else State.OLDER
    read_only = await connection.fetchval("SHOW transaction_read_only")
    return State.READ_ONLY if read_only == "on" else State.FIT


async def told(database_url: str) -> tuple[State | None, str]:
    """The state, None where the database is away, and a line that says what to do about it."""
    try:
        connection = await connect(database_url)
    except LedgerAway as away:
        return None, f"the ledger is away: {away}"
    try:
        found = await state(connection)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as fault:
        return None, f"the ledger does not answer: {fault}"
    finally:
        connection.terminate()
    lines = {
        State.FIT: "",
        State.READ_ONLY: "the ledger is read-only: a stand-by, or default_transaction_read_only is on",
        State.EMPTY: "the ledger has no tables yet: run `flashsale migrate`",
        State.OLDER: "the ledger has an older release's tables: run `flashsale migrate`",
        State.NEWER: "the ledger is a newer release's: run that release, or restore a backup of before it",
    }
    return found, lines[found]


async def wait_until_fit(database_url: str, stop: asyncio.Event) -> bool:
    """Waits for a ledger that can be worked on, saying once what is lacking; False where `stop` was set before. Raises
    NewerLedger: waiting would not help."""
    said = ""
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            looking = asyncio.create_task(told(database_url))  # one that hangs in a connect holds up no end
            await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not looking.done():
                looking.cancel()
                return False
            found, line = looking.result()
            if found is State.FIT:
                return True
            if found is State.NEWER:
                raise NewerLedger(line)
            if line.partition(":")[0] != said:
                said = line.partition(":")[0]
                log.warning("waiting for the ledger", reason=line)
            await asyncio.wait({stopping}, timeout=LOOK_S)
        return False
    finally:
        stopping.cancel()
