"""The steps after an order: extend its hold, cancel, ship, deliver, give money back.

What is asked under an Idempotency-Key is done once, however often it is asked. Without one: cancelling a whole order
and telling of a parcel are the same the second time; part of an order is cancelled, or money given back, each time.
"""

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, who
from flashsale.front.bodies import CANCELLATION, DELIVERY, EXTENSION, REFUND, SHIPMENT, given_key, read_body
from flashsale.front.context import FrontContext, context_of
from flashsale.front.order_document import shown_refund
from flashsale.front.order_reading import find, recipients_own
from flashsale.front.steps import admin, as_it_is_now, by_index, now_ms, order_of, transaction
from flashsale.front.wording import order_answer
from flashsale.ledger import life
from flashsale.ledger.orders import OrderRow
from flashsale.reservation import commands
from flashsale.sale.catalogue import Sale


async def extend(request: web.Request) -> web.Response:
    """POST /v1/orders/{id}/extension"""
    claims = who(request)
    await read_body(request, EXTENSION)
    context = context_of(request)
    order, sale = await order_of(request, claims)
    extension_ms = await _extension_ms(context, order, sale)
    valkey_ms = await commands.clock(context.valkey)
    guard_ms = round(context.settings.extension_guard_s * 1000)
    async with transaction(context) as connection:
        order = await life.extend(connection, order.id, extension_ms, valkey_ms, guard_ms)
        body = await as_it_is_now(connection, order, sale)
    return order_answer(request, body)


async def _extension_ms(context: FrontContext, order: OrderRow, sale: Sale) -> int:
    """By how much the order's hold may be moved out: as the sale said when the order was taken, as Valkey has it."""
    catalogue = await context.catalogues.version(order.catalogue_version)
    then = catalogue.by_number(order.sale) if catalogue is not None else None
    return (then or sale).extension_ms


async def cancel(request: web.Request) -> web.Response:
    """POST /v1/orders/{id}/cancellation"""
    claims = recipients_own(who(request))
    asked, key = await read_body(request, CANCELLATION), given_key(request)
    order, sale = await order_of(request, claims)
    lines = None if asked.lines is None else by_index(asked.lines, sale)
    async with transaction(context_of(request)) as connection:
        order = await life.cancel(connection, order.id, lines, now_ms(), reason=asked.reason, by=claims.role, key=key)
        body = await as_it_is_now(connection, order, sale)
    return order_answer(request, body)


async def ship(request: web.Request) -> web.Response:
    """POST /v1/orders/{id}/shipment"""
    claims = admin(request)
    asked, key = await read_body(request, SHIPMENT), given_key(request)
    order, sale = await order_of(request, claims)
    lines = None if asked.lines is None else by_index(asked.lines, sale)
    async with transaction(context_of(request)) as connection:
        order = await life.ship(connection, order.id, lines, now_ms(), key=key)
        body = await as_it_is_now(connection, order, sale)
    return order_answer(request, body)


async def deliver(request: web.Request) -> web.Response:
    """POST /v1/orders/{id}/delivery"""
    claims = admin(request)
    asked = await read_body(request, DELIVERY)
    order, sale = await order_of(request, claims)
    async with transaction(context_of(request)) as connection:
        order = await life.deliver(connection, order.id, asked.delivered, now_ms())
        body = await as_it_is_now(connection, order, sale)
    return order_answer(request, body)


async def refund(request: web.Request) -> web.Response:
    """POST /v1/orders/{id}/refunds"""
    claims = admin(request)
    asked, key = await read_body(request, REFUND), given_key(request)
    order, sale = await order_of(request, claims)
    if asked.amount.currency != order.currency:
        raise Refused("invalid-request", fields={"amount.currency": f"the order is in {order.currency}"})
    async with transaction(context_of(request)) as connection:
        order = await life.refund_goodwill(connection, order.id, asked.amount.amount, asked.reason, now_ms(), key=key)
        body = await as_it_is_now(connection, order, sale)
    return order_answer(request, body)


async def refunds(request: web.Request) -> web.Response:
    """GET /v1/orders/{id}/refunds"""
    found, _ = await find(context_of(request), request.match_info["id"], who(request))
    return answer(request, {"refunds": [shown_refund(each) for each in found.refunds]})
