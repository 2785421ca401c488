"""Events of the payment provider that could not be understood or stored, byte for byte, so that someone may read them.

What they told is not lost with them: the intent is asked when it stays silent, and reconciliation names what differs.
"""

from collections.abc import Sequence
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


async def newest(connection: Connection, limit: int) -> list[DamagedEvent]:
    """Those that were set aside last, newest first."""
    rows = await connection.fetch(
        f"SELECT {', '.join(DamagedEvent._fields)} FROM damaged_event ORDER BY number DESC LIMIT $1",  # noqa: S608
        limit,
    )
    return [DamagedEvent(*row) for row in rows]
