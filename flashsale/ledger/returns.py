"""Returns as rows: what a shopper wants to give back and what arrived of it. `life/returns.py` changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashsale.ledger import history
from flashsale.ledger.pool import Connection


@dataclass(frozen=True, slots=True)
class ReturnRow:
    """A return. `status`: requested, accepted, refused, received; `skus` are offer indices, the other lists units of
    each; `received` and of these `restocked` are None until it arrived."""

    id: str
    order_id: str
    status: str
    reason: str
    skus: list[int]
    quantities: list[int]
    received: list[int] | None
    restocked: list[int] | None
    created_ms: int
    changed_ms: int


_COLUMNS = ", ".join(ReturnRow.__dataclass_fields__)


async def get(connection: Connection, return_id: str) -> ReturnRow | None:
    """The return of that id."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM return_request WHERE id = $1", return_id)  # noqa: S608
    return None if row is None else ReturnRow(*row)


async def of_order(connection: Connection, order_id: str) -> list[ReturnRow]:
    """The order's returns, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM return_request WHERE order_id = $1 ORDER BY created_ms, id",  # noqa: S608
        order_id,
    )
    return [ReturnRow(*row) for row in rows]


async def by_key(connection: Connection, order_id: str, key: str) -> ReturnRow | None:
    """The return that was asked for under an Idempotency-Key."""
    entry = await history.by_key(connection, order_id, "return.requested", key)
    return None if entry is None or entry.detail is None else await get(connection, entry.detail["return"])


async def insert(
    connection: Connection, return_id: str, order_id: str, lines: Sequence[tuple[int, int]], reason: str, now_ms: int
) -> ReturnRow:
    """A requested return of (offer index, units)."""
    row = await connection.fetchrow(
        "INSERT INTO return_request (id, order_id, reason, skus, quantities, created_ms, changed_ms)"  # noqa: S608
        f" VALUES ($1, $2, $3, $4, $5, $6, $6) RETURNING {_COLUMNS}",
        return_id, order_id, reason, [line[0] for line in lines], [line[1] for line in lines], now_ms,
    )  # fmt: skip
    return _row(row)


async def set_status(connection: Connection, return_id: str, status: str, now_ms: int) -> ReturnRow:
    """Accepted or refused."""
    row = await connection.fetchrow(
        f"UPDATE return_request SET status = $2, changed_ms = $3 WHERE id = $1 RETURNING {_COLUMNS}",  # noqa: S608
        return_id,
        status,
        now_ms,
    )
    return _row(row)


async def received(
    connection: Connection, return_id: str, arrived: Sequence[int], restocked: Sequence[int], now_ms: int
) -> ReturnRow:
    """It arrived: units of each of its lines, and of these the restocked ones."""
    row = await connection.fetchrow(
        "UPDATE return_request SET status = 'received', received = $2, restocked = $3, changed_ms = $4"  # noqa: S608
        f" WHERE id = $1 RETURNING {_COLUMNS}",
        return_id, list(arrived), list(restocked), now_ms,
    )  # fmt: skip
    return _row(row)


def _row(row: Any) -> ReturnRow:
    return ReturnRow(*row)
