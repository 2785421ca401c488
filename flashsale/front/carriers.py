"""Where parcels are: POST /v1/carriers/{carrier}/events, what carriers tell, and GET /v1/orders/{id}/tracking.

An event is signed by its carrier (partners/carriers/signing.py); it is answered when the ledger has it and what it
means for the order. Whatever else a carrier is answered, it sends the event again, and is asked for it in the end.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import structlog
from aiohttp import web
from msgspec import Meta, Struct

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.front.answers import answer, rfc3339, who
from flashsale.front.bodies import read_body
from flashsale.front.context import context_of
from flashsale.front.order_reading import find
from flashsale.front.steps import now_ms, transaction
from flashsale.ledger import fulfilment, parcels, tracking
from flashsale.partners.carriers.signing import Signing
from flashsale.sale.decoding import Shape
from flashsale.sale.tracking import Code
from flashsale.settings import Settings

EVENT_MAX_BYTES = 16 * 1024
AHEAD_MS = 86_400_000  # a carrier's clock may be ahead of ours, by less than this
UNSET_RETRY_S = 60  # somebody has to set the secret first
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_CODES = frozenset(Code)
_COUNTRY = re.compile("[A-Z]{2}")
_TAG = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

log = structlog.get_logger(__name__)


class EventRequest(Struct, forbid_unknown_fields=True):
    """What happened to a parcel."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    waybill: Annotated[str, Meta(min_length=1, max_length=40)]
    code: Annotated[str, Meta(max_length=32)]
    at: Annotated[str, Meta(max_length=40)]
    detail: Annotated[str, Meta(max_length=200)] | None = None
    country: Annotated[str, Meta(min_length=2, max_length=2)] | None = None


def _check(event: EventRequest, faults: dict[str, str]) -> None:
    if event.code not in _CODES:
        faults["code"] = f"is one of {', '.join(Code)}"
    if _time_ms(event.at) is None:
        faults["at"] = "is a time after RFC 3339 with its zone, not ahead of now: 2026-11-12T08:30:00+08:00"
    if event.country is not None and _COUNTRY.fullmatch(event.country) is None:
        faults["country"] = "an ISO 3166 country code, two capital letters"


def _time_ms(text: str) -> int | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.tzinfo is None:
        return None
    at_ms = (time - _EPOCH) // _MS
    return at_ms if 0 <= at_ms <= now_ms() + AHEAD_MS else None


EVENT = Shape(EventRequest, _check)


async def take_event(request: web.Request) -> web.Response:
    """POST /v1/carriers/{carrier}/events"""
    try:
        new = await _take(request)
    except Refused as refused:
        metrics.CARRIER_EVENTS.labels(refused.name).inc()
        if refused.name in ("not-found", "invalid-request"):  # a carrier's own; what strangers send is counted alone
            why = refused.detail or refused.members.get("fields")
            log.warning("a carrier's event is refused", carrier=request.match_info["carrier"], why=why)
        raise
    metrics.CARRIER_EVENTS.labels("applied" if new else "duplicate").inc()
    return answer(request, {"received": True})


async def _take(request: web.Request) -> bool:
    """Applies the event; False: it was told before."""
    context = context_of(request)
    signing = _signing(context.settings)
    if (request.content_length or 0) > EVENT_MAX_BYTES:
        raise Refused("too-large", f"An event has at most {EVENT_MAX_BYTES // 1024} KiB.")
    body = await request.read()
    if len(body) > EVENT_MAX_BYTES:
        raise Refused("too-large", f"An event has at most {EVENT_MAX_BYTES // 1024} KiB.")
    try:
        signing.verify(request.headers, body)
    except ValueError as fault:
        raise Refused("webhook-signature", f"It is refused because {fault}.") from None
    told, carrier = await read_body(request, EVENT), request.match_info["carrier"]
    if _TAG.fullmatch(carrier) is None:
        raise Refused("not-found", "There is no such carrier.")
    event = tracking.Told(told.id, Code(told.code), _time_ms(told.at) or 0, told.detail, told.country)
    async with transaction(context) as connection:
        new = await tracking.apply_events(
            connection,
            carrier,
            told.waybill,
            [event],
            now_ms=now_ms(),
            silent_ms=round(context.settings.carriers_silent_s * 1000),
        )
    return bool(new)


def _signing(settings: Settings) -> Signing:
    if settings.carriers_secret is None:
        raise Refused(
            "overloaded",
            "Carriers are not set up here: FLASHSALE_CARRIERS_SECRET is not set.",
            retry_after=UNSET_RETRY_S,
        )
    return Signing(settings.carriers_secret.get_secret_value())


async def order_tracking(request: web.Request) -> web.Response:
    """GET /v1/orders/{id}/tracking"""
    context, claims = context_of(request), who(request)
    found, _ = await find(context, request.match_info["id"], claims)
    order_id = found.order.id
    async with transaction(context) as connection:
        parcel = await parcels.of_order(connection, order_id)
        events = [] if parcel is None else await parcels.events_of(connection, order_id)
        packages = {} if parcel is not None else await fulfilment.packages_of(connection, [order_id])
    body: dict[str, Any] = {"order": order_id, "events": [_shown(event) for event in events]}
    if parcel is not None:
        body |= {"status": parcel.status, "carrier": parcel.carrier}
        if parcel.error is not None and claims.role == "admin":
            body["error"] = parcel.error
        if parcel.waybill is not None:
            body["waybill"] = parcel.waybill
    elif packages:  # its channel packed it, under a number of the house's
        body["waybill"] = packages[order_id].tracking
    return answer(request, body)


def _shown(event: parcels.EventRow) -> dict[str, Any]:
    shown = {"id": event.id, "code": event.code, "at": rfc3339(event.at_ms)}
    for name in ("detail", "country"):
        if getattr(event, name) is not None:
            shown[name] = getattr(event, name)
    return shown
