"""What aiohttp gets for a connection's transport, and what it may ask of the connection behind it (lending.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol


class Borrower(Protocol):
    """The connection that lent a request."""

    def answered_by_page(self) -> None:
        """The page's answer is written."""

    def closed_by_page(self) -> None:
        """With the page's answer the connection is to end."""

    def write_shared(self, data: bytes) -> None:
        """Writes bytes that many clients get, and which are kept once for all of them."""

    async def until_written(self) -> None:
        """Returns when the client has read what waited for it."""


class LentTransport(asyncio.Transport):
    """What aiohttp holds for a connection's transport: it writes, and knows whom it talks to."""

    __slots__ = ("_borrower", "_closing", "_reading", "_transport")

    def __init__(self, transport: asyncio.Transport, borrower: Borrower) -> None:
        super().__init__()
        self._transport, self._borrower = transport, borrower
        self._closing = False
        self._reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._borrower.closed_by_page()

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    # A request comes whole: there is nothing to read on it, and so nothing to pause.

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self._transport.writelines(list_of_data)

    async def write_shared(self, data: bytes) -> None:
        """Writes bytes that many clients get, once the client has read what it got before. Beside aiohttp, which copies
        what it writes."""
        await self._borrower.until_written()
        if not self.is_closing():
            self._borrower.write_shared(data)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return False
