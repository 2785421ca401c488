"""Server-sent events (the HTML standard, section 9.2): one stream is one answer that goes on until somebody leaves.

A resource gives the frames; this module opens the stream, keeps it alive, counts it and ends it when the process stops.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

import orjson
import structlog
from aiohttp import web

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.front.answers import EVENT_STREAM
from flashsale.front.lent import LentTransport
from flashsale.reservation import server
from flashsale.settings import Settings

log = structlog.get_logger(__name__)

STOCK_STREAMS, ORDER_STREAMS = "stock", "order"
"""Kinds of streams. Each has a bound of its own: who holds all of one kind keeps no shopper from their order."""

HEARTBEAT_S = 15  # a comment, so that proxies keep a quiet stream and a vanished reader is noticed
RETRY_MS = 1000  # how long a browser waits before it comes back
HEARTBEAT = b":\n\n"


class Streams:
    """The open streams of one process. `stopping` is set when it drains: every stream ends, its readers reconnect."""

    def __init__(self, settings: Settings) -> None:
        self.stopping = asyncio.Event()
        self.most = {STOCK_STREAMS: settings.stock_streams_max, ORDER_STREAMS: settings.order_streams_max}
        self.of_one = settings.streams_of_one_max
        self.open: Counter[str] = Counter()  # by kind, and by whose it is
        self._ending: set[asyncio.Task[None]] = set()

    async def pause(self, seconds: float) -> None:
        """Waits so long, or until the process stops."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return

    def end(self, task: asyncio.Task[None]) -> None:
        """Ends a task that looks for streams when the last of them has gone, without waiting for it."""
        ending = asyncio.create_task(server.ended(task))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


STREAMS = web.AppKey("streams", Streams)


@contextmanager
def a_place(streams: Streams, kind: str, whose: str) -> Iterator[None]:
    """A place for one stream of that kind, for whom it is (an address, a subject). Raises Refused."""
    holder, taken = f"{kind} {whose}", streams.open
    if taken[kind] >= streams.most[kind]:
        raise Refused("overloaded", "Too many event streams are open.", retry_after=5)
    if streams.of_one and taken[holder] >= streams.of_one:
        detail = f"At most {streams.of_one} event streams of this kind are open from one place at a time."
        raise Refused("too-many-requests", detail, retry_after=5)
    taken.update((kind, holder))
    try:
        yield
    finally:
        taken.subtract((kind, holder))
        if not taken[holder]:
            del taken[holder]


def frame(event: str, data: object, number: int | None = None) -> bytes:
    """One event; `number` becomes its id, which a reader that comes back sends as Last-Event-ID."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {event}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


class Shared(bytes):
    """An event that many readers get: written as it is, in one piece of memory. A whole chunk of a chunked answer."""

    @classmethod
    def of(cls, event: bytes) -> Shared:
        return cls(b"%x\r\n%b\r\n" % (len(event), event))

    @property
    def event(self) -> bytes:
        """The event itself."""
        return self[self.index(b"\r\n") + 2 : -2]


async def _write(request: web.Request, response: web.StreamResponse, event: bytes) -> None:
    transport = request.transport
    if not isinstance(event, Shared):
        await response.write(event)
    elif isinstance(transport, LentTransport) and response.headers.get("Transfer-Encoding") == "chunked":
        await transport.write_shared(event)
        if transport.is_closing():
            raise ConnectionResetError
    else:
        await response.write(event.event)


async def stream(
    request: web.Request, frames: AsyncGenerator[bytes], kind: str, whose: str | None = None
) -> web.StreamResponse:
    """Answers with `frames` until they end, the reader leaves or the process stops. `whose`: a subject that is known;
    by default it is the address that asks. Raises Refused: overloaded, too-many-requests."""
    streams = request.app[STREAMS]
    with a_place(streams, kind, whose or str(request.remote)):
        return await _streamed(request, frames, streams)


async def _streamed(request: web.Request, frames: AsyncGenerator[bytes], streams: Streams) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"})
    metrics.STREAMS.inc()
    try:
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        await response.write(f"retry: {RETRY_MS}\n\n".encode())
        async with aclosing(frames):  # its feed must know at once that this reader left
            async for each in frames:
                await _write(request, response, each)
                del each  # a reader that waits for the next one holds none
                if streams.stopping.is_set():
                    break
    except ConnectionResetError:  # the reader left: that is how streams end
        pass
    except Exception:
        if not response.prepared:
            raise
        log.exception("event stream failed", route=request.path)  # its head is sent: all that is left is to end it
    finally:
        metrics.STREAMS.dec()
    return response
