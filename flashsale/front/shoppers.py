"""GET /v1/shoppers/me/orders and /v1/agents/me/orders: one's own orders, newest first, as the ledger has them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, bad_parameter, limit, next_path, parameter, who
from flashsale.front.context import context_of
from flashsale.front.order_document import shown
from flashsale.front.order_reading import ledger_away, sale_of
from flashsale.ledger import orders as ledger_orders
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import Connection, LedgerAway
from flashsale.sale.identity import parse_order_id

_Reader = Callable[[Connection, str, int, str | None], Awaitable[list[OrderRow]]]


async def my_orders(request: web.Request) -> web.Response:
    """GET /v1/shoppers/me/orders: those that others placed for the shopper, too."""
    return await _listed(request, ("shopper", "admin"), ledger_orders.of_shopper)


async def agents_orders(request: web.Request) -> web.Response:
    """GET /v1/agents/me/orders: those that the agent placed, whomever for."""
    return await _listed(request, ("agent",), ledger_orders.of_agent)


async def _listed(request: web.Request, roles: Sequence[str], read: _Reader) -> web.Response:
    claims = who(request)
    if claims.role not in roles:
        raise Refused("forbidden", f"This list is read with the token of one's own role: {roles[0]}.")
    size, after = limit(request), parameter(request, "after")
    if after is not None and parse_order_id(after) is None:
        raise bad_parameter("after", "is not an order's id")
    context = context_of(request)
    try:
        async with context.ledger.connection() as connection:
            rows = await read(connection, claims.sub, size + 1, after)
    except LedgerAway:
        raise ledger_away() from None
    found = rows[:size]
    body: dict[str, Any] = {"orders": [shown(order, await sale_of(context, order)) for order in found]}
    if len(rows) > size:
        body["next"] = next_path(request, found[-1].id)
    return answer(request, body)
