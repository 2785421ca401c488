"""A merchant's catalogue taken in: read, checked as a whole, then applied as a whole, or not at all.

Products and the sale's offers change in one transaction of the ledger; Valkey is brought to it behind that, as after
every sale command. What is asked of a running sale's supply is compared and set last, one SKU after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

import msgspec
import redis.asyncio

from flashsale import merchandising
from flashsale.ledger import imports, products
from flashsale.ledger.imports import ImportRow
from flashsale.ledger.pool import Connection
from flashsale.merchandising import CommandRefused
from flashsale.reservation import server
from flashsale.sale.catalogue import Sale
from flashsale.sale.market import MARKETS
from flashsale.sale.products.offers import Merged, StockEdit, merged
from flashsale.sale.products.product import Finding, Product, fault
from flashsale.sale.products.reading import read
from flashsale.sale.salefile import SaleFileFaults, parse_sale_file
from flashsale.sale.salefile_text import text_of

ANSWER_TIMEOUT_S = 60.0
FINDINGS_KEPT = 100_000
"""Of one import, for the merchant to read; all are counted."""

ROWS_AT_ONCE = 1000
"""Rows that are read and staged in one step: some hundred kilobytes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to become of a catalogue. `market`: whose currency its prices are in. `sale`: whose offers the products
    become as well, None: of no sale. `dry_run`: say what would be, change nothing."""

    merchant: str
    market: str
    sale: str | None = None
    decimal_mark: str | None = None
    dry_run: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of it: products `created`, `updated` and `unchanged`, `offers` added to the sale, `stock_edits` of
    its supplies. With a fault nothing was changed."""

    rows: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    offers: int = 0
    stock_edits: int = 0
    faults: int = 0
    warnings: int = 0
    applied: bool = False
    error: str | None = None


class _Undone(Exception):
    """Ends the transaction without a trace."""


@dataclass(slots=True)
class _Report:
    """Counts what is said, and passes it on."""

    say: Callable[[Finding], None]
    outcome: Outcome = field(default_factory=Outcome)

    def add(self, finding: Finding) -> None:
        if finding.severity == "fault":
            self.outcome.faults += 1
        else:
            self.outcome.warnings += 1
        self.say(finding)


async def take_in(
    ledger: Connection,
    valkey: redis.asyncio.Redis | None,
    stream: BinaryIO,
    wanted: Wanted,
    *,
    say: Callable[[Finding], None],
    progress: Callable[[int], None] = lambda rows: None,
) -> Outcome:
    """Takes the catalogue in `stream` (seekable) in. Every finding is given to `say`, the rows read so far to
    `progress`. `valkey` is needed for a sale alone. Done again it changes nothing more. Raises CommandRefused where
    there is no such sale. `applied` with an `error`: all is stored, and Valkey does not have it yet."""
    report = _Report(say)
    outcome = report.outcome
    edits: list[StockEdit] = []
    with contextlib.suppress(_Undone):
        async with ledger.transaction():
            await products.stage(ledger, wanted.merchant)
            await _stage(ledger, stream, wanted, report, progress)
            if wanted.sale is None:
                await _compare(ledger, wanted, report)
            counts = await products.take_over(ledger, wanted.merchant, wanted.market, _now_ms())
            outcome.created, outcome.updated, outcome.unchanged = counts
            if wanted.sale is not None:
                edits = await _offer(ledger, valkey, wanted, report)
            if outcome.faults or wanted.dry_run:
                raise _Undone
        outcome.applied = True
    if outcome.faults:
        outcome.created = outcome.updated = outcome.unchanged = outcome.offers = 0
    if outcome.applied and wanted.sale is not None and valkey is not None:
        try:
            await merchandising.carry_over(valkey, ledger, wanted.sale)
        except CommandRefused as refused:  # all is stored; the same file again sets what is left of the supplies
            outcome.error = str(refused)
            return outcome
        for edit in edits:
            try:
                await merchandising.set_stock(valkey, wanted.sale, edit.sku, to=edit.to, expect=edit.expect)
                outcome.stock_edits += 1
            except CommandRefused as refused:  # it changed since it was looked at; all else is done
                outcome.error = f"row {edit.row}: {refused}"
                report.add(fault(edit.row, "Expected Inventory Qty", "stock-changed", str(refused)))
    return outcome


async def _stage(
    ledger: Connection, stream: BinaryIO, wanted: Wanted, report: _Report, progress: Callable[[int], None]
) -> None:
    known = await products.known(ledger, wanted.merchant)
    found = read(stream, MARKETS[wanted.market].currency, known, wanted.decimal_mark)
    async for part in _in_parts(found):
        rows = [each for each in part if isinstance(each, Product)]
        for each in part:
            if isinstance(each, Finding):
                report.add(each)
        if rows:  # beside faults too: what else is wrong is told in the same run
            await products.add_rows(ledger, rows)
        report.outcome.rows += len(rows)
        progress(part[-1].row)


