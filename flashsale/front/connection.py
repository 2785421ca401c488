"""One client's connection on the hot path: bytes come in, answers go out in the order of the requests.

Read from the top, the methods of `Connection` are the life of a request: bytes come in and are framed (framing.py),
the message goes to the hot route of its path (order_route.py, webhook_route.py) or is lent to aiohttp (lending.py), and
its answer is written when every earlier one is. One message is read at a time; what lies behind one that has to wait is
left in the kernel (flow.py) but for the one read that brought it, and what all connections keep has a bound
(`held_max_bytes`): that is all that clients can make this process hold.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Protocol, cast

from flashsale.errors import Refused
from flashsale.front.flow import Flow
from flashsale.front.framing import CODING, ChunkedBody, Head, canonical, check_part, parse_head

if TYPE_CHECKING:
    from flashsale.front.hotpath import HotPath

WRITE_BUFFER_BYTES = 16 * 1024  # unsent answers of one connection before it is not read from any more
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LENT_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))


class State(Enum):
    """What a connection does with the bytes that come."""

    HEAD = "the next head is read, or waited for"
    BODY = "the body of a message is read"
    LAST = "no further request is read: what was asked is answered, then the connection ends"
    DROP = "what comes is dropped: a client that still sends would lose its answer to a reset"
    CLOSED = "it is gone"


MAY_FOLLOW: dict[State, frozenset[State]] = {
    State.HEAD: frozenset((State.BODY, State.LAST, State.DROP, State.CLOSED)),
    State.BODY: frozenset((State.HEAD, State.LAST, State.DROP, State.CLOSED)),
    State.LAST: frozenset((State.DROP, State.CLOSED)),
    State.DROP: frozenset((State.CLOSED,)),
    State.CLOSED: frozenset(),
}


class Page(Enum):
    """Where the one request stands that is aiohttp's to answer."""

    NONE = "there is none"
    WAITS = "earlier requests are answered first"
    LENT = "aiohttp answers it"


PAGE_MAY_FOLLOW: dict[Page, frozenset[Page]] = {
    Page.NONE: frozenset((Page.WAITS,)),
    Page.WAITS: frozenset((Page.LENT, Page.NONE)),
    Page.LENT: frozenset((Page.NONE,)),
}


class Waiting(Protocol):
    """What has a place in a connection's queue: an order, an event. `answer` is None until its route knows it; `client`
    is the connection that waits, None once it is answered or gone."""

    answer: bytes | None
    client: object | None


