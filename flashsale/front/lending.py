"""Lends single requests to aiohttp: its handler writes to a transport of its own, behind which is the connection's.

The hot path has framed the message already; the handler gets it whole and canonical. What aiohttp asks of its transport
beyond writing (to pause, to resume, to close) never reaches the connection's: that one may carry others' requests.
aiohttp's access-log hook, which runs when an answer has been written, tells the borrower that its turn is over.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from flashsale.front.events import STREAMS
from flashsale.front.lent import Borrower, LentTransport

NEVER_S = 10**9  # aiohttp's own keep-alive clock must not close a connection that is the hot path's
BEYOND_OURS_BYTES = 1024 * 1024  # aiohttp's bounds on heads; ours, which are lower, have refused before


_borrowers: dict[asyncio.BaseProtocol, Borrower] = {}


class AnswerWritten(AbstractAccessLogger):
    """aiohttp's access log, of which only the moment is of interest."""

    @property
    def enabled(self) -> bool:
        return True

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        if isinstance(response, web.Response):
            response.body = None  # aiohttp holds on to the last answer until the next request of its connection
        borrower = _borrowers.get(request.protocol)
        if borrower is not None:
            borrower.answered_by_page()


class Lending:
    """One process's aiohttp application, ready to answer on lent transports."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(
            app,
            access_log_class=AnswerWritten,
            keepalive_timeout=NEVER_S,
            handle_signals=False,
            handler_cancellation=True,  # a stream ends with its connection
            max_line_size=BEYOND_OURS_BYTES,
            max_field_size=BEYOND_OURS_BYTES,
        )

    async def start(self) -> None:
        await self._runner.setup()

    def end_streams(self) -> None:
        """Ends every event stream, which would keep a drain waiting for as long as it may."""
        self._runner.app[STREAMS].stopping.set()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def handler(self, transport: asyncio.Transport, borrower: Borrower) -> asyncio.Protocol:
        """A new handler for a connection; give it back with `returned`."""
        server = self._runner.server
        if server is None:
            raise RuntimeError("the pages are not running")
        handler: asyncio.Protocol = server()
        _borrowers[handler] = borrower
        handler.connection_made(LentTransport(transport, borrower))
        return handler

    @staticmethod
    def returned(handler: asyncio.Protocol, exc: Exception | None) -> None:
        """The connection is gone."""
        _borrowers.pop(handler, None)
        handler.connection_lost(exc)