async def _in_parts(found: Iterator[Product | Finding]) -> AsyncIterator[list[Product | Finding]]:
    """Reads in a thread: a worker has other duties meanwhile."""
    while part := await asyncio.to_thread(lambda: list(itertools.islice(found, ROWS_AT_ONCE))):
        yield part


async def _compare(ledger: Connection, wanted: Wanted, report: _Report) -> None:
    """Compare and set: what the merchant believed there to be must be so."""
    for row, sku, expected, there in await products.mismatches(ledger, wanted.merchant):
        is_now = "is not known" if there is None else f"is {there}"
        report.add(
            fault(row, "Expected Inventory Qty", "stock-changed", f"the stock of {sku} {is_now}, not {expected}")
        )


async def _offer(
    ledger: Connection, valkey: redis.asyncio.Redis | None, wanted: Wanted, report: _Report
) -> list[StockEdit]:
    """The ledger's part of putting the products into the sale; answers the supplies to be set afterwards."""
    assert wanted.sale is not None and valkey is not None  # noqa: S101
    await merchandising.lock_sales(ledger)
    file = await merchandising.stored_file(ledger, wanted.sale)
    there = [each async for each in products.staged_products(ledger, wanted.merchant, wanted.market)]
    made: Merged = await asyncio.to_thread(merged, file, wanted.merchant, wanted.market, there)
    for finding in made.findings:
        report.add(finding)
    edits = await _compare_supplies(valkey, wanted.sale, made.edits, report)
    if report.outcome.faults:
        return []
    report.outcome.offers = made.added
    try:
        text = text_of(made.file)
        changed = await asyncio.to_thread(parse_sale_file, text, f"{wanted.sale}.toml")
        await merchandising.store_file(ledger, changed.with_id(wanted.sale), text)
    except SaleFileFaults as faults:
        for each in faults.faults:
            report.add(fault(1, "", "not-a-sale", f"{each.field}: {each.message}"))
    return edits


async def _compare_supplies(
    valkey: redis.asyncio.Redis, sale_id: str, edits: list[StockEdit], report: _Report
) -> list[StockEdit]:
    """The edits that are to be made still: a supply may be as asked for already, set by a worker that died of it."""
    if not edits:
        return edits
    view = await merchandising.show(valkey, sale_id)
    sale: Sale = view.sale
    left = []
    for edit in edits:
        offer = sale.by_sku.get(edit.sku)
        supply = None if offer is None else view.state.supply[offer.index]
        if supply == edit.expect:
            left.append(edit)
        elif supply != edit.to:
            is_now = "is not known" if supply is None else f"is {supply}"
            report.add(
                fault(edit.row, "Expected Inventory Qty", "stock-changed",
                      f"the supply of {edit.sku} in {sale_id} {is_now}, not {edit.expect}")
            )  # fmt: skip
    return left


async def take_in_stored(ledger: Connection, valkey: redis.asyncio.Redis, found: ImportRow) -> ImportRow:
    """Takes a stored import in, and writes down what became of it."""
    said: list[bytes] = []

    def say(finding: Finding) -> None:
        if len(said) < FINDINGS_KEPT:
            said.append(msgspec.json.encode(finding))

    wanted = Wanted(found.merchant, found.market, found.sale, found.decimal_mark, found.dry_run)
    with await imports.file_of(ledger, found.number) as file:
        try:
            outcome = await take_in(ledger, valkey, cast("BinaryIO", file), wanted, say=say)
        except CommandRefused as refused:
            outcome = Outcome(error=str(refused))
    status = "failed" if outcome.error and not outcome.applied else "applied" if outcome.applied else "checked"
    ended = replace(
        found,
        status="faulty" if outcome.faults and not outcome.applied else status,
        rows=outcome.rows,
        created=outcome.created,
        updated=outcome.updated,
        unchanged=outcome.unchanged,
        offers=outcome.offers,
        faults=outcome.faults,
        warnings=outcome.warnings,
        error=outcome.error,
    )
    async with ledger.transaction():
        await imports.end(ledger, ended, b"".join(line + b"\n" for line in said), _now_ms())
    return ended


def importer(redis_url: str) -> Callable[[Connection, ImportRow], Awaitable[ImportRow]]:
    """What a worker applies an import with."""

    async def apply(ledger: Connection, found: ImportRow) -> ImportRow:
        valkey = server.connect(redis_url, answer_timeout_s=ANSWER_TIMEOUT_S)
        try:
            return await take_in_stored(ledger, valkey, found)
        finally:
            await valkey.aclose()

    return apply


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
