"""GET /v1/orders/{id} and its events: the order as its shopper reads it, from the first instant after the 201.

Valkey first: the hold tells where in the journal the order's record lies until the ledger has it. Then the ledger,
which may be away: what only it holds is 503 then.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, money, rfc3339, who
from flashsale.front.auth import Claims
from flashsale.front.context import FrontContext, context_of
from flashsale.front.events import HEARTBEAT, HEARTBEAT_S, STREAMS, frame, stream
from flashsale.ledger import orders as ledger_orders
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import LedgerAway
from flashsale.reservation import commands
from flashsale.reservation.holds import HELD
from flashsale.sale.catalogue import Sale
from flashsale.sale.identity import parse_order_id
from flashsale.sale.lifecycle import Payment, Status, shown_status
from flashsale.sale.priced import RECORD_COLUMNS

INTERVAL_S = 1.0  # between two looks of a stream at its order


class Order(NamedTuple):
    """An order as journal or ledger has it; `lines`: SKU index, quantity, unit price (minor units)."""

    id: str
    sale: int
    shopper: str
    market: str
    channel: str
    lines: Sequence[tuple[int, int, int]]
    total: int
    currency: str
    hold_ms: int
    created_at_ms: int
    status: Status
    payment: Payment


async def find(context: FrontContext, order_id: str, claims: Claims) -> tuple[Order, Sale]:
    """The order, if `claims` may read it. Raises Refused: not-found (another's too), overloaded while nobody knows."""
    parts = parse_order_id(order_id)
    if parts is None:
        raise _not_found()
    order = await _in_journal(context, order_id, parts.sale) or await _in_ledger(context, order_id)
    if order is None:
        if context.ready_reasons():  # Valkey may have lost what the ledger has not yet
            raise Refused("overloaded", "The orders are being rebuilt.", retry_after=1)
        raise _not_found()
    if claims.role != "admin" and order.shopper != claims.sub:
        raise _not_found()
    return order, await sale_of(context, order)


async def sale_of(context: FrontContext, order: Order) -> Sale:
    """The order's sale, from whatever version: offers never change their index and never leave a sale."""
    sale = context.catalogues.current.by_number(order.sale)
    if sale is None or any(index >= len(sale.offers) for index, _, _ in order.lines):
        sale = (await context.catalogues.refresh()).by_number(order.sale)
    if sale is None:
        raise Refused("overloaded", "The order's sale is being rebuilt.", retry_after=1)
    return sale


async def _in_journal(context: FrontContext, order_id: str, sale_number: int) -> Order | None:
    """The order while its record is still in the journal and nothing has become of it."""
    sale = context.catalogues.current.by_number(sale_number)
    if sale is None:
        sale = (await context.catalogues.refresh()).by_number(sale_number)
        if sale is None:
            return None
    hold = await commands.find_hold(context.valkey, sale.id, order_id)
    if hold is None or hold.state != HELD:
        return None  # what became of it stands in the ledger
    record = await commands.find_record(context.valkey, order_id, hold)
    return None if record is None else _of_record(record, hold.entry_ms)


async def _in_ledger(context: FrontContext, order_id: str) -> Order | None:
    try:
        async with context.ledger.connection() as connection:
            row = await ledger_orders.find(connection, order_id)
    except LedgerAway:
        raise ledger_away() from None
    return None if row is None else of_row(row)


def ledger_away() -> Refused:
    return Refused("overloaded", "The ledger does not answer; orders are taken as ever.", retry_after=1)


def _not_found() -> Refused:
    return Refused("not-found", "There is no such order of yours.")


def of_row(row: OrderRow) -> Order:
    """The order of a ledger row."""
    return Order(
        id=row.id,
        sale=row.sale,
        shopper=row.shopper,
        market=row.market,
        channel=row.channel,
        lines=tuple(zip(row.skus, row.quantities, row.prices, strict=True)),
        total=row.total,
        currency=row.currency,
        hold_ms=row.hold_ms,
        created_at_ms=row.journal_ms,
        status=Status(row.status),
        payment=Payment(row.payment),
    )


def _of_record(record: bytes, entry_ms: int) -> Order:
    """The order of a journal record, whose entry is of `entry_ms`. COPY text: only backslashes are escaped in it."""
    text = record.decode().rstrip("\n").replace("\\\\", "\\")
    column = dict(zip(RECORD_COLUMNS, text.split("\t"), strict=True))
    arrays = (_numbers(column[name]) for name in ("skus", "quantities", "prices"))
    return Order(
        id=column["id"],
        sale=int(column["sale"]),
        shopper=column["shopper"],
        market=column["market"],
        channel=column["channel"],
        lines=tuple(zip(*arrays, strict=True)),
        total=int(column["total"]),
        currency=column["currency"],
        hold_ms=int(column["hold_ms"]),
        created_at_ms=entry_ms,
        status=Status.RESERVED,
        payment=Payment.NONE,
    )


def _numbers(array: str) -> list[int]:
    return [int(number) for number in array[1:-1].split(",")]


def shown(order: Order, sale: Sale) -> dict[str, Any]:
    """The order as a shopper reads it: the body of its 201, and when it was made."""
    return {
        "id": order.id,
        "sale": sale.id,
        "status": shown_status(order.status, order.payment),
        "market": order.market,
        "channel": order.channel,
        "lines": [
            {"sku": sale.offers[index].sku, "quantity": quantity, "price": money(price, order.currency)}
            for index, quantity, price in order.lines
        ],
        "total": money(order.total, order.currency),
        "reserved_until": rfc3339(order.created_at_ms + order.hold_ms),
        "created_at": rfc3339(order.created_at_ms),
    }


def history(order: Order) -> list[dict[str, Any]]:
    """Every status that the order had, oldest first. The order itself is the first entry."""
    return [{"number": 1, "status": Status.RESERVED.value, "at": rfc3339(order.created_at_ms)}]


async def order(request: web.Request) -> web.Response:
    """GET /v1/orders/{id}"""
    found, sale = await find(context_of(request), request.match_info["id"], who(request))
    return answer(request, {**shown(found, sale), "history": history(found)})


async def order_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/orders/{id}/events: a `status` event for each entry of the history, those after Last-Event-ID."""
    claims = who(request)
    seen = _last_event_id(request)
    await find(context_of(request), request.match_info["id"], claims)  # refused before a stream begins
    return await stream(request, _statuses(request, claims, seen))


def _last_event_id(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0


async def _statuses(request: web.Request, claims: Claims, seen: int) -> AsyncGenerator[bytes]:
    """Until the reader leaves, the process stops or the reader's token expires."""
    context, order_id, streams = context_of(request), request.match_info["id"], request.app[STREAMS]
    spoke_at = time.monotonic()
    while time.time() < claims.exp and not streams.stopping.is_set():
        try:
            found, _ = await find(context, order_id, claims)
        except Refused as away:
            if away.problem.status != 503:
                return
        else:
            for entry in history(found)[seen:]:
                seen = entry["number"]
                spoke_at = time.monotonic()
                yield frame("status", entry, seen)
        if time.monotonic() - spoke_at >= HEARTBEAT_S:
            spoke_at = time.monotonic()
            yield HEARTBEAT
        await streams.pause(INTERVAL_S)


async def orders_methods(request: web.Request) -> web.Response:
    """/v1/orders takes POST alone, which the hot path answers itself. A POST that comes here wrote the path another way
    (/v1/%6frders), and an order is taken under one spelling only."""
    if request.method == "POST":
        raise Refused("not-found", "Orders go to /v1/orders, written just so.")
    raise web.HTTPMethodNotAllowed(request.method, ["POST"])
