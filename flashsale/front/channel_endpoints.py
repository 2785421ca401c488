"""/v1/channels/{channel}/endpoint: where a channel hears what becomes of its orders and what it may sell.

For the channel itself and for admins. The secret is shown once, when the place is set; setting it again makes another.
"""

import base64
import secrets
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from flashsale.errors import Refused
from flashsale.front.answers import answer, rfc3339
from flashsale.front.bodies import read_body
from flashsale.front.channel_orders import channel_of
from flashsale.front.context import context_of
from flashsale.front.steps import now_ms, transaction
from flashsale.front.webhook_endpoints import SECRET_BYTES, checked, outbound_of
from flashsale.ledger import channel_pushes
from flashsale.ledger.channel_pushes import EndpointRow
from flashsale.partners.outbound import URL_MAX
from flashsale.sale.decoding import Shape


class EndpointRequest(Struct, forbid_unknown_fields=True):
    """Where to."""

    url: Annotated[str, Meta(min_length=1, max_length=URL_MAX)]


ENDPOINT = Shape(EndpointRequest)


async def set_endpoint(request: web.Request) -> web.Response:
    """PUT /v1/channels/{channel}/endpoint"""
    channel, _ = await channel_of(request)
    wanted = await read_body(request, ENDPOINT)
    await checked(outbound_of(context_of(request).settings), wanted.url, ())
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    async with transaction(context_of(request)) as connection:
        row = await channel_pushes.set_endpoint(connection, channel, wanted.url, secret, now_ms())
        waiting = await channel_pushes.waiting(connection, channel)
    return answer(request, {**_shown(row, waiting), "secret": secret})


async def endpoint(request: web.Request) -> web.Response:
    """GET /v1/channels/{channel}/endpoint"""
    channel, _ = await channel_of(request)
    async with transaction(context_of(request)) as connection:
        row = await channel_pushes.endpoint(connection, channel)
        waiting = await channel_pushes.waiting(connection, channel)
    if row is None:
        raise _nowhere()
    return answer(request, _shown(row, waiting))


async def remove_endpoint(request: web.Request) -> web.Response:
    """DELETE /v1/channels/{channel}/endpoint"""
    channel, _ = await channel_of(request)
    async with transaction(context_of(request)) as connection:
        if not await channel_pushes.remove_endpoint(connection, channel, now_ms()):
            raise _nowhere()
    return web.Response(status=204)


def _nowhere() -> Refused:
    return Refused("not-found", "The channel hears nowhere: PUT an endpoint.")


def _shown(row: EndpointRow, waiting: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "channel": row.channel,
        "url": row.url,
        "status": "unreachable" if row.failures else "enabled",
        "failures": row.failures,
        "waiting": waiting,
        "created_at": rfc3339(row.created_ms),
    }
    if row.failures:
        body["next_at"] = rfc3339(row.next_ms)
    return body
