"""The route table of the aiohttp application: every page but the hot path's own routes.

One middleware turns whatever a page raises into a problem, counts and logs; one signal gives every answer its headers.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import structlog
from aiohttp import web
from redis.exceptions import RedisError

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.front import (
    aftersales,
    borders,
    carriers,
    channel_endpoints,
    channel_orders,
    docs,
    grants,
    health,
    merchants,
    openapi,
    orders,
    payment,
    problems,
    promises,
    quotes,
    returns,
    sales,
    sandbox_pages,
    shoppers,
    stock,
    verification,
    webhook_endpoints,
)
from flashsale.front.answers import EVENT_STREAM, problem
from flashsale.front.context import CONTEXT, FrontContext
from flashsale.front.events import STREAMS, Streams
from flashsale.front.sharing import SHARED, Shared
from flashsale.front.watch import WATCH, Watch
from flashsale.front.wording import language

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]

METRICS = "/metrics"
"""On the management port alone, where there is one."""

ROUTES: tuple[tuple[str, str, Page], ...] = (
    ("GET", "/v1/sales", sales.sales),
    ("GET", "/v1/sales/{sale}", sales.sale),
    ("GET", "/v1/sales/{sale}/offers", sales.offers),
    ("GET", "/v1/sales/{sale}/stock", stock.stock),
    ("GET", "/v1/markets", borders.markets),
    ("GET", "/v1/lanes", borders.lanes),
    ("GET", "/v1/lanes/promises", promises.promises),
    ("POST", "/v1/quotes", quotes.quote),
    ("GET", "/v1/orders/{id}", orders.order),
    ("GET", "/v1/orders/{id}/events", orders.order_events),
    ("GET", "/v1/orders/{id}/payment", payment.payment),
    ("POST", "/v1/orders/{id}/payment", payment.pay),
    ("GET", "/v1/orders/{id}/tracking", carriers.order_tracking),
    ("POST", "/v1/orders/{id}/extension", aftersales.extend),
    ("POST", "/v1/orders/{id}/cancellation", aftersales.cancel),
    ("POST", "/v1/orders/{id}/shipment", aftersales.ship),
    ("POST", "/v1/orders/{id}/delivery", aftersales.deliver),
    ("GET", "/v1/orders/{id}/refunds", aftersales.refunds),
    ("POST", "/v1/orders/{id}/refunds", aftersales.refund),
    ("GET", "/v1/orders/{id}/returns", returns.returns_of_order),
    ("POST", "/v1/orders/{id}/returns", returns.request_return),
    ("GET", "/v1/returns/{id}", returns.one_return),
    ("POST", "/v1/returns/{id}/decision", returns.decide),
    ("POST", "/v1/returns/{id}/receipt", returns.receive),
    ("GET", "/v1/shoppers/me/orders", shoppers.my_orders),
    ("POST", "/v1/shoppers/me/identity", verification.verify_identity),
    ("GET", "/v1/shoppers/me/grants", grants.grants),
    ("POST", "/v1/shoppers/me/grants", grants.add_grant),
    ("GET", "/v1/shoppers/me/grants/{id}", grants.one_grant),
    ("DELETE", "/v1/shoppers/me/grants/{id}", grants.revoke_grant),
    ("GET", "/v1/agents/me/orders", shoppers.agents_orders),
    ("GET", "/v1/webhooks/endpoints", webhook_endpoints.endpoints),
    ("POST", "/v1/webhooks/endpoints", webhook_endpoints.add_endpoint),
    ("GET", "/v1/webhooks/endpoints/{id}", webhook_endpoints.endpoint),
    ("DELETE", "/v1/webhooks/endpoints/{id}", webhook_endpoints.disable_endpoint),
    ("GET", "/v1/webhooks/endpoints/{id}/deliveries", webhook_endpoints.deliveries),
    ("POST", "/v1/webhooks/endpoints/{id}/replay", webhook_endpoints.replay_endpoint),
    ("GET", "/v1/channels/{channel}/orders", channel_orders.orders),
    ("GET", "/v1/channels/{channel}/orders/{id}", channel_orders.order),
    ("POST", "/v1/channels/{channel}/orders/{id}/pack", channel_orders.pack),
    ("GET", "/v1/channels/{channel}/orders/{id}/waybill", channel_orders.waybill),
    ("POST", "/v1/channels/{channel}/orders/{id}/ready-to-ship", channel_orders.ready_to_ship),
    ("POST", "/v1/channels/{channel}/orders/{id}/delivered", channel_orders.delivered),
    ("POST", "/v1/channels/{channel}/orders/{id}/failed-delivery", channel_orders.failed_delivery),
    ("GET", "/v1/channels/{channel}/orders/{id}/reverse-orders", channel_orders.reverses_of_order),
    ("POST", "/v1/channels/{channel}/orders/{id}/reverse-orders", channel_orders.request_reverse),
    ("GET", "/v1/channels/{channel}/reverse-orders/{id}", channel_orders.one_reverse),
    ("POST", "/v1/channels/{channel}/reverse-orders/{id}/decision", channel_orders.decide_reverse),
    ("POST", "/v1/channels/{channel}/reverse-orders/{id}/receipt", channel_orders.receive_reverse),
    ("GET", "/v1/channels/{channel}/endpoint", channel_endpoints.endpoint),
    ("PUT", "/v1/channels/{channel}/endpoint", channel_endpoints.set_endpoint),
    ("DELETE", "/v1/channels/{channel}/endpoint", channel_endpoints.remove_endpoint),
    ("POST", "/v1/carriers/{carrier}/events", carriers.take_event),
    ("GET", "/v1/merchants/{id}/imports", merchants.all_imports),
    ("POST", "/v1/merchants/{id}/imports", merchants.add_import),
    ("GET", "/v1/merchants/{id}/imports/{import}", merchants.one_import),
    ("PUT", "/v1/merchants/{id}/imports/{import}/parts/{number}", merchants.put_part),
    ("GET", "/v1/merchants/{id}/imports/{import}/findings", merchants.findings),
    ("GET", "/v1/merchants/{id}/products", merchants.all_products),
    ("POST", "/v1/merchants/{id}/products/{sku}/stock", merchants.set_stock),
    ("GET", "/v1/merchants/{id}/settlement", merchants.settled),
    ("GET", "/livez", health.livez),
    ("GET", "/readyz", health.readyz),
    ("GET", METRICS, health.show_metrics),
    ("GET", "/problems", problems.problems),
    ("GET", "/problems/{name}", problems.problem_page),
    ("GET", "/openapi.json", openapi.document),
    ("GET", "/docs", docs.page),
)
"""Every page; what answers GET answers HEAD too."""

CHANNEL_ORDERS = "/v1/channels/{channel}/orders"
HOT_PATHS = ("/v1/orders", "/v1/webhooks/payments")
"""They take POST alone, which the hot path answers itself."""

LIMITED = frozenset(
    ("/v1/sales", "/v1/sales/{sale}", "/v1/sales/{sale}/offers", "/v1/quotes", "/v1/markets", "/v1/lanes")
)
"""What any stranger may ask for, and what is large: it is worked on a few at once, for each holds what it shows. None
of them waits for the ledger or a provider, so that none holds up the others for long."""

AT_ONCE = web.AppKey("at_once", asyncio.Semaphore)

REQUEST_ID = web.RequestKey("request_id", str)
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OF_STATUS = {
    400: "malformed",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
}
_VALKEY_AWAY = (RedisError, ConnectionError, TimeoutError)

log = structlog.get_logger(__name__)


def make_app(context: FrontContext) -> web.Application:
    """The application of one front process. Its shutdown ends every event stream."""
    app = web.Application(middlewares=[_answered], client_max_size=context.settings.body_max_bytes)
    app[CONTEXT] = context
    app[STREAMS] = Streams(context.settings)
    app[SHARED] = Shared()
    app[AT_ONCE] = asyncio.Semaphore(context.settings.pages_at_once)
    app[stock.SOLD] = stock.Sold()
    app[quotes.QUOTED] = quotes.QuotedMarkets()
    app[WATCH] = Watch(app, context)
    app[stock.FEEDS] = stock.Feeds(app, context)
    for method, path, page in ROUTES:
        if path == METRICS and context.settings.management_port is not None:
            continue
        if method == "GET":
            app.router.add_get(path, page)
        else:
            app.router.add_route(method, path, page)
    for path in HOT_PATHS:
        app.router.add_route("*", path, _hot_path_methods)
    app.router.add_route("POST", CHANNEL_ORDERS, _hot_path_methods)  # beside its GET: so that `Allow` names it
    if context.settings.payments_sandbox_url is not None:
        sandbox_pages.add_routes(app)
    app.on_response_prepare.append(_set_headers)
    app.on_shutdown.append(_stop_streams)
    return app


async def _hot_path_methods(request: web.Request) -> web.Response:
    """Another method than POST. A POST that comes here wrote the path another way (/v1/%6frders), and the hot path's
    routes are known under one spelling only."""
    path = request.match_info.route.resource
    if request.method == "POST" and path is not None:
        raise Refused("not-found", f"POST goes to {path.canonical}, written just so.")
    raise web.HTTPMethodNotAllowed(request.method, ["POST"])


async def _stop_streams(app: web.Application) -> None:
    app[STREAMS].stopping.set()


def make_management_app(context: FrontContext) -> web.Application:
    """What a front answers on the management port."""
    app = web.Application(middlewares=[_answered], client_max_size=context.settings.body_max_bytes)
    app[CONTEXT] = context
    app[SHARED] = Shared()
    app.router.add_get("/livez", health.livez)
    app.router.add_get("/readyz", health.readyz)
    app.router.add_get(METRICS, health.show_metrics)
    app.on_response_prepare.append(_set_headers)
    return app


@web.middleware
async def _answered(request: web.Request, handler: Page) -> web.StreamResponse:
    began = time.perf_counter()
    given = request.headers.get("X-Request-Id", "")
    request_id = request[REQUEST_ID] = given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8)
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "none"
    async with request.app[AT_ONCE] if route in LIMITED else nullcontext():
        response = await _answer(request, handler)
    seconds = time.perf_counter() - began
    method = (
        request.method if request.method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE") else "other"
    )
    if response.content_type == EVENT_STREAM:
        seconds = 0.0  # a stream lasts as long as its reader likes: that is no time to answer
    metrics.observe_page(route, method, response.status, seconds)
    log.debug(
        "page", request_id=request_id, method=method, route=route, status=response.status, ms=round(seconds * 1000, 1)
    )
    return response


async def _answer(request: web.Request, page: Page) -> web.StreamResponse:
    """The page, or the problem that it raised; never an exception."""
    try:
        return await page(request)
    except Refused as refused:
        return problem(refused, language(request))
    except web.HTTPMethodNotAllowed as refused:
        return _method_refused(request, refused)
    except web.HTTPException as refused:
        if refused.status < 400:
            return refused
        return problem(Refused(_OF_STATUS.get(refused.status, "malformed")), language(request))
    except _VALKEY_AWAY as away:
        log.warning("page without Valkey", request_id=request[REQUEST_ID], reason=repr(away))
        return problem(Refused("overloaded", "The stock does not answer.", retry_after=1), language(request))
    except Exception:
        log.exception("page failed", request_id=request[REQUEST_ID], method=request.method)
        return problem(Refused("internal", request_id=request[REQUEST_ID]), language(request))


def _method_refused(request: web.Request, refused: web.HTTPMethodNotAllowed) -> web.Response:
    allowed = ", ".join(sorted({*refused.allowed_methods, "OPTIONS"}))
    if request.method == "OPTIONS":
        return web.Response(status=204, headers={"Allow": allowed})
    return problem(Refused("method-not-allowed", f"Allowed here: {allowed}."), language(request), {"Allow": allowed})


async def _set_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    headers.setdefault("X-Request-Id", request.get(REQUEST_ID, ""))
    headers.setdefault("Cache-Control", "no-store")
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Server"] = "flashsale"
