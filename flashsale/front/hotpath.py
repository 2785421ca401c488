"""The hot path: it owns every connection, answers `POST /v1/orders` itself and lends every other request to aiohttp.

Read from the top, the methods of `Connection` are the life of a request: bytes come in and are framed (framing.py), an
order is made of them (intake.py), the batcher decides it (reservation/batcher.py), its answer is written
(verdicts.py), in the order of the requests. One message is read at a time; what lies behind one that has to wait is
kept, and reading pauses: that and the transport's buffer are all that a client can make this process hold.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from functools import partial
from typing import Any, cast

import structlog

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.front.framing import PLAIN_ORDER, ChunkedBody, Head, canonical, check_part, parse_head
from flashsale.front.intake import Intake, Unknown
from flashsale.front.lending import Lending
from flashsale.front.replay import Replays
from flashsale.front.verdicts import Answers, outcome_counts, time_text
from flashsale.reservation.batcher import Batcher
from flashsale.sale.priced import Order, PricedSale
from flashsale.settings import Settings

WRITE_BUFFER_BYTES = 16 * 1024  # unsent answers of one connection before it is not read from any more
RECEIVE_BUFFER_BYTES = 32 * 1024  # what the kernel holds of one connection, and so the most that one read returns
SEND_BUFFER_BYTES = 32 * 1024  # what the kernel keeps of answers that a client does not read: else it is megabytes
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
log = structlog.get_logger(__name__)

LENT_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
ORDERS = b"/v1/orders"


class Ready:
    """An answer that is known at once and waits its turn behind orders that are not decided."""

    __slots__ = ("answer",)

    def __init__(self, answer: bytes) -> None:
        self.answer = answer


class HotPath:
    """What all connections of a process share; also the batcher's `Front`."""

    batcher: Batcher

    def __init__(
        self, settings: Settings, intake: Intake, answers: Answers, lending: Lending, replays: Replays
    ) -> None:
        self.settings, self.intake, self.answers, self.lending = settings, intake, answers, lending
        self.replays = replays
        self.connections: set[Connection] = set()
        self.draining = False
        self.drained = asyncio.Event()  # the drain is over: no connection, no order
        self._idle_until = 0.0  # while draining: when connections without a request are closed
        self.clock = asyncio.get_running_loop().time  # get_running_loop itself asks for the process id each time
        self.now = self.clock()  # the loop's clock, as of the last sweep: fine enough for time-outs
        # A plain order is not longer than this in all, so neither its head nor its body is too large.
        self.plain_max = min(settings.head_max_bytes, settings.body_max_bytes)
        # Since the last sweep: refusals by problem, and of orders that the store did not decide how many and the first.
        self._refusals: dict[str, int] = {}
        self._undecided: dict[tuple[str, str], tuple[int, str]] = {}
        self._tells_all = settings.log_level == "debug"

    def connection(self) -> Connection:
        """A protocol for one accepted connection."""
        return Connection(self)

    # --- the batcher's Front ---

    def decided(self, orders: list[Order], outcomes: str, details: list[Any], now_ms: int, entry_ms: int) -> None:
        rest = iter(details)
        answers = self.answers
        accepted = answers.accepted
        hold_ms = orders[0].sale.hold_ms
        until = time_text(entry_ms + hold_ms)
        for order, outcome in zip(orders, outcomes, strict=True):
            if outcome == "A":
                answer = accepted(order, until)
            elif outcome == "S":
                answer = answers.sold_out(order, rest)
            elif outcome == "R":
                if order.client is not None:
                    self.replays.answer(order, next(rest), self.deliver)
                else:
                    next(rest)
                continue
            else:
                answer = answers.refused(order, outcome, rest, now_ms)
            client = order.client
            if client is not None:
                order.client = None
                client.answered(order, answer)  # type: ignore[attr-defined]
        metrics.count_outcomes(outcome_counts(outcomes))
        if self._tells_all:
            log.debug("batch decided", entry_ms=entry_ms, orders=[order.id for order in orders], outcomes=outcomes)

    def refused(self, orders: list[Order], problem: str, detail: str) -> None:
        count, first = self._undecided.get((problem, detail), (0, orders[0].id))
        self._undecided[problem, detail] = count + len(orders), first
        for order in orders:
            self.deliver(order, self.answers.problem(Refused(problem, detail, id=order.id)))

    def adopted(self, sales: dict[str, PricedSale]) -> None:
        self.intake.sales = sales

    def batch_took(self, orders: int, waited_s: float, script_s: float) -> None:
        metrics.observe_batch(orders, waited_s, script_s, {})

    def deliver(self, order: Order, answer: bytes) -> None:
        """Gives an order its one answer."""
        client = cast("Connection | None", order.client)
        if client is not None:
            order.client = None
            client.answered(order, answer)

    # --- time ---

    def sweep(self, now: float) -> None:
        """Several times a second: closes what has been silent, slow or unread for too long."""
        self.now = now
        for connection in list(self.connections):
            connection.check(now)
        for (problem, detail), (count, first) in self._undecided.items():
            self._refusals[problem] = self._refusals.get(problem, 0) + count
            log.warning("orders refused", problem=problem, detail=detail, count=count, first_order=first)
        self._undecided.clear()
        if self._refusals:
            refusals, self._refusals = self._refusals, {}
            metrics.count_outcomes(refusals)
        if self.draining and not self.connections and not self.batcher.pending:
            self.drained.set()
        metrics.set_in_flight(self.batcher.pending, self.batcher.batches, len(self.connections))

    def begin_drain(self, idle_until: float) -> None:
        """From now on every answer is its connection's last; idle connections are closed after `idle_until`."""
        self.draining, self._idle_until = True, idle_until

    def idle_limit(self) -> float:
        """Connections that have been idle since before this are closed."""
        if self.draining:
            return self.now if self.now >= self._idle_until else 0.0
        return self.now - self.settings.idle_timeout_s

    def count(self, problem: str) -> None:
        """A refusal that never reached the batcher; the metrics learn of it at the next sweep."""
        self._refusals[problem] = self._refusals.get(problem, 0) + 1


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_began",
        "_body",
        "_buffer",
        "_checked",
        "_chunks",
        "_dropping",
        "_handler",
        "_head",
        "_hot",
        "_last",
        "_lent",
        "_old",
        "_page",
        "_paused",
        "_queue",
        "_reading",
        "_since",
        "_transport",
        "_unread_since",
    )

    def __init__(self, hot: HotPath) -> None:
        self._hot = hot
        self._transport: asyncio.Transport | None = None
        self._buffer = b""  # bytes not yet framed: the beginning of a head, or what waits behind an answer
        self._checked = -1  # how far the beginning of a head has been found good
        self._head: Head | None = None  # of the message whose body is coming in
        self._body = bytearray()
        self._chunks: ChunkedBody | None = None
        self._queue: deque[Order | Ready] = deque()  # unanswered, in the order of their requests
        self._page: bytes | None = None  # a whole request that waits for the queue, then is lent
        self._handler: asyncio.Protocol | None = None  # aiohttp's, from the first page on
        self._lent = False  # the transport is aiohttp's until its answer is written
        self._last = False  # no request is read any more; close when all is answered
        self._old = False  # an HTTP/1.0 client: it has to be told that the connection goes on
        self._reading = True
        self._paused = False  # the client does not read its answers
        self._dropping = 0  # bytes that may still be read and dropped before the connection closes
        self._began = 0.0  # when the unfinished message began; 0: none
        self._since = hot.now  # when this connection was last useful
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        hot = self._hot
        if len(hot.connections) >= hot.settings.connections_max:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        hot.connections.add(self)

    # --- bytes come in ---

    def data_received(self, data: bytes) -> None:
        if not (
            self._queue
            or self._buffer
            or self._head is not None
            or self._lent
            or self._paused
            or self._last
            or self._dropping
        ):
            match = PLAIN_ORDER.match(data)
            if match is not None:
                body = data[match.end() :]
                if len(body) == int(match[5]) and len(data) <= self._hot.plain_max:
                    self._plain_order(match, body)
                    return
        if self._dropping:
            self._drop(len(data))
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        self._read(data)

    def _read(self, data: bytes) -> None:
        """Frames what can be framed, and keeps the rest."""
        position = 0
        try:
            while position < len(data) and not self._blocked():
                reached = self._read_head(data, position) if self._head is None else self._read_body(data, position)
                if reached <= position:  # what is there is the beginning of a head, or of a chunk's line
                    break
                position = reached
        except Refused as refused:
            self._refuse(refused, last=True)
            return
        if self._last:
            return
        if position < len(data):
            self._buffer = data[position:] if position else data
        if self._blocked():
            self._pause()
        elif not self._buffer and self._head is None:
            self._began = 0.0
        elif not self._began:
            self._began = self._hot.now

    def _blocked(self) -> bool:
        """Whether the next message has to wait; a body that has begun is read to its end."""
        return self._last or (
            self._head is None
            and (
                self._lent
                or self._paused
                or self._page is not None
                or len(self._queue) >= self._hot.settings.pipeline_max
            )
        )

    def _read_head(self, data: bytes, position: int) -> int:
        """The position behind the head, and behind the body if all of it is there; -1: more bytes are needed."""
        settings = self._hot.settings
        end = data.find(b"\r\n\r\n", position)
        if end < 0 or end - position > settings.head_max_bytes:
            return self._wait_for_head(data, position)
        if end == position or data.startswith(b"\r\n", position):
            return position + 2  # an empty line before a request (RFC 9112, 2.2)
        head = parse_head(data[position:end])
        self._checked = -1
        position = end + 4
        if head.length > settings.body_max_bytes:
            raise Refused("too-large", f"A body has at most {settings.body_max_bytes} bytes.")
        if not head.chunked and len(data) - position >= head.length:
            self._message(head, data[position : position + head.length])
            return position + head.length
        self._head = head
        self._body = bytearray()
        self._chunks = ChunkedBody(settings.body_max_bytes) if head.chunked else None
        if head.expects and position == len(data) and not self._queue:
            self._write(CONTINUE)
        return position

    def _wait_for_head(self, data: bytes, position: int) -> int:
        if data.startswith(b"\r\n", position):
            return position + 2
        part = data[position:] if position else data
        if len(part) > self._hot.settings.head_max_bytes:
            raise Refused("headers-too-large", f"A head has at most {self._hot.settings.head_max_bytes} bytes.")
        lines_end = part.rfind(b"\n")
        check_part(part, lines_end != self._checked)
        self._checked = lines_end
        return -1

    def _read_body(self, data: bytes, position: int) -> int:
        head = cast(Head, self._head)
        if self._chunks is not None:
            position = self._chunks.feed(data, position)
            if not self._chunks.done:
                return position
            body = self._chunks.body
        else:
            body = self._body
            missing = head.length - len(body)
            body += data[position : position + missing]
            position = min(len(data), position + missing)
            if len(body) < head.length:
                return position
        self._head, self._chunks, self._body = None, None, bytearray()
        self._message(head, bytes(body))
        return position

    # --- a message is whole ---

    def _message(self, head: Head, body: bytes) -> None:
        self._began = 0.0
        self._since = self._hot.now
        self._old = not head.minor
        if head.close:
            self._last = True
        if head.method == b"POST" and (head.target == ORDERS or head.target.partition(b"?")[0] == ORDERS):
            self._order(head, body)
        elif head.method in LENT_METHODS and head.target.startswith(b"/"):
            self._page = canonical(head, body, self._last or self._hot.draining)
            if not self._queue:
                self._lend()
        else:
            allowed = b", ".join(sorted(LENT_METHODS)).decode()
            self._refuse(Refused("method-not-allowed", allow=allowed))

    def _order(self, head: Head, body: bytes) -> None:
        hot = self._hot
        try:
            if hot.batcher.closed is not None:
                raise Refused("overloaded", hot.batcher.closed)
            order = hot.intake.read(head, body)
        except Refused as refused:
            self._refuse(refused)
        else:
            self._place(order)

    def _plain_order(self, match: re.Match[bytes], body: bytes) -> None:
        """The same for a head that PLAIN_ORDER took apart."""
        hot = self._hot
        self._since = hot.now
        try:
            if hot.batcher.closed is not None:
                raise Refused("overloaded", hot.batcher.closed)
            _, media_type, token, key, _ = match.groups()
            order = hot.intake.order(token, key.decode("ascii"), media_type == b"application/msgpack", body)
        except Refused as refused:
            self._refuse(refused)
        else:
            self._place(order)

    def _place(self, order: Order) -> None:
        hot = self._hot
        order.client = self
        order.arrived = hot.clock()
        self._queue.append(order)
        try:
            hot.intake.price(order)
        except Unknown:
            hot.batcher.when_current(partial(self._price_again, order))
        else:
            hot.batcher.submit(order)

    def _price_again(self, order: Order, current: bool) -> None:
        """The catalogue at hand did not know the order's sale, SKU or market; now it is the one in force, unless that
        can't be known."""
        try:
            self._hot.intake.price(order)
        except Unknown as unknown:
            refused: Refused = unknown
            if not current:
                known = {name: value for name, value in unknown.members.items() if name == "id"}
                refused = Refused(
                    "overloaded", "It can't be asked whether there is such a sale, SKU or market.", **known
                )
            self._hot.count(refused.name)
            self._hot.deliver(order, self._hot.answers.problem(refused))
        else:
            self._hot.batcher.submit(order)

    def _refuse(self, refused: Refused, last: bool = False) -> None:
        """Answers with a problem, in turn. With `last` the client's bytes can't be framed any more: close."""
        hot = self._hot
        hot.count(refused.name)
        if last:
            self._last = True
            self._head = self._chunks = None
            self._buffer = b""
            self._began = 0.0
            self._dropping = hot.settings.drop_max_bytes
        ready = Ready(hot.answers.problem(refused))
        self._queue.append(ready)
        self.answered(ready, ready.answer)

    def _lend(self) -> None:
        """Gives the waiting page to aiohttp, and the transport with it until the answer is written."""
        if self._transport is None or self._page is None:
            return
        page, self._page, self._lent = self._page, None, True
        if self._handler is None:
            self._handler = self._hot.lending.handler(self._transport, self)
        self._handler.data_received(page)

    # --- answers go out ---

    def answered(self, order: Order | Ready, answer: bytes) -> None:
        """Writes the answer as soon as every earlier one is written."""
        queue = self._queue
        if queue[0] is order and len(queue) == 1:
            queue.clear()
        else:
            order.answer = answer
            if queue[0] is not order:
                return
            parts = []
            while queue and queue[0].answer is not None:
                parts.append(queue.popleft().answer)
            if not queue and (self._old or self._closes()):
                parts[-1] = self._with_connection(cast(bytes, parts[-1]))
            self._write(b"".join(cast("list[bytes]", parts)))
            self._go_on()
            return
        if self._last or self._old or self._hot.draining:
            self._write(self._with_connection(answer))
            self._go_on()
            return
        self._write(answer)
        if self._buffer or self._page is not None or not self._reading:
            self._go_on()

    def answered_by_page(self) -> None:
        self._lent = False
        self._since = self._hot.now
        if self._reading and self._transport is not None:
            self._transport.resume_reading()  # aiohttp pauses it for a long body, which it may have left unread
        self._go_on()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _closes(self) -> bool:
        """Whether the answer that empties the queue is the connection's last."""
        if self._page is not None:
            return False
        return self._last or (self._hot.draining and not self._buffer and self._head is None)

    def _with_connection(self, answer: bytes) -> bytes:
        """The answer with the header that says what becomes of the connection, where that is not HTTP/1.1's default."""
        if self._closes():
            return answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        return answer.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1) if self._old else answer

    def _go_on(self) -> None:
        """After an answer: lends the page that waited, reads on, or closes."""
        if self._transport is None or self._lent:
            return
        if self._page is not None:
            if not self._queue:
                self._lend()
            return
        if self._last or (self._hot.draining and not self._buffer and self._head is None):
            if not self._queue:
                self._finish()
            return
        if self._buffer and not self._blocked():
            data, self._buffer = self._buffer, b""
            self._read(data)
        if not self._reading and not self._blocked() and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()

    # --- flow, time and the end ---

    def _pause(self) -> None:
        if self._reading and self._transport is not None and not self._dropping:
            self._reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._paused = True
        self._unread_since = self._hot.now
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        if self._handler is not None:
            self._handler.resume_writing()
        self._go_on()

    def check(self, now: float) -> None:
        """Called at each sweep."""
        settings = self._hot.settings
        if self._transport is None:
            return
        if self._transport.is_closing():  # closed, but for an answer that the client does not read
            if now - self._since > settings.write_timeout_s:
                self._transport.abort()
        elif self._paused:
            if now - self._unread_since > settings.write_timeout_s:
                self._transport.abort()
        elif self._dropping and not self._queue:
            if now - self._since > settings.drop_seconds:
                self._transport.close()
        elif self._queue and self._hot.draining and self._hot.idle_limit():
            self._last = True  # a client that goes on sending would never be told to go; the rest is not read
            self._pause()
        elif self._began:
            if now - self._began > settings.read_timeout_s:
                self._transport.close()
        elif not self._queue and not self._lent and self._since < self._hot.idle_limit():
            self._transport.close()

    def _finish(self) -> None:
        """All is answered. A client that still sends would lose the answer to a reset: its bytes are dropped first."""
        if self._transport is None:
            return
        self._since = self._hot.now
        if not self._reading and not self._dropping:
            self._dropping = self._hot.settings.drop_max_bytes
        if self._dropping:
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Drops the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _drop(self, size: int) -> None:
        self._dropping = max(0, self._dropping - size)
        if not self._dropping and self._transport is not None:
            if self._queue:
                self._pause()  # what was asked before is answered first
            else:
                self._transport.close()

    def eof_received(self) -> bool:
        """The client sends no more. What it asked is answered first; an unfinished message never will be."""
        self._began = 0.0
        if self._queue or self._lent or self._page is not None:
            self._last = True
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._hot.connections.discard(self)
        for order in self._queue:
            if isinstance(order, Order):
                order.client = None
        self._queue.clear()
        self._buffer = b""
        if self._handler is not None:
            self._hot.lending.returned(self._handler, exc)
            self._handler = None
