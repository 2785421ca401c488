"""`flashsale audit`: are the invariants kept, now, to the unit? Works while selling and without a worker."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashsale.audit import AuditReport

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: flashsale audit --json")
def audit(
    as_json: Annotated[bool, typer.Option("--json", help="Print {ok, faults, counts}.")] = False,
) -> None:
    """Compare supply, Valkey, journal, ledger and money; exit 1 on a fault, each with its SKU or order."""
    import asyncio

    from rich.console import Console

    from flashsale import audit as auditing
    from flashsale import logs, runfile, settings

    chosen = settings.load()
    logs.set_up(chosen.log_level, part="audit")
    console = Console(stderr=True)
    try:
        redis_url, database_url = runfile.addresses(chosen)
    except (runfile.NoEngine, PermissionError) as fault:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        report = auditing.AuditReport([auditing.Fault("unreachable", str(fault))], auditing.Counts(as_of=now))
    else:
        with console.status("audit") if console.is_terminal else contextlib.nullcontext() as status:
            show = (lambda step: status.update(f"audit: {step}")) if status is not None else None
            report = asyncio.run(auditing.audit(redis_url, database_url, progress=show))
    if as_json:
        json.dump(report.as_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _print(report: AuditReport) -> None:
    for fault in report.faults:
        place = " ".join(part for part in (fault.sale, fault.sku, fault.order) if part)
        typer.echo(f"{fault.invariant}  {place}{': ' if place else ''}{fault.detail}")
    for lost in report.lost:
        typer.echo(f"lost  {lost['sale']} {lost['order']}: answered, and in no ledger since a recovery")
    if report.remedy is not None:
        typer.echo(report.remedy)
    counts = report.counts
    verdict = "every invariant is kept" if report.ok else f"{len(report.faults)} faults"
    typer.echo(
        f"{verdict}: {counts.orders_valkey} orders in Valkey, {counts.orders_ledger} in the ledger, "
        f"{counts.backlog} in the journal alone, {counts.orders_paid} of them paid, {counts.units} units taken, "
        f"{counts.payments} payments, as of {counts.as_of}"
    )
