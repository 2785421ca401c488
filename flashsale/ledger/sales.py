"""Sales, their offers and the catalogue's versions. Written by the sale commands, ledger first."""

from collections.abc import Sequence
from dataclasses import dataclass

from flashsale.ledger.pool import Connection

# The catalogue is one document for all sales: its writers go one after the other. The number means nothing.
_CATALOGUE_LOCK = 0x666C6363


@dataclass(frozen=True, slots=True)
class SaleRow:
    """A sale as it was made: number (1..65535), id, key of its order ids (32 bytes) and the file it came from."""

    number: int
    id: str
    key: bytes
    file: str


async def lock_catalogue(connection: Connection) -> None:
    """Holds other sale commands back until this transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _CATALOGUE_LOCK)


async def get(connection: Connection, sale_id: str) -> SaleRow | None:
    """The sale of that id."""
    row = await connection.fetchrow("SELECT number, id, key, file FROM sale WHERE id = $1", sale_id)
    return None if row is None else SaleRow(*row)


async def all_sales(connection: Connection) -> list[SaleRow]:
    """Every sale, by number."""
    return [SaleRow(*row) for row in await connection.fetch("SELECT number, id, key, file FROM sale ORDER BY number")]


async def insert(connection: Connection, sale_id: str, key: bytes, file: str) -> SaleRow:
    """Makes a sale with the next number. Call it behind `lock_catalogue`. Raises asyncpg.UniqueViolationError."""
    number = await connection.fetchval(
        "INSERT INTO sale (number, id, key, file) SELECT coalesce(max(number), 0) + 1, $1, $2, $3 FROM sale"
        " RETURNING number",
        sale_id, key, file,
    )  # fmt: skip
    return SaleRow(int(number), sale_id, key, file)


async def adopt(connection: Connection, row: SaleRow, skus: Sequence[str]) -> None:
    """Keeps a sale that was known elsewhere under the number and with the key that it has there."""
    await connection.execute(
        "INSERT INTO sale (number, id, key, file) VALUES ($1, $2, $3, $4)", row.number, row.id, row.key, row.file
    )
    await insert_offers(connection, row.number, skus)


async def set_file(connection: Connection, number: int, file: str) -> None:
    """Keeps the file of the last update."""
    await connection.execute("UPDATE sale SET file = $2 WHERE number = $1", number, file)


async def offers(connection: Connection, number: int) -> list[str]:
    """The sale's SKUs; an SKU's place in the list is its index."""
    rows = await connection.fetch("SELECT sku FROM offer WHERE sale = $1 ORDER BY index", number)
    return [str(row[0]) for row in rows]


async def all_offers(connection: Connection) -> dict[int, list[str]]:
    """Every sale's SKUs in index order, by sale number."""
    skus: dict[int, list[str]] = {}
    for number, sku in await connection.fetch("SELECT sale, sku FROM offer ORDER BY sale, index"):
        skus.setdefault(number, []).append(sku)
    return skus


async def insert_offers(connection: Connection, number: int, skus: Sequence[str], first_index: int = 0) -> None:
    """Adds SKUs from `first_index` on; those that are there stay as they are."""
    await connection.execute(
        "INSERT INTO offer (sale, index, sku) SELECT $1, $2 + place - 1, sku"
        " FROM unnest($3::text[]) WITH ORDINALITY AS added (sku, place) ON CONFLICT (sale, index) DO NOTHING",
        number, first_index, list(skus),
    )  # fmt: skip


async def insert_catalogue(connection: Connection, version: int, document: bytes) -> None:
    """Keeps a version of the catalogue. Raises asyncpg.UniqueViolationError where that version is there."""
    await connection.execute("INSERT INTO catalogue (version, document) VALUES ($1, $2)", version, document)


async def put_catalogue(connection: Connection, version: int, document: bytes) -> None:
    """Keeps a version of the catalogue, in the place of the document that is there if any."""
    await connection.execute(
        "INSERT INTO catalogue (version, document) VALUES ($1, $2) ON CONFLICT (version) DO UPDATE"
        " SET document = excluded.document",
        version, document,
    )  # fmt: skip


async def catalogue_versions(connection: Connection) -> list[int]:
    """Every version that there is, the oldest first."""
    return [row[0] for row in await connection.fetch("SELECT version FROM catalogue ORDER BY version")]


async def newest_catalogue(connection: Connection) -> tuple[int, bytes] | None:
    """The newest version (number, document), None before the first sale."""
    row = await connection.fetchrow("SELECT version, document FROM catalogue ORDER BY version DESC LIMIT 1")
    return None if row is None else (row[0], row[1])


async def newest_version(connection: Connection) -> int:
    """The newest catalogue version, 0 before the first."""
    return int(await connection.fetchval("SELECT coalesce(max(version), 0) FROM catalogue"))


async def catalogue(connection: Connection, version: int) -> bytes | None:
    """The document of that version."""
    document: bytes | None = await connection.fetchval("SELECT document FROM catalogue WHERE version = $1", version)
    return document


async def catalogues(connection: Connection) -> dict[int, bytes]:
    """Every version's document."""
    return {
        row[0]: row[1] for row in await connection.fetch("SELECT version, document FROM catalogue ORDER BY version")
    }


async def catalogues_after(connection: Connection, version: int) -> dict[int, bytes]:
    """The documents of the versions after that one."""
    rows = await connection.fetch(
        "SELECT version, document FROM catalogue WHERE version > $1 ORDER BY version", version
    )
    return {row[0]: row[1] for row in rows}


async def orders_by_version(connection: Connection) -> dict[int, int]:
    """How many orders were priced at each version. Reads the whole table."""
    rows = await connection.fetch("SELECT catalogue_version, count(*) FROM orders GROUP BY 1")
    return {row[0]: row[1] for row in rows}


async def prices_of_orders(connection: Connection, version: int) -> dict[int, dict[int, dict[str, int]]]:
    """What the orders that were priced at a version paid for a unit: by sale number, offer index and market."""
    rows = await connection.fetch(
        "SELECT DISTINCT sale, line.sku, market, line.price FROM orders, unnest(skus, prices) AS line (sku, price)"
        " WHERE catalogue_version = $1",
        version,
    )
    paid: dict[int, dict[int, dict[str, int]]] = {}
    for sale, sku, market, price in rows:
        paid.setdefault(sale, {}).setdefault(sku, {})[market] = price
    return paid


async def unknown_numbers(connection: Connection) -> list[int]:
    """Numbers of sales that orders or movements name and that there are not. Reads both tables."""
    rows = await connection.fetch(
        "SELECT DISTINCT sale FROM"
        " (SELECT DISTINCT sale FROM orders UNION ALL SELECT DISTINCT sale FROM movement) AS of"
        " WHERE sale IS NOT NULL AND NOT EXISTS (SELECT FROM sale WHERE number = of.sale) ORDER BY sale"
    )
    return [row[0] for row in rows]
