"""/v1/webhooks/endpoints: who wants to hear what happens to orders, and the replay of what was missed. For admins.

An endpoint's secret is shown once, when it is made. Its URL is checked here, so that a slip is noticed at once, and
again before every delivery, because names may point elsewhere later.
"""

import asyncio
import base64
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from flashsale.errors import Refused
from flashsale.front.answers import answer, bad_parameter, limit, next_path, parameter, rfc3339, who
from flashsale.front.auth import Claims
from flashsale.front.bodies import read_body
from flashsale.front.context import context_of
from flashsale.ledger import webhook_endpoints, webhooks
from flashsale.ledger.pool import Connection, LedgerAway
from flashsale.ledger.webhook_endpoints import Endpoint
from flashsale.partners.outbound import URL_MAX, Forbidden, Outbound, networks
from flashsale.sale.decoding import Shape
from flashsale.sale.published import EVENTS, unknown
from flashsale.settings import Settings

ENDPOINTS_MAX = 200  # each is one more delivery for every event that it hears
SECRET_BYTES = 32
TIME_MAX_MS = 253_402_300_799_999  # the end of the year 9999; a zone may put a time behind it
_ID = re.compile(r"ep_[0-9a-f]{21}")
LOOKUP_S = 2.0  # a name that is not found within this is taken: it is looked up again before every delivery


class EndpointRequest(Struct, forbid_unknown_fields=True):
    """`events` are published names, or "*" for all of them."""

    url: Annotated[str, Meta(min_length=1, max_length=URL_MAX)]
    events: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=2 * len(EVENTS))]


class ReplayRequest(Struct, forbid_unknown_fields=True):
    """From when on everything is sent again."""

    since: Annotated[datetime, Meta(tz=True)]


ENDPOINT = Shape(EndpointRequest)
REPLAY = Shape(ReplayRequest)


async def add_endpoint(request: web.Request) -> web.Response:
    """POST /v1/webhooks/endpoints"""
    admin = _admin(request)
    wanted = await read_body(request, ENDPOINT)
    events = await checked(outbound_of(context_of(request).settings), wanted.url, wanted.events)
    async with _ledger(request) as connection:
        made, secret = await register(connection, owner=admin.sub, url=wanted.url, events=events)
    response = answer(request, {**shown(made), "secret": secret})
    response.set_status(201)
    response.headers["Location"] = f"/v1/webhooks/endpoints/{made.id}"
    return response


async def endpoints(request: web.Request) -> web.Response:
    """GET /v1/webhooks/endpoints"""
    _admin(request)
    size, after = limit(request), parameter(request, "after")
    if after is not None and not _ID.fullmatch(after):
        raise bad_parameter("after", "is not an endpoint's id")
    async with _ledger(request) as connection:
        found = await webhook_endpoints.after(connection, after, size + 1)
    body: dict[str, Any] = {"endpoints": [shown(each) for each in found[:size]]}
    if len(found) > size:
        body["next"] = next_path(request, found[size - 1].id)
    return answer(request, body)


async def endpoint(request: web.Request) -> web.Response:
    """GET /v1/webhooks/endpoints/{id}"""
    _admin(request)
    async with _ledger(request) as connection:
        return answer(request, shown(await _found(connection, request)))


async def disable_endpoint(request: web.Request) -> web.Response:
    """DELETE /v1/webhooks/endpoints/{id}: for ever; the delivery log stays."""
    _admin(request)
    async with _ledger(request) as connection:
        await webhook_endpoints.disable(connection, (await _found(connection, request)).id)
    return web.Response(status=204)


async def deliveries(request: web.Request) -> web.Response:
    """GET /v1/webhooks/endpoints/{id}/deliveries: the newest of the delivery log."""
    _admin(request)
    size = limit(request)
    async with _ledger(request) as connection:
        found = await _found(connection, request)
        log = await webhooks.log_of(connection, endpoint=found.id, limit=size)
    return answer(request, {"deliveries": [shown_delivery(line) for line in log]})


