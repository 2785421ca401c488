"""Catalogues that merchants sent, from the first part of the file to what became of it.

An import is `uploading` until all parts are here, `queued` until its time, and then `applied`, `checked` (a dry run
without a fault), `faulty` (nothing was changed) or `failed` (it could not be done at all).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO

from flashsale.ledger.pool import Connection

PARTS_MAX = 1000
PART_MAX_BYTES = 8 * 1024 * 1024
SPOOLED_BYTES = 8 * 1024 * 1024  # of a file in memory while it is read: what is more lies on disk
WAITING_MAX = 20  # of one merchant: each may hold a file of a gigabyte

ENDED = frozenset({"applied", "checked", "faulty", "failed"})

_COLUMNS = (
    "number, merchant, status, market, sale, decimal_mark, dry_run, parts, at_ms, created_ms, finished_ms, rows,"
    " created, updated, unchanged, offers, faults, warnings, error"
)


@dataclass(frozen=True, slots=True)
class ImportRow:
    """`at_ms`: not to be applied before. Counts are 0 until it has ended."""

    number: int
    merchant: str
    status: str
    market: str
    sale: str | None
    decimal_mark: str | None
    dry_run: bool
    parts: int
    at_ms: int
    created_ms: int
    finished_ms: int | None
    rows: int
    created: int
    updated: int
    unchanged: int
    offers: int
    faults: int
    warnings: int
    error: str | None

    @property
    def id(self) -> str:
        return f"im-{self.number}"


async def add(
    connection: Connection,
    *,
    merchant: str,
    market: str,
    sale: str | None,
    decimal_mark: str | None,
    dry_run: bool,
    parts: int,
    at_ms: int,
    now_ms: int,
) -> ImportRow | None:
    """A new import without its file; None where WAITING_MAX of the merchant's wait."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('import'), hashtext($1))", merchant)
    waiting = await connection.fetchval(
        "SELECT count(*) FROM catalogue_import WHERE merchant = $1 AND status IN ('uploading', 'queued')", merchant
    )
    if waiting >= WAITING_MAX:
        return None
    row = await connection.fetchrow(
        "INSERT INTO catalogue_import (merchant, status, market, sale, decimal_mark, dry_run, parts, at_ms, created_ms)"  # noqa: S608
        f" VALUES ($1, 'uploading', $2, $3, $4, $5, $6, $7, $8) RETURNING {_COLUMNS}",
        merchant, market, sale, decimal_mark, dry_run, parts, at_ms, now_ms,
    )  # fmt: skip
    assert row is not None  # noqa: S101  an INSERT that returns
    return ImportRow(*row)


async def put_part(connection: Connection, found: ImportRow, number: int, data: bytes) -> ImportRow:
    """Part `number` (from 1) of the file; with the last one the import is queued. A part that is here is replaced as
    long as another lacks."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM catalogue_import WHERE number = $1 FOR UPDATE",  # noqa: S608
        found.number,
    )
    assert row is not None  # noqa: S101  imports are never deleted
    if row["status"] != "uploading":
        return ImportRow(*row)
    await connection.execute(
        "INSERT INTO import_part (import, number, data) VALUES ($1, $2, $3)"
        " ON CONFLICT (import, number) DO UPDATE SET data = $3",
        found.number, number, data,
    )  # fmt: skip
    row = await connection.fetchrow(
        "UPDATE catalogue_import SET status = CASE WHEN parts = (SELECT count(*) FROM import_part WHERE import = $1)"  # noqa: S608
        f" THEN 'queued' ELSE status END WHERE number = $1 RETURNING {_COLUMNS}",
        found.number,
    )
    assert row is not None  # noqa: S101
    return ImportRow(*row)


async def get(connection: Connection, merchant: str, number: int) -> ImportRow | None:
    """The merchant's import of that number."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM catalogue_import WHERE merchant = $1 AND number = $2",  # noqa: S608
        merchant, number,
    )  # fmt: skip
    return None if row is None else ImportRow(*row)


async def before(connection: Connection, merchant: str, number: int | None, limit: int) -> list[ImportRow]:
    """The merchant's imports before that number, newest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM catalogue_import WHERE merchant = $1 AND ($2::int8 IS NULL OR number < $2)"  # noqa: S608
        " ORDER BY number DESC LIMIT $3",
        merchant, number, limit,
    )  # fmt: skip
    return [ImportRow(*row) for row in rows]


async def due(connection: Connection, now_ms: int) -> ImportRow | None:
    """The next import whose time has come; of one merchant the first that was sent."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM catalogue_import WHERE status = 'queued' AND at_ms <= $1"  # noqa: S608
        " ORDER BY greatest(at_ms, created_ms), number LIMIT 1",
        now_ms,
    )
    return None if row is None else ImportRow(*row)


async def file_of(connection: Connection, number: int) -> IO[bytes]:
    """The file, whole. The caller closes it."""
    file = SpooledTemporaryFile(max_size=SPOOLED_BYTES)  # noqa: SIM115  it is the caller's
    async with connection.transaction():
        query = "SELECT data FROM import_part WHERE import = $1 ORDER BY number"
        async for (data,) in connection.cursor(query, number, prefetch=1):
            file.write(data)
    file.seek(0)
    return file


async def end(connection: Connection, ended: ImportRow, findings: bytes, now_ms: int) -> None:
    """What became of it; its file goes. `findings` are JSON lines."""
    await connection.execute(
        "UPDATE catalogue_import SET status = $2, finished_ms = $3, rows = $4, created = $5, updated = $6,"
        " unchanged = $7, offers = $8, faults = $9, warnings = $10, error = $11, findings = $12 WHERE number = $1",
        ended.number, ended.status, now_ms, ended.rows, ended.created, ended.updated, ended.unchanged, ended.offers,
        ended.faults, ended.warnings, ended.error, zlib.compress(findings),
    )  # fmt: skip
    await connection.execute("DELETE FROM import_part WHERE import = $1", ended.number)


async def begin(connection: Connection, number: int) -> int:
    """It is taken up; for the how-manieth time."""
    query = "UPDATE catalogue_import SET attempts = attempts + 1 WHERE number = $1 RETURNING attempts"
    attempts: int = await connection.fetchval(query, number)
    return attempts


async def put_back(connection: Connection, number: int) -> None:
    """It was taken up, and is left through no fault of its own: that time does not count."""
    await connection.execute("UPDATE catalogue_import SET attempts = attempts - 1 WHERE number = $1", number)


async def fail(connection: Connection, number: int, error: str, now_ms: int) -> None:
    """It could not be done at all; its file stays, for `again`."""
    await connection.execute(
        "UPDATE catalogue_import SET status = 'failed', finished_ms = $2, error = $3 WHERE number = $1",
        number, now_ms, error,
    )  # fmt: skip


async def again(connection: Connection, number: int) -> bool:
    """One that failed, and whose file is here still, is queued again; False where it is not so."""
    query = (
        "UPDATE catalogue_import SET status = 'queued', finished_ms = NULL, error = NULL, attempts = 0"
        " WHERE number = $1"
        " AND status = 'failed' AND EXISTS (SELECT FROM import_part WHERE import = $1) RETURNING true"
    )
    return await connection.fetchval(query, number) is not None


async def findings(connection: Connection, number: int) -> bytes:
    """JSON lines; none before it has ended."""
    packed = await connection.fetchval("SELECT findings FROM catalogue_import WHERE number = $1", number)
    return b"" if packed is None else zlib.decompress(packed)
