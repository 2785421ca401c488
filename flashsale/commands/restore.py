"""`flashsale restore DIR`: a backup brought back into an engine that does not run, or into servers of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashsale.engine.restoring import Restored

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: flashsale restore /backups/double11-noon")
def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `flashsale backup` wrote.")],
    force: Annotated[
        bool, typer.Option("--force", help="Into a ledger that is not empty: what is there is moved aside first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print {ok, orders, aside, recovered, faults}.")] = False,
) -> None:
    """Bring back a backup, build Valkey by it, and audit both; exit 1 if the audit finds a fault.

    A Valkey that is there and newer is asked first: orders that only it knows are taken in, or named one by one.
    """
    from rich.console import Console

    from flashsale import logs, settings
    from flashsale.engine import restoring

    chosen = settings.load()
    logs.set_up(chosen.log_level, part="restore")
    console = Console(stderr=True)
    with console.status("restore") if console.is_terminal else contextlib.nullcontext() as status:
        show = (lambda step: status.update(f"restore: {step}")) if status is not None else (lambda step: None)
        with restoring.servers(chosen) as target:
            done = asyncio.run(restoring.restore(target, chosen, directory.absolute(), show, force=force))
    if as_json:
        json.dump(done.as_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(done)
    if not done.ok:
        raise typer.Exit(1)


def _print(done: Restored) -> None:
    if done.aside is not None:
        typer.echo(f"what was there lies in {done.aside} now")
    for lost in done.recovered["lost"]:
        typer.echo(f"lost: order {lost['order']} of sale {lost['sale']}, {lost['status']} in Valkey")
    if done.recovered["copy"] is not None:
        typer.echo(f"what Valkey held before is kept in {done.recovered['copy']}")
    for fault in done.faults:
        typer.echo(fault)
    verdict = "every invariant is kept" if done.ok else "see above"
    typer.echo(f"{done.orders} orders restored, {done.recovered['taken']} more from Valkey: {verdict}")
