"""`flashsale recover`: verify Valkey against the ledger, and rebuild it from ledger and journal where it differs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashsale.recovery import Recovered

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: flashsale recover --json")
def recover(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print {ok, rebuilt, reason, shortcomings, epoch, orders, saved}.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild even what looks right, or where the ledger looks the older one.")
    ] = False,
) -> None:
    """Verify Valkey and rebuild it if it is empty, old or of another epoch; exit 1 if it can't serve afterwards."""
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from flashsale import logs, recovery, runfile, settings

    chosen = settings.load()
    logs.set_up(chosen.log_level, part="recover")
    away: tuple[type[BaseException], ...] = (runfile.NoEngine, *recovery.LOST)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("orders to Valkey", total=None)
        try:
            redis_url, database_url = runfile.addresses(chosen)
            outcome = asyncio.run(
                recovery.recover(
                    redis_url,
                    database_url,
                    durability=chosen.durability,
                    backlog_max_bytes=chosen.backlog_max_bytes,
                    force=force,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
            )
        except away as fault:
            bar.stop()
            outcome = recovery.Recovered(reason=f"unreachable: {str(fault) or type(fault).__name__}")
            if not as_json:
                typer.echo(outcome.reason, err=True)
                raise typer.Exit(1) from None
    if as_json:
        json.dump(outcome.as_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(outcome)
    if not outcome.ok:
        raise typer.Exit(1)


def _print(outcome: Recovered) -> None:
    for line in outcome.shortcomings:
        typer.echo(line)
    if outcome.rebuilt:
        typer.echo(
            f"rebuilt ({outcome.reason}): epoch {outcome.epoch}, {outcome.orders} orders, "
            f"{outcome.saved} journal entries saved"
        )
    elif outcome.reason is not None:
        typer.echo(f"not rebuilt: {outcome.reason}")
    elif outcome.ok:
        typer.echo(f"Valkey is as the ledger knows it, epoch {outcome.epoch}")
