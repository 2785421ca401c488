"""Merchants' products, and how a catalogue comes into them: staged row by row, compared, then taken over as a whole.

Everything from `stage` to `take_over` belongs to one transaction: what is not committed has changed nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from flashsale.ledger.pool import Connection
from flashsale.sale.products.product import Options, Product

_LOCK = 0x666C7064
_STAGED = (
    "row", "sku", "handle", "options", "title", "vendor", "price", "stock", "expect", "quota", "weight_g", "hs_code",
    "origin", "barcode",
)  # fmt: skip
_KEPT = ("vendor", "stock", "quota", "weight_g", "hs_code", "origin", "barcode")  # a blank of the file erases none
FETCHED = 2000


class Counts(NamedTuple):
    """Products that were not there, that are otherwise now, and that are as they were."""

    created: int
    updated: int
    unchanged: int


async def known(connection: Connection, merchant: str) -> dict[str, tuple[str, Options]]:
    """The variant behind each SKU of the merchant."""
    found: dict[str, tuple[str, Options]] = {}
    async with connection.transaction():
        query = "SELECT sku, handle, options FROM product WHERE merchant = $1"
        async for sku, handle, options in connection.cursor(query, merchant, prefetch=FETCHED):
            found[sku] = handle, _pairs(options)
    return found


async def stage(connection: Connection, merchant: str) -> None:
    """An empty place for a catalogue's rows; another import of the merchant waits until this transaction is over."""
    await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK, merchant)
    await connection.execute(
        "CREATE TEMP TABLE staged (row int4, sku text COLLATE \"C\", handle text, options text[], title jsonb,"
        " vendor text, price int8, stock int8, expect int8, quota int4, weight_g int4, hs_code text, origin text,"
        " barcode text) ON COMMIT DROP"
    )  # fmt: skip


async def add_rows(connection: Connection, products: Sequence[Product]) -> None:
    """Stages products."""
    await connection.copy_records_to_table(
        "staged",
        columns=_STAGED,
        records=[
            (
                each.row, each.sku, each.handle, [part for pair in each.options for part in pair],
                orjson.dumps(each.title).decode(), each.vendor, each.price, each.stock, each.expect, each.quota,
                each.weight_g, each.hs_code, each.origin, each.barcode,
            )
            for each in products
        ],
    )  # fmt: skip


async def mismatches(connection: Connection, merchant: str) -> list[tuple[int, str, int, int | None]]:
    """Rows whose expected stock is not the product's: (row, SKU, expected, there is). A stock that is what the row asks
    for already is none: the import may have been applied by a worker that died of it."""
    rows = await connection.fetch(
        "SELECT s.row, s.sku, s.expect, p.stock FROM staged s LEFT JOIN product p ON p.merchant = $1 AND p.sku = s.sku"
        " WHERE s.expect IS NOT NULL AND p.stock IS DISTINCT FROM s.expect AND (s.stock IS NULL"
        " OR p.stock IS DISTINCT FROM s.stock) ORDER BY s.row",
        merchant,
    )
    return [tuple(row) for row in rows]


