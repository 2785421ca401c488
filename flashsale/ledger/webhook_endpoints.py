"""Endpoints that hear of the engine's events: who they are, what they asked for, and whether they are reachable now.

An endpoint that failed too often in a row has its circuit opened: nothing is sent to it for a while that grows with
every failed attempt to close it again, and that attempt is one delivery, claimed by `probe`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flashsale.ledger.pool import Connection

OPEN_FIRST_MS = 30_000  # the circuit's first opening, and its longest: it doubles from one to the other
OPEN_LONGEST_MS = 3_600_000


class Endpoint(NamedTuple):
    """An endpoint without its secret. `failures` are those in a row; `open_until_ms`: nothing is sent before."""

    id: str
    owner: str
    url: str
    events: list[str]
    created_ms: int
    disabled: bool
    failures: int
    open_until_ms: int | None


_FIELDS = ", ".join(Endpoint._fields)


async def add(
    connection: Connection, *, id: str, owner: str, url: str, events: Sequence[str], secret: str, now_ms: int
) -> None:
    """Adds an endpoint. It hears of what is told from now on."""
    await connection.execute(
        "INSERT INTO webhook_endpoint (id, owner, url, events, secret, created_ms) VALUES ($1, $2, $3, $4, $5, $6)",
        *(id, owner, url, list(events), secret, now_ms),
    )


async def count(connection: Connection) -> int:
    """How many endpoints are heard."""
    found: int = await connection.fetchval("SELECT count(*) FROM webhook_endpoint WHERE NOT disabled")
    return found


async def get(connection: Connection, id: str) -> Endpoint | None:
    row = await connection.fetchrow(f"SELECT {_FIELDS} FROM webhook_endpoint WHERE id = $1", id)  # noqa: S608
    return None if row is None else Endpoint(*row)


async def after(connection: Connection, id: str | None, limit: int) -> list[Endpoint]:
    """Endpoints in the order of their ids (which is that of their making), those after `id`."""
    rows: list[Any] = await connection.fetch(
        f"SELECT {_FIELDS} FROM webhook_endpoint WHERE $1::text IS NULL OR id > $1 ORDER BY id LIMIT $2",  # noqa: S608
        *(id, limit),
    )
    return [Endpoint(*row) for row in rows]


async def disable(connection: Connection, id: str) -> bool:
    """Nothing is sent to it any more; what waits for it is given up. False: there is no such endpoint."""
    return (
        await connection.fetchval("UPDATE webhook_endpoint SET disabled = true WHERE id = $1 RETURNING true", id)
        is not None
    )


async def probe(connection: Connection, id: str, open_until_ms: int, *, now_ms: int, lease_ms: int) -> bool:
    """Whether this delivery may try an open circuit whose time is over: one does, the others wait `lease_ms`."""
    return (
        await connection.fetchval(
            """UPDATE webhook_endpoint SET open_until_ms = $3 WHERE id = $1 AND open_until_ms = $2 AND NOT disabled
           RETURNING true""",
            *(id, open_until_ms, now_ms + lease_ms),
        )
        is not None
    )


async def answered(connection: Connection, id: str) -> None:
    """A delivery was taken: the circuit closes."""
    await connection.execute(
        """UPDATE webhook_endpoint SET failures = 0, open_until_ms = NULL
            WHERE id = $1 AND (failures > 0 OR open_until_ms IS NOT NULL)""",
        id,
    )


async def failed(connection: Connection, id: str, *, probing: bool, failures_max: int, now_ms: int) -> None:
    """A try failed. The circuit opens at `failures_max` in a row, and for longer each time a probe fails; what else
    was under way when it opened counts no more."""
    await connection.execute(
        """UPDATE webhook_endpoint
              SET failures = failures + 1,
                  open_until_ms = CASE WHEN failures + 1 >= $3
                                       THEN $4 + least($5 * 2 ^ least(failures + 1 - $3, 30), $6)::int8 END
            WHERE id = $1 AND ($2 OR open_until_ms IS NULL)""",
        *(id, probing, failures_max, now_ms, OPEN_FIRST_MS, OPEN_LONGEST_MS),
    )
