"""Server-sent events (the HTML standard, section 9.2): one stream is one answer that goes on until somebody leaves.

A resource gives the frames; this module opens the stream, keeps it alive, counts it and ends it when the process stops.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
import structlog
from aiohttp import web

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.front.answers import EVENT_STREAM
from flashsale.reservation import server

log = structlog.get_logger(__name__)

STREAMS_MAX = 5000  # of one process; each holds a connection and a task, about 20 KB
HEARTBEAT_S = 15  # a comment, so that proxies keep a quiet stream and a vanished reader is noticed
RETRY_MS = 1000  # how long a browser waits before it comes back
HEARTBEAT = b":\n\n"


class Streams:
    """The open streams of one process. `stopping` is set when it drains: every stream ends, its readers reconnect."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.open = 0
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


def frame(event: str, data: object, number: int | None = None) -> bytes:
    """One event; `number` becomes its id, which a reader that comes back sends as Last-Event-ID."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {event}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


async def stream(request: web.Request, frames: AsyncGenerator[bytes]) -> web.StreamResponse:
    """Answers with `frames` until they end, the reader leaves or the process stops. Raises Refused("overloaded")."""
    streams = request.app[STREAMS]
    if streams.open >= STREAMS_MAX:
        raise Refused("overloaded", "Too many event streams are open.", retry_after=5)
    response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"})
    streams.open += 1
    metrics.STREAMS.inc()
    try:
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        await response.write(f"retry: {RETRY_MS}\n\n".encode())
        async with aclosing(frames):  # its feed must know at once that this reader left
            async for each in frames:
                await response.write(each)
                if streams.stopping.is_set():
                    break
    except ConnectionResetError:  # the reader left: that is how streams end
        pass
    except Exception:
        if not response.prepared:
            raise
        log.exception("event stream failed", route=request.path)  # its head is sent: all that is left is to end it
    finally:
        streams.open -= 1
        metrics.STREAMS.dec()
    return response
