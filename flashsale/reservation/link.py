"""The hot path's own connections to Valkey: RESP over hiredis on an asyncio transport, calls answered in order.

redis-py's asyncio client costs several times the CPU a call, whatever the call carries; this knows only how to send
encoded commands and hand back their answers. It never retries: what a lost connection means is the caller's to decide.
Who needs one always (batcher.py, events.py) has it kept by `keep`, and tells an error's meaning by its first word.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import hiredis

RECONNECT_S = 0.05  # pause between attempts to connect or to verify
POLL_S = 0.1  # how often a ready link asks what may have changed (epoch, version, backlog); also the pace of time-outs
CHECK_S = 1.0  # how often Valkey's settings are looked at again: somebody may change them while a sale runs
SILENT_S = 1.0  # a call that takes longer than any disk's bad moment: all is refused at once until it is answered
REFUSED_BY_VALKEY = ("OOM", "BUSY", "LOADING", "NOPERM", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN")
LOST_TO_VALKEY = ("READONLY", "MASTERDOWN")  # this server is no primary any more: connect again

Answered = Callable[[Any], None]
"""Takes a call's answer: what hiredis makes of it (errors are hiredis.ReplyError values), None if the link is lost."""


class Address:
    """Where Valkey is, from its URL: redis://[user:password@]host:port/db or unix://[user:password@]/path?db=N."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.username, self.password = parts.username, parts.password
        options = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
        if parts.scheme == "unix":
            self.path: str | None = unquote(parts.path)
            self.host, self.port, database = "", 0, options.get("db", "0")
            self.username = self.username or options.get("username")
            self.password = self.password or options.get("password")
        elif parts.scheme in ("redis", "valkey"):
            self.path = None
            self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 6379
            database = parts.path.strip("/") or options.get("db", "0")
        else:
            raise ValueError(f"the hot path speaks redis:// and unix://, not {parts.scheme}://")
        self.database = int(database)

    def greetings(self) -> list[list[bytes]]:
        """The commands with which a connection begins."""
        commands = []
        if self.password is not None:
            user = [unquote(self.username).encode()] if self.username else []
            commands.append([b"AUTH", *user, unquote(self.password).encode()])
        if self.database:
            commands.append([b"SELECT", b"%d" % self.database])
        return commands


def encode(arguments: list[bytes]) -> bytes:
    """One command in RESP."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        parts.append(b"$%d\r\n" % len(argument))
        parts.append(argument)
        parts.append(b"\r\n")
    return b"".join(parts)


class Link(asyncio.Protocol):
    """One connection; `lost` is called once when it is gone, before every waiting call is handed None: who is told so
    must not take the link for good and send again on it."""

    def __init__(self, lost: Callable[[Link], None]) -> None:
        self._lost = lost
        self._reader = hiredis.Reader()
        self._waiting: deque[Answered] = deque()
        self._transport: asyncio.Transport | None = None
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                if not waiting:  # an answer to nothing: this is no Valkey
                    self.abort()
                    return
                waiting.popleft()(answer)
        except hiredis.ProtocolError:  # no RESP
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, deque()
        self._lost(self)
        self.gone.set()
        for answered in waiting:
            answered(None)

    @property
    def waiting(self) -> int:
        """Calls sent and not yet answered."""
        return len(self._waiting)

    def call(self, command: bytes, answered: Answered) -> None:
        """Sends an encoded command; on a lost link `answered` gets None at once."""
        if self._transport is None:
            answered(None)
            return
        self._waiting.append(answered)
        self._transport.write(command)

    async def ask(self, *arguments: bytes) -> Any:
        """One command and its answer. Raises ConnectionError on a lost link, hiredis.ReplyError on an error answer."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answered(answer: Any) -> None:
            if not future.done():
                future.set_result(answer)

        self.call(encode(list(arguments)), answered)
        answer = await future
        if self._transport is None:  # even if the answer came: who goes on would take the link for good
            raise ConnectionError("the link to Valkey was lost")
        if isinstance(answer, hiredis.ReplyError):
            raise answer
        return answer

    def abort(self) -> None:
        """Drops the connection at once; waiting calls get None."""
        if self._transport is not None:
            self._transport.abort()


async def connect(address: Address, lost: Callable[[Link], None], timeout_s: float) -> Link:
    """A greeted link. Raises OSError (TimeoutError too) or hiredis.ReplyError; leaves nothing open then."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        if address.path is not None:
            _, link = await loop.create_unix_connection(lambda: Link(lost), address.path)
        else:
            _, link = await loop.create_connection(lambda: Link(lost), address.host, address.port)
        try:
            for greeting in address.greetings():
                await link.ask(*greeting)
        except BaseException:
            link.abort()
            raise
    return link


async def keep(
    address: Address,
    attend: Callable[[Link], Awaitable[None]],
    lost: Callable[[Link], None],
    away: Callable[[str], None],
    timeout_s: float,
) -> None:
    """Keeps a link until cancelled: hands each new one to `attend`, which uses it until it raises OSError or a hiredis
    error, and connects again. `lost` as Link has it; `away` is told why there is none."""
    loop = asyncio.get_running_loop()
    link: Link | None = None
    try:
        while True:
            began = loop.time()
            try:
                link = await connect(address, lost, timeout_s)
            except (OSError, hiredis.HiredisError) as error:
                away(f"Valkey does not answer: {error or type(error).__name__}")
                await asyncio.sleep(RECONNECT_S)
                continue
            with contextlib.suppress(OSError, hiredis.HiredisError):
                await attend(link)
            link.abort()
            await link.gone.wait()
            if loop.time() - began < RECONNECT_S:  # it loads its data, say, and refuses every command
                await asyncio.sleep(RECONNECT_S)
    finally:
        if link is not None:
            link.abort()
