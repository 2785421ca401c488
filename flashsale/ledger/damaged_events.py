"""Events of the payment provider that could not be understood or stored, byte for byte, so that someone may read them.

What they told is not lost with them: the intent is asked when it stays silent, and reconciliation names what differs.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from flashsale.ledger.pool import Connection

ERROR_MAX = 500


class DamagedEvent(NamedTuple):
    """One such event: the id of its entry in the stream, its place in it (from 0), its body, and what is wrong."""

    event_ms: int
    event_seq: int
    place: int
    body: bytes
    error: str


async def store(connection: Connection, events: Sequence[DamagedEvent]) -> None:
    """Sets events aside."""
    # PostgreSQL takes no NUL in text, and the error may quote the event.
    rows = [event._replace(error=event.error.replace("\0", "")[:ERROR_MAX]) for event in events]
    await connection.copy_records_to_table("damaged_event", records=rows, columns=list(DamagedEvent._fields))


_ROW = f"SELECT number, created_at, {', '.join(DamagedEvent._fields)} FROM damaged_event"  # noqa: S608  names of ours


async def numbered(connection: Connection, limit: int) -> list[tuple[int, DamagedEvent, datetime]]:
    """Those set aside last, newest first, each with its number and since when."""
    rows = await connection.fetch(f"{_ROW} ORDER BY number DESC LIMIT $1", limit)
    return [(row[0], DamagedEvent(*tuple(row)[2:]), row[1]) for row in rows]


async def get(connection: Connection, number: int) -> tuple[DamagedEvent, datetime] | None:
    """The one of that number, and since when."""
    row = await connection.fetchrow(f"{_ROW} WHERE number = $1", number)
    return None if row is None else (DamagedEvent(*tuple(row)[2:]), row[1])


async def take(connection: Connection, number: int) -> DamagedEvent | None:
    """Takes it out, in a transaction of the caller's."""
    columns = ", ".join(DamagedEvent._fields)
    query = f"DELETE FROM damaged_event WHERE number = $1 RETURNING {columns}"  # noqa: S608
    row = await connection.fetchrow(query, number)
    return None if row is None else DamagedEvent(*row)
