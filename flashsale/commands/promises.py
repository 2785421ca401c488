"""`flashsale promises`: how many of its last promises each lane kept, by country. Reads the running engine's ledger."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import asyncpg
import typer

from flashsale import runfile
from flashsale.ledger import pool
from flashsale.settings import load

ANSWER_TIMEOUT_S = 30.0

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: flashsale promises --json")
def promises(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show how many of each lane's last 200 deliveries to a country came on time, and where that is too few.

    Exits 1 where the engine does not run or its ledger does not answer; an alert is no failure of the command.
    """
    try:
        found = asyncio.run(_read())
    except (runfile.NoEngine, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as fault:
        text = (str(fault) or type(fault).__name__).splitlines()[0]
        typer.echo(json.dumps({"error": text}, ensure_ascii=False) if as_json else text, err=not as_json)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    lanes = found["promises"]
    if not lanes:
        typer.echo("no parcel of a lane has been delivered yet")
        return
    typer.echo(f"{'lane':<24} country {'deliveries':>10} {'on time':>8} {'share':>7}")
    for lane in lanes:
        typer.echo(
            f"{lane['lane']:<24} {lane['country']:<7} {lane['deliveries']:>10} {lane['on_time']:>8}"
            f" {lane['share']:>7.1%}{_note(lane)}"
        )


def _note(lane: dict[str, Any]) -> str:
    """What is said behind a lane's line."""
    if not lane["alert"]:
        return ""
    since = f" since {lane['alert_since']}" if "alert_since" in lane else ""
    return f"  ALERT: less than {lane['alert_below']:.0%}{since}"


async def _read() -> dict[str, Any]:
    from flashsale.front.promises import shown  # here: `--help` need not wait for aiohttp
    from flashsale.ledger import promises as ledger_promises

    _, database_url = runfile.addresses(load())
    connection = await pool.connect(database_url, command_timeout_s=ANSWER_TIMEOUT_S)
    try:
        return shown(await ledger_promises.overview(connection))
    finally:
        await connection.close()
