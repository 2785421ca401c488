"""The port for whoever runs the engine, apart from the shoppers' (FLASHSALE_MANAGEMENT_PORT): health and metrics.

Processes of one machine share it (SO_REUSEPORT), as fronts share theirs: any of them answers for all. A worker that
somebody else's supervisor runs has it for itself.
"""

from __future__ import annotations

import socket

from aiohttp import web

from flashsale.settings import Settings


class ManagementFault(Exception):
    """The port can't be had; one line that names it."""


async def open_port(app: web.Application, settings: Settings) -> web.AppRunner:
    """Answers on the management port until the runner's `cleanup`. Raises ManagementFault."""
    host, port = settings.management_host, settings.management_port
    assert port is not None  # noqa: S101  the caller has looked
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as fault:
        listener.close()
        raise ManagementFault(f"FLASHSALE_MANAGEMENT_PORT: {host}:{port} can't be had: {fault.strerror}") from fault
    listener.setblocking(False)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.2)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner
