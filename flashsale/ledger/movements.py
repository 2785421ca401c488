"""Movements: every journal entry that is not a batch of orders, one row an SKU that it touches.

kind           sku   units           order_id  detail
create         SKU   units added     -         {}; and one row without SKU: {"opens_at", "closes_at"} (ms)
adjust         SKU   change, signed  -         {"supply": after it}
release        SKU   units back      order     {"number": of the change, "outbox": row, "quota_back": quota too?}
reserve_again  SKU   below 0: taken  order     the same; one row without SKU and units where they were refused
status         -     -               -         {"status", "opens_at", "closes_at"}
suspend, unsuspend   SKU, no units; version {"version"}; epoch {"epoch"}

Of release and reserve_again the sum of units is what went back and was not taken again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.ledger.pool import Connection

MOVED = "kind IN ('release', 'reserve_again')"
"""SQL: movements of an order's units after it took them."""

QUOTA_BACK = "(detail ->> 'quota_back')::bool"
"""SQL: whether with the units of such a movement the shopper's quota moved."""

NUMBER = "(detail ->> 'number')::int"
"""SQL: which change of its order such a movement follows from. The hold in Valkey keeps the last one's."""


class MovementRow(NamedTuple):
    """A row of `movement`. `detail` is JSON; None where a column has no meaning for the kind."""

    partition: int
    journal_ms: int
    journal_seq: int
    kind: str
    sale: int | None
    sku: int | None
    units: int | None
    order_id: str | None
    detail: str


async def store(connection: Connection, rows: Sequence[MovementRow], table: str = "movement") -> None:
    """Adds rows to `movement` or a table of its shape. Raises asyncpg.DataError where PostgreSQL refuses one."""
    await connection.copy_records_to_table(table, records=rows, columns=list(MovementRow._fields))


async def of_sales(connection: Connection, partition: int) -> list[MovementRow]:
    """What changed windows, states and suspensions, in the journal's order: a few rows a sale command."""
    rows = await connection.fetch(
        f"SELECT {', '.join(MovementRow._fields)} FROM movement WHERE partition = $1"  # noqa: S608
        " AND (kind IN ('status', 'suspend', 'unsuspend') OR (kind = 'create' AND sku IS NULL))"
        " ORDER BY journal_ms, journal_seq",
        partition,
    )
    return [MovementRow(*row) for row in rows]


async def supplies(connection: Connection, partition: int, until: tuple[int, int]) -> dict[int, dict[int, int]]:
    """Units supplied, by sale number and offer index, up to and with a journal id."""
    rows = await connection.fetch(
        "SELECT sale, sku, sum(units)::int8 FROM movement WHERE partition = $1 AND kind IN ('create', 'adjust')"
        " AND sku IS NOT NULL AND (journal_ms, journal_seq) <= ($2::int8, $3::int8) GROUP BY sale, sku",
        partition, *until,
    )  # fmt: skip
    supplied: dict[int, dict[int, int]] = {}
    for sale, sku, units in rows:
        supplied.setdefault(sale, {})[sku] = units
    return supplied


async def released_units(connection: Connection, partition: int, until: tuple[int, int]) -> dict[int, dict[int, int]]:
    """Units given back and not taken again, by sale number and offer index, up to and with a journal id."""
    rows = await connection.fetch(
        f"SELECT sale, sku, sum(units)::int8 FROM movement WHERE partition = $1 AND {MOVED} AND sku IS NOT NULL"  # noqa: S608
        " AND (journal_ms, journal_seq) <= ($2::int8, $3::int8) GROUP BY sale, sku",
        partition, *until,
    )  # fmt: skip
    released: dict[int, dict[int, int]] = {}
    for sale, sku, units in rows:
        released.setdefault(sale, {})[sku] = units
    return released
