"""An order's history: one row a change, numbered from 2, for the order's own row is the first entry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from flashsale.ledger.pool import Connection


class HistoryRow(NamedTuple):
    """A change. `event` is its published name, `status` and `payment` the order's after it, `detail` what else is to
    be said of it."""

    order_id: str
    number: int
    at_ms: int
    event: str
    status: str
    payment: str
    detail: dict[str, Any] | None


_COLUMNS = HistoryRow._fields


async def add(connection: Connection, rows: Sequence[HistoryRow]) -> None:
    """Stores changes, in the transaction that makes them."""
    if len(rows) > 1:
        records = [(*row[:-1], None if row.detail is None else json.dumps(row.detail)) for row in rows]
        await connection.copy_records_to_table("history", records=records, columns=list(_COLUMNS))
    elif rows:
        row = rows[0]
        await connection.execute(
            "INSERT INTO history (order_id, number, at_ms, event, status, payment, detail)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            *row[:-1], None if row.detail is None else json.dumps(row.detail),
        )  # fmt: skip


async def of_order(connection: Connection, order_id: str, after: int = 1) -> list[HistoryRow]:
    """The changes behind number `after`, oldest first."""
    rows = await connection.fetch(
        f"SELECT {', '.join(_COLUMNS)} FROM history WHERE order_id = $1 AND number > $2 ORDER BY number",  # noqa: S608
        order_id,
        after,
    )
    return [_row(row) for row in rows]


async def by_key(connection: Connection, order_id: str, event: str, key: str) -> HistoryRow | None:
    """The change of that name that was asked for under an Idempotency-Key; None: it was not made yet."""
    row = await connection.fetchrow(
        f"SELECT {', '.join(_COLUMNS)} FROM history WHERE order_id = $1 AND event = $2"  # noqa: S608
        " AND detail ->> 'key' = $3 ORDER BY number LIMIT 1",
        order_id,
        event,
        key,
    )
    return None if row is None else _row(row)


def _row(row: Any) -> HistoryRow:
    order_id, number, at_ms, event, status, payment, detail = row
    return HistoryRow(order_id, number, at_ms, event, status, payment, None if detail is None else json.loads(detail))
