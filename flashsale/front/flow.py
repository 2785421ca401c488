"""Flow control of one connection: whether its bytes are read, and whether its client reads ours.

The transport alone knows whether it reads; nothing here remembers it beside. Who has lent the connection's transport
never hands out this one (lending.py), so nobody else pauses or resumes it.
"""

from __future__ import annotations

import asyncio


class Flow:
    """The two directions of one transport."""

    __slots__ = ("_transport", "_waiting", "ended", "unread_since", "unsent", "writable")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.ended = False  # the client has sent its last byte: there is nothing left to read
        self.writable = True  # our answers leave; False: more than a buffer of them waits for the client to read
        self.unread_since = 0.0
        self.unsent = 0  # bytes that waited for the client when it was found not to read, and that are its alone
        self._waiting: list[asyncio.Future[None]] = []

    def read(self, on: bool) -> None:
        """Reads on, or leaves what comes in the kernel, where the client's window ends it."""
        transport = self._transport
        if self.ended or transport.is_closing() or transport.is_reading() == on:
            return
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def unread(self, now: float, shared: bool) -> None:
        """The client does not read its answers, since now. `shared`: what it does not read is kept once for many."""
        self.writable, self.unread_since = False, now
        self.unsent = 0 if shared else self._transport.get_write_buffer_size()

    def written(self) -> None:
        """The client has read what waited, or is gone."""
        self.writable, self.unsent = True, 0
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    async def until_written(self) -> None:
        """Returns when no more than a buffer of answers waits for the client."""
        if not self.writable:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
