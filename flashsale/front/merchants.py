"""/v1/merchants/{id}/…: a merchant's catalogues, products and settlement. For the merchant itself and for admins.

A catalogue comes in parts, each no larger than any other body, so that an upload can hold no more of this process than
an order can; a worker takes it in when the last part is here and its time has come. Another merchant's is not found.
"""

import re
from datetime import date
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from flashsale.errors import Refused
from flashsale.front.answers import answer, bad_parameter, limit, money, next_path, parameter, rfc3339, who
from flashsale.front.bodies import read_body
from flashsale.front.context import context_of
from flashsale.front.steps import now_ms, transaction
from flashsale.ledger import imports, merchants, products, settlement
from flashsale.ledger.imports import ImportRow
from flashsale.ledger.products import StoredProduct
from flashsale.sale.decoding import Shape
from flashsale.sale.local_time import local_time_ms
from flashsale.sale.market import MARKETS
from flashsale.sale.salefile import SALE_ID, SLUG, STOCK_MAX_UNITS
from flashsale.sale.settlement import day_of, day_span_ms

CSV_TYPES = ("text/csv", "application/csv", "application/octet-stream", "text/plain")
JSON_LINES = "application/jsonl"
_IMPORT_ID = re.compile(r"im-([1-9][0-9]{0,17})")
_AFTER = re.compile(r"([0-9]{1,15})\.([0-9a-f]{30})\.([0-9]{1,9})")


class StockRequest(Struct, forbid_unknown_fields=True):
    """The stock is to be `to` units, if it is `expect` now."""

    to: Annotated[int, Meta(ge=0, le=STOCK_MAX_UNITS)]
    expect: Annotated[int, Meta(ge=0, le=STOCK_MAX_UNITS)]


def _good(request: StockRequest, faults: dict[str, str]) -> None:
    """Its types say all."""


STOCK = Shape(StockRequest, _good)


def merchant_of(request: web.Request) -> str:
    """The merchant of the path. Raises Refused: unauthenticated, forbidden, not-found."""
    claims, merchant = who(request), request.match_info["id"]
    if claims.role not in ("merchant", "admin"):
        raise Refused("forbidden", "Merchants' pages are for the merchant's own token, and for admins.")
    if not SLUG.fullmatch(merchant) or (claims.role == "merchant" and claims.sub != merchant):
        raise Refused("not-found", "There is no such merchant of yours.")
    return merchant


# --- catalogues ---


async def add_import(request: web.Request) -> web.Response:
    """POST /v1/merchants/{id}/imports: the catalogue, or the first of its parts."""
    merchant = merchant_of(request)
    market, sale, mark = parameter(request, "market"), parameter(request, "sale"), parameter(request, "decimal_mark")
    if market is None or market not in MARKETS:
        raise bad_parameter("market", "is the country code of the market whose currency the prices are in")
    if sale is not None and not SALE_ID.fullmatch(sale):
        raise bad_parameter("sale", "is no sale's id")
    if mark not in (None, ".", ","):
        raise bad_parameter("decimal_mark", "is . or ,")
    data = await _data(request)
    async with transaction(context_of(request)) as connection:
        found = await merchants.get(connection, merchant)
        row = await imports.add(
            connection,
            merchant=merchant,
            market=market,
            sale=sale,
            decimal_mark=mark,
            dry_run=_flag(request, "dry_run"),
            parts=_parts(request),
            at_ms=_at_ms(request, "UTC" if found is None else found.time_zone),
            now_ms=now_ms(),
        )
        if row is None:
            raise Refused("too-many-requests", f"{imports.WAITING_MAX} of the merchant's imports wait.", retry_after=10)
        row = await imports.put_part(connection, row, 1, data)
    response = answer(request, _shown_import(row))
    response.set_status(202)
    response.headers["Location"] = f"/v1/merchants/{merchant}/imports/{row.id}"
    return response


async def put_part(request: web.Request) -> web.Response:
    """PUT /v1/merchants/{id}/imports/{import}/parts/{number}"""
    merchant, number = merchant_of(request), request.match_info["number"]
    data = await _data(request)
    async with transaction(context_of(request)) as connection:
        row = await _import(imports.get(connection, merchant, _number(request)))
        if not (number.isascii() and number.isdigit() and len(number) <= 6 and 1 <= int(number) <= row.parts):
            raise Refused("not-found", f"The import has the parts 1 to {row.parts}.")
        row = await imports.put_part(connection, row, int(number), data)
    return answer(request, _shown_import(row))


async def all_imports(request: web.Request) -> web.Response:
    """GET /v1/merchants/{id}/imports: newest first."""
    merchant, size, after = merchant_of(request), limit(request), parameter(request, "after")
    number = None
    if after is not None:
        match = _IMPORT_ID.fullmatch(after)
        if match is None:
            raise bad_parameter("after", "is not an import's id")
        number = int(match[1])
    async with transaction(context_of(request)) as connection:
        rows = await imports.before(connection, merchant, number, size + 1)
    body: dict[str, Any] = {"imports": [_shown_import(row) for row in rows[:size]]}
    if len(rows) > size:
        body["next"] = next_path(request, rows[size - 1].id)
    return answer(request, body)


async def one_import(request: web.Request) -> web.Response:
    """GET /v1/merchants/{id}/imports/{import}"""
    merchant = merchant_of(request)
    async with transaction(context_of(request)) as connection:
        row = await _import(imports.get(connection, merchant, _number(request)))
    return answer(request, _shown_import(row))


async def findings(request: web.Request) -> web.Response:
    """GET /v1/merchants/{id}/imports/{import}/findings: JSON lines."""
    merchant = merchant_of(request)
    async with transaction(context_of(request)) as connection:
        row = await _import(imports.get(connection, merchant, _number(request)))
        lines = await imports.findings(connection, row.number)
    return web.Response(body=lines, content_type=JSON_LINES)


