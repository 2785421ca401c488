"""A client that sends exactly the bytes it is given, frames the answers strictly and says how the connection ended.

Sockets with nothing on top: the tests that use it are about what a client library would hide.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 30  # for what must come; only a failing test waits this long
READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The name of the problem, "" for an answer that is none."""
        return str(self.json()["type"]).rpartition("/")[2] if self.status >= 400 else ""


def answers_in(data: bytes, *, ended: bool) -> list[Answer]:
    """The whole answers at the beginning of *data*, interim ones (1xx) left out. Raises ValueError for anything else.

    The answer to a HEAD is recognised by what follows it: the next answer, or the end.
    """
    answers: list[Answer] = []
    position = 0
    while position < len(data):
        end = data.find(b"\r\n\r\n", position)
        if end < 0:
            break
        first, *lines = data[position:end].decode("latin-1").split("\r\n")
        protocol, status, *_ = first.split(" ")
        if protocol not in ("HTTP/1.1", "HTTP/1.0"):
            raise ValueError(f"no answer: {data[position : position + 80]!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        position = end + 4
        if status.startswith("1"):
            continue
        length = int(headers.get("content-length", 0))
        if data.startswith(b"HTTP/1.", position) or (ended and position == len(data)):
            length = 0
        if len(data) - position < length:
            break
        answers.append(Answer(int(status), headers, data[position : position + length]))
        position += length
    return answers


class Wire:
    """One connection. `received` is all that came, `ended` whether the other side has ended it."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.received = b""
        self.ended = False

    @classmethod
    async def open(cls, port: int, source: str = "127.0.0.1", receive_bytes: int = 0) -> Wire:
        """Connects from the loopback address *source*; `receive_bytes` bounds what the kernel keeps unread."""
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source != "127.0.0.1":
            plain.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: a port a pair of addresses
            plain.bind((source, 0))
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        return cls(plain)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, data: bytes) -> bool:
        """Sends *data*; false if the other side has ended the connection."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_sendall(self.socket, data)
        except OSError as fault:
            if isinstance(fault, TimeoutError):
                raise
            return False
        return True

    def send_no_more(self) -> None:
        """Ends our side only."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.ended = True

    async def read_some(self, within_s: float) -> bool:
        """Reads what comes next; false if nothing came in time, or the connection has ended."""
        if self.ended:
            return False
        try:
            async with asyncio.timeout(within_s):
                data = await asyncio.get_running_loop().sock_recv(self.socket, READ_BYTES)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        self.received += data
        self.ended = not data
        return not self.ended

    async def read_until_quiet(self, quiet_s: float) -> list[Answer]:
        """All answers up to the end, or until nothing came for that long."""
        while await self.read_some(quiet_s):
            pass
        return answers_in(self.received, ended=True)

    async def read_to_end(self, within_s: float = PATIENCE_S) -> list[Answer]:
        """All answers of a connection that must end by itself within that time."""
        async with asyncio.timeout(within_s):
            while await self.read_some(PATIENCE_S):
                pass
        assert self.ended, "the connection was not ended"
        return answers_in(self.received, ended=True)

    async def read(self, count: int) -> list[Answer]:
        """Waits until there are *count* answers in all, or the end."""
        async with asyncio.timeout(PATIENCE_S):
            while len(answers := answers_in(self.received, ended=self.ended)) < count and not self.ended:
                await self.read_some(PATIENCE_S)
        return answers

    async def read_heads(self, count: int) -> None:
        """Waits until *count* answers have begun, whether they have bodies (as to a HEAD they have not), or the end."""
        async with asyncio.timeout(PATIENCE_S):
            while len(answers_in(self.received, ended=True)) < count and not self.ended:
                await self.read_some(PATIENCE_S)


async def ask(port: int, *requests: bytes) -> list[Answer]:
    """The answers to requests sent in one write on a connection of their own, as many as come."""
    with await Wire.open(port) as wire:
        await wire.send(b"".join(requests))
        return await wire.read(len(requests))


async def ask_many(port: int, requests: Sequence[bytes], connections: int = 4, window: int = 16) -> list[Answer]:
    """The answers to many requests in their order, over a few connections, each pipelining up to *window* of them."""
    answers: list[Answer | None] = [None] * len(requests)

    async def run(first: int) -> None:
        with await Wire.open(port) as wire:
            numbers = range(first, len(requests), connections)
            for start in range(0, len(numbers), window):
                some = numbers[start : start + window]
                wire.received = b""
                await wire.send(b"".join(requests[number] for number in some))
                came = await wire.read(len(some))
                assert len(came) == len(some), f"{len(came)} answers to {len(some)} requests from {some[0]} on"
                for number, answer in zip(some, came, strict=True):
                    answers[number] = answer

    await asyncio.gather(*(run(first) for first in range(min(connections, len(requests)))))
    return [answer for answer in answers if answer is not None]


def get(path: str, token: str = "", *more: bytes) -> bytes:
    """A GET."""
    return _request(f"GET {path} HTTP/1.1", _credentials(token) + list(more))


def post_order(
    body: bytes,
    token: str,
    key: str | bytes,
    media_type: str = "application/json",
    more: Iterable[bytes] = (),
) -> bytes:
    """A `POST /v1/orders`."""
    lines = _credentials(token)
    lines.append(b"Idempotency-Key: " + (key.encode() if isinstance(key, str) else key))
    lines.append(f"Content-Type: {media_type}".encode())
    lines.append(b"Content-Length: %d" % len(body))
    return _request("POST /v1/orders HTTP/1.1", [*lines, *more]) + body


def post(path: str, body: bytes, token: str = "", media_type: str = "application/json") -> bytes:
    """Any other POST."""
    lines = [f"Content-Type: {media_type}".encode(), b"Content-Length: %d" % len(body)]
    return _request(f"POST {path} HTTP/1.1", _credentials(token) + lines) + body


def _credentials(token: str) -> list[bytes]:
    return [f"Authorization: Bearer {token}".encode()] if token else []


def _request(first: str, lines: list[bytes]) -> bytes:
    return b"\r\n".join([first.encode(), b"Host: 127.0.0.1", *lines, b"", b""])
