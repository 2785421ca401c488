"""Dead letters: journal lines that PostgreSQL refused, byte for byte, so that someone may read and store them."""

from collections.abc import Sequence
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
