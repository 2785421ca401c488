"""What stands in for the outside world answers this machine alone, and no web page that its developer happens to read.

A sandbox listens on 127.0.0.1, which any page in a browser here can reach: by a form that posts across sites, or by a
name of the page's own that points to 127.0.0.1 a moment later (DNS rebinding), which makes the answers readable to it.
The browser tells both: `Sec-Fetch-Site` says where a request comes from, `Host` by which name it came.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_ELSEWHERE = frozenset({"cross-site", "same-site"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses a Host that is no name of this machine (421), and a POST from another site's page (403)."""
    if _named(request.headers.get("Host", "")) not in _NAMES:
        text = "this server answers to 127.0.0.1 and localhost; a proxy before it sends one of these as Host"
        return web.json_response({"error": {"message": text}}, status=421)
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site") in _ELSEWHERE:
        return web.json_response({"error": {"message": "not from another site"}}, status=403)
    return await handler(request)


def _named(host: str) -> str | None:
    try:
        return urlsplit("//" + host).hostname
    except ValueError:
        return None
