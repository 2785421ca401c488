"""A process's sign of life: each second, from its own event loop, to whoever started it.

systemd's protocol (sd_notify): a datagram `WATCHDOG=1` to the socket that NOTIFY_SOCKET names, more often than
WATCHDOG_USEC. `flashsale up` listens on such a socket (engine/watch.py); systemd does where it started the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

SOCKET_VARIABLE, TIMEOUT_VARIABLE = "NOTIFY_SOCKET", "WATCHDOG_USEC"
SIGN = b"WATCHDOG=1"
READY = b"READY=1"
EVERY_S = 1.0
EVERY_SHARE = 4  # of the time after which silence counts as death: three signs may be late


async def show(alive: Callable[[], bool] = lambda: True) -> None:
    """Shows a sign for as long as this loop turns and `alive` says so, until cancelled; returns where nobody asked."""
    address = os.environ.get(SOCKET_VARIABLE)
    if not address:
        return
    timeout_us = os.environ.get(TIMEOUT_VARIABLE, "")
    timeout_s = int(timeout_us) / 1e6 if timeout_us.isdigit() else EVERY_S * EVERY_SHARE
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        while True:
            if alive():
                send(channel, address, SIGN)
            await asyncio.sleep(min(EVERY_S, timeout_s / EVERY_SHARE))


def send(channel: socket.socket, address: str, word: bytes) -> None:
    """One word of the protocol; lost where nobody takes it."""
    with contextlib.suppress(OSError):
        channel.sendto(word, "\0" + address[1:] if address.startswith("@") else address)