class Ready:
    """An answer that is known at once and waits its turn behind requests that are not decided."""

    __slots__ = ("answer", "client")

    def __init__(self, answer: bytes) -> None:
        self.answer: bytes | None = answer
        self.client: object | None = None


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_began",
        "_body",
        "_buffer",
        "_checked",
        "_chunks",
        "_drop_left",
        "_flow",
        "_handler",
        "_head",
        "_held",
        "_hot",
        "_kept",
        "_missing",
        "_old",
        "_page",
        "_page_bytes",
        "_page_size",
        "_queue",
        "_refused",
        "_shares",
        "_since",
        "_state",
        "_transport",
        "_wide",
    )

    _transport: asyncio.Transport
    _flow: Flow

    def __init__(self, hot: HotPath) -> None:
        self._hot = hot
        self._state = State.HEAD
        self._buffer = b""  # bytes not yet framed: the beginning of a head, or what waits behind an answer
        self._checked = -1  # how far the beginning of a head has been found good
        self._head: Head | None = None  # of the message whose body is coming in
        self._body = bytearray()
        self._chunks: ChunkedBody | None = None
        self._missing = 0  # bytes of it, where its length is known
        self._kept: bool | None = None  # whether it is kept; None: that was not asked yet
        self._refused = False  # it is answered already, before its body has come
        self._queue: deque[Waiting] = deque()  # unanswered, in the order of their requests
        self._page = Page.NONE
        self._page_bytes = b""  # the whole request, until it is lent
        self._page_size = 0  # of its body, until it is answered
        self._handler: asyncio.Protocol | None = None  # aiohttp's, from the first page on
        self._held = 0  # bytes of this connection that count against the process's bound
        self._old = False  # an HTTP/1.0 client: it has to be told that the connection goes on
        self._drop_left = 0
        self._began = 0.0  # when the unfinished message began; 0: none
        self._since = hot.now  # when this connection was last useful
        self._wide = False
        self._shares = False  # what is written now is kept once for many

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._flow = Flow(self._transport)
        hot = self._hot
        if len(hot.connections) >= hot.settings.connections_max:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        hot.connections.add(self)

    def _become(self, state: State) -> None:
        assert state in MAY_FOLLOW[self._state], f"{self._state} -> {state}"  # noqa: S101
        assert (state is State.BODY) == (self._head is not None), f"{state} with a head: {self._head}"  # noqa: S101
        self._state = state

    def _turn(self, page: Page) -> None:
        assert page in PAGE_MAY_FOLLOW[self._page], f"{self._page} -> {page}"  # noqa: S101
        assert page is not Page.LENT or not self._queue, "a page is lent when all before it is answered"  # noqa: S101
        self._page = page

    # --- bytes come in ---

    def data_received(self, data: bytes) -> None:
        if (
            self._state is State.HEAD
            and not self._buffer
            and not self._queue
            and self._page is Page.NONE
            and self._flow.writable
            and self._hot.shortcut(self, data)
        ):
            self._since = self._hot.now
            return
        if self._state is State.DROP:
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
                reached = self._read_body(data, position) if self._head is not None else self._read_head(data, position)
                if reached <= position:  # what is there is the beginning of a head, or of a chunk's line
                    break
                position = reached
            if self._state is State.HEAD or self._state is State.BODY:
                self._keep(data, position)
        except Refused as refused:
            self._refuse_last(refused)

    def _keep(self, data: bytes, position: int) -> None:
        """What could not be framed: the beginning of a message, or what lies behind one that waits. Raises Refused
        where the process keeps too much already."""
        if position < len(data):
            self._buffer = data[position:] if position else data
        if self._head is not None and self._kept is None:
            self._admit(self._head)
        blocked = self._blocked()
        if self._flow.ended and not blocked:  # what is not whole now never will be
            self._end_input()
            return
        if blocked:
            self._flow.read(False)
        elif not self._buffer and self._head is None:
            self._began = 0.0
        elif not self._began:
            self._began = self._hot.now
        if not self._hold():
            if not blocked:
                raise Refused("overloaded", "Too many requests are on their way in pieces; send this one again, whole.")
            self._end_input()  # its turn to be refused would come when what it keeps is answered

    def _blocked(self) -> bool:
        """Whether the next message has to wait; a body that has begun is read to its end."""
        if self._state is not State.HEAD:
            return self._state is not State.BODY
        return (
            self._page is not Page.NONE
            or not self._flow.writable
            or len(self._queue) >= self._hot.settings.pipeline_max
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
        self._head, self._kept, self._missing = head, None, head.length
        self._chunks = ChunkedBody(settings.body_max_bytes) if head.chunked else None
        self._become(State.BODY)
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
            part = data[position : position + self._missing]
            if self._kept is not False:
                body += part
            self._missing -= len(part)
            position += len(part)
            if self._missing:
                return position
        refused = self._refused
        self._forget_body()
        self._become(State.HEAD)
        if not refused:
            self._message(head, bytes(body))
            return position
        self._began, self._since = 0.0, self._hot.now
        if head.close:
            self._become(State.LAST)
            if not self._queue:
                self._finish()
        return position

    def _forget_body(self) -> None:
        self._head, self._chunks, self._body, self._refused = None, None, bytearray(), False

    def _admit(self, head: Head) -> None:
        """More of the body is to come: whether it is kept, and wanted at all. A stranger's is answered now, and then
        read on and dropped."""
        self._kept = True
        try:
            self._kept = self._hot.admission.keeps(head, time.time())
        except Refused as refused:
            self._kept, self._refused, self._old = False, True, not head.minor
            if head.expects:
                raise  # it waits for a word before it sends any: there is nothing to drop
            self._refuse(refused)
        if self._chunks is not None:
            self._chunks.keep = self._kept
        if not self._kept:
            self._body.clear()
            if self._chunks is not None:
                self._chunks.body.clear()
        elif head.expects and not self._body and not self._queue:
            self._write(CONTINUE)

    # --- a message is whole ---

    def _message(self, head: Head, body: bytes) -> None:
        self._began = 0.0
        self._since = self._hot.now
        self._old = not head.minor
        if head.close:
            self._become(State.LAST)
        route = self._hot.route_of(head.target) if head.method == b"POST" else None
        if route is not None:
            route.take(self, head, body)
        elif head.method in LENT_METHODS and head.target.startswith(b"/"):
            if body and head.fields.get(CODING, b"identity").lower() not in (b"identity", b""):
                self._refuse(Refused("unsupported-media-type", "A compressed body is not taken."))
                return
            self._page_size = len(body)
            if not self._hold():
                self._page_size = 0
                self._refuse(Refused("overloaded", "Too many bodies wait to be answered."))
                return
            self._turn(Page.WAITS)
            if self._hot.draining and self._state is State.HEAD:
                self._become(State.LAST)  # its answer says so: nothing that lies behind is read
            self._page_bytes = canonical(head, body, self._state is State.LAST)
            if not self._queue:
                self.lend()
        else:
            allowed = b", ".join(sorted(LENT_METHODS)).decode()
            self._refuse(Refused("method-not-allowed", allow=allowed))

    def place(self, waiting: Waiting) -> None:
        """Gives a request its place; its route calls `answered` when it knows the answer."""
        waiting.client = self
        self._queue.append(waiting)

    def widen(self, buffer_bytes: int) -> None:
        """Large kernel buffers, for a client that is known: an answer beyond the usual one would leave in pieces, each
        waiting for an acknowledgement that the client's kernel delays by 40 ms."""
        if self._wide or self._state is State.CLOSED:
            return
        self._wide = True
        client = self._transport.get_extra_info("socket")
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            client.setsockopt(socket.SOL_SOCKET, buffer, buffer_bytes)

    def refuse(self, refused: Refused) -> None:
        """Answers with a problem, in turn."""
        ready = Ready(self._hot.answers.problem(refused))
        self._queue.append(ready)
        self.answered(ready, cast(bytes, ready.answer))

    def _refuse(self, refused: Refused) -> None:
        """A refusal that no route made."""
        self._hot.count(refused.name)
        self.refuse(refused)

    def _refuse_last(self, refused: Refused) -> None:
        """The same where the client's bytes can't be framed, or are not wanted, any more."""
        self._forget_body()
        if self._state is State.HEAD or self._state is State.BODY:
            self._become(State.LAST)
        self._buffer, self._began = b"", 0.0
        self._hold()
        self._drop_what_comes()
        self._refuse(refused)

    def lend(self) -> None:
        """Gives the waiting page to aiohttp, once there is room for its answer."""
        if self._state is State.CLOSED or self._page is not Page.WAITS or self._queue:
            return
        if not self._hot.has_room:
            self._hot.wait_for_room(self)
            return
        self._turn(Page.LENT)
        page, self._page_bytes = self._page_bytes, b""
        if self._handler is None:
            self._handler = self._hot.lending.handler(self._transport, self)
        self._handler.data_received(page)

    # --- answers go out ---

    def answered(self, waiting: Waiting, answer: bytes) -> None:
        """Writes the answer as soon as every earlier one is written."""
        queue = self._queue
        if queue[0] is waiting and len(queue) == 1:
            queue.clear()
        else:
            waiting.answer = answer
            if queue[0] is not waiting:
                return
            parts = []
            while queue and queue[0].answer is not None:
                parts.append(queue.popleft().answer)
            if not queue and (self._old or self._closes()):
                parts[-1] = self._with_connection(cast(bytes, parts[-1]))
            self._write(b"".join(cast("list[bytes]", parts)))
            self._go_on()
            return
        if self._state is not State.HEAD or self._old or self._hot.draining:
            self._write(self._with_connection(answer))
            self._go_on()
            return
        self._write(answer)
        if self._buffer or self._page is not Page.NONE or not self._transport.is_reading():
            self._go_on()

    def answered_by_page(self) -> None:
        if self._page is Page.LENT:
            self._turn(Page.NONE)
            self._since = self._hot.now
            self._page_size = 0
            self._hold()
            self._go_on()

    def closed_by_page(self) -> None:
        if self._state is State.HEAD:
            self._become(State.LAST)
        if self._page is not Page.NONE:  # it closes without an answer, and gives no other one
            self._turn(Page.NONE)
            self._page_bytes, self._page_size = b"", 0
            self._hold()
        self._go_on()

    def _write(self, data: bytes) -> None:
        if self._state is not State.CLOSED:
            self._transport.write(data)

    def _closes(self) -> bool:
        """Whether the answer that empties the queue is the connection's last."""
        if self._page is not Page.NONE:
            return False
        if self._state is State.HEAD:
            return self._hot.draining and not self._buffer
        return self._state is not State.BODY

    def _with_connection(self, answer: bytes) -> bytes:
        """The answer with the header that says what becomes of the connection, where that is not HTTP/1.1's default."""
        if self._closes():
            return answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        return answer.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1) if self._old else answer

    def _go_on(self) -> None:
        """After an answer: lends the page that waited, reads on, or closes."""
        if self._state is State.CLOSED or self._page is Page.LENT:
            return
        if self._page is Page.WAITS:
            if not self._queue:
                self.lend()
            return
        if self._closes():
            if not self._queue:
                self._finish()
            return
        if self._buffer and not self._blocked():
            data, self._buffer = self._buffer, b""
            self._read(data)
        elif self._flow.ended and not self._blocked():
            self._end_input()
            return
        if not self._blocked():
            self._flow.read(True)

    # --- what is kept ---

    def _hold(self) -> bool:
        """Counts what is kept of this connection's bytes; False, counting nothing, where all keep too much."""
        held = len(self._buffer) + self._page_size
        if self._head is not None:
            held += len(self._chunks.body) if self._chunks is not None else len(self._body)
        more = held - self._held
        if more > 0 and self._hot.held + more > self._hot.settings.held_max_bytes:
            return False
        self._held = held
        self._hot.held += more
        return True

    # --- time and the end ---

    def pause_writing(self) -> None:
        self._flow.unread(self._hot.now, self._shares)
        self._hot.unread(self._flow.unsent)
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._hot.unsent -= self._flow.unsent
        self._flow.written()
        if self._handler is not None:
            self._handler.resume_writing()
        self._go_on()
        self._hot.make_room()

    def write_shared(self, data: bytes) -> None:
        self._shares = True
        self._write(data)
        self._shares = False

    async def until_written(self) -> None:
        await self._flow.until_written()

    @property
    def flow(self) -> Flow:
        """Whether its bytes are read, and ours."""
        return self._flow

    def check(self, now: float) -> None:
        """Called at each sweep."""
        settings = self._hot.settings
        if self._state is State.CLOSED:
            return
        if self._transport.is_closing():  # closed, but for an answer that the client does not read
            if now - self._since > settings.write_timeout_s:
                self._transport.abort()
        elif not self._flow.writable:
            if now - self._flow.unread_since > settings.write_timeout_s:
                self._transport.abort()
        elif self._state is State.DROP and not self._queue:
            if now - self._since > settings.drop_seconds:
                self._transport.close()
        elif self._queue and self._hot.draining and self._hot.idle_limit():
            # A client that goes on sending would never be told to go: the rest is not read.
            self._end_input()
            self._flow.read(False)
        elif self._began:
            if now - self._began > settings.read_timeout_s:
                self._transport.close()
        elif not self._queue and self._page is not Page.LENT and self._since < self._hot.idle_limit():
            self._transport.close()

    def _end_input(self) -> None:
        """No further request is read; what was asked is answered."""
        if self._state is State.HEAD or self._state is State.BODY:
            self._forget_body()
            self._become(State.LAST)
            self._buffer, self._began = b"", 0.0
            self._hold()
            if not self._queue and self._page is Page.NONE:
                self._finish()

    def _finish(self) -> None:
        """All is answered. Bytes of the client that nobody has read would turn the close into a reset, which takes away
        what it has not got of its answer: our side ends first, and the client's bytes are dropped until it ends its
        own (RFC 9112, 9.6)."""
        if self._state is State.CLOSED or self._transport.is_closing():
            return
        self._since = self._hot.now
        if self._flow.ended or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._drop_what_comes()
            self._transport.write_eof()

    def _drop_what_comes(self) -> None:
        """From here on what comes is read and dropped, within bounds."""
        if self._state is State.HEAD:
            self._become(State.LAST)
        if self._state is not State.DROP:
            self._become(State.DROP)
            self._drop_left = self._hot.settings.drop_max_bytes
        self._flow.read(self._drop_left > 0)

    def abort(self) -> None:
        """Drops the connection at once."""
        if self._state is not State.CLOSED:
            self._transport.abort()

    def _drop(self, size: int) -> None:
        self._drop_left = max(0, self._drop_left - size)
        if not self._drop_left:
            if self._queue:
                self._flow.read(False)  # what was asked before is answered first
            else:
                self._transport.close()

    def eof_received(self) -> bool:
        """The client sends no more. What it asked, also what is kept of that, is answered first; an unfinished message
        never will be."""
        self._flow.ended = True
        if self._state is State.DROP:
            return bool(self._queue)
        if not self._blocked():
            self._end_input()
        return not self._transport.is_closing() and bool(self._queue or self._buffer or self._page is not Page.NONE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_body()
        if self._state is not State.CLOSED:
            self._become(State.CLOSED)
        self._hot.connections.discard(self)
        for waiting in self._queue:
            waiting.client = None
        self._queue.clear()
        self._buffer = self._page_bytes = b""
        self._hot.held -= self._held
        self._held = 0
        self._hot.unsent -= self._flow.unsent
        self._flow.written()
        if self._handler is not None:
            handler, self._handler = self._handler, None
            self._hot.lending.returned(handler, exc)
