"""Orders that somebody follows: one look a second at the ledger for all of a front process's readers.

The look asks for the numbers alone; only a stream whose order has changed reads what became of it. Nobody wakes for
nothing: a thousand quiet streams cost one statement a second.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from aiohttp import web

from flashsale.front.context import FrontContext
from flashsale.front.events import STREAMS, Streams
from flashsale.ledger import dossier
from flashsale.ledger.pool import LedgerAway

INTERVAL_S = 1.0  # between two looks
ORDERS_A_LOOK = 1000  # orders in one statement: a few milliseconds of PostgreSQL's

log = structlog.get_logger(__name__)


class Watched:
    """One order: how many entries its history is known to have (0: not known yet), and who waits for more."""

    def __init__(self) -> None:
        self.changes = 0
        self.readers = 0
        self.news = asyncio.Event()

    async def beyond(self, number: int, within_s: float) -> bool:
        """True as soon as the history goes beyond `number`; False after so long, or when the process stops."""
        try:
            async with asyncio.timeout(within_s):
                if self.changes <= number:
                    await self.news.wait()
        except TimeoutError:
            return False
        return self.changes > number


class Watch:
    """The watched orders of one process. It rests while there are none."""

    def __init__(self, app: web.Application, context: FrontContext) -> None:
        self._app, self._context = app, context
        self._orders: dict[str, Watched] = {}
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def order(self, order_id: str) -> Iterator[Watched]:
        """Watches an order for as long as the block runs."""
        watched = self._orders.setdefault(order_id, Watched())
        watched.readers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield watched
        finally:
            watched.readers -= 1
            if not watched.readers:
                del self._orders[order_id]
            if not self._orders and self._looking is not None:
                self._app[STREAMS].end(self._looking)
                self._looking = None

    async def _look(self) -> None:
        streams: Streams = self._app[STREAMS]
        while not streams.stopping.is_set():
            await streams.pause(INTERVAL_S)
            try:
                await self._look_once()
            except LedgerAway as away:
                log.warning("order streams could not look", reason=str(away))
            except Exception:  # whatever it is, the streams go on: the next look tells
                log.exception("order streams could not look")
        for watched in self._orders.values():
            watched.news.set()

    async def _look_once(self) -> None:
        ids = list(self._orders)
        for start in range(0, len(ids), ORDERS_A_LOOK):
            async with self._context.ledger.connection() as connection:
                numbers = await dossier.changes(connection, ids[start : start + ORDERS_A_LOOK])
            for order_id, changes in numbers.items():
                watched = self._orders.get(order_id)
                if watched is not None and changes != watched.changes:
                    watched.changes = changes
                    watched.news.set()
                    watched.news = asyncio.Event()


WATCH = web.AppKey("watch", Watch)
