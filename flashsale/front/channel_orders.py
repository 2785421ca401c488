"""/v1/channels/{channel}/orders and on: a channel sees its orders to the door. For the channel itself and for admins.

Orders come in by the hot path. Here they are listed, packed, labelled, handed over, delivered or not, and sent back;
another channel's order is not found. Each step is `ledger/life`'s, so it is the same whoever takes it.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, bad_parameter, limit, next_path, parameter, rfc3339, who
from flashsale.front.auth import Claims
from flashsale.front.bodies import DECISION, EXTENSION, RECEIPT, RETURN, SHIPMENT, given_key, read_body
from flashsale.front.context import FrontContext, context_of
from flashsale.front.order_document import shown, shown_return
from flashsale.front.order_reading import find_in_ledger, ledger_away, not_found, sale_of
from flashsale.front.sales import sale_now
from flashsale.front.steps import by_index, created, now_ms, transaction
from flashsale.ledger import fulfilment, life
from flashsale.ledger import orders as ledger_orders
from flashsale.ledger import returns as ledger_returns
from flashsale.ledger.fulfilment import PackageRow
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import LedgerAway
from flashsale.ledger.returns import ReturnRow
from flashsale.sale.catalogue import Sale
from flashsale.sale.channels import own_shopper
from flashsale.sale.identity import parse_order_id

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RETURN_ID = re.compile(r"rt-[0-9a-f]{30}-[0-9]{1,9}")


async def channel_of(request: web.Request) -> tuple[str, Claims]:
    """The channel of the path, and who asks: the channel itself or an admin. Raises Refused: unauthenticated,
    forbidden, not-found."""
    claims, channel = who(request), request.match_info["channel"]
    if claims.role not in ("channel", "admin"):
        raise Refused("forbidden", "Channels are for the channel's own token, and for admins.")
    catalogues = context_of(request).catalogues
    known = catalogues.current.world.channel(channel) or (await catalogues.refresh()).world.channel(channel)
    if known is None or (claims.role == "channel" and claims.sub != channel):
        raise Refused("not-found", "There is no such channel of yours.")
    return channel, claims


async def orders(request: web.Request) -> web.Response:
    """GET /v1/channels/{channel}/orders: oldest first."""
    channel, _ = await channel_of(request)
    size, after = limit(request), parameter(request, "after")
    if after is not None and parse_order_id(after) is None:
        raise bad_parameter("after", "is not an order's id")
    after_ms, before_ms = _time(request, "created_after"), _time(request, "created_before")
    context = context_of(request)
    try:
        async with context.ledger.connection() as connection:
            rows = await ledger_orders.of_channel(
                connection, channel, size + 1, after_ms=after_ms, before_ms=before_ms, after=after
            )
            packages = await fulfilment.packages_of(connection, [row.id for row in rows])
    except LedgerAway:
        raise ledger_away() from None
    found = rows[:size]
    body: dict[str, Any] = {
        "orders": [_shown(order, await sale_of(context, order), packages.get(order.id)) for order in found]
    }
    if len(rows) > size:
        body["next"] = next_path(request, found[-1].id)
    return answer(request, body)


def _time(request: web.Request, name: str) -> int | None:
    """A time as a query parameter, ms. Raises Refused("malformed")."""
    text = parameter(request, name)
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min
    if time.tzinfo is None:
        raise bad_parameter(name, "is a time after RFC 3339 with its zone, + written %2B: 2026-11-10T16:00:00Z")
    return (time - _EPOCH) // timedelta(milliseconds=1)


async def order(request: web.Request) -> web.Response:
    """GET /v1/channels/{channel}/orders/{id}"""
    found, sale = await _order_of(request)
    return answer(request, await _as_it_is(context_of(request), found, sale))


# --- to the door ---


async def pack(request: web.Request) -> web.Response:
    """POST /v1/channels/{channel}/orders/{id}/pack"""
    found, sale = await _order_of(request)
    asked = await read_body(request, SHIPMENT)
    lines = None if asked.lines is None else by_index(asked.lines, sale)
    async with transaction(context_of(request)) as connection:
        package = await fulfilment.pack(connection, found.id, lines, now_ms())
    return created(request, _shown_package(package, sale), f"/v1/channels/{found.channel}/orders/{found.id}/waybill")


async def waybill(request: web.Request) -> web.Response:
    """GET /v1/channels/{channel}/orders/{id}/waybill"""
    found, sale = await _order_of(request)
    async with transaction(context_of(request)) as connection:
        package = await fulfilment.package_of(connection, found.id)
    pdf = await asyncio.to_thread(_waybill, found, package, sale)
    name = f'inline; filename="{package.tracking}.pdf"'
    return web.Response(body=pdf, content_type="application/pdf", headers={"Content-Disposition": name})


async def ready_to_ship(request: web.Request) -> web.Response:
    """POST /v1/channels/{channel}/orders/{id}/ready-to-ship"""
    found, sale = await _asked_step(request)
    async with transaction(context_of(request)) as connection:
        found = await fulfilment.hand_over(connection, found.id, now_ms())
    return answer(request, await _as_it_is(context_of(request), found, sale))


async def delivered(request: web.Request) -> web.Response:
    """POST /v1/channels/{channel}/orders/{id}/delivered"""
    return await _arrived(request, True)


async def failed_delivery(request: web.Request) -> web.Response:
    """POST /v1/channels/{channel}/orders/{id}/failed-delivery"""
    return await _arrived(request, False)


async def _arrived(request: web.Request, delivered: bool) -> web.Response:
    found, sale = await _asked_step(request)
    async with transaction(context_of(request)) as connection:
        found = await fulfilment.arrived(connection, found.id, delivered, now_ms())
    return answer(request, await _as_it_is(context_of(request), found, sale))


async def _asked_step(request: web.Request) -> tuple[OrderRow, Sale]:
    """The order of a step that asks for nothing more."""
    found = await _order_of(request)
    await read_body(request, EXTENSION)
    return found


# --- and back: reverse orders ---


async def request_reverse(request: web.Request) -> web.Response:
    """POST /v1/channels/{channel}/orders/{id}/reverse-orders"""
    found, sale = await _order_of(request)
    asked, key = await read_body(request, RETURN), given_key(request)
    lines = by_index(asked.lines, sale)
    async with transaction(context_of(request)) as connection:
        row = await life.request_return(connection, found.id, lines, asked.reason, sale.return_ms, now_ms(), key=key)
    return created(request, shown_return(row, sale), f"/v1/channels/{found.channel}/reverse-orders/{row.id}")


async def reverses_of_order(request: web.Request) -> web.Response:
    """GET /v1/channels/{channel}/orders/{id}/reverse-orders"""
    found, sale = await _order_of(request)
    async with transaction(context_of(request)) as connection:
        rows = await ledger_returns.of_order(connection, found.id)
    return answer(request, {"returns": [shown_return(row, sale) for row in rows]})


async def one_reverse(request: web.Request) -> web.Response:
    """GET /v1/channels/{channel}/reverse-orders/{id}"""
    row, sale = await _reverse_of(request)
    return answer(request, shown_return(row, sale))


async def decide_reverse(request: web.Request) -> web.Response:
    """POST /v1/channels/{channel}/reverse-orders/{id}/decision"""
    row, sale = await _reverse_of(request)
    asked = await read_body(request, DECISION)
    async with transaction(context_of(request)) as connection:
        row = await life.decide_return(connection, row.id, asked.accept, now_ms())
    return answer(request, shown_return(row, sale))


async def receive_reverse(request: web.Request) -> web.Response:
    """POST /v1/channels/{channel}/reverse-orders/{id}/receipt"""
    row, sale = await _reverse_of(request)
    asked = await read_body(request, RECEIPT)
    units = by_index(asked.lines, sale)
    lines = [(sku, count, line.restock) for (sku, count), line in zip(units, asked.lines, strict=True)]
    context = context_of(request)
    # What goes on the shelf is sold again; a sale that is over sells nothing.
    is_open = (await sale_now(context, sale.id)).state.phase != "closed"
    async with transaction(context) as connection:
        row = await life.receive_return(connection, row.id, lines, now_ms(), sale_open=is_open, quota=sale.return_quota)
    return answer(request, shown_return(row, sale))


# --- finding and showing ---


async def _order_of(request: web.Request) -> tuple[OrderRow, Sale]:
    """The order of the path, if it is the channel's. Raises Refused: what `channel_of` and `find_in_ledger` raise."""
    channel, claims = await channel_of(request)
    context = context_of(request)
    found = await find_in_ledger(context, request.match_info["id"], claims)
    if found.channel != channel:
        raise not_found()
    return found, await sale_of(context, found)


