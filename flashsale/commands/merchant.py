"""`flashsale merchant …`: whose products are sold. Works on the running engine's ledger."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from flashsale.commands.on_ledger import run_on_ledger
from flashsale.ledger import merchants
from flashsale.ledger.pool import Connection
from flashsale.sale.salefile import NAME_MAX_CHARACTERS, SLUG

app = typer.Typer(
    name="merchant",
    help="Merchants: make one or change it, list them.",
    epilog="Example: flashsale merchant create haier --name Haier --time-zone Asia/Shanghai",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def merchant_id(text: str) -> str:
    """A merchant's id; usage otherwise."""
    if not SLUG.fullmatch(text):
        raise typer.BadParameter("a merchant's id is 1 to 40 of a-z, 0-9 and -, beginning with a letter or digit")
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise typer.BadParameter(f"{text!r} is no time zone such as Asia/Shanghai") from None
    return text


def _name(text: str) -> str:
    if not 1 <= len(text.strip()) <= NAME_MAX_CHARACTERS or not text.isprintable():
        raise typer.BadParameter(f"a name has 1 to {NAME_MAX_CHARACTERS} printable characters")
    return text.strip()


@app.command(epilog="Example: flashsale merchant create haier --name Haier --time-zone Asia/Shanghai")
def create(
    merchant: Annotated[str, typer.Argument(metavar="ID", callback=merchant_id, help="Such as haier.")],
    name: Annotated[str, typer.Option("--name", callback=_name, help="As people read it.")],
    time_zone: Annotated[
        str, typer.Option("--time-zone", callback=_zone, help="Where times without a zone are meant (IANA).")
    ] = "Asia/Shanghai",
    as_json: AsJson = False,
) -> None:
    """Make a merchant, or give one another name or time zone."""

    async def command(ledger: Connection) -> bool:
        return await merchants.put(ledger, merchant, name, time_zone, time.time_ns() // 1_000_000)

    changed = run_on_ledger(command, as_json)
    if as_json:
        said = {"merchant": merchant, "name": name, "time_zone": time_zone, "changed": changed}
        typer.echo(json.dumps(said, ensure_ascii=False))
    else:
        typer.echo(f"merchant {merchant}: {name}, {time_zone}" + ("" if changed else " (as before)"))


@app.command("list", epilog="Example: flashsale merchant list --json")
def list_merchants(as_json: AsJson = False) -> None:
    """List every merchant."""

    async def command(ledger: Connection) -> list[dict[str, Any]]:
        return [
            {"merchant": each.id, "name": each.name, "time_zone": each.time_zone}
            for each in await merchants.all_merchants(ledger)
        ]

    found = run_on_ledger(command, as_json)
    if as_json:
        typer.echo(json.dumps({"merchants": found}, ensure_ascii=False))
        return
    for each in found:
        typer.echo(f"{each['merchant']:<20} {each['time_zone']:<20} {each['name']}")
    if not found:
        typer.echo("no merchants")
