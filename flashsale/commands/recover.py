"""`flashsale recover`: verify Valkey against the ledger, and rebuild it from ledger and journal where it differs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flashsale.recovery import Recovered

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: flashsale recover --json")
def recover(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print {ok, rebuilt, reason, shortcomings, epoch, orders, …}.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild even what looks right, or where the ledger looks the older one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what a rebuild would write, take over and lose.")
    ] = False,
) -> None:
    """Verify Valkey and rebuild it if it is empty, old or of another epoch; exit 1 if it can't serve afterwards.

    Nothing is deleted that can't be written again; what Valkey alone knows is copied to DATA_DIR/set-aside first.
    """
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
                    dry_run=dry_run,
                    set_aside=chosen.data_dir / recovery.SET_ASIDE,
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
    if outcome.plan is not None:
        _print_plan(outcome, outcome.plan)
    elif outcome.rebuilt:
        typer.echo(
            f"rebuilt ({outcome.reason}): epoch {outcome.epoch}, {outcome.orders} orders, "
            f"{outcome.saved} journal entries saved"
        )
    elif outcome.reason is not None:
        typer.echo(f"not rebuilt: {outcome.reason}")
    elif outcome.ok:
        typer.echo(f"Valkey is as the ledger knows it, epoch {outcome.epoch}")
    for notice in outcome.notices:
        typer.echo(notice)
    if outcome.taken:
        typer.echo(f"{outcome.taken} orders that only Valkey's journal had are in the ledger now")
    for lost in outcome.lost:
        units = ", ".join(f"{units} {sku}" for sku, units in (lost["units"] or {}).items()) or "unknown units"
        typer.echo(
            f"lost: order {lost['order']} of sale {lost['sale']}, {lost['status']} in Valkey; its sale's lost orders"
            f" hold {units}, set aside from the supply"
        )
    if outcome.copy is not None:
        typer.echo(f"what Valkey held before is kept in {outcome.copy}")


def _print_plan(outcome: Recovered, plan: dict[str, Any]) -> None:
    typer.echo(f"Valkey: {outcome.reason or 'as the ledger knows it'}")
    typer.echo(
        f"a rebuild writes {plan['orders']} orders of {plan['sales']} sales, {plan['survivors']} from the journal"
    )
    for line in plan["refusals"]:
        typer.echo(f"it can't be written: {line}")
    for line in plan["doubts"]:
        typer.echo(f"only with --force: {line}")