async def _import(asked: Any) -> ImportRow:
    row: ImportRow | None = await asked
    if row is None:
        raise Refused("not-found", "There is no such import of yours.")
    return row


def _number(request: web.Request) -> int:
    match = _IMPORT_ID.fullmatch(request.match_info["import"])
    if match is None:
        raise Refused("not-found", "There is no such import of yours.")
    return int(match[1])


async def _data(request: web.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
        raise Refused("unsupported-media-type", "A compressed body is not taken.")
    media_type = request.headers.get("Content-Type", CSV_TYPES[0]).partition(";")[0].strip().lower()
    if media_type not in CSV_TYPES:
        raise Refused("unsupported-media-type", "A catalogue is text/csv.")
    return await request.read()


def _flag(request: web.Request, name: str) -> bool:
    text = parameter(request, name)
    if text not in (None, "true", "false"):
        raise bad_parameter(name, "is true or false")
    return text == "true"


def _parts(request: web.Request) -> int:
    text = parameter(request, "parts") or "1"
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= imports.PARTS_MAX):
        raise bad_parameter("parts", f"is a number from 1 to {imports.PARTS_MAX}")
    return int(text)


def _at_ms(request: web.Request, time_zone: str) -> int:
    text = parameter(request, "at")
    if text is None:
        return 0
    try:
        return local_time_ms(text, time_zone)
    except (ValueError, OverflowError) as fault:
        raise bad_parameter("at", f"can't be read: {fault}") from None


def _shown_import(row: ImportRow) -> dict[str, Any]:
    said: dict[str, Any] = {
        "id": row.id,
        "status": row.status,
        "market": row.market,
        "sale": row.sale,
        "dry_run": row.dry_run,
        "parts": row.parts,
        "created_at": rfc3339(row.created_ms),
        "at": rfc3339(row.at_ms) if row.at_ms else None,
        "finished_at": None if row.finished_ms is None else rfc3339(row.finished_ms),
        "error": row.error,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if row.status in imports.ENDED:
        counts = ("rows", "created", "updated", "unchanged", "offers", "faults", "warnings")
        said |= {name: getattr(row, name) for name in counts}
        said["findings"] = f"/v1/merchants/{row.merchant}/imports/{row.id}/findings"
    return said


# --- products ---


async def all_products(request: web.Request) -> web.Response:
    """GET /v1/merchants/{id}/products: by SKU."""
    merchant, size, after = merchant_of(request), limit(request), parameter(request, "after")
    async with transaction(context_of(request)) as connection:
        rows = await products.after(connection, merchant, after, size + 1)
    body: dict[str, Any] = {"products": [_shown_product(row) for row in rows[:size]]}
    if len(rows) > size:
        body["next"] = next_path(request, rows[size - 1].sku)
    return answer(request, body)


async def set_stock(request: web.Request) -> web.Response:
    """POST /v1/merchants/{id}/products/{sku}/stock: compare and set."""
    merchant, sku = merchant_of(request), request.match_info["sku"]
    asked = await read_body(request, STOCK)
    async with transaction(context_of(request)) as connection:
        done = None
        if sku.isprintable() and sku.isascii():
            done = await products.set_stock(connection, merchant, sku, asked.to, asked.expect, now_ms())
        if done is None:
            raise Refused("not-found", "There is no such product of yours.")
        changed, stock = done
        if not changed:
            raise Refused("stock-changed", stock=stock)
    return answer(request, {"sku": sku, "stock": stock})


def _shown_product(row: StoredProduct) -> dict[str, Any]:
    said = row._asdict() | {
        "options": [{"name": name, "value": value} for name, value in row.options],
        "prices": {code: money(price, MARKETS[code].currency) for code, price in row.prices.items()},
        "updated_at": rfc3339(row.updated_ms),
    }
    del said["updated_ms"]
    return {name: value for name, value in said.items() if value is not None}


# --- settlement ---


async def settled(request: web.Request) -> web.Response:
    """GET /v1/merchants/{id}/settlement?day="""
    merchant, size, after = merchant_of(request), limit(request), parameter(request, "after")
    text = parameter(request, "day")
    try:
        day = date.fromisoformat(text or "")
        span = day_span_ms(day)
    except (ValueError, OverflowError):
        raise bad_parameter("day", "is a date such as 2026-11-11") from None
    match = None if after is None else _AFTER.fullmatch(after)
    if after is not None and match is None:
        raise bad_parameter("after", "is not from a settlement's next")
    behind = None if match is None else (int(match[1]), match[2], int(match[3]))
    async with transaction(context_of(request)) as connection:
        totals = await settlement.totals(connection, merchant, *span)
        rows = await settlement.entries(connection, merchant, *span, behind, size + 1)
    body: dict[str, Any] = {
        "merchant": merchant,
        "day": day.isoformat(),
        "complete": day < day_of(now_ms()),
        "totals": [
            {
                "currency": each.currency,
                "orders": each.orders,
                "units_sold": each.units_sold,
                "units_returned": each.units_returned,
                "sales": money(each.sales, each.currency),
                "refunds": money(each.refunds, each.currency),
                "net": money(each.sales - each.refunds, each.currency),
            }
            for each in totals
        ],
        "entries": [
            {
                "order": each.order_id,
                "number": each.number,
                "amount": money(each.amount, each.currency),
                "units": each.units,
                "at": rfc3339(each.booked_ms),
            }
            for each in rows[:size]
        ],
    }
    if len(rows) > size:
        last = rows[size - 1]
        body["next"] = next_path(request, f"{last.booked_ms}.{last.order_id}.{last.number}")
    return answer(request, body)
