"""GET /v1/sales/{sale}/stock: supply, available, held and sold of every SKU, once as JSON or again and again as events.

`supply` and `available` are Valkey's at that moment, never cached. What is taken divides into held and sold by the
ledger's last known `sold`: with the ledger away the division stands still, and held + sold is still exact.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import structlog
from aiohttp import web

from flashsale.front.answers import EVENT_STREAM, JSON, answer, preferred, rfc3339
from flashsale.front.context import FrontContext, context_of
from flashsale.front.events import HEARTBEAT, HEARTBEAT_S, STOCK_STREAMS, STREAMS, Shared, Streams, frame, stream
from flashsale.front.sales import whole_sale_now
from flashsale.front.sharing import SHARED
from flashsale.ledger import orders as ledger_orders
from flashsale.ledger.pool import LedgerAway
from flashsale.sale.catalogue import Sale

SOLD_KNOWN_S = 1.0  # how long the ledger's answer serves: sold changes by payments, which take seconds
INTERVAL_S = 0.5  # between two looks of a stream; one look serves all readers of a sale in this process

log = structlog.get_logger(__name__)


class Sold:
    """Units sold by SKU index, as the ledger last said, for each sale of this process."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, dict[int, int]]] = {}
        self._asking: dict[int, asyncio.Task[None]] = {}

    async def of(self, context: FrontContext, sale: Sale) -> dict[int, int]:
        """At most SOLD_KNOWN_S old, or older while the ledger is away; {} before it ever answered."""
        asked_at, known = self._known.get(sale.number, (-SOLD_KNOWN_S, {}))
        if time.monotonic() - asked_at < SOLD_KNOWN_S:
            return known
        asking = self._asking.get(sale.number)
        if asking is None:
            asking = self._asking[sale.number] = asyncio.create_task(self._ask(context, sale.number))
        await asyncio.shield(asking)
        return self._known[sale.number][1]

    async def _ask(self, context: FrontContext, number: int) -> None:
        known = self._known.get(number, (0.0, {}))[1]
        try:
            async with context.ledger.connection() as connection:
                known = await ledger_orders.sold_units(connection, number)
        except LedgerAway as away:
            log.warning("sold units are as last known", reason=str(away))
        finally:
            self._known[number] = (time.monotonic(), known)
            del self._asking[number]


SOLD = web.AppKey("sold", Sold)


async def stock_now(app: web.Application, context: FrontContext, sale_id: str) -> dict[str, Any]:
    """The page's body. Raises what `whole_sale_now` raises."""
    sale, state = await whole_sale_now(context, sale_id)
    sold = await app[SOLD].of(context, sale)
    stock = {}
    for offer in sale.offers:
        supply, available = state.supply[offer.index], state.available[offer.index]
        taken = supply - available
        paid = min(sold.get(offer.index, 0), taken)  # the ledger was asked before: it can only be behind
        stock[offer.sku] = {"supply": supply, "available": available, "held": taken - paid, "sold": paid}
    return {"stock": stock, "as_of": rfc3339(state.now_ms)}


async def stock(request: web.Request) -> web.StreamResponse:
    if preferred(request, (JSON, EVENT_STREAM)) != EVENT_STREAM:
        return await request.app[SHARED].answer(request, _page)
    feed = request.app[FEEDS].of(request.match_info["sale"])
    first = [await feed.look()]  # refused before a stream begins; in a list, from which its reader takes it
    return await stream(request, _changes(request, feed, first), STOCK_STREAMS)


async def _page(request: web.Request) -> web.Response:
    return answer(request, await stock_now(request.app, context_of(request), request.match_info["sale"]))


async def _changes(request: web.Request, feed: Feed, first: list[Seen]) -> AsyncGenerator[bytes]:
    """The whole stock at once, and again whenever it differs from what this reader has. What is kept of a reader is a
    number: the event is the same bytes for all."""
    serial, quiet_since = first[0].serial, time.monotonic()
    yield first.pop().frame
    with feed:
        while not request.app[STREAMS].stopping.is_set():
            latest = await feed.next_look()
            if latest is not None and latest.serial != serial:
                serial, quiet_since = latest.serial, time.monotonic()
                yield latest.frame
            elif time.monotonic() - quiet_since >= HEARTBEAT_S:
                quiet_since = time.monotonic()
                yield HEARTBEAT
            del latest


class Seen(NamedTuple):
    """What a look found: the event that tells it, and its number among the states that differed."""

    serial: int
    frame: Shared


class Feed:
    """Looks at a sale's stock for all of this process's readers: one every INTERVAL_S while there are any, and one for
    all who come at a time. A stock that differs from the last gets the next serial number, and one event."""

    def __init__(self, app: web.Application, context: FrontContext, sale_id: str) -> None:
        self._app, self._context, self._sale_id = app, context, sale_id
        self._readers = 0
        self._looking: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._asked: asyncio.Task[Seen] | None = None
        self._stock: dict[str, Any] | None = None
        self._seen = Seen(0, Shared.of(b""))
        self._latest: Seen | None = None

    def __enter__(self) -> None:
        self._readers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_again_and_again())

    def __exit__(self, *_: object) -> None:
        self._readers -= 1
        if self._readers == 0 and self._looking is not None:
            self._app[STREAMS].end(self._looking)
            self._looking = None

    async def look(self) -> Seen:
        """The stock as it is now; who asks while another's look is waiting to begin shares it. Raises what `stock_now`
        raises."""
        if self._asked is None:
            self._asked = asyncio.create_task(self._look_for_all())
            self._asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._asked)

    async def _look_for_all(self) -> Seen:
        await asyncio.sleep(0)  # all who came with this pass of the loop share it
        self._asked = None
        return await self._look()

    async def next_look(self) -> Seen | None:
        """What the next look finds; None if it failed. A reader that was slow gets the latest, never a queue."""
        looked = self._looked
        await looked.wait()
        return self._latest

    async def _look(self) -> Seen:
        latest = await stock_now(self._app, self._context, self._sale_id)
        if latest["stock"] != self._stock:
            self._stock, self._seen = latest["stock"], Seen(self._seen.serial + 1, Shared.of(frame("stock", latest)))
        return self._seen

    async def _look_again_and_again(self) -> None:
        streams: Streams = self._app[STREAMS]
        while not streams.stopping.is_set():
            await streams.pause(INTERVAL_S)
            try:
                self._latest = await self._look()
            except Exception as fault:  # whatever it is, the streams go on: Valkey comes back, and so does the stock
                log.warning("stock stream could not look", sale=self._sale_id, reason=repr(fault))
                self._latest = None
            self._looked.set()
            self._looked = asyncio.Event()


class Feeds:
    """The feeds of one process, by sale; as many as there are sales."""

    def __init__(self, app: web.Application, context: FrontContext) -> None:
        self._app, self._context = app, context
        self._feeds: dict[str, Feed] = {}

    def of(self, sale_id: str) -> Feed:
        """The sale's feed; one of a name out of the air is not kept."""
        feed = self._feeds.get(sale_id)
        if feed is None:
            feed = Feed(self._app, self._context, sale_id)
            if self._context.catalogues.current.sale(sale_id) is not None:
                self._feeds[sale_id] = feed
        return feed


FEEDS = web.AppKey("feeds", Feeds)