async def _reverse_of(request: web.Request) -> tuple[ReturnRow, Sale]:
    """The return of the path, if it is of an order of the channel's."""
    channel, _ = await channel_of(request)
    return_id, context = request.match_info["id"], context_of(request)
    row = found = None
    if _RETURN_ID.fullmatch(return_id) is not None:
        async with transaction(context) as connection:
            row = await ledger_returns.get(connection, return_id)
            found = None if row is None else await ledger_orders.find(connection, row.order_id)
    if row is None or found is None or found.channel != channel:
        raise Refused("not-found", "There is no such return of yours.")
    return row, await sale_of(context, found)


async def _as_it_is(context: FrontContext, found: OrderRow, sale: Sale) -> dict[str, Any]:
    async with transaction(context) as connection:
        packages = await fulfilment.packages_of(connection, [found.id])
    return _shown(found, sale, packages.get(found.id))


def _shown(order: OrderRow, sale: Sale, package: PackageRow | None) -> dict[str, Any]:
    """The order in the channel's own names."""
    body = {
        **shown(order, sale),
        "reference": order.idempotency_key,
        "shopper": own_shopper(order.channel, order.shopper),
        "payment": order.payment,
    }
    if order.ship_to is not None:
        body["ship_to"] = orjson.loads(order.ship_to)
    if package is not None:
        body["package"] = _shown_package(package, sale)
    return body


