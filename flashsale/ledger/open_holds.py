"""Orders that are reserved: which are past their deadline, and whose deadline is the first for a SKU.

Both look only at a stretch of the orders' times (an index), for there may be millions of rows and a look is a second
apart: the caller remembers from where on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.ledger import set_aside
from flashsale.ledger.pool import Connection


class Stretch(NamedTuple):
    """The first orders past their deadline: from and to which order time (ms), and how many they are."""

    first_ms: int
    last_ms: int
    orders: int


class Deadline(NamedTuple):
    """The reserved order of a SKU whose units may come back first, and when (ms)."""

    order_id: str
    at_ms: int


async def past_deadline(
    connection: Connection, from_ms: int, upto_ms: int, until_ms: int, limit: int
) -> Stretch | None:
    """The first `limit` reserved orders taken from `from_ms` to `upto_ms` whose deadline is at or before `until_ms`;
    None where there is none."""
    first_ms, last_ms, orders = await connection.fetchrow(  # type: ignore[misc]  # an aggregate always has a row
        "SELECT min(journal_ms), max(journal_ms), count(*) FROM (SELECT journal_ms FROM orders"
        " WHERE status = 'reserved' AND journal_ms BETWEEN $1 AND $2 AND journal_ms + hold_ms <= $3"
        " ORDER BY journal_ms LIMIT $4) AS o",
        from_ms, upto_ms, until_ms, limit,
    )  # fmt: skip
    return Stretch(first_ms, last_ms, orders) if orders else None


async def in_stretch(connection: Connection, stretch: Stretch, until_ms: int, limit: int) -> list[str]:
    """The ids of the stretch's orders that are past their deadline and not set aside."""
    rows = await connection.fetch(
        "SELECT id FROM orders WHERE status = 'reserved' AND journal_ms BETWEEN $1 AND $2"
        " AND journal_ms + hold_ms <= $3"
        " AND NOT EXISTS (SELECT FROM set_aside WHERE kind = $5 AND set_aside.id = orders.id)"
        " ORDER BY journal_ms LIMIT $4",
        stretch.first_ms, stretch.last_ms, until_ms, limit, set_aside.EXPIRY,
    )  # fmt: skip
    return [row[0] for row in rows]


async def oldest(connection: Connection, from_ms: int) -> int | None:
    """The time (ms) of the oldest reserved order taken from `from_ms` on."""
    found: int | None = await connection.fetchval(
        "SELECT journal_ms FROM orders WHERE status = 'reserved' AND journal_ms >= $1 ORDER BY journal_ms LIMIT 1",
        from_ms,
    )
    return found


async def first_deadlines(
    connection: Connection, sale: int, skus: Sequence[int], from_ms: int, limit: int | None = None
) -> dict[int, Deadline]:
    """By offer index, of these SKUs: the first deadline of a reserved order taken from `from_ms` on; looking at the
    sale's `limit` oldest ones only (None: all). A second or two for a million."""
    rows = await connection.fetch(
        # Times have 13 digits until the year 2286, so that text order is time order.
        "SELECT line.sku, min(ARRAY[(journal_ms + hold_ms)::text, id]) FROM (SELECT id, skus, journal_ms, hold_ms"
        " FROM orders WHERE status = 'reserved' AND sale = $1 AND journal_ms >= $3 ORDER BY journal_ms LIMIT $4) AS o,"
        " unnest(skus) AS line (sku) WHERE line.sku = ANY ($2::int2[]) GROUP BY line.sku",
        sale, list(skus), from_ms, limit,
    )  # fmt: skip
    return {sku: Deadline(order_id, int(at_ms)) for sku, (at_ms, order_id) in rows}


async def still_due(connection: Connection, order_ids: Sequence[str]) -> dict[str, int]:
    """The deadlines (ms) of those of the orders that are still reserved."""
    rows = await connection.fetch(
        "SELECT id, journal_ms + hold_ms FROM orders WHERE id = ANY ($1::text[]) AND status = 'reserved'",
        list(order_ids),
    )
    return {row[0]: row[1] for row in rows}