async def take_over(connection: Connection, merchant: str, market: str, now_ms: int) -> Counts:
    """The staged rows become products, prices those of `market`. What a row leaves blank stays as it is."""
    await connection.execute("CREATE INDEX ON staged (sku)")
    await connection.execute("ANALYZE staged")
    prices = "CASE WHEN s.price IS NULL THEN '{}'::jsonb ELSE jsonb_build_object($2::text, s.price) END"
    kept = ", ".join(f"{name} = coalesce(s.{name}, p.{name})" for name in _KEPT)
    changed = " OR ".join(f"(s.{name} IS NOT NULL AND s.{name} IS DISTINCT FROM p.{name})" for name in _KEPT)
    updated = await connection.execute(
        f"UPDATE product p SET handle = s.handle, options = s.options, title = p.title || s.title,"  # noqa: S608
        f" prices = p.prices || {prices}, {kept}, updated_ms = $3 FROM staged s"
        " WHERE p.merchant = $1 AND p.sku = s.sku AND (p.handle <> s.handle OR p.options <> s.options"
        f" OR NOT p.title @> s.title OR NOT p.prices @> {prices} OR {changed})",
        merchant, market, now_ms,
    )  # fmt: skip
    created = await connection.execute(
        "INSERT INTO product (merchant, sku, handle, options, title, vendor, prices, stock, quota, weight_g, hs_code,"  # noqa: S608
        f" origin, barcode, updated_ms) SELECT $1, sku, handle, options, title, vendor, {prices}, stock, quota,"
        " weight_g, hs_code, origin, barcode, $3 FROM staged s ON CONFLICT (merchant, sku) DO NOTHING",
        merchant, market, now_ms,
    )  # fmt: skip
    staged: int = await connection.fetchval("SELECT count(*) FROM staged")
    made, changes = int(created.rpartition(" ")[2]), int(updated.rpartition(" ")[2])
    return Counts(made, changes, staged - made - changes)


async def staged_products(
    connection: Connection, merchant: str, market: str
) -> AsyncIterator[tuple[Product, int | None]]:
    """The staged rows' products as they are now, in the file's order, each with the stock that its row expects. `stock`
    is None where the row says none."""
    query = (
        "SELECT s.row, p.handle, p.sku, p.options, p.title, p.vendor, (p.prices ->> $2)::int8, s.stock, p.quota,"
        " p.weight_g, p.hs_code, p.origin, s.expect FROM staged s JOIN product p ON p.merchant = $1 AND p.sku = s.sku"
        " ORDER BY s.row"
    )
    async for row in connection.cursor(query, merchant, market, prefetch=FETCHED):
        number, handle, sku, options, title, vendor, price, stock, quota, weight_g, hs_code, origin, expect = row
        yield Product(
            row=number, handle=handle, sku=sku, options=_pairs(options), title=orjson.loads(title), vendor=vendor,
            price=price, stock=stock, quota=quota, weight_g=weight_g, hs_code=hs_code, origin=origin,
        ), expect  # fmt: skip


class StoredProduct(NamedTuple):
    """A product as the merchant reads it."""

    sku: str
    handle: str
    options: Options
    title: dict[str, str]
    vendor: str | None
    prices: dict[str, int]
    stock: int | None
    quota: int | None
    weight_g: int | None
    hs_code: str | None
    origin: str | None
    barcode: str | None
    updated_ms: int


async def after(connection: Connection, merchant: str, sku: str | None, limit: int) -> list[StoredProduct]:
    """The merchant's products behind that SKU, by SKU."""
    rows = await connection.fetch(
        f"SELECT {', '.join(StoredProduct._fields)} FROM product"  # noqa: S608
        " WHERE merchant = $1 AND ($2::text IS NULL OR sku > $2) ORDER BY sku LIMIT $3",
        merchant, sku, limit,
    )  # fmt: skip
    return [_stored(row) for row in rows]


async def set_stock(
    connection: Connection, merchant: str, sku: str, to: int, expect: int, now_ms: int
) -> tuple[bool, int | None] | None:
    """Sets the stock if it is `expect`: (whether it was, what it is now); None where there is no such product."""
    row = await connection.fetchrow(
        "SELECT stock FROM product WHERE merchant = $1 AND sku = $2 FOR UPDATE", merchant, sku
    )
    if row is None:
        return None
    if row[0] != expect:
        return False, row[0]
    await connection.execute(
        "UPDATE product SET stock = $3, updated_ms = $4 WHERE merchant = $1 AND sku = $2", merchant, sku, to, now_ms
    )
    return True, to


def _stored(row: Iterable[Any]) -> StoredProduct:
    sku, handle, options, title, vendor, prices, *rest = row
    return StoredProduct(sku, handle, _pairs(options), orjson.loads(title), vendor, orjson.loads(prices), *rest)


def _pairs(options: Sequence[Any]) -> Options:
    return tuple(zip(options[::2], options[1::2], strict=True))
