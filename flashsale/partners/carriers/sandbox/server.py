"""The carriers' sandbox as a process: the API that the engine asks, controls that move parcels, webhooks that tell.

One port on 127.0.0.1. The API is signed; the controls under /sandbox are for whoever sits at this machine.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
import structlog
from aiohttp import web
from msgspec import Meta

from flashsale.partners.carriers.sandbox.faults import Faults
from flashsale.partners.carriers.sandbox.store import Delivery, Refusal, Store
from flashsale.partners.carriers.signing import Signing, request_text
from flashsale.partners.this_machine import this_machine
from flashsale.sale.tracking import Code

HOST = "127.0.0.1"
BODY_MAX_BYTES = 64 * 1024
TICK_S = 0.05
MOST = 200  # parcels moved, and webhooks sent, in one tick
AT_ONCE = 32  # webhooks on their way
TRY_WITHIN_S = 5.0
STOP_WITHIN_S = 0.3  # for the requests under way
LISTED = 1000
_TAG = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

log = structlog.get_logger(__name__)
Page = Callable[[web.Request], Awaitable[web.Response]]


class Wanted(msgspec.Struct):
    """What is read of a parcel to be booked; the rest of it is kept as it came."""

    reference: Annotated[str, Meta(min_length=1, max_length=64)]
    carrier: str
    country: Annotated[str, Meta(pattern="^[A-Z]{2}$")]
    weight_g: Annotated[int, Meta(ge=0)]
    goods: Annotated[list[dict[str, Any]], Meta(min_length=1)]


class Clock(msgspec.Struct, forbid_unknown_fields=True):
    """0: parcels move on command alone."""

    step_s: Annotated[float, Meta(ge=0, le=86_400)]


class CarriersSandbox:
    """The routes, and what goes on by itself."""

    def __init__(self, store: Store, secret: str, events_url: str | None) -> None:
        self._store, self._signing = store, Signing(secret)
        self._events_url = None if events_url is None else events_url.rstrip("/")
        self.asked = 0  # requests to the API

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/parcels", self._signed(self._book)),
            web.post("/v1/parcels/{waybill}/cancellation", self._signed(self._cancel)),
            web.get("/v1/parcels/{waybill}", self._signed(self._read)),
            web.get("/sandbox/parcels", self._list),
            web.post("/sandbox/parcels/{waybill}/{control:advance|deliver|fail|return|cancel}", self._control),
            web.post("/sandbox/faults", self._set_faults),
            web.post("/sandbox/clock", self._set_clock),
            web.get("/sandbox/health", self._health),
        ]

    # --- the API ---

    def _signed(self, page: Page) -> Page:
        async def answered(request: web.Request) -> web.Response:
            self.asked += 1
            body = await request.read()
            try:
                text = request_text(request.method, request.path, body.decode())
                self._signing.verify(request.headers, text.encode())
            except ValueError as fault:
                return _problem(401, "signature", f"refused: {fault}")
            faults = self._store.faults
            if faults.away > 0:
                faults.away -= 1
                return web.Response(status=faults.status, text="as was asked")
            try:
                response = await page(request)
            except Refusal as refusal:
                response = _problem(refusal.status, refusal.code, str(refusal))
            if faults.unanswered > 0:
                faults.unanswered -= 1
                if request.transport is not None:
                    request.transport.abort()
            return response

        return answered

    async def _book(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            wanted = msgspec.json.decode(body, type=Wanted)
        except msgspec.DecodeError as fault:
            raise Refusal(422, "invalid-parcel", str(fault)) from None
        if not _TAG.fullmatch(wanted.carrier):
            raise Refusal(422, "unknown-carrier", "there is no such carrier")
        booked = self._store.book(wanted.reference, wanted.carrier, wanted.country, body)
        told = {"waybill": booked.waybill, "carrier": booked.carrier, "status": booked.status}
        return web.json_response(told, status=200 if booked.was_there else 201)

    async def _cancel(self, request: web.Request) -> web.Response:
        self._store.cancel(request.match_info["waybill"])
        return web.json_response({"status": "cancelled"})

    async def _read(self, request: web.Request) -> web.Response:
        return web.json_response(self._store.read(request.match_info["waybill"]))

    # --- the controls ---

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"parcels": self._store.all(LISTED)})

    async def _control(self, request: web.Request) -> web.Response:
        """POST /sandbox/parcels/{waybill}/advance, deliver, fail, return or cancel."""
        waybill, store = request.match_info["waybill"], self._store
        try:
            match request.match_info["control"]:
                case "advance":
                    status = store.advance(waybill)
                case "deliver":
                    status = store.finish(waybill, Code.DELIVERED)
                case "fail":
                    status = store.finish(waybill, Code.FAILED)
                case "return":
                    status = store.finish(waybill, Code.RETURNED)
                case _:
                    store.cancel(waybill)
                    status = "cancelled"
        except Refusal as refusal:
            return _problem(refusal.status, refusal.code, str(refusal))
        return web.json_response({"waybill": waybill, "status": status})

    async def _set_faults(self, request: web.Request) -> web.Response:
        """POST /sandbox/faults: all of them at once; what is not named stops."""
        try:
            self._store.faults = msgspec.json.decode(await request.read() or b"{}", type=Faults)
        except msgspec.DecodeError as fault:
            return _problem(422, "invalid", str(fault))
        return web.json_response(msgspec.to_builtins(self._store.faults))

    async def _set_clock(self, request: web.Request) -> web.Response:
        """POST /sandbox/clock {"step_s"}: how long a step takes parcels that move from now on."""
        try:
            clock = msgspec.json.decode(await request.read(), type=Clock)
        except msgspec.DecodeError as fault:
            return _problem(422, "invalid", str(fault))
        self._store.step_ms = round(clock.step_s * 1000)
        return web.json_response(msgspec.to_builtins(clock))

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "asked": self.asked, **self._store.counts()})

    # --- what goes on by itself ---

    async def carry(self) -> None:
        """Moves parcels by the clock and sends what is to be told, until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TRY_WITHIN_S)
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        failing = False
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as http:
            while True:
                moved = self._store.move_due(MOST)
                due = self._store.due(AT_ONCE) if self._events_url is not None else []
                answers = await asyncio.gather(*(self._send(http, each) for each in due))
                for delivery, why in zip(due, answers, strict=True):
                    if why is None:
                        self._store.delivered(delivery)
                    else:
                        self._store.deliver_again(delivery)
                if due and failing != any(answers):  # a line at each turn, not one a webhook
                    failing = any(answers)
                    log.info("webhooks are not taken" if failing else "webhooks are taken", why=answers[0])
                if moved < MOST and len(due) < AT_ONCE:
                    await asyncio.sleep(TICK_S)

    async def _send(self, http: aiohttp.ClientSession, delivery: Delivery) -> str | None:
        """None: it was taken; else why not."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "flashsale-carriers-sandbox/1",
            **self._signing.headers(delivery.body.decode(), f"msg_{delivery.event}"),
        }
        url = f"{self._events_url}/{delivery.carrier}/events"
        try:
            async with http.post(url, data=delivery.body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                return None if 200 <= answer.status < 300 else f"status {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            return repr(fault)


def _problem(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


class Running:
    """A sandbox that serves; `address` is where."""

    def __init__(self, runner: web.AppRunner, carrying: asyncio.Task[None], store: Store, address: str) -> None:
        self._runner, self._carrying, self.store, self.address = runner, carrying, store, address

    async def stop(self) -> None:
        self._carrying.cancel()
        await asyncio.gather(self._carrying, return_exceptions=True)
        await self._runner.cleanup()
        self.store.close()

    async def broken(self) -> None:
        """Until what goes on by itself has failed. Raises why."""
        await asyncio.shield(self._carrying)


async def start(
    port: int, secret: str, *, path: Path | None = None, events_url: str | None = None, step_s: float = 0
) -> Running:
    """Serves on 127.0.0.1 (port 0: a free one). `path`: the file of its parcels. Raises OSError, and ValueError for a
    secret that is none."""
    store = Store(path, step_ms=round(step_s * 1000), sends=events_url is not None)
    sandbox = CarriersSandbox(store, secret, events_url)
    application = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[this_machine])
    application.add_routes(sandbox.routes())
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_WITHIN_S, handle_signals=False)
    await runner.setup()
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        await web.SockSite(runner, listening).start()
    except BaseException:
        listening.close()
        await runner.cleanup()
        store.close()
        raise
    carrying = asyncio.create_task(sandbox.carry())
    return Running(runner, carrying, store, f"http://{HOST}:{listening.getsockname()[1]}")


async def run(
    port: int,
    secret: str,
    path: Path,
    when_ready: Callable[[str], None],
    *,
    events_url: str | None = None,
    step_s: float = 0,
) -> None:
    """Serves until SIGINT or SIGTERM; `when_ready` is told the address."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = await start(port, secret, path=path, events_url=events_url, step_s=step_s)
    when_ready(running.address)
    stopped = asyncio.create_task(stop.wait())
    broken = asyncio.create_task(running.broken())
    await asyncio.wait({stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
    if broken.done() and not stop.is_set():
        broken.result()
    broken.cancel()
    await running.stop()
