"""An identity provider of this machine: it answers over HTTP as one would, and fails on request.

The first name that comes with a number is that person's; another name for the same number is a mismatch. POST
/sandbox/people says beforehand whose a number is; POST /sandbox/faults makes the provider away. It keeps hashes, no
numbers, and remembers nothing over a restart.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable
from hashlib import blake2s
from hmac import compare_digest

import msgspec
from aiohttp import web

from flashsale.partners.this_machine import this_machine

HOST = "127.0.0.1"
BODY_MAX_BYTES = 64 * 1024
PEOPLE_MAX = 1_000_000  # a name's hash each: about 200 MB; beyond them the sandbox is away
STALL_MAX_S = 600.0
STOP_WITHIN_S = 0.3  # for the requests under way


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """Whether this number is this person's."""

    country: str
    number: str
    name: str


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """The next `away` questions are answered `status`, after `stall_s` seconds each."""

    away: int = 0
    status: int = 503
    stall_s: float = 0.0


class Registry:
    """Who is known, and the routes that ask for it."""

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key.encode()
        self._salt = secrets.token_bytes(32)
        self._people: dict[bytes, bytes] = {}
        self.faults = Faults()
        self.checks = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/checks", self._check),
            web.post("/sandbox/people", self._add),
            web.post("/sandbox/faults", self._set_faults),
            web.get("/sandbox/health", self._health),
        ]

    async def _check(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not compare_digest(given, b"Bearer " + self._api_key):
            return web.json_response({"error": "the key is not right"}, status=401)
        self.checks += 1
        faults = self.faults
        if faults.away > 0:
            faults.away -= 1
            await asyncio.sleep(min(faults.stall_s, STALL_MAX_S))
            return web.json_response({"error": "away"}, status=faults.status)
        try:
            asked = msgspec.json.decode(await request.read(), type=Asked)
        except msgspec.DecodeError as fault:
            return web.json_response({"error": str(fault)}, status=422)
        number, name = self._hashes(asked)
        if number not in self._people:
            if len(self._people) >= PEOPLE_MAX:
                return web.json_response({"error": "the register is full"}, status=503)
            self._people[number] = name
        return web.json_response({"result": "verified" if self._people[number] == name else "mismatch"})

    async def _add(self, request: web.Request) -> web.Response:
        """POST /sandbox/people: from here on the number is this person's."""
        try:
            number, name = self._hashes(msgspec.json.decode(await request.read(), type=Asked))
        except msgspec.DecodeError as fault:
            return web.json_response({"error": str(fault)}, status=422)
        self._people[number] = name
        return web.Response(status=204)

    async def _set_faults(self, request: web.Request) -> web.Response:
        """POST /sandbox/faults: all of them at once; what is not named stops."""
        try:
            self.faults = msgspec.json.decode(await request.read() or b"{}", type=Faults)
        except msgspec.DecodeError as fault:
            return web.json_response({"error": str(fault)}, status=422)
        return web.json_response(msgspec.to_builtins(self.faults))

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "checks": self.checks})

    def _hashes(self, asked: Asked) -> tuple[bytes, bytes]:
        name = " ".join(asked.name.casefold().split())
        return self._hash(f"{asked.country}\0{asked.number}"), self._hash(name)

    def _hash(self, text: str) -> bytes:
        return blake2s(text.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=16).digest()


async def start(port: int, api_key: str) -> tuple[web.AppRunner, str]:
    """Serves on 127.0.0.1 (port 0: a free one): the runner, its caller's to clean up, and the address."""
    application = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[this_machine])
    application.add_routes(Registry(api_key).routes())
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
        raise
    return runner, f"http://{HOST}:{listening.getsockname()[1]}"


async def run(port: int, api_key: str, when_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `when_ready` is told the address."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, address = await start(port, api_key)
    when_ready(address)
    await stop.wait()
    await runner.cleanup()