def _shown_package(package: PackageRow, sale: Sale) -> dict[str, Any]:
    lines = zip(package.skus, package.quantities, strict=True)
    return {
        "package": package.id,
        "tracking": package.tracking,
        "lines": [{"sku": sale.offers[sku].sku, "quantity": units} for sku, units in lines],
        "packed_at": rfc3339(package.packed_ms),
    }


_ADDRESS = ("name", "street", "street2", "district", "city", "region", "postcode", "phone")


def _waybill(order: OrderRow, package: PackageRow, sale: Sale) -> bytes:
    """The parcel's label. In a thread: it takes some milliseconds."""
    from flashsale.front.waybill import Waybill, drawn  # here: reportlab takes time to load, and few processes draw

    to: dict[str, str] = orjson.loads(order.ship_to) if order.ship_to is not None else {}
    country = to.get("country", order.market)
    offers = [(sale.offers[sku], units) for sku, units in zip(package.skus, package.quantities, strict=True)]
    weight_g = sum(offer.weight_g * units for offer, units in offers)
    facts: Sequence[tuple[str, str]] = (
        ("Order", order.id),
        ("Reference", order.idempotency_key),
        ("Channel", order.channel),
        ("From", sale.ships_from or "the shop"),
        ("Weight", f"{weight_g / 1000:.3f} kg"),
        ("Packed", rfc3339(package.packed_ms)),
    )
    return drawn(
        Waybill(
            tracking=package.tracking,
            carrier=order.lane or "Parcel",
            country=country,
            to=[*(to[name] for name in _ADDRESS if to.get(name)), country],
            facts=facts,
            contents=[f"{units} x {offer.sku}  {offer.title_in('en')}" for offer, units in offers],
        )
    )
