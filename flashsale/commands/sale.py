"""`flashsale sale …`: what a merchandiser does to a sale, from the command line.

Parses, calls merchandising.py over the running engine's two servers, prints one line or (`--json`) one object. Exits 1
with one line where a command is refused or a server is away, with a line for each fault of a sale file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import asyncpg
import redis.asyncio
import redis.exceptions
import typer

from flashsale import merchandising, runfile
from flashsale.ledger import pool
from flashsale.merchandising import CommandRefused, SaleView
from flashsale.reservation import server
from flashsale.reservation.commands import UNITS_MAX, SaleWindow, StockLevel
from flashsale.sale.salefile import FILE_MAX_BYTES, SALE_ID, SaleFile, SaleFileFaults, parse_sale_file
from flashsale.settings import load

ANSWER_TIMEOUT_S = 60.0
"""A command may wait for another that changes the catalogue, and carries over 10,000 offers a sale."""

Result = TypeVar("Result")

app = typer.Typer(
    name="sale",
    help="Make a sale and change it while it runs.",
    epilog="Example: flashsale sale create double11.toml",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SaleId = Annotated[str, typer.Argument(metavar="SALE", help="The sale's id, such as double11.")]
Sku = Annotated[str, typer.Argument(metavar="SKU", help="The SKU, as in the sale's file.")]
FilePath = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="The sale file (TOML).")
]


def _sale_id(text: str | None) -> str | None:
    if text is not None and not SALE_ID.fullmatch(text):
        raise typer.BadParameter("a sale id is 1 to 40 of a-z, 0-9 and -")
    return text


As = Annotated[
    str | None,
    typer.Option("--as", metavar="ID", callback=_sale_id, help="Take this id in place of the file's."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command("list", epilog="Example: flashsale sale list --json")
def list_sales(as_json: AsJson = False) -> None:
    """List every sale with its window and phase."""

    async def command() -> list[SaleView]:
        async with _valkey() as valkey:
            return await merchandising.list_sales(valkey)

    views = _run(command, as_json)
    lines = [
        f"{view.sale.id:<20} {view.phase:<9} {_time(view.state.opens_at_ms)} to {_time(view.state.closes_at_ms)}"
        f"  {len(view.sale.offers)} offers  {view.sale.name}"
        for view in views
    ]
    _print(as_json, {"sales": [_head(view) for view in views]}, *lines or ["no sales"])


@app.command(epilog="Example: flashsale sale show double11")
def show(sale: SaleId, as_json: AsJson = False) -> None:
    """Show a sale: its window, and every offer's supply and what is available of it."""

    async def command() -> SaleView:
        async with _valkey() as valkey:
            return await merchandising.show(valkey, sale)

    view = _run(command, as_json)
    state = view.state
    offers = [
        {
            "sku": offer.sku,
            "brand": offer.brand,
            "title": offer.title,
            "supply": state.supply[offer.index],
            "available": state.available[offer.index],
            "quota": offer.quota,
            "suspended": offer.index in state.suspended,
            "prices": offer.prices,
        }
        for offer in view.sale.offers
    ]
    _print(
        as_json,
        {**_head(view), "offers": offers},
        f"{view.sale.id}: {view.sale.name}",
        f"{view.phase}, {_time(state.opens_at_ms)} to {_time(state.closes_at_ms)}, hold {view.sale.hold_ms // 1000} s",
        f"{'SKU':<32} {'supply':>10} {'available':>10} {'quota':>6}",
        *(
            f"{offer['sku']:<32} {offer['supply']:>10} {offer['available']:>10} {offer['quota'] or '-':>6}"
            f"{'  suspended' if offer['suspended'] else ''}"
            for offer in offers
        ),
    )


