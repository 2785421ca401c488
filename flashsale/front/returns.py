"""Returns: asked for by the shopper, decided and received by an admin."""

import re

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, rfc3339, who
from flashsale.front.auth import Claims
from flashsale.front.bodies import DECISION, RECEIPT, RETURN, given_key, read_body
from flashsale.front.context import FrontContext, context_of
from flashsale.front.order_document import shown_return
from flashsale.front.order_reading import concerns, find, recipients_own, sale_of
from flashsale.front.sales import sale_now
from flashsale.front.steps import admin, by_index, created, now_ms, order_of, transaction
from flashsale.ledger import life
from flashsale.ledger import orders as ledger_orders
from flashsale.ledger import returns as ledger_returns
from flashsale.ledger.returns import ReturnRow
from flashsale.sale.catalogue import Sale

_RETURN_ID = re.compile(r"rt-[0-9a-f]{30}-[0-9]{1,9}")


async def request_return(request: web.Request) -> web.Response:
    """POST /v1/orders/{id}/returns"""
    claims = recipients_own(who(request))
    asked, key = await read_body(request, RETURN), given_key(request)
    order, sale = await order_of(request, claims)
    lines = by_index(asked.lines, sale)
    try:
        async with transaction(context_of(request)) as connection:
            row = await life.request_return(
                connection, order.id, lines, asked.reason, sale.return_ms, now_ms(), key=key
            )
    except Refused as refused:
        raise _dated(refused) from None
    return created(request, shown_return(row, sale), f"/v1/returns/{row.id}")


def _dated(refused: Refused) -> Refused:
    """The refusal with its time as answers write times."""
    members = dict(refused.members)
    until_ms = members.pop("returnable_until_ms", None)
    if until_ms is None:
        return refused
    return Refused(refused.name, refused.detail, returnable_until=rfc3339(until_ms), **members)


async def returns_of_order(request: web.Request) -> web.Response:
    """GET /v1/orders/{id}/returns"""
    found, sale = await find(context_of(request), request.match_info["id"], who(request))
    return answer(request, {"returns": [shown_return(each, sale) for each in found.returns]})


async def one_return(request: web.Request) -> web.Response:
    """GET /v1/returns/{id}"""
    row, sale = await _find(context_of(request), request.match_info["id"], who(request))
    return answer(request, shown_return(row, sale))


async def decide(request: web.Request) -> web.Response:
    """POST /v1/returns/{id}/decision"""
    claims = admin(request)
    asked = await read_body(request, DECISION)
    context = context_of(request)
    row, sale = await _find(context, request.match_info["id"], claims)
    async with transaction(context) as connection:
        row = await life.decide_return(connection, row.id, asked.accept, now_ms())
    return answer(request, shown_return(row, sale))


async def receive(request: web.Request) -> web.Response:
    """POST /v1/returns/{id}/receipt"""
    claims = admin(request)
    asked = await read_body(request, RECEIPT)
    context = context_of(request)
    row, sale = await _find(context, request.match_info["id"], claims)
    units = by_index(asked.lines, sale)
    lines = [(sku, count, line.restock) for (sku, count), line in zip(units, asked.lines, strict=True)]
    # What goes on the shelf is sold again; a sale that is over sells nothing.
    is_open = (await sale_now(context, sale.id)).state.phase != "closed"
    async with transaction(context) as connection:
        row = await life.receive_return(connection, row.id, lines, now_ms(), sale_open=is_open, quota=sale.return_quota)
    return answer(request, shown_return(row, sale))


async def _find(context: FrontContext, return_id: str, claims: Claims) -> tuple[ReturnRow, Sale]:
    """The return, if `claims` may see it. Raises Refused: not-found (another's too), overloaded."""
    if _RETURN_ID.fullmatch(return_id) is None:
        raise _not_found()
    async with transaction(context) as connection:
        row = await ledger_returns.get(connection, return_id)
        order = None if row is None else await ledger_orders.find(connection, row.order_id)
    if row is None or order is None or not concerns(order, claims):
        raise _not_found()
    return row, await sale_of(context, order)


def _not_found() -> Refused:
    return Refused("not-found", "There is no such return of yours.")
