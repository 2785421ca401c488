"""Dead letters: journal lines that PostgreSQL refused, byte for byte, so that someone may read and store them."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from flashsale.ledger.pool import Connection


class DeadLetter(NamedTuple):
    """One refused line: its journal entry, its place in it (from 0), its bytes, and PostgreSQL's words."""

    partition: int
    journal_ms: int
    journal_seq: int
    line: int
    record: bytes
    error: str


async def store(connection: Connection, letters: Sequence[DeadLetter]) -> None:
    """Adds dead letters."""
    await connection.copy_records_to_table("dead_letter", records=letters, columns=list(DeadLetter._fields))


async def first(connection: Connection, limit: int) -> list[DeadLetter]:
    """The oldest dead letters."""
    rows = await connection.fetch(
        f"SELECT {', '.join(DeadLetter._fields)} FROM dead_letter ORDER BY number LIMIT $1",  # noqa: S608
        limit,
    )
    return [DeadLetter(*row) for row in rows]


_ROW = f"SELECT number, created_at, {', '.join(DeadLetter._fields)} FROM dead_letter"  # noqa: S608  names of ours


async def newest(connection: Connection, limit: int) -> list[tuple[int, DeadLetter, datetime]]:
    """Those set aside last, newest first, each with its number and since when."""
    rows = await connection.fetch(f"{_ROW} ORDER BY number DESC LIMIT $1", limit)
    return [(row[0], DeadLetter(*tuple(row)[2:]), row[1]) for row in rows]


async def get(connection: Connection, number: int) -> tuple[DeadLetter, datetime] | None:
    """The one of that number, and since when."""
    row = await connection.fetchrow(f"{_ROW} WHERE number = $1", number)
    return None if row is None else (DeadLetter(*tuple(row)[2:]), row[1])


async def take(connection: Connection, number: int) -> DeadLetter | None:
    """Takes it out, in a transaction of the caller's."""
    columns = ", ".join(DeadLetter._fields)
    row = await connection.fetchrow(f"DELETE FROM dead_letter WHERE number = $1 RETURNING {columns}", number)  # noqa: S608
    return None if row is None else DeadLetter(*row)
