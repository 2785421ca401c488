"""Orders: COPY in, and the few reads that pages need. The row is the order's own first history entry and movement.

What a line of COPY text holds is made by the domain (`sale/priced.py`) and the journal's id by the writer.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from flashsale.ledger.movements import MOVED, NUMBER, QUOTA_BACK
from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import LETTERS, Status
from flashsale.sale.priced import RECORD_COLUMNS

COPY_COLUMNS = (*RECORD_COLUMNS, "partition", "journal_ms", "journal_seq")
"""The columns of a line of COPY text: the record's, then the journal entry's id."""

_READ = (
    "id, sale, shopper, idempotency_key, market, channel, lane, ship_to, skus, quantities, prices, total, currency,"
    " catalogue_version, fingerprint, hold_ms, partition, journal_ms, journal_seq, status, payment, changes, extended,"
    " cancelled, shipped, returned, restocked, refunded, agent, collected, shipping, duties, taxes, due_duty, due_tax,"
    " ddp, estimated, lane_number, dispatch_day, promised_by, restated_by, identity, limit_year, limit_use, drawn"
)

_PREFETCH = 5000  # rows a round trip of a stream


@dataclass(frozen=True, slots=True)
class OrderRow:
    """An order as the ledger has it. Money in minor units of `currency`; `journal_ms` is the order's time."""

    id: str
    sale: int
    shopper: str
    idempotency_key: str
    market: str
    channel: str
    lane: str | None
    ship_to: str | None  # JSON
    skus: list[int]  # offer index of each line
    quantities: list[int]
    prices: list[int]  # of one unit
    total: int
    currency: str
    catalogue_version: int
    fingerprint: bytes
    hold_ms: int
    partition: int
    journal_ms: int
    journal_seq: int
    status: str
    payment: str
    changes: int  # entries of its history; the row itself is the first
    extended: bool  # hold_ms holds the sale's extension already
    cancelled: list[int] | None  # units of each line; None: none
    shipped: list[int] | None
    returned: list[int] | None
    restocked: list[int] | None  # of the returned those on the shelf again
    refunded: list[int] | None  # units whose price went back, or was never taken
    agent: str | None  # who ordered for the shopper
    collected: bool  # the channel has the money already
    shipping: int | None  # None, with what follows: the sale crosses no border
    duties: list[int] | None  # of all units of each line, a part of the total
    taxes: list[int] | None
    due_duty: int | None  # what the border collects, outside the total
    due_tax: int | None
    ddp: bool | None
    estimated: bool | None
    lane_number: int | None  # the lane whose capacity holds a parcel, and the day: days since 1970-01-01
    dispatch_day: int | None
    promised_by: date | None
    restated_by: date | None  # the promise as restated at the payment; None: the first one holds
    identity: bytes | None  # whose import limit it counts for (10 bytes), in which year, and how much
    limit_year: int | None
    limit_use: int | None
    drawn: list[int] | None  # of each line the units from its channel's guarantee; None: none


class HoldRow(NamedTuple):
    """What Valkey keeps of an order. `letter`: of its status, upper case where it was extended (sale/lifecycle.py);
    `journal_ms`, `journal_seq`: its entry; `number`: of the last movement of its units, 0: none since the order."""

    id: str
    sale: int
    letter: str
    fingerprint: bytes
    version: int
    journal_ms: int
    journal_seq: int
    number: int


async def copy(connection: Connection, lines: bytes, table: str = "orders") -> int:
    """Stores lines of COPY text in `orders` or a table of its shape; returns how many. Raises asyncpg.DataError where
    PostgreSQL refuses one of them."""
    # A memoryview: asyncpg takes plain bytes for the name of a file.
    status = await connection.copy_to_table(
        table,
        source=memoryview(lines),  # type: ignore[arg-type]  # asyncpg takes any buffer, its stubs don't say so
        columns=list(COPY_COLUMNS),
        format="text",
    )
    return int(status.rpartition(" ")[2])


