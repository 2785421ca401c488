"""`flashsale webhooks …`: endpoints that hear of orders, what became of every delivery, and replays.

Works on the running engine's ledger; the worker does what is asked for here. Exits 1 with one line where a command is
refused or the ledger is away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import asyncpg
import typer

from flashsale import runfile
from flashsale.errors import Refused
from flashsale.ledger import pool, webhook_endpoints, webhooks
from flashsale.settings import load

ANSWER_TIMEOUT_S = 30.0
ALLOW = "FLASHSALE_WEBHOOK_ALLOW='[\"127.0.0.0/8\"]' (its network)"
LIMIT_MAX = 10_000  # lines of the delivery log that one command prints

Result = TypeVar("Result")

app = typer.Typer(
    name="webhooks",
    help="Tell others what happens to orders: endpoints, their deliveries, replays.",
    epilog="Example: flashsale webhooks endpoints add https://merchant.example/hooks --event order.paid",
    no_args_is_help=True,
    rich_markup_mode=None,
)
endpoints_app = typer.Typer(
    help="List the endpoints; add one, disable one.",
    epilog="Example: flashsale webhooks endpoints --json",
    rich_markup_mode=None,
)
app.add_typer(endpoints_app, name="endpoints")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id, as the list shows it.")]


@endpoints_app.callback(invoke_without_command=True)
def endpoints(context: typer.Context, as_json: AsJson = False) -> None:
    """List the endpoints; add one, disable one."""
    if context.invoked_subcommand is not None:
        return
    from flashsale.front.webhook_endpoints import ENDPOINTS_MAX, shown

    async def command(connection: pool.Connection) -> list[dict[str, Any]]:
        return [shown(each) for each in await webhook_endpoints.after(connection, None, 10 * ENDPOINTS_MAX)]

    found = _run(command, as_json)
    lines = [f"{each['id']}  {each['status']:<11} {each['url']}  {' '.join(each['events'])}" for each in found]
    _print(as_json, {"endpoints": found}, *lines or ["no endpoints"])


@endpoints_app.command(epilog="Example: flashsale webhooks endpoints add https://merchant.example/hooks --event '*'")
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to post: public https.")],
    events: Annotated[
        list[str], typer.Option("--event", metavar="NAME", help="A published event; again for more; '*' for all.")
    ],
    as_json: AsJson = False,
) -> None:
    """Add an endpoint and print its secret, this once."""
    from flashsale.front.webhook_endpoints import checked, outbound_of, register, shown

    async def command(connection: pool.Connection) -> dict[str, Any]:
        try:
            wanted = await checked(outbound_of(load()), url, events)
        except Refused as refused:
            if "url" in refused.members.get("fields", {}):
                refused.members["fields"]["url"] += f". To send to it all the same: {ALLOW}, here and for the engine"
            raise
        made, secret = await register(connection, owner="admin", url=url, events=wanted)
        return {**shown(made), "secret": secret}

    made = _run(command, as_json)
    _print(as_json, made, f"{made['id']}  {made['url']}  {' '.join(made['events'])}", f"secret {made['secret']}")


@endpoints_app.command(epilog="Example: flashsale webhooks endpoints disable ep_019aa1b2c3d0123456789")
def disable(endpoint: EndpointId, as_json: AsJson = False) -> None:
    """Send nothing to an endpoint any more. Its delivery log stays."""

    async def command(connection: pool.Connection) -> None:
        if not await webhook_endpoints.disable(connection, endpoint):
            raise Refused("not-found", f"there is no endpoint {endpoint}")

    _run(command, as_json)
    _print(as_json, {"id": endpoint, "status": "disabled"}, f"{endpoint}: disabled")


@app.command(epilog="Example: flashsale webhooks deliveries --status given_up --json")
def deliveries(
    endpoint: Annotated[str | None, typer.Option("--endpoint", metavar="ID", help="Of this endpoint alone.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", metavar="STATUS", help="pending, delivered or given_up.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=LIMIT_MAX, help="The newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Print the delivery log, newest first."""
    from flashsale.front.webhook_endpoints import shown_delivery

    if status not in (None, "pending", "delivered", "given_up"):
        raise typer.BadParameter("pending, delivered or given_up", param_hint="--status")

    async def command(connection: pool.Connection) -> list[dict[str, Any]]:
        log = await webhooks.log_of(connection, endpoint=endpoint, status=status, limit=limit)
        return [shown_delivery(line) for line in log]

    log = _run(command, as_json)
    lines = [
        f"{line['created_at']}  {line['status']:<9} {line['event']:<20} {line['endpoint']}  {line['order']}"
        f"  tries {line['tries']}{'' if line['error'] is None else '  ' + line['error']}"
        for line in log
    ]
    _print(as_json, {"deliveries": log}, *lines or ["no deliveries"])


@app.command(epilog="Example: flashsale webhooks replay ep_019aa1b2c3d0123456789 --since 2026-11-11T00:00:00Z")
def replay(
    endpoint: EndpointId,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="RFC 3339; UTC where it names no zone.")],
    as_json: AsJson = False,
) -> None:
    """Send everything again to an endpoint that happened since, under the same message ids."""
    try:
        at = datetime.fromisoformat(since)
        since_ms = max(0, round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000))
    except (ValueError, OverflowError):
        raise typer.BadParameter("a time is wanted, such as 2026-11-11T00:00:00Z", param_hint="--since") from None

    async def command(connection: pool.Connection) -> None:
        found = await webhook_endpoints.get(connection, endpoint)
        if found is None or found.disabled:
            what = f"endpoint {endpoint} is disabled" if found else f"there is no endpoint {endpoint}"
            raise Refused("not-found", what)
        await webhooks.ask_replay(connection, endpoint, since_ms)

    _run(command, as_json)
    _print(as_json, {"endpoint": endpoint, "since": since}, f"{endpoint}: everything since {since} is sent again")


def _run(command: Callable[[pool.Connection], Awaitable[Result]], as_json: bool) -> Result:
    """What the command answers; exits 1 with one line where it is refused."""

    async def connected() -> Result:
        _, database_url = runfile.addresses(load())
        connection = await pool.connect(database_url, command_timeout_s=ANSWER_TIMEOUT_S)
        try:
            return await command(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(connected())
    except Refused as fault:
        fields = fault.members.get("fields", {})
        text = "; ".join(f"{name}: {why}" for name, why in fields.items()) or fault.detail
    except (runfile.NoEngine, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as fault:
        text = str(fault) or type(fault).__name__
    text = text.splitlines()[0]
    typer.echo(json.dumps({"error": text}, ensure_ascii=False) if as_json else text, err=not as_json)
    raise typer.Exit(1)


def _print(as_json: bool, answer: dict[str, Any], *lines: str) -> None:
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        for line in lines:
            typer.echo(line)
