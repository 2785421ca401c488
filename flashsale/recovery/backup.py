"""`flashsale backup`: the ledger in one instant, as files, while orders go on.

The ledger is all that a backup needs: Valkey is built from it. What was answered and had not reached the ledger in that
instant (a fraction of a second's orders) is not in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import asyncpg

from flashsale.ledger import partitions, schema
from flashsale.ledger.pool import connect
from flashsale.recovery import archive
from flashsale.recovery.archive import Manifest, Table

Told = Callable[[str], None]


class BackupRefused(Exception):
    """Nothing was written; one line that says why."""


async def back_up(database_url: str, directory: Path, secret: str | None, told: Told, partition: int = 0) -> Manifest:
    """Writes the backup to `directory`, which must be absent or empty; it gets its name when it is whole. Raises
    BackupRefused, OSError, LedgerAway and asyncpg's errors."""
    new = _made(directory)
    ledger = await connect(database_url)
    try:
        async with ledger.transaction(isolation="repeatable_read", readonly=True):
            manifest = await _copy_all(ledger, new, secret, told, partition)
        archive.write(new, manifest)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        ledger.terminate()
    _name(new, directory)
    return manifest


def _made(directory: Path) -> Path:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BackupRefused(f"{directory} is not empty: name a new directory")
    new = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    return new


def _name(new: Path, directory: Path) -> None:
    if directory.exists():
        directory.rmdir()
    new.rename(directory)


async def _copy_all(
    ledger: asyncpg.Connection[asyncpg.Record], new: Path, secret: str | None, told: Told, partition: int
) -> Manifest:
    revision = await schema.revision(ledger)
    known = await partitions.get(ledger, partition) if revision is not None else None
    if revision is None or known is None:
        raise BackupRefused("the ledger has no tables, or nothing was ever built from it: there is nothing to back up")
    tables = [await _copy(ledger, new, name, told) for name in await tables_in_order(ledger)]
    sequences = await ledger.fetch("SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'")
    if secret is not None:
        archive.private(new / archive.SECRET, secret.encode())
    return Manifest(
        format=archive.FORMAT,
        release=metadata.version("flashsale"),
        postgres=await ledger.fetchval("SHOW server_version"),
        revision=revision,
        made_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        epoch=known.epoch,
        mark=known.mark,
        orders=next((table.rows for table in tables if table.name == "orders"), 0),
        secret=secret is not None,
        tables=tables,
        sequences={row[0]: row[1] for row in sequences},
    )


async def tables_in_order(ledger: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """Every table of the ledger but Alembic's, those that others refer to first."""
    names = await ledger.fetch(
        "SELECT c.oid, c.relname FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> 'alembic_version' ORDER BY c.relname"
    )
    by_oid = {row[0]: row[1] for row in names}
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(by_oid.values(), ()))
    for child, parent in await ledger.fetch("SELECT conrelid, confrelid FROM pg_constraint WHERE contype = 'f'"):
        if child != parent and child in by_oid and parent in by_oid:
            order.add(by_oid[child], by_oid[parent])
    return list(order.static_order())


async def _copy(ledger: asyncpg.Connection[asyncpg.Record], new: Path, name: str, told: Told) -> Table:
    told(name)
    columns = [
        row[0]
        for row in await ledger.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = ('public.' || quote_ident($1))::regclass AND attnum > 0"
            " AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            name,
        )
    ]
    with _created(archive.file_of(new, name)) as file:
        output = _Counted(file)
        status = await ledger.copy_from_table(
            name, schema_name="public", columns=columns, output=output.write, format="text"
        )
        file.flush()
        os.fsync(file.fileno())
    return Table(name, columns, int(status.rpartition(" ")[2]), output.size, output.digest.hexdigest())


def _created(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


class _Counted:
    """A file, with the length and digest of what went into it."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._file = file

    async def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