@app.command(epilog="Example: flashsale sale create double11.toml --as double11-test")
def create(file: FilePath, as_id: As = None, as_json: AsJson = False) -> None:
    """Make a sale from its file. The same file again changes nothing; another file under the same id is refused."""

    async def command() -> tuple[SaleFile, bool]:
        parsed, text = _read(file, as_id)
        async with _valkey() as valkey, _ledger() as ledger:
            return parsed, await merchandising.create(valkey, ledger, parsed, text)

    parsed, made = _run(command, as_json)
    _print(
        as_json,
        {"sale": parsed.id, "created": made, "offers": len(parsed.offers)},
        f"sale {parsed.id} {'created' if made else 'exists, made from this file'}: {len(parsed.offers)} offers",
    )


@app.command(epilog="Example: flashsale sale update double11.toml")
def update(file: FilePath, as_id: As = None, as_json: AsJson = False) -> None:
    """Change a sale to what its file now says: names, prices, quotas, window, hold, further offers and markets."""

    async def command() -> tuple[SaleFile, bool]:
        parsed, text = _read(file, as_id)
        async with _valkey() as valkey, _ledger() as ledger:
            return parsed, await merchandising.update(valkey, ledger, parsed, text)

    parsed, changed = _run(command, as_json)
    _print(
        as_json,
        {"sale": parsed.id, "changed": changed, "offers": len(parsed.offers)},
        f"sale {parsed.id} {'updated' if changed else 'is what this file says'}: {len(parsed.offers)} offers",
    )


@app.command("open", epilog="Example: flashsale sale open double11")
def open_now(sale: SaleId, as_json: AsJson = False) -> None:
    """Open a sale now, whatever its file says, or end its pause."""

    async def command() -> SaleWindow:
        async with _valkey() as valkey, _ledger() as ledger:
            return await merchandising.open_now(valkey, ledger, sale)

    _print_window(sale, _run(command, as_json), as_json)


@app.command(epilog="Example: flashsale sale pause double11")
def pause(sale: SaleId, as_json: AsJson = False) -> None:
    """Take no new orders until `resume`. Who ordered before still gets the same answer."""
    _set_status(sale, merchandising.pause, as_json)


@app.command(epilog="Example: flashsale sale resume double11")
def resume(sale: SaleId, as_json: AsJson = False) -> None:
    """End a pause."""
    _set_status(sale, merchandising.resume, as_json)


@app.command(epilog="Example: flashsale sale close double11")
def close(sale: SaleId, as_json: AsJson = False) -> None:
    """Close a sale for ever."""
    _set_status(sale, merchandising.close, as_json)


@app.command(epilog="Example: flashsale sale stock double11 HAIER-FRIDGE-320 --to 1500 --expect 1000")
def stock(
    sale: SaleId,
    sku: Sku,
    to: Annotated[int, typer.Option("--to", min=0, max=UNITS_MAX, help="The new supply, in units.")],
    expect: Annotated[int, typer.Option("--expect", min=0, max=UNITS_MAX, help="The supply that it must have now.")],
    as_json: AsJson = False,
) -> None:
    """Set an offer's supply, if it is what you expect and no more than that is taken."""

    async def command() -> StockLevel:
        async with _valkey() as valkey:
            return await merchandising.set_stock(valkey, sale, sku, to=to, expect=expect)

    level = _run(command, as_json)
    _print(
        as_json,
        {"sale": sale, "sku": sku, "supply": level.supply, "available": level.available},
        f"{sku}: supply {level.supply}, available {level.available}",
    )


@app.command(epilog="Example: flashsale sale suspend double11 HAIER-FRIDGE-320")
def suspend(sale: SaleId, sku: Sku, as_json: AsJson = False) -> None:
    """Take an offer out of its sale for a while."""

    async def command() -> bool:
        async with _valkey() as valkey:
            return await merchandising.suspend(valkey, sale, sku)

    changed = _run(command, as_json)
    _print(as_json, {"sale": sale, "sku": sku, "suspended": True, "changed": changed}, f"{sku}: suspended")


