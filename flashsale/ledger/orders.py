"""Orders: COPY in, and the few reads that pages need. The row is the order's own first history entry and movement.

What a line of COPY text holds is made by the domain (`sale/priced.py`) and the journal's id by the writer.
"""

from dataclasses import dataclass

from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import UNITS, Units
from flashsale.sale.priced import RECORD_COLUMNS

COPY_COLUMNS = (*RECORD_COLUMNS, "partition", "journal_ms", "journal_seq")
"""The columns of a line of COPY text: the record's, then the journal entry's id."""

_SOLD = ", ".join(f"'{status}'" for status, units in UNITS.items() if units is Units.SOLD)
_READ = (
    "id, sale, shopper, idempotency_key, market, channel, lane, ship_to, skus, quantities, prices, total, currency,"
    " catalogue_version, fingerprint, hold_ms, partition, journal_ms, journal_seq, status, payment"
)


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


async def copy(connection: Connection, lines: bytes) -> int:
    """Stores lines of COPY text; returns how many. Raises asyncpg.DataError where PostgreSQL refuses one of them."""
    # A memoryview: asyncpg takes plain bytes for the name of a file.
    status = await connection.copy_to_table(
        "orders",
        source=memoryview(lines),  # type: ignore[arg-type]  # asyncpg takes any buffer, its stubs don't say so
        columns=list(COPY_COLUMNS),
        format="text",
    )
    return int(status.rpartition(" ")[2])


async def find(connection: Connection, order_id: str) -> OrderRow | None:
    """The order of that id."""
    row = await connection.fetchrow(f"SELECT {_READ} FROM orders WHERE id = $1 LIMIT 1", order_id)  # noqa: S608
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


async def sold_units(connection: Connection, sale: int) -> dict[int, int]:
    """Units paid and not given back, by offer index. Costs nothing while nothing is paid."""
    rows = await connection.fetch(
        "SELECT line.sku, sum(line.units)::int8 FROM orders, unnest(skus, quantities) AS line (sku, units)"  # noqa: S608
        f" WHERE sale = $1 AND status IN ({_SOLD}) GROUP BY line.sku",
        sale,
    )
    return {row[0]: row[1] for row in rows}


async def count(connection: Connection) -> int:
    """How many orders there are. Reads the whole table."""
    return int(await connection.fetchval("SELECT count(*) FROM orders"))
