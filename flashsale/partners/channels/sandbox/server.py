"""A marketplace of this machine, in the manner of Lazada's: it is told over HTTP and shows what it knows.

POST /push takes what the engine signs; GET /orders, /stock and /pushes show what came of it; POST /sandbox/faults makes
it fail. Its state is its process's: it remembers nothing over a restart, as a receiver in a test should.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import orjson
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from flashsale.partners.channels.marketplace import ORDERS, STOCK
from flashsale.partners.this_machine import this_machine

HOST = "127.0.0.1"
BODY_MAX_BYTES = 1024 * 1024
PUSHES_KEPT = 1000
STALL_MAX_S = 600.0
STOP_WITHIN_S = 0.3  # for the requests under way


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """What the next pushes meet: `fail` of them are answered `status`, after `stall_s` seconds each; those that name
    one of the `orders` are answered 422 as long as this stands. `lost`: taken first, and then answered `status`."""

    fail: int = 0
    status: int = 503
    stall_s: float = 0.0
    lost: bool = False
    orders: list[str] = []


class Secret(msgspec.Struct, forbid_unknown_fields=True):
    """`whsec_` and base64."""

    secret: Annotated[str, msgspec.Meta(min_length=8, max_length=200)]


class Push(msgspec.Struct):
    """One request that came, and how it was answered."""

    id: str
    type: str
    status: int
    items: int


class Marketplace:
    """What the marketplace knows of its orders and its stock."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.orders: dict[str, dict[str, Any]] = {}
        self.stock: dict[tuple[str, str], tuple[str, int]] = {}
        self.pushes: deque[Push] = deque(maxlen=PUSHES_KEPT)
        self.faults = Faults()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/push", self._push),
            web.get("/orders", self._show_orders),
            web.get("/stock", self._show_stock),
            web.get("/pushes", self._show_pushes),
            web.get("/sandbox/health", self._health),
            web.post("/sandbox/faults", self._set_faults),
            web.post("/sandbox/secret", self._set_secret),
        ]

    async def _push(self, request: web.Request) -> web.Response:
        """POST /push: 204 once it is taken."""
        body = await request.read()
        try:
            if not self.secret:
                raise ValueError("it was not told which key signs: POST /sandbox/secret")
            message = Webhook(self.secret).verify(body, {name.lower(): text for name, text in request.headers.items()})
        except (WebhookVerificationError, ValueError) as fault:
            return self._answer(request, {}, 401, f"the signature is not right: {fault}")
        if self.faults.stall_s:
            await asyncio.sleep(min(self.faults.stall_s, STALL_MAX_S))
        failing = self.faults.fail > 0
        if failing:
            self.faults.fail -= 1
            if not self.faults.lost:
                return self._answer(request, message, self.faults.status, "as was asked")
        unwanted = [order["id"] for order in message.get("orders", ()) if order["id"] in self.faults.orders]
        if unwanted:
            return self._answer(request, message, 422, f"no such orders: {', '.join(unwanted)}")
        self._take(message)
        return self._answer(request, message, self.faults.status if failing else 204, "")

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == ORDERS:
            for change in message["orders"]:
                known = self.orders.get(change["id"])
                if known is None or change["number"] > known["number"]:  # they come in any order, and twice
                    self.orders[change["id"]] = change
        elif message["type"] == STOCK:
            for level in message["stock"]:
                key = (level["sale"], level["sku"])
                if message["timestamp"] >= self.stock.get(key, ("", 0))[0]:
                    self.stock[key] = (message["timestamp"], level["sellable"])

    def _answer(self, request: web.Request, message: dict[str, Any], status: int, text: str) -> web.Response:
        kind = str(message.get("type", ""))
        items = len(message.get("orders") or message.get("stock") or ())
        self.pushes.append(Push(request.headers.get("webhook-id", ""), kind, status, items))
        return web.Response(status=status, text=None if status == 204 else text)

    async def _show_orders(self, request: web.Request) -> web.Response:
        return web.json_response({"orders": list(self.orders.values())})

    async def _show_stock(self, request: web.Request) -> web.Response:
        levels = [
            {"sale": sale, "sku": sku, "sellable": units, "as_of": as_of}
            for (sale, sku), (as_of, units) in sorted(self.stock.items())
        ]
        return web.json_response({"stock": levels})

    async def _show_pushes(self, request: web.Request) -> web.Response:
        return web.json_response({"pushes": [msgspec.to_builtins(push) for push in self.pushes]})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def _set_faults(self, request: web.Request) -> web.Response:
        """POST /sandbox/faults: all of them at once; what is not named stops."""
        try:
            self.faults = msgspec.json.decode(await request.read() or b"{}", type=Faults)
        except msgspec.DecodeError as fault:
            return web.json_response({"error": str(fault)}, status=400)
        return web.Response(body=orjson.dumps(msgspec.to_builtins(self.faults)), content_type="application/json")

    async def _set_secret(self, request: web.Request) -> web.Response:
        """POST /sandbox/secret {"secret"}: the one that the engine answered when it was told of this endpoint."""
        try:
            secret = msgspec.json.decode(await request.read(), type=Secret).secret
            Webhook(secret)
        except ValueError as fault:  # what can't be decoded is one
            return web.json_response({"error": str(fault)}, status=400)
        self.secret = secret
        return web.json_response({"ok": True})


async def started(marketplace: Marketplace, port: int) -> tuple[web.AppRunner, str]:
    """The marketplace on 127.0.0.1 (0: a free port), and its address. Raises OSError where the port is taken."""
    application = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[this_machine])
    application.add_routes(marketplace.routes())
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_WITHIN_S, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, f"http://{HOST}:{runner.addresses[0][1]}"


async def run(port: int, secret: str, when_ready: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM; `when_ready` is told the address."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, address = await started(Marketplace(secret), port)
    when_ready(address)
    await stop.wait()
    await runner.cleanup()