@app.command(epilog="Example: flashsale sale unsuspend double11 HAIER-FRIDGE-320")
def unsuspend(sale: SaleId, sku: Sku, as_json: AsJson = False) -> None:
    """Put a suspended offer back."""

    async def command() -> bool:
        async with _valkey() as valkey:
            return await merchandising.unsuspend(valkey, sale, sku)

    changed = _run(command, as_json)
    _print(as_json, {"sale": sale, "sku": sku, "suspended": False, "changed": changed}, f"{sku}: on sale")


def _set_status(
    sale: str, change: Callable[[redis.asyncio.Redis, str], Coroutine[Any, Any, SaleWindow]], as_json: bool
) -> None:
    async def command() -> SaleWindow:
        async with _valkey() as valkey:
            return await change(valkey, sale)

    _print_window(sale, _run(command, as_json), as_json)


@asynccontextmanager
async def _valkey() -> AsyncIterator[redis.asyncio.Redis]:
    redis_url, _ = runfile.addresses(load())
    client = server.connect(redis_url, answer_timeout_s=ANSWER_TIMEOUT_S)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def _ledger() -> AsyncIterator[pool.Connection]:
    _, database_url = runfile.addresses(load())
    connection = await pool.connect(database_url, command_timeout_s=ANSWER_TIMEOUT_S)
    try:
        yield connection
    finally:
        await connection.close()


def _read(path: Path, as_id: str | None) -> tuple[SaleFile, str]:
    """The file, checked, and its text. Raises SaleFileFaults, also for what is too long to be one or no text."""
    with path.open("rb") as handle:
        content = handle.read(FILE_MAX_BYTES + 1)
    parsed = parse_sale_file(content, str(path))
    return parsed if as_id is None else parsed.with_id(as_id), content.decode("utf-8-sig")


def _run(command: Callable[[], Coroutine[Any, Any, Result]], as_json: bool) -> Result:
    """What the command answers; exits 1 with one line, or with one for each fault of a file. SettingsFault is usage:
    cli.py says it and exits 2, as for every command."""
    try:
        return asyncio.run(command())
    except SaleFileFaults as fault:
        if as_json:
            typer.echo(json.dumps({"faults": [each._asdict() for each in fault.faults]}, ensure_ascii=False))
        else:
            typer.echo(str(fault), err=True)
    except (CommandRefused, runfile.NoEngine) as fault:
        _print_fault(str(fault), as_json)
    except redis.exceptions.RedisError as fault:
        _print_fault(f"Valkey: {fault or type(fault).__name__}", as_json)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
        _print_fault(f"PostgreSQL: {fault or type(fault).__name__}", as_json)
    except OSError as fault:  # LedgerAway among them, which says "PostgreSQL: …" itself
        _print_fault(str(fault) or type(fault).__name__, as_json)
    raise typer.Exit(1)


def _print_fault(text: str, as_json: bool) -> None:
    text = text.splitlines()[0]
    if as_json:
        typer.echo(json.dumps({"error": text}, ensure_ascii=False))
    else:
        typer.echo(text, err=True)


def _print(as_json: bool, answer: dict[str, Any], *lines: str) -> None:
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        for line in lines:
            typer.echo(line)


def _print_window(sale: str, window: SaleWindow, as_json: bool) -> None:
    opens_at, closes_at = _time(window.opens_at_ms), _time(window.closes_at_ms)
    _print(
        as_json,
        {"sale": sale, "status": window.status, "opens_at": opens_at, "closes_at": closes_at},
        f"sale {sale}: {window.status}, {opens_at} to {closes_at}",
    )


def _head(view: SaleView) -> dict[str, Any]:
    return {
        "sale": view.sale.id,
        "name": view.sale.name,
        "phase": view.phase,
        "status": view.state.status,
        "opens_at": _time(view.state.opens_at_ms),
        "closes_at": _time(view.state.closes_at_ms),
        "hold_seconds": view.sale.hold_ms // 1000,
        "catalogue_version": view.state.version,
    }


def _time(ms: int) -> str:
    """RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
