"""Lends single requests to aiohttp: its handler borrows the connection's transport for one answer (public API only).

The hot path has framed the message already; the handler gets it whole and canonical. aiohttp's access-log hook, which
runs when an answer has been written, tells the borrower that the transport is the hot path's again.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from flashsale.front.events import STREAMS

NEVER_S = 10**9  # aiohttp's own keep-alive clock must not close a connection that is the hot path's


class Borrower(Protocol):
    """The connection that lent a request."""

    def answered_by_page(self) -> None:
        """The page's answer is written."""


_borrowers: dict[asyncio.BaseProtocol, Borrower] = {}


class AnswerWritten(AbstractAccessLogger):
    """aiohttp's access log, of which only the moment is of interest."""

    @property
    def enabled(self) -> bool:
        return True

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        borrower = _borrowers.get(request.protocol)
        if borrower is not None:
            borrower.answered_by_page()


class Lending:
    """One process's aiohttp application, ready to answer on borrowed transports."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(
            app,
            access_log_class=AnswerWritten,
            keepalive_timeout=NEVER_S,
            handle_signals=False,
            handler_cancellation=True,  # a stream ends with its connection
        )

    async def start(self) -> None:
        await self._runner.setup()

    def end_streams(self) -> None:
        """Ends every event stream, which would keep a drain waiting for as long as it may."""
        self._runner.app[STREAMS].stopping.set()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def handler(self, transport: asyncio.Transport, borrower: Borrower) -> asyncio.Protocol:
        """A new handler on a connection's transport; give it back with `returned`."""
        server = self._runner.server
        if server is None:
            raise RuntimeError("the pages are not running")
        handler: asyncio.Protocol = server()
        _borrowers[handler] = borrower
        handler.connection_made(transport)
        return handler

    @staticmethod
    def returned(handler: asyncio.Protocol, exc: Exception | None) -> None:
        """The connection is gone."""
        _borrowers.pop(handler, None)
        handler.connection_lost(exc)
