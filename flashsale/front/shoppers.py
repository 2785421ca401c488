"""GET /v1/shoppers/me/orders: the asking shopper's orders, newest first, as the ledger has them."""

from typing import Any

from aiohttp import web

from flashsale.front.answers import answer, bad_parameter, limit, next_path, parameter, who
from flashsale.front.context import context_of
from flashsale.front.order_document import shown
from flashsale.front.order_reading import ledger_away, sale_of
from flashsale.ledger import orders as ledger_orders
from flashsale.ledger.pool import LedgerAway
from flashsale.sale.identity import parse_order_id


async def my_orders(request: web.Request) -> web.Response:
    claims = who(request)
    size, after = limit(request), parameter(request, "after")
    if after is not None and parse_order_id(after) is None:
        raise bad_parameter("after", "is not an order's id")
    context = context_of(request)
    try:
        async with context.ledger.connection() as connection:
            rows = await ledger_orders.of_shopper(connection, claims.sub, size + 1, after)
    except LedgerAway:
        raise ledger_away() from None
    found = rows[:size]
    body: dict[str, Any] = {"orders": [shown(order, await sale_of(context, order)) for order in found]}
    if len(rows) > size:
        body["next"] = next_path(request, found[-1].id)
    return answer(request, body)
