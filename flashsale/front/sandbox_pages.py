"""The payments sandbox's pages for shoppers, through the engine's own port: a shopper reaches that one alone.

Only while the provider is the sandbox that `up` started, and only the pages that shoppers pay at: its API and its
faults stay where they are. Each request is asked of the sandbox as it came and answered as it answered.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from flashsale.errors import Refused
from flashsale.front.context import context_of
from flashsale.settings import SANDBOX_PAGES

FORM_MAX_BYTES = 4096
PAGE_MAX_BYTES = 256 * 1024
TIMEOUT_S = 5.0
_PAGE = re.compile(r"/(c/pay/cs_|r/pi_)[A-Za-z0-9_]{1,128}")
_ASKED = ("Accept-Language", "Content-Type", "Sec-Fetch-Site")
_ANSWERED = ("Content-Type", "Content-Security-Policy", "Location")

log = structlog.get_logger(__name__)

_SESSION = web.AppKey("sandbox_pages", ClientSession)


def add_routes(app: web.Application) -> None:
    """Shows the pages in this application."""
    app.cleanup_ctx.append(_keep_session)
    app.router.add_route("GET", SANDBOX_PAGES + "/{page:.+}", page)
    app.router.add_route("POST", SANDBOX_PAGES + "/{page:.+}", page)


async def _keep_session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(timeout=ClientTimeout(total=TIMEOUT_S), auto_decompress=False) as session:
        app[_SESSION] = session
        yield


async def page(request: web.Request) -> web.Response:
    """GET or POST of a page to pay at. Raises Refused."""
    address = context_of(request).settings.payments_sandbox_url
    path = request.path.removeprefix(SANDBOX_PAGES)
    if address is None or not _PAGE.fullmatch(path):
        raise Refused("not-found")
    form = await request.content.read(FORM_MAX_BYTES + 1) if request.can_read_body else None
    if form is not None and len(form) > FORM_MAX_BYTES:
        raise Refused("too-large", f"A form of these pages has at most {FORM_MAX_BYTES} bytes.")
    # Whom it concerns, by the sandbox's own name for itself; a query is a wallet's name.
    asked = {name: request.headers[name] for name in _ASKED if name in request.headers}
    try:
        async with request.app[_SESSION].request(
            request.method,
            address + path,
            params=request.query,
            data=form,
            headers={**asked, "Host": urlsplit(address).netloc},
            allow_redirects=False,
        ) as answered:
            body = await answered.content.read(PAGE_MAX_BYTES)
            headers = {name: answered.headers[name] for name in _ANSWERED if name in answered.headers}
            return web.Response(status=answered.status, body=body, headers=headers)
    except (ClientError, TimeoutError, OSError) as fault:
        log.warning("the payments sandbox is away", reason=repr(fault))
        raise Refused("provider-away") from None
