"""Things that made a duty fail each time it took them up: named here, passed over there, until somebody retries them.

The thing itself stays where it lies (an order, an import, a row of the outbox). Journal lines and provider events that
can't be stored have no such place and lie whole in tables of their own (dead_letters.py, damaged_events.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.ledger.pool import Connection

SETTLEMENT, OUTBOX, IMPORT, EXPIRY = "settlement", "outbox", "import", "expiry"
ERROR_MAX = 500
WAITING_MAX = 1000


class SetAside(NamedTuple):
    """One such thing: whose it is, its id there, why, and since when."""

    kind: str
    id: str
    error: str
    at_ms: int


async def put(connection: Connection, kind: str, things: Sequence[tuple[str, str]], now_ms: int) -> None:
    """Sets (id, error) pairs aside; one that lies there already keeps its time."""
    await connection.executemany(
        "INSERT INTO set_aside (kind, id, error, at_ms) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (kind, id) DO UPDATE SET error = excluded.error",
        [(kind, id, error.replace("\0", "")[:ERROR_MAX], now_ms) for id, error in things],
    )


async def ids(connection: Connection, kind: str) -> list[str]:
    """The ids of that kind."""
    return [row[0] for row in await connection.fetch("SELECT id FROM set_aside WHERE kind = $1 ORDER BY id", kind)]


async def newest(connection: Connection, limit: int) -> list[SetAside]:
    """Those set aside last, newest first."""
    rows = await connection.fetch(
        "SELECT kind, id, error, at_ms FROM set_aside ORDER BY at_ms DESC, kind, id LIMIT $1", limit
    )
    return [SetAside(*row) for row in rows]


async def get(connection: Connection, kind: str, id: str) -> SetAside | None:
    """That thing, if it is set aside."""
    row = await connection.fetchrow(
        "SELECT kind, id, error, at_ms FROM set_aside WHERE kind = $1 AND id = $2", kind, id
    )
    return None if row is None else SetAside(*row)


async def waiting(connection: Connection) -> int:
    """How many things wait for somebody to look at them, wherever they lie; WAITING_MAX stands for more."""
    found: int = await connection.fetchval(
        """SELECT count(*) FROM (SELECT FROM set_aside UNION ALL SELECT FROM dead_letter UNION ALL
                                 SELECT FROM damaged_event LIMIT $1) AS waiting""",
        WAITING_MAX,
    )
    return found


async def take_back(connection: Connection, kind: str, id: str) -> bool:
    """Its duty may take it up again; False where it was not set aside."""
    query = "DELETE FROM set_aside WHERE kind = $1 AND id = $2 RETURNING true"
    return await connection.fetchval(query, kind, id) is not None