async def find(connection: Connection, order_id: str) -> OrderRow | None:
    """The order of that id."""
    row = await connection.fetchrow(f"SELECT {_READ} FROM orders WHERE id = $1 LIMIT 1", order_id)  # noqa: S608
    return None if row is None else OrderRow(*row)


async def of_ids(connection: Connection, order_ids: Sequence[str]) -> dict[str, OrderRow]:
    """The orders of these ids, by id."""
    rows = await connection.fetch(f"SELECT {_READ} FROM orders WHERE id = ANY ($1::text[])", list(order_ids))  # noqa: S608
    return {row["id"]: OrderRow(*row) for row in rows}


async def lock(connection: Connection, order_id: str) -> OrderRow | None:
    """The order of that id; nobody else changes it until this transaction ends."""
    row = await connection.fetchrow(f"SELECT {_READ} FROM orders WHERE id = $1 LIMIT 1 FOR UPDATE", order_id)  # noqa: S608
    return None if row is None else OrderRow(*row)


async def of_shopper(connection: Connection, shopper: str, limit: int, after: str | None = None) -> list[OrderRow]:
    """The shopper's orders, newest first; behind the order `after`. One that the ledger has not yet is the newest."""
    rows = await connection.fetch(
        f"SELECT {_READ} FROM orders AS o WHERE shopper = $1 AND coalesce("  # noqa: S608
        " (SELECT (o.journal_ms, o.journal_seq, o.id) < (a.journal_ms, a.journal_seq, a.id)"
        " FROM orders AS a WHERE a.id = $3 AND a.shopper = $1 LIMIT 1), true)"
        " ORDER BY journal_ms DESC, journal_seq DESC, id DESC LIMIT $2",
        shopper, limit, after,
    )  # fmt: skip
    return [OrderRow(*row) for row in rows]


async def of_agent(connection: Connection, agent: str, limit: int, after: str | None = None) -> list[OrderRow]:
    """The orders that the agent placed, newest first; behind the order `after`."""
    rows = await connection.fetch(
        f"SELECT {_READ} FROM orders AS o WHERE agent = $1 AND coalesce("  # noqa: S608
        " (SELECT (o.journal_ms, o.journal_seq, o.id) < (a.journal_ms, a.journal_seq, a.id)"
        " FROM orders AS a WHERE a.id = $3 AND a.agent = $1 LIMIT 1), true)"
        " ORDER BY journal_ms DESC, journal_seq DESC, id DESC LIMIT $2",
        agent, limit, after,
    )  # fmt: skip
    return [OrderRow(*row) for row in rows]


async def of_channel(
    connection: Connection,
    channel: str,
    limit: int,
    *,
    after_ms: int | None = None,
    before_ms: int | None = None,
    after: str | None = None,
) -> list[OrderRow]:
    """The channel's orders, oldest first: made later than `after_ms`, before `before_ms`, behind the order `after`. A
    partition's orders reach the ledger in the order of their making, so a page that was read gains none later."""
    rows = await connection.fetch(
        f"SELECT {_READ} FROM orders WHERE channel = $1 AND channel <> 'direct'"  # noqa: S608  the index's own words
        " AND journal_ms > coalesce($2::int8, -1) AND journal_ms < coalesce($3::int8, 9223372036854775807)"
        " AND (journal_ms, journal_seq, id) > (SELECT coalesce(max(a.journal_ms), -1), coalesce(max(a.journal_seq), 0),"
        "   coalesce(max(a.id), '') FROM orders AS a WHERE a.id = $4 AND a.channel = $1)"
        " ORDER BY journal_ms, journal_seq, id LIMIT $5",
        channel, after_ms, before_ms, after, limit,
    )  # fmt: skip
    return [OrderRow(*row) for row in rows]


async def sold_units(connection: Connection, sale: int) -> dict[int, int]:
    """Units paid and not given back, by offer index."""
    return {row[0]: row[1] for row in await connection.fetch("SELECT sku, units FROM sold WHERE sale = $1", sale)}


async def count(connection: Connection) -> int:
    """How many orders there are. Reads the whole table."""
    return int(await connection.fetchval("SELECT count(*) FROM orders"))


