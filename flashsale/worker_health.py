"""What a worker answers on the management port, where it has one: it lives, which duties fail, and what it counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from flashsale import metrics

BODY_MAX_BYTES = 1024  # nothing is sent here


def application(failing: Callable[[], dict[str, str]]) -> web.Application:
    """Its pages. `failing`: the duties that fail, each with the reason."""

    async def livez(request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def readyz(request: web.Request) -> web.Response:
        warnings = [f"{duty} fails and is begun anew ({reason})" for duty, reason in failing().items()]
        return web.json_response({"ready": True, "reasons": [], "warnings": warnings})

    async def counted(request: web.Request) -> web.Response:
        text = await asyncio.to_thread(metrics.exposition)
        return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application(client_max_size=BODY_MAX_BYTES)
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", counted)])
    return app
