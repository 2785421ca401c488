"""`flashsale migrate`: brings a database of one's own to this release's tables. `up` does the same at each start."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: FLASHSALE_DATABASE_URL=postgresql://owner@db/sale flashsale migrate")
def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 where something is to be done.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print {from, to, done}.")] = False,
) -> None:
    """Make the ledger's tables, or bring them to this release, in one transaction. Again it changes nothing."""
    from flashsale import runfile, settings
    from flashsale.ledger import schema

    _, database_url = runfile.addresses(settings.load())
    before, done = asyncio.run(_migrate(database_url, check))
    wanted = schema.head()
    if as_json:
        print(json.dumps({"from": before, "to": wanted, "done": done}), flush=True)
    elif before == wanted:
        typer.echo(f"the ledger is at {wanted}: nothing to do")
    else:
        typer.echo(f"the ledger {'was brought' if done else 'is to be brought'} from {before or 'nothing'} to {wanted}")
    if check and before != wanted:
        raise typer.Exit(1)


async def _migrate(database_url: str, check: bool) -> tuple[str | None, bool]:
    """The revision before, and whether it was changed. Raises NewerLedger, LedgerAway."""
    from flashsale.ledger import schema
    from flashsale.ledger.migrate import migrate as bring
    from flashsale.ledger.pool import connect

    connection = await connect(database_url)
    try:
        before = await schema.revision(connection)
        if await schema.state(connection) is schema.State.NEWER:
            raise schema.NewerLedger((await schema.told(database_url))[1])
    finally:
        await connection.close()
    if check or before == schema.head():
        return before, False
    await bring(database_url)
    return before, True
