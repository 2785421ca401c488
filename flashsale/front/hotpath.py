"""The hot path: it owns every connection, answers its routes itself and lends every other request to aiohttp.

`Connection` (connection.py) frames messages and keeps the order of answers; a `Route` answers the requests of one path:
orders (order_route.py) and the payment provider's webhooks (webhook_route.py). `HotPath` is what the connections of a
process share: the routes, the bounds, the time and the drain.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Protocol

import structlog

from flashsale import metrics
from flashsale.front.admission import Admission
from flashsale.front.connection import Connection
from flashsale.front.framing import Head
from flashsale.front.lending import Lending
from flashsale.front.verdicts import Answers
from flashsale.settings import Settings

log = structlog.get_logger(__name__)

RECEIVE_BUFFER_BYTES = 32 * 1024  # what the kernel holds of one connection, and so the most that one read returns
SEND_BUFFER_BYTES = 32 * 1024  # what the kernel keeps of answers that a client does not read: else it is megabytes
WIDE_BUFFER_BYTES = 1024 * 1024  # of each, for a channel: its answers are hundreds of kilobytes, and it has a token

PATIENCE_S = 1.0  # a client that reads, if slowly, makes room within it
UNSENT_A_CONNECTION_BYTES = 4 * 1024
"""Beside the setting's bound: of a crowd some are always slow, and the more there are, the more."""

CHANNEL_ORDERS = b"/v1/channels/{channel}/orders"

Shortcut = Callable[[Connection, bytes], bool]
"""Is shown the bytes that a connection with nothing else to do has read. Takes them if they are one whole request of
its route's commonest kind, which it may know more cheaply than by parse_head; false, nothing done, if not."""


class Route(Protocol):
    """Answers the POSTs to one path. A route never waits: what it can't answer at once has a place in its connection's
    queue (`place`), and an answer later (`answered`), from which it must know whether its `client` still waits."""

    path: bytes

    @property
    def pending(self) -> int:
        """Requests taken and not yet answered: a drain waits for them."""

    def take(self, connection: Connection, head: Head, body: bytes) -> None:
        """One whole request: gives it its place or refuses it."""

    def tick(self, now_s: float) -> None:
        """Several times a second: the UNIX time, and a moment to tell the metrics what happened since the last."""


class HotPath:
    """What all connections of a process share."""

    def __init__(
        self,
        settings: Settings,
        answers: Answers,
        lending: Lending,
        admission: Admission,
        routes: Sequence[Route],
        shortcut: Shortcut,
    ) -> None:
        self.settings, self.answers, self.lending, self.admission = settings, answers, lending, admission
        self._waiting: deque[Connection] = deque()  # whose pages wait for room
        self.unsent = 0  # bytes of answers that clients do not read, each connection's own
        self.held = 0  # bytes of unfinished and waiting requests, of all connections
        self.routes = {route.path: route for route in routes}
        self._many = self.routes.get(CHANNEL_ORDERS)
        self.shortcut = shortcut
        self.connections: set[Connection] = set()
        self.draining = False
        self.drained = asyncio.Event()  # the drain is over: no connection, no order
        self._idle_until = 0.0  # while draining: when connections without a request are closed
        self.now = asyncio.get_running_loop().time()  # as of the last sweep: fine enough for time-outs
        self._refusals: dict[str, int] = {}  # by problem, since the last sweep

    def route_of(self, target: bytes) -> Route | None:
        """The route that answers POSTs to that target; None: it is lent."""
        path = target.partition(b"?")[0]
        route = self.routes.get(path)
        if route is None and path.startswith(b"/v1/channels/") and path.endswith(b"/orders") and path.count(b"/") == 4:
            return self._many
        return route

    def connection(self) -> Connection:
        """A protocol for one accepted connection."""
        return Connection(self)

    def sweep(self, now: float, now_s: float) -> None:
        """Several times a second, with the loop's time and the UNIX time: closes what has been silent, slow or unread
        for too long."""
        self.now = now
        for connection in list(self.connections):
            connection.check(now)
        self._cut_the_slowest()
        self.make_room()
        for route in self.routes.values():
            route.tick(now_s)
        if self._refusals:
            refusals, self._refusals = self._refusals, {}
            metrics.count_outcomes(refusals)
        if self.draining and not self.connections and not any(route.pending for route in self.routes.values()):
            self.drained.set()
        metrics.set_connections(len(self.connections))

    def unread(self, unsent: int) -> None:
        """A client does not read so many bytes of its answer."""
        self.unsent += unsent

    @property
    def has_room(self) -> bool:
        """Whether another page may be made: too many answers that nobody reads are waiting, else."""
        bound = self.settings.unsent_max_bytes + UNSENT_A_CONNECTION_BYTES * len(self.connections)
        return self.unsent <= bound

    def wait_for_room(self, connection: Connection) -> None:
        """The connection's page is lent as soon as there is room; in the order in which they came."""
        self._waiting.append(connection)

    def make_room(self) -> None:
        """Lends what waited for room, as far as there is any."""
        while self._waiting and self.has_room:
            self._waiting.popleft().lend()

    def _cut_the_slowest(self) -> None:
        """Where there is no room, clients that have not read for a while go, who has not for longest first."""
        if self.has_room:
            return
        slow = [
            each for each in self.connections if each.flow.unsent and self.now - each.flow.unread_since > PATIENCE_S
        ]
        if slow:
            log.warning("answers wait for clients that read none: the slowest are cut off", bytes=self.unsent)
        for connection in sorted(slow, key=attrgetter("flow.unread_since"))[: max(1, len(slow) // 2)]:
            connection.abort()

    def begin_drain(self, idle_until: float) -> None:
        """From now on every answer is its connection's last; idle connections are closed after `idle_until`."""
        self.draining, self._idle_until = True, idle_until

    def idle_limit(self) -> float:
        """Connections that have been idle since before this are closed."""
        if self.draining:
            return self.now if self.now >= self._idle_until else 0.0
        return self.now - self.settings.idle_timeout_s

    def count(self, problem: str) -> None:
        """A refusal before any route; the metrics learn of it at the next sweep."""
        self._refusals[problem] = self._refusals.get(problem, 0) + 1
