"""`flashsale parcels`: parcels that a person has to see to, and the bookings that are to be tried once more.

Works on the running engine's ledger; the worker does what is asked for here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NoReturn, TypeVar

import asyncpg
import typer

from flashsale import runfile
from flashsale.ledger import parcels as ledger_parcels
from flashsale.ledger import pool
from flashsale.sale.tracking import ParcelStatus
from flashsale.settings import load

ANSWER_TIMEOUT_S = 30.0
LIMIT_MAX = 10_000

Result = TypeVar("Result")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

app = typer.Typer(
    name="parcels",
    help="See what became of parcels at their carriers; book again what was refused.",
    epilog="Example: flashsale parcels list --json",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", epilog="Example: flashsale parcels list --status picked_up --limit 10")
def list_parcels(
    status: Annotated[
        str | None,
        typer.Option("--status", metavar="STATUS", help="All of that status; unset: those that need a person."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=LIMIT_MAX, help="The newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Print parcels that a carrier refused, or whose order and carrier say two things; newest first."""
    if status is not None and status not in set(ParcelStatus):
        raise typer.BadParameter(f"one of {', '.join(ParcelStatus)}", param_hint="--status")

    async def command(connection: pool.Connection) -> list[dict[str, Any]]:
        return [_shown(row) for row in await ledger_parcels.listed(connection, status, limit)]

    found = _run(command, as_json)
    lines = [
        f"{each['order']}  {each['status']:<10} {each['carrier']:<12} {each['waybill'] or '-':<16}"
        f" {each['error'] or ''}".rstrip()
        for each in found
    ]
    _print(as_json, {"parcels": found}, *lines or ["no parcels"])


@app.command(epilog="Example: flashsale parcels retry 000001c1c18b9db3c787265dbd465f")
def retry(
    order: Annotated[str, typer.Argument(metavar="ORDER", help="The order's id, as the list shows it.")],
    as_json: AsJson = False,
) -> None:
    """Have a parcel booked once more that its carrier refused."""

    async def command(connection: pool.Connection) -> bool:
        return await ledger_parcels.book_again(connection, order, time.time_ns() // 1_000_000)

    if not _run(command, as_json):
        _fail(as_json, f"order {order} has no refused parcel that could be booked again, or is not paid any more")
    _print(as_json, {"order": order, "status": ParcelStatus.TO_BOOK.value}, f"{order}: it is booked once more")


def _shown(row: ledger_parcels.ParcelRow) -> dict[str, Any]:
    return {
        "order": row.order_id,
        "status": row.status,
        "carrier": row.carrier,
        "waybill": row.waybill,
        "attempts": row.attempts,
        "error": row.error,
    }


def _run(command: Callable[[pool.Connection], Awaitable[Result]], as_json: bool) -> Result:
    """What the command answers; exits 1 with one line where there is no engine or no ledger."""

    async def connected() -> Result:
        _, database_url = runfile.addresses(load())
        connection = await pool.connect(database_url, command_timeout_s=ANSWER_TIMEOUT_S)
        try:
            return await command(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(connected())
    except (runfile.NoEngine, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as fault:
        _fail(as_json, str(fault) or type(fault).__name__)


def _fail(as_json: bool, text: str) -> NoReturn:
    text = text.splitlines()[0]
    typer.echo(json.dumps({"error": text}, ensure_ascii=False) if as_json else text, err=not as_json)
    raise typer.Exit(1) from None


def _print(as_json: bool, answer: dict[str, Any], *lines: str) -> None:
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        for line in lines:
            typer.echo(line)
