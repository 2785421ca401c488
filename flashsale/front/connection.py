"""One client's connection on the hot path: bytes come in, answers go out in the order of the requests.

Read from the top, the methods of `Connection` are the life of a request: bytes come in and are framed (framing.py),
the message goes to the hot route of its path (order_route.py, webhook_route.py) or is lent to aiohttp (lending.py), and
its answer is written when every earlier one is. One message is read at a time; what lies behind one that has to wait is
kept, and reading pauses: that and the transport's buffer are all that a client can make this process hold.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

from flashsale.errors import Refused
from flashsale.front.framing import ChunkedBody, Head, canonical, check_part, parse_head

if TYPE_CHECKING:
    from flashsale.front.hotpath import HotPath

WRITE_BUFFER_BYTES = 16 * 1024  # unsent answers of one connection before it is not read from any more
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LENT_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))


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
        "_wide",
    )

    def __init__(self, hot: HotPath) -> None:
        self._hot = hot
        self._transport: asyncio.Transport | None = None
        self._buffer = b""  # bytes not yet framed: the beginning of a head, or what waits behind an answer
        self._checked = -1  # how far the beginning of a head has been found good
        self._head: Head | None = None  # of the message whose body is coming in
        self._body = bytearray()
        self._chunks: ChunkedBody | None = None
        self._queue: deque[Waiting] = deque()  # unanswered, in the order of their requests
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
        self._wide = False

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
        ) and self._hot.shortcut(self, data):
            self._since = self._hot.now
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
        route = self._hot.route_of(head.target) if head.method == b"POST" else None
        if route is not None:
            route.take(self, head, body)
        elif head.method in LENT_METHODS and head.target.startswith(b"/"):
            self._page = canonical(head, body, self._last or self._hot.draining)
            if not self._queue:
                self._lend()
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
        if self._wide or self._transport is None:
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

    def _refuse(self, refused: Refused, last: bool = False) -> None:
        """A refusal that no route made. With `last` the client's bytes can't be framed any more: close."""
        self._hot.count(refused.name)
        if last:
            self._last = True
            self._head = self._chunks = None
            self._buffer = b""
            self._began = 0.0
            self._dropping = self._hot.settings.drop_max_bytes
        self.refuse(refused)

    def _lend(self) -> None:
        """Gives the waiting page to aiohttp, and the transport with it until the answer is written."""
        if self._transport is None or self._page is None:
            return
        page, self._page, self._lent = self._page, None, True
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
        for waiting in self._queue:
            waiting.client = None
        self._queue.clear()
        self._buffer = b""
        if self._handler is not None:
            self._hot.lending.returned(self._handler, exc)
            self._handler = None
