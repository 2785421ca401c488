"""`flashsale up`: everything, supervised. Plain lines without a terminal, a live status on one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shlex
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from flashsale.settings import reachable

if TYPE_CHECKING:
    from flashsale.engine.supervisor import Supervisor

app = typer.Typer(rich_markup_mode=None, add_completion=False)

TRY_TOKEN_S = 24 * 3600  # life of the token in the printed curl line
TRY_MARKET = "SG"
SHOW_AGAIN_S = 1.0  # a live status that failed


@app.command(epilog="Example: FLASHSALE_PORT=9000 flashsale up --processes 2")
def up(
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Front-end processes that share the port.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="The port to serve on.")] = None,
    demo: Annotated[
        bool | None,
        typer.Option(
            "--demo/--no-demo", help="Make the demo sale if it is absent. Unset: unless FLASHSALE_DATABASE_URL is set."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object when ready, and nothing else.")] = False,
) -> None:
    """Start Valkey, PostgreSQL, worker and front ends with the demo sale; keep them running until Ctrl-C or SIGTERM."""
    from flashsale import logs, settings
    from flashsale.engine.supervisor import Supervisor

    chosen = settings.load(processes=processes, port=port)
    live = sys.stdout.isatty() and sys.stderr.isatty() and not as_json
    chosen.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        log_file = None
        if live:
            # Log lines would tear the live status apart.
            log_file = stack.enter_context((chosen.data_dir / "engine.log").open("a"))
            stack.enter_context(contextlib.redirect_stderr(log_file))
        logs.set_up(chosen.log_level, part="up")
        say = _silent if as_json else _say
        if live:
            say(f"starting on {chosen.data_dir} (log: {chosen.data_dir / 'engine.log'}) …")
        supervisor = Supervisor(chosen, say, log_file, demo=chosen.database_url is None if demo is None else demo)

        @contextlib.asynccontextmanager
        async def when_ready() -> AsyncIterator[None]:
            await _announce(supervisor, as_json)
            if not live:
                yield
                return
            showing = asyncio.create_task(_keep_showing(supervisor))
            try:
                yield
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)
                say("stopping …")

        status = asyncio.run(supervisor.run(when_ready))
    sys.exit(status)


async def _keep_showing(supervisor: Supervisor) -> None:
    """The live status until cancelled: one that fails is shown again, the engine goes on."""
    from flashsale.engine.status import show

    while True:
        try:
            await show(supervisor.parts.redis_url, supervisor.parts.database_url, supervisor.url)
        except Exception as fault:  # what is only shown ends nothing
            structlog.get_logger("flashsale.up").error("status.failed", error=repr(fault))
        await asyncio.sleep(SHOW_AGAIN_S)


def _say(line: str) -> None:
    from flashsale import logs

    logs.say(line)


def _silent(line: str) -> None:
    """With --json stdout carries the one object alone."""


async def _announce(supervisor: Supervisor, as_json: bool) -> None:
    """Addresses, a curl line that works when pasted, and the `ready` line."""
    url = supervisor.url
    order = None
    with contextlib.suppress(Exception):  # Valkey may be away for a moment: then there is no line to paste
        order = await _order_to_try(supervisor.parts.redis_url)
    token = _token(supervisor)
    curl = None if order is None else _curl(url, token, order)
    if as_json:
        _say(json.dumps({"ready": url, "data_dir": str(supervisor.settings.data_dir), "curl": curl}))
        return
    _say(f"orders     POST {url}/v1/orders")
    _say(f"sales      {url}/v1/sales")
    _say(f"docs       {url}/docs")
    chosen = supervisor.settings
    managed = f"http://{reachable(chosen.management_host)}:{chosen.management_port}" if chosen.management_port else url
    _say(f"health     {url}/readyz   metrics {managed}/metrics")
    _say(f"data       {supervisor.settings.data_dir}")
    for line in supervisor.parts.stand_ins():
        _say(f"sandbox    {line}")
    if curl is None:
        _say("no sale is open: `flashsale sale create FILE`, then `flashsale sale open ID`")
    else:
        _say(f"try it     {curl}")
    _say(f"ready {url}")


def _token(supervisor: Supervisor) -> str:
    from flashsale import secret
    from flashsale.front.auth import mint

    key = secret.find(supervisor.settings).encode()
    return next(iter(mint(key, f"demo-{secrets.token_hex(4)}", "shopper", TRY_TOKEN_S, int(time.time()))))


async def _order_to_try(redis_url: str) -> dict[str, object] | None:
    """One unit of an offer that an open sale has in stock; None if there is none."""
    from flashsale import merchandising
    from flashsale.reservation import server

    client = server.connect(redis_url)
    try:
        for view in await merchandising.list_sales(client):
            if view.phase != "open":
                continue
            for offer in view.sale.offers:
                free = view.state.available[offer.index] > 0 and offer.index not in view.state.suspended
                if free and TRY_MARKET in offer.prices:
                    lines = [{"sku": offer.sku, "quantity": 1}]
                    return {"sale": view.sale.id, "lines": lines, "market": TRY_MARKET}
    finally:
        await client.aclose()
    return None


def _curl(url: str, token: str, order: dict[str, object]) -> str:
    headers = {
        "Authorization": f"Bearer {token}",
        "Idempotency-Key": f"try-{secrets.token_hex(4)}",
        "Content-Type": "application/json",
    }
    words = ["curl", "-sS", f"{url}/v1/orders"]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    return shlex.join([*words, "-d", json.dumps(order)])