async def replay_endpoint(request: web.Request) -> web.Response:
    """POST /v1/webhooks/endpoints/{id}/replay: 202, the worker does it."""
    _admin(request)
    wanted = await read_body(request, REPLAY)
    since_ms = min(max(0, round(wanted.since.timestamp() * 1000)), TIME_MAX_MS)
    async with _ledger(request) as connection:
        found = await _found(connection, request)
        if found.disabled:
            raise Refused("invalid-request", "The endpoint is disabled: make a new one, and replay to that.")
        await webhooks.ask_replay(connection, found.id, since_ms)
    response = answer(request, {"endpoint": found.id, "since": rfc3339(since_ms)})
    response.set_status(202)
    return response


def outbound_of(settings: Settings) -> Outbound:
    """What checks the URLs of new endpoints."""
    return Outbound(timeout_s=LOOKUP_S, allow=networks(settings.webhook_allow))


async def checked(outbound: Outbound, url: str, events: Sequence[str]) -> list[str]:
    """The events without repetitions. Raises Refused("invalid-request") for names that nobody publishes and for a URL
    that nothing would be sent to."""
    strange = set(unknown(events))
    faults = {f"events[{number}]": f"not published: {name}" for number, name in enumerate(events) if name in strange}
    try:
        parsed = outbound.parse(url)
        async with asyncio.timeout(LOOKUP_S):
            await outbound.addresses(parsed)
    except Forbidden as fault:
        faults["url"] = str(fault)
    except (OSError, TimeoutError, ValueError):
        # A name that can't be looked up now may be there when it is needed; plain http needs an allowed address now.
        if parsed.scheme != "https":
            faults["url"] = "only https is sent to"
    if faults:
        raise Refused("invalid-request", fields=faults)
    return list(dict.fromkeys(events))


async def register(connection: Connection, *, owner: str, url: str, events: Sequence[str]) -> tuple[Endpoint, str]:
    """Makes an endpoint of what was checked; with its secret, which is shown this once."""
    if await webhook_endpoints.count(connection) >= ENDPOINTS_MAX:
        raise Refused("invalid-request", f"There are {ENDPOINTS_MAX} endpoints: disable one of them first.")
    now_ms = time.time_ns() // 1_000_000
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    made = Endpoint(f"ep_{now_ms:011x}{secrets.token_hex(5)}", owner, url, list(events), now_ms, False, 0, None)
    await webhook_endpoints.add(
        connection, id=made.id, owner=owner, url=url, events=events, secret=secret, now_ms=now_ms
    )
    return made, secret


def shown(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as the outside sees it, without its secret."""
    waits = endpoint.open_until_ms is not None and not endpoint.disabled
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "events": endpoint.events,
        "status": "disabled" if endpoint.disabled else "unreachable" if waits else "enabled",
        "failures": endpoint.failures,
        "created_at": rfc3339(endpoint.created_ms),
    }


def shown_delivery(line: webhooks.Delivery) -> dict[str, Any]:
    """A line of the delivery log as the outside sees it."""
    return {
        "id": line.id,
        "endpoint": line.endpoint,
        "message": f"msg_{line.order_id}_{line.number}",
        "event": line.event,
        "order": line.order_id,
        "number": line.number,
        "status": line.status,
        "tries": line.tries,
        "http_status": line.http_status,
        "error": line.error,
        "created_at": rfc3339(line.created_ms),
        "tried_at": None if line.tried_ms is None else rfc3339(line.tried_ms),
        "next_at": rfc3339(line.next_ms) if line.status == "pending" else None,
    }


def _admin(request: web.Request) -> Claims:
    claims = who(request)
    if claims.role != "admin":
        raise Refused("forbidden", "Webhook endpoints are an admin's to make: use an admin's token.")
    return claims


@contextlib.asynccontextmanager
async def _ledger(request: web.Request) -> AsyncIterator[Connection]:
    try:
        async with context_of(request).ledger.connection() as connection:
            yield connection
    except LedgerAway:
        raise Refused("overloaded", "The ledger does not answer.", retry_after=1) from None


async def _found(connection: Connection, request: web.Request) -> Endpoint:
    id = request.match_info["id"]
    found = await webhook_endpoints.get(connection, id) if _ID.fullmatch(id) else None
    if found is None:
        raise Refused("not-found", "There is no such endpoint.")
    return found
