"""`flashsale import catalogue FILE`: a merchant's products out of a CSV file, checked as a whole, then taken over.

Exits 1 where the file has a fault (then nothing is changed), a server is away or the sale is not known.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import msgspec
import typer

from flashsale.commands.merchant import merchant_id
from flashsale.commands.on_ledger import ANSWER_TIMEOUT_S, run_on_ledger
from flashsale.ledger.merchants import HOUSE
from flashsale.ledger.pool import Connection
from flashsale.sale.local_time import local_time_ms
from flashsale.sale.market import MARKETS
from flashsale.sale.products.product import Finding

app = typer.Typer(
    name="import",
    help="Import what merchants bring.",
    epilog="Example: flashsale import catalogue products.csv --merchant haier --market SG",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LATER_PARTS_MAX = 16  # of 8 MiB: they are held in memory once
_GZIP = b"\x1f\x8b"


@app.callback()
def group() -> None:
    """Import what merchants bring."""


def _market(code: str) -> str:
    if code not in MARKETS:
        raise typer.BadParameter(f"{code!r} is no market: {' '.join(MARKETS)}")
    return code


def _decimal_mark(mark: str | None) -> str | None:
    if mark not in (None, ".", ","):
        raise typer.BadParameter("the decimal mark is . or ,")
    return mark


@app.command(epilog="Example: flashsale import catalogue products.csv --merchant haier --sale double11 --dry-run")
def catalogue(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="CSV, also gzipped.")
    ],
    merchant: Annotated[
        str, typer.Option("--merchant", metavar="ID", callback=merchant_id, help="Whose products they are.")
    ] = HOUSE,
    market: Annotated[
        str, typer.Option("--market", metavar="CODE", callback=_market, help="Whose currency the prices are in.")
    ] = "SG",
    sale: Annotated[
        str | None, typer.Option("--sale", metavar="ID", help="Make them offers of this sale as well.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be, change nothing.")] = False,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="Apply it then: local time of the merchant, 2026-11-11T00:00."),
    ] = None,
    decimal_mark: Annotated[
        str | None,
        typer.Option("--decimal-mark", metavar="MARK", callback=_decimal_mark, help="Of the file's numbers: . or ,"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON lines: each finding, then what became of it.")
    ] = False,
) -> None:
    """Import a product catalogue: Shopify's columns, old or new, with HS code and country of origin.

    Nothing is changed unless every row is good. What is blank erases nothing; a SKU that is there is updated.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with ExitStack() as held:
        stream = _opened(file, held)
        bar = held.enter_context(Progress(console=console, disable=not console.is_terminal, transient=True))
        if at is None:
            task = bar.add_task("rows", total=None)
            said = run_on_ledger(
                _now(stream, merchant, market, sale, decimal_mark, dry_run, _teller(as_json),
                     lambda rows: bar.update(task, completed=rows)),
                as_json,
            )  # fmt: skip
        else:
            said = run_on_ledger(_later(stream, merchant, market, sale, decimal_mark, dry_run, at), as_json)
    if as_json:
        typer.echo(json.dumps(said, ensure_ascii=False))
    else:
        typer.echo(_line(said), err=bool(said.get("error")))
    if said.get("faults") or said.get("error"):
        raise typer.Exit(1)


def _opened(file: Path, held: ExitStack) -> BinaryIO:
    stream = cast("BinaryIO", held.enter_context(file.open("rb")))
    if stream.read(2) == _GZIP:
        stream.seek(0)
        stream = cast("BinaryIO", held.enter_context(gzip.GzipFile(fileobj=stream)))
    else:
        stream.seek(0)
    return stream


def _teller(as_json: bool) -> Callable[[Finding], None]:
    """Prints a finding as it is found: there may be a million."""

    def say(finding: Finding) -> None:
        if as_json:
            sys.stdout.write(msgspec.json.encode(finding).decode() + "\n")
        else:
            column = f", {finding.column}" if finding.column else ""
            sys.stderr.write(f"row {finding.row}{column}: {finding.severity}: {finding.message}\n")

    return say


def _now(
    stream: BinaryIO,
    merchant: str,
    market: str,
    sale: str | None,
    decimal_mark: str | None,
    dry_run: bool,
    say: Callable[[Finding], None],
    progress: Callable[[int], None],
) -> Callable[[Connection], Any]:
    async def command(ledger: Connection) -> dict[str, Any]:
        from flashsale import runfile
        from flashsale.importing import Wanted, take_in
        from flashsale.reservation import server
        from flashsale.settings import load

        redis_url, _ = runfile.addresses(load())
        valkey = server.connect(redis_url, answer_timeout_s=ANSWER_TIMEOUT_S)
        try:
            wanted = Wanted(merchant, market, sale, decimal_mark, dry_run)
            outcome = await take_in(ledger, valkey, stream, wanted, say=say, progress=progress)
        finally:
            await valkey.aclose()
        said = {"merchant": merchant, "market": market, "sale": sale, "dry_run": dry_run, **asdict(outcome)}
        return {name: value for name, value in said.items() if value is not None}

    return command


def _later(
    stream: BinaryIO, merchant: str, market: str, sale: str | None, decimal_mark: str | None, dry_run: bool, at: str
) -> Callable[[Connection], Any]:
    async def command(ledger: Connection) -> dict[str, Any]:
        from flashsale.ledger import imports, merchants

        found = await merchants.get(ledger, merchant)
        try:
            at_ms = local_time_ms(at, found.time_zone if found is not None else "UTC")
        except ValueError as fault:
            raise typer.BadParameter(str(fault), param_hint="--at") from None
        parts = list(islice(iter(lambda: stream.read(imports.PART_MAX_BYTES), b""), LATER_PARTS_MAX + 1)) or [b""]
        if len(parts) > LATER_PARTS_MAX:
            return {"error": f"a catalogue for later has at most {LATER_PARTS_MAX * 8} MiB: import it without --at"}
        async with ledger.transaction():
            row = await imports.add(
                ledger,
                merchant=merchant,
                market=market,
                sale=sale,
                decimal_mark=decimal_mark,
                dry_run=dry_run,
                parts=len(parts),
                at_ms=at_ms,
                now_ms=time.time_ns() // 1_000_000,
            )
            if row is None:
                return {"error": f"{imports.WAITING_MAX} imports of {merchant} wait: let them be applied first"}
            for number, part in enumerate(parts, 1):
                row = await imports.put_part(ledger, row, number, part)
        return {"import": row.id, "merchant": merchant, "status": row.status, "at_ms": at_ms}

    return command


def _line(said: dict[str, Any]) -> str:
    if "error" in said and "rows" not in said:
        return str(said["error"])
    if "import" in said:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(said["at_ms"] / 1000))
        return f"import {said['import']} waits until {when}"
    counts = f"{said['created']} created, {said['updated']} updated, {said['unchanged']} unchanged"
    if said.get("sale"):
        counts += f", {said['offers']} offers added to {said['sale']}, {said['stock_edits']} supplies set"
    rows = f"{said['rows']} products read, {said['faults']} faults, {said['warnings']} warnings"
    if said.get("error"):
        return f"{rows}: {counts}; {said['error']}"
    if said["faults"]:
        return f"{rows}: nothing was changed"
    return f"{rows}: {counts}" + (" (dry run: nothing was changed)" if said["dry_run"] else "")
