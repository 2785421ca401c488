"""The sandbox as a process: one port on 127.0.0.1, one directory, until SIGTERM, at which it ends within a second."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import secrets
import signal
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from flashsale.partners.payments.sandbox import refunds, sessions
from flashsale.partners.payments.sandbox.api import KEY_LAPSES_S, Api
from flashsale.partners.payments.sandbox.controls import Controls
from flashsale.partners.payments.sandbox.pages import Pages
from flashsale.partners.payments.sandbox.store import Change, Store
from flashsale.partners.payments.sandbox.webhooks import ENABLED, Sender
from flashsale.partners.this_machine import this_machine

HOST = "127.0.0.1"
BODY_MAX_BYTES = 64 * 1024
SWEEP_S = 0.25
SWEEP_MOST = 200
STOP_WITHIN_S = 0.3  # for the requests under way


class SandboxFault(Exception):
    """The sandbox can't run; one line that says why."""


class Keys(NamedTuple):
    """What the engine needs to know of it."""

    api_key: str
    webhook_secret: str


def keys_of(data_dir: Path, api_key: str | None, webhook_secret: str | None) -> Keys:
    """The keys given; one that is not given is made once and kept in the directory."""
    path = data_dir / "keys.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    made = {
        "api_key": f"sk_test_{secrets.token_hex(16)}",
        "webhook_secret": f"whsec_{secrets.token_hex(16)}",
        **kept,
    }
    keys = Keys(api_key or made["api_key"], webhook_secret or made["webhook_secret"])
    if made != kept and None in (api_key, webhook_secret):
        path.touch(mode=0o600)
        path.write_text(json.dumps(made))
    return keys


async def run(
    port: int,
    data_dir: Path,
    webhook_url: str | None,
    keys: Keys,
    when_ready: Callable[[str], None],
    pages_url: str | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; `when_ready` is told the address. `pages_url`: where shoppers reach the pages, if
    not at that address. Raises SandboxFault where it can't start."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with contextlib.ExitStack() as held:
        listening = _bound(held, port)
        _locked(held, data_dir)
        base_url = f"http://{HOST}:{listening.getsockname()[1]}"
        pages = (pages_url or base_url).rstrip("/")
        store = Store(data_dir / "sandbox.sqlite", ENABLED if webhook_url is not None else frozenset())
        try:
            await store.start()
        except sqlite3.Error as fault:
            raise SandboxFault(f"{data_dir / 'sandbox.sqlite'} can't be used: {fault}") from fault
        application = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[this_machine])
        for part in (Api(store, keys.api_key, pages), Pages(store, urlsplit(pages).path), Controls(store)):
            application.add_routes(part.routes())
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_WITHIN_S, handle_signals=False)
        await runner.setup()
        await web.SockSite(runner, listening, backlog=1024).start()
        work = [asyncio.create_task(_sweep(store))]
        if webhook_url is not None:
            work.append(asyncio.create_task(Sender(store, webhook_url, keys.webhook_secret).run()))
        when_ready(base_url)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *work], return_when=asyncio.FIRST_COMPLETED)
        ended = [task.exception() for task in work if task.done()]
        for task in (stopping, *work):
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await runner.cleanup()
        await store.close()
        if ended:
            raise SandboxFault(f"it failed: {ended[0]!r}")


async def _sweep(store: Store) -> None:
    """Expires sessions and settles refunds when their time has come."""

    def look(change: Change) -> int:
        change.forget_keys(change.now_s() - KEY_LAPSES_S, SWEEP_MOST)
        due = change.take_due(SWEEP_MOST)
        for object_id in due:
            found = change.find(object_id)
            if found is not None and found["object"] == "refund":
                refunds.settle(change, found)
            elif found is not None and found["status"] == "open":
                sessions.close(change, found)
        return len(due)

    while True:
        try:
            done = await store.do(look)
        except sqlite3.Error as fault:
            structlog.get_logger("flashsale.sandbox").error("sweep.failed", error=str(fault))
            done = 0
        if done < SWEEP_MOST:
            await asyncio.sleep(SWEEP_S)


def _bound(held: contextlib.ExitStack, port: int) -> socket.socket:
    listening = held.enter_context(socket.socket())
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as fault:
        raise SandboxFault(f"port {port} can't be used: {fault.strerror}") from None
    return listening


def _locked(held: contextlib.ExitStack, data_dir: Path) -> None:
    lock = held.enter_context((data_dir / "lock").open("a"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SandboxFault(f"another sandbox runs on {data_dir}") from None
