"""GET /v1/orders/{id} and its events: the order as its shopper reads it, from the first instant after the 201."""

import time
from collections.abc import AsyncGenerator

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import who
from flashsale.front.auth import Claims
from flashsale.front.context import context_of
from flashsale.front.events import HEARTBEAT, HEARTBEAT_S, ORDER_STREAMS, STREAMS, frame, stream
from flashsale.front.order_document import history, whole
from flashsale.front.order_reading import find, find_again
from flashsale.front.watch import WATCH
from flashsale.front.wording import order_answer

AGAIN_S = 1.0  # a stream whose look failed looks again after this


async def order(request: web.Request) -> web.Response:
    """GET /v1/orders/{id}"""
    found, sale = await find(context_of(request), request.match_info["id"], who(request))
    return order_answer(request, whole(found, sale))


async def order_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/orders/{id}/events: a `status` event for each entry of the history, those after Last-Event-ID."""
    claims = who(request)
    seen = _last_event_id(request)
    await find(context_of(request), request.match_info["id"], claims)  # refused before a stream begins
    return await stream(request, _statuses(request, claims, seen), ORDER_STREAMS, claims.sub)


def _last_event_id(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0


async def _statuses(request: web.Request, claims: Claims, seen: int) -> AsyncGenerator[bytes]:
    """Until the reader leaves, the process stops or the reader's token expires."""
    context, order_id, streams = context_of(request), request.match_info["id"], request.app[STREAMS]
    read = 0  # entries of the history that this stream has read
    with request.app[WATCH].order(order_id) as watched:
        while time.time() < claims.exp and not streams.stopping.is_set():
            try:
                # What has changed stands in the ledger, though the journal may still have the order as it was.
                found, sale = await (find_again if read else find)(context, order_id, claims)
            except Refused as away:
                if away.problem.status != 503:
                    return
                await streams.pause(AGAIN_S)
                continue
            for entry in history(found.order, found.history, sale)[read:]:
                read = entry["number"]
                if read > seen:
                    seen = read
                    yield frame("status", entry, seen)
            if watched.changes > read:  # read while it changed again
                await streams.pause(AGAIN_S)
            while not await watched.beyond(read, min(HEARTBEAT_S, max(0.0, claims.exp - time.time()))):
                if streams.stopping.is_set() or time.time() >= claims.exp:
                    return
                yield HEARTBEAT
