"""`flashsale restore`: a backup into an empty ledger, of any version of PostgreSQL; then Valkey by it, and the audit.

Everything is checked before anything is written. What is in the way is moved aside, never deleted: a database's tables
to a schema of another name. What a Valkey that is newer than the backup knows is taken in by the rebuild (taking.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from flashsale.ledger import schema, statistics
from flashsale.ledger.migrate import migrate
from flashsale.ledger.pool import connect
from flashsale.recovery import archive
from flashsale.recovery.archive import Manifest, Table

Told = Callable[[str], None]
_CHUNK = 1024 * 1024


class RestoreRefused(Exception):
    """Nothing was changed; one line that says why."""


async def bring_back(
    database_url: str, directory: Path, manifest: Manifest, told: Told, *, force: bool = False
) -> str | None:
    """Fills the ledger from a backup whose files were checked (archive.read). `force`: tables that are there go to a
    schema of another name, which is returned. Raises RestoreRefused, LedgerAway and asyncpg's errors.

    All rows come in one transaction: killed in between there are tables without rows, and it is done again.
    """
    moved = await _make_room(database_url, force)
    await migrate(database_url, manifest.revision)
    ledger = await connect(database_url)
    try:
        async with ledger.transaction():
            await ledger.execute("TRUNCATE " + ", ".join(f'public."{table.name}"' for table in manifest.tables))
            for table in manifest.tables:
                told(table.name)
                await _fill(ledger, directory, table)
            for name, last in manifest.sequences.items():
                if last is not None:
                    await ledger.execute("SELECT setval(('public.' || quote_ident($1))::regclass, $2)", name, last)
    finally:
        ledger.terminate()
    await migrate(database_url)
    ledger = await connect(database_url)
    try:
        await statistics.ensure(ledger)
    finally:
        ledger.terminate()
    return moved


async def _make_room(database_url: str, force: bool) -> str | None:
    ledger = await connect(database_url)
    try:
        if await schema.revision(ledger) is None or not await _anything(ledger):
            return None
        if not force:
            raise RestoreRefused(
                "the ledger is not empty: --force moves what is there aside, to a schema of another name, and restores"
            )
        name = f"set_aside_{datetime.now(UTC).strftime('%Y%m%d_%H%M%S')}"
        others = await ledger.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        if others:
            raise RestoreRefused(f"{others} connections use the ledger: stop the engine first")
        async with ledger.transaction():
            await ledger.execute(f'ALTER SCHEMA public RENAME TO "{name}"; CREATE SCHEMA public')
        return name
    finally:
        ledger.terminate()


async def _anything(ledger: asyncpg.Connection[asyncpg.Record]) -> bool:
    """Whether anything was ever built from the ledger: a sale, an order, an epoch."""
    found: bool = await ledger.fetchval(
        "SELECT EXISTS (SELECT FROM sale) OR EXISTS (SELECT FROM orders) OR EXISTS (SELECT FROM partition)"
    )
    return found


async def _fill(ledger: asyncpg.Connection[asyncpg.Record], directory: Path, table: Table) -> None:
    status = await ledger.copy_to_table(
        table.name,
        schema_name="public",
        source=_chunks(archive.file_of(directory, table.name)),
        columns=table.columns,
        format="text",
    )
    if int(status.rpartition(" ")[2]) != table.rows:
        raise asyncpg.DataError(f"{table.name} took another number of rows than the {table.rows} of the backup")


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