async def taken_units(connection: Connection, partition: int, until: tuple[int, int]) -> dict[int, dict[int, int]]:
    """Units ever taken by orders, given back or not, by sale number and offer index, up to and with a journal id."""
    rows = await connection.fetch(
        "SELECT sale, line.sku, sum(line.units)::int8 FROM orders, unnest(skus, quantities) AS line (sku, units)"
        " WHERE partition = $1 AND (journal_ms, journal_seq) <= ($2::int8, $3::int8) GROUP BY sale, line.sku",
        partition, *until,
    )  # fmt: skip
    taken: dict[int, dict[int, int]] = {}
    for sale, sku, units in rows:
        taken.setdefault(sale, {})[sku] = units
    return taken


async def each_hold(connection: Connection, partition: int, until: tuple[int, int]) -> AsyncIterator[HoldRow]:
    """The hold of each order as the movements up to and with a journal id leave it, in no order. Streams: call it in a
    transaction."""
    cursor = connection.cursor(
        "SELECT id, o.sale, CASE WHEN again.taken THEN 'paid' ELSE status END, extended, fingerprint,"  # noqa: S608
        " catalogue_version, o.journal_ms, o.journal_seq, coalesce(m.number, 0) FROM orders AS o"
        f" LEFT JOIN (SELECT order_id, max({NUMBER}) AS number FROM movement WHERE {MOVED}"
        "  AND (journal_ms, journal_seq) <= ($2::int8, $3::int8) GROUP BY order_id) AS m ON m.order_id = o.id"
        # Units that a late payment got: Valkey calls the order paid, the ledger does so in a moment.
        " LEFT JOIN (SELECT items -> 0 ->> 'order' AS order_id, true AS taken FROM outbox"
        "  WHERE kind = 'reserve_again' AND outcome = 'taken') AS again ON again.order_id = o.id"
        " WHERE o.partition = $1 AND (o.journal_ms, o.journal_seq) <= ($2::int8, $3::int8)",
        partition, *until, prefetch=_PREFETCH,
    )  # fmt: skip
    async for order_id, sale, status, extended, *rest in cursor:
        letter = LETTERS[Status(status)]
        yield HoldRow(order_id, sale, letter.upper() if extended else letter, *rest)


async def each_quota_use(
    connection: Connection, partition: int, until: tuple[int, int], limited: Sequence[tuple[int, int, int]]
) -> AsyncIterator[tuple[int, str, int, int]]:
    """(sale, shopper, offer index, units) that count against the shoppers' quotas, of the lines that had a quota:
    `limited` says which (catalogue version, sale, offer index) have one. Streams: call it in a transaction."""
    # A number each, compared by a hash in the scan: no join that a plan could get wrong.
    keys = [version << 32 | sale << 16 | sku for version, sale, sku in limited]
    cursor = connection.cursor(
        "SELECT o.sale, shopper, line.sku, sum(line.units - coalesce(back.units, 0))::int8"  # noqa: S608
        " FROM orders AS o CROSS JOIN unnest(skus, quantities) AS line (sku, units)"
        f" LEFT JOIN (SELECT order_id, sku, sum(units) AS units FROM movement WHERE {MOVED} AND {QUOTA_BACK}"
        "  AND (journal_ms, journal_seq) <= ($2::int8, $3::int8) GROUP BY order_id, sku) AS back"
        "  ON back.order_id = o.id AND back.sku = line.sku"
        " WHERE o.partition = $1 AND (o.journal_ms, o.journal_seq) <= ($2::int8, $3::int8)"
        " AND ((catalogue_version::int8 << 32) | (o.sale::int8 << 16) | line.sku::int8) = ANY ($4::int8[])"
        " GROUP BY o.sale, shopper, line.sku HAVING sum(line.units - coalesce(back.units, 0)) > 0",
        partition, *until, keys, prefetch=_PREFETCH,
    )  # fmt: skip
    async for row in cursor:
        yield tuple(row)
