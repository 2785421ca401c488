"""Flow control of one connection: whether its bytes are read, and whether its client reads ours.

The transport alone knows whether it reads; nothing here remembers it beside. Who has lent the connection's transport
never hands out this one (lending.py), so nobody else pauses or resumes it.
"""

from __future__ import annotations

import asyncio


class Flow:
    """The two directions of one transport."""

    __slots__ = ("_transport", "ended", "unread_since", "writable")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.ended = False  # the client has sent its last byte: there is nothing left to read
        self.writable = True  # our answers leave; False: more than a buffer of them waits for the client to read
        self.unread_since = 0.0

    def read(self, on: bool) -> None:
        """Reads on, or leaves what comes in the kernel, where the client's window ends it."""
        transport = self._transport
        if self.ended or transport.is_closing() or transport.is_reading() == on:
            return
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def unread(self, now: float) -> None:
        """The client does not read its answers, since now."""
        self.writable, self.unread_since = False, now
