"""What Valkey alone knew, taken into the ledger before Valkey is rebuilt from it: all in one transaction.

Where the journal goes on at the mark it says everything, and is stored as by the ledger writer (survivors.py). Behind a
gap orders are taken in by themselves, and the counters, windows and suspensions of the newer side are written as
movements of this moment. Orders of which only a hold is left can't be made again: they are named, and their units set
aside, so that nobody else gets what was promised.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import asyncpg

from flashsale.ledger import held, life, movements, orders, partitions
from flashsale.ledger.movements import MovementRow
from flashsale.ledger.sales import SaleRow, adopt
from flashsale.recovery.survey import AHEAD, LOST, Kin, Survey, ranks
from flashsale.recovery.writing import SaleWindowState, replayed
from flashsale.reservation import holds
from flashsale.reservation.commands import SaleState
from flashsale.sale.catalogue import Sale
from flashsale.sale.lifecycle import LETTERS, UNITS, Units
from flashsale.sale.salefile import SaleFile
from flashsale.sale.salefile_text import text_of

EntryId = tuple[int, int]
BySku = dict[int, int]

_STATUSES = {letter: status for status, letter in LETTERS.items()}
_BACK = [letter for letter, status in _STATUSES.items() if UNITS[status] is Units.RELEASED]


@dataclass(frozen=True, slots=True)
class Taken:
    """Orders and sales that the ledger got, orders that were named as lost, SKUs that were promised twice."""

    orders: int = 0
    sales: int = 0
    lost: int = 0
    twice: int = 0


async def take_in(
    ledger: asyncpg.Connection[asyncpg.Record], found: Survey, channels: dict[str, int], version: int
) -> Taken:
    """Stores what can be stored and names the rest. `channels`: their numbers; `version`: of the catalogue that is in
    force from here on. Call it in a transaction, in which the
    partition's row is locked. Done again it finds nothing."""
    adopted = []
    if found.kin is not Kin.STRANGER:
        for sale in found.only_sales:
            await adopt(ledger, _row_of(sale), [offer.sku for offer in sale.offers])
            adopted.append(sale)
    await _name_lost(ledger, found)
    taken_in = await _take_orders(ledger, found)
    began = found.known.mark
    base = max(found.known.mark, found.last)
    written = max(found.known.mark_bytes, found.state.written if found.state is not None else 0)
    journal = _Journal(found.known.id, base)
    if found.takes_counters:
        await _take_counters(ledger, found, channels, journal, began, taken_in > 0)
        for sale in adopted:
            if sale.id not in found.states:
                _begin_anew(journal, sale, channels, await _first(ledger, sale.number))
    if found.gap:
        await movements.store(ledger, journal.rows)
        await life.pay_collected(ledger, found.known.id, (0, 0), journal.last)
    twice = await _cover_promises(ledger, found, channels, journal)
    known = await partitions.get(ledger, found.known.id)
    assert known is not None  # noqa: S101  the caller holds its row
    moved = await partitions.move_mark(ledger, known, journal.last, written if found.gap else known.mark_bytes, version)
    assert moved  # noqa: S101  its row is locked
    return Taken(taken_in, len(adopted), found.lost, twice)


def _row_of(sale: Sale) -> SaleRow:
    """The sale as the sale commands would have stored it: its file is written from what Valkey's catalogue says."""
    file = SaleFile(
        sale.id, sale.name, sale.opens_at_ms, sale.closes_at_ms, sale.hold_ms, sale.offers, f"{sale.id}.toml", {},
        sale.extension_ms, sale.return_ms, sale.return_quota, sale.ships_from,
    )  # fmt: skip
    return SaleRow(sale.number, sale.id, sale.key, text_of(file))


class _Journal:
    """Movements that no journal has, each at an id of its own behind the newest."""

    def __init__(self, partition: int, base: EntryId) -> None:
        self.rows: list[MovementRow] = []
        self.last = base
        self._partition = partition

    def add(self, kind: str, sale: int, sku: int | None, units: int | None, **detail: object) -> None:
        self.last = (self.last[0], self.last[1] + 1)
        self.at(self.last, kind, sale, sku, units, **detail)

    def at(self, entry: EntryId, kind: str, sale: int, sku: int | None, units: int | None, **detail: object) -> None:
        self.rows.append(MovementRow(self._partition, *entry, kind, sale, sku, units, None, json.dumps(detail)))


async def _take_orders(ledger: asyncpg.Connection[asyncpg.Record], found: Survey) -> int:
    """The orders that stand in the journal, whole, and in no ledger."""
    if not found.gap:
        return 0  # the journal goes on at the mark: it was stored already, movements and all
    status = await ledger.execute(
        "INSERT INTO orders SELECT DISTINCT ON (id) s.* FROM survivor AS s WHERE s.sale = ANY ($1::int4[])"
        " AND NOT EXISTS (SELECT FROM orders AS o WHERE o.id = s.id) ORDER BY id",
        found.numbers,
    )
    return int(status.rpartition(" ")[2])


async def _name_lost(ledger: asyncpg.Connection[asyncpg.Record], found: Survey) -> None:
    """Each order of which a hold is all that is left, and each whose newest status is lost."""
    letters, statuses = [], []
    for letter, status in _STATUSES.items():
        letters += [letter, letter.upper()]
        statuses += [status.value] * 2
    names = {number: sale_id for sale_id, number in found.ids.items()}
    into = (
        "INSERT INTO lost_order (id, sale, sale_id, status, known, journal_ms, journal_seq)"
        " SELECT h.id, h.sale, n.name, l.status, {known}, h.journal_ms, h.journal_seq FROM ({which}) AS h"
        " JOIN unnest(${first}::text[], ${second}::text[]) AS l (letter, status) ON l.letter = h.letter"
        " JOIN unnest(${third}::int4[], ${fourth}::text[]) AS n (number, name) ON n.number = h.sale"
        " ON CONFLICT DO NOTHING"
    )
    named = (letters, statuses, list(names), list(names.values()))
    await ledger.execute(
        into.format(known="false", which=LOST, first=2, second=3, third=4, fourth=5), found.numbers, *named
    )
    if found.gap and found.kin is not Kin.STRANGER:
        ahead = f"SELECT a.id, a.sale, a.letter, a.journal_ms, a.journal_seq FROM ({AHEAD}) AS a"  # noqa: S608
        await ledger.execute(
            into.format(known="true", which=ahead, first=5, second=6, third=7, fourth=8), *ranks(), *named
        )


async def _take_counters(
    ledger: asyncpg.Connection[asyncpg.Record],
    found: Survey,
    channels: dict[str, int],
    journal: _Journal,
    began: EntryId,
    with_orders: bool,
) -> None:
    """Supplies, guarantees, windows and suspensions as the newer Valkey has them."""
    partition, for_ever = found.known.id, (2**53, 0)
    supplied = await movements.supplies(ledger, partition, for_ever)
    taken = await orders.taken_units(ledger, partition, for_ever)
    released = await movements.released_units(ledger, partition, for_ever)
    guarantees = await held.guarantees_left(ledger, partition, for_ever, channels)
    states = replayed(await movements.of_sales(ledger, partition))
    for sale_id, state in found.states.items():
        number = found.ids[sale_id]
        if number not in found.numbers:
            continue  # nobody can say what it sold
        if found.kin is Kin.BRANCH and all(sale.number != number for sale in found.only_sales):
            continue  # the ledger's own story of that sale went on
        _set_window(journal, number, states.get(number), state, began, with_orders, await _first(ledger, number))
        old = supplied.get(number, {})
        for sku, supply in enumerate(state.supply):
            if supply != old.get(sku, 0):
                journal.add("adjust" if sku in old else "create", number, sku, supply - old.get(sku, 0), supply=supply)
        left = guarantees.get(number, {})
        for sku, channel in sorted(left.keys() | state.guarantees.keys()):
            change = state.guarantees.get((sku, channel), 0) - left.get((sku, channel), 0)
            if change:
                journal.add("move", number, sku, -change, channel=channel)
        lost = await _lost_units(ledger, found, number, state, taken.get(number, {}), released.get(number, {}))
        for sku, units in lost.items():
            journal.add("adjust", number, sku, -units, supply=state.supply[sku] - units, lost=True)
        if lost and found.catalogue is not None and (sale := found.catalogue.by_number(number)) is not None:
            units_of = {sale.offers[sku].sku: units for sku, units in lost.items() if sku < len(sale.offers)}
            await ledger.execute(
                "UPDATE lost_order SET units = $2 WHERE sale = $1 AND NOT known AND units IS NULL",
                number, json.dumps(units_of),
            )  # fmt: skip


def _begin_anew(journal: _Journal, sale: Sale, channels: dict[str, int], first: EntryId | None) -> None:
    """A sale whose counters can't be read, and that the ledger never knew: as its file made it."""
    _open_window(journal, sale.number, first, opens_at=sale.opens_at_ms, closes_at=sale.closes_at_ms)
    for offer in sale.offers:
        journal.add("create", sale.number, offer.index, offer.stock)
        for channel, units in offer.guarantees.items():
            if channel in channels:
                journal.add("move", sale.number, offer.index, -units, channel=channels[channel])


def _open_window(journal: _Journal, number: int, first: EntryId | None, **window: int) -> None:
    """The sale's window from before its first order on."""
    start = journal.last if first is None else (first[0] - 1, 0)
    journal.at(min(start, journal.last), "create", number, None, None, **window)


async def _first(ledger: asyncpg.Connection[asyncpg.Record], number: int) -> EntryId | None:
    """The place of the sale's first order in the journal."""
    row = await ledger.fetchrow(
        "SELECT journal_ms, journal_seq FROM orders WHERE sale = $1 ORDER BY journal_ms, journal_seq LIMIT 1", number
    )
    return None if row is None else (row[0], row[1])


def _set_window(
    journal: _Journal,
    number: int,
    old: SaleWindowState | None,
    state: SaleState,
    began: EntryId,
    with_orders: bool,
    first: EntryId | None,
) -> None:
    """The sale's window and state. Orders that were taken in were decided while it was open: it is called so from the
    mark on, and what it is now from now on."""
    window = {"opens_at": state.opens_at_ms, "closes_at": state.closes_at_ms}
    if old is None:
        _open_window(journal, number, first, **window)
        old = SaleWindowState("open", state.opens_at_ms, state.closes_at_ms)
    elif with_orders and (old.status != "open" or old.suspended or old.closes_at < state.closes_at_ms):
        at = (began[0], began[1] + 1)
        journal.at(at, "status", number, None, None, status="open", **window)
        for sku in sorted(old.suspended):
            journal.at(at, "unsuspend", number, sku, None)
        old = SaleWindowState("open", state.opens_at_ms, state.closes_at_ms)
    if (old.status, old.opens_at, old.closes_at) != (state.status, state.opens_at_ms, state.closes_at_ms):
        journal.add("status", number, None, None, status=state.status, **window)
    for sku in sorted(old.suspended - state.suspended):
        journal.add("unsuspend", number, sku, None)
    for sku in sorted(state.suspended - old.suspended):
        journal.add("suspend", number, sku, None)


async def _lost_units(
    ledger: asyncpg.Connection[asyncpg.Record],
    found: Survey,
    number: int,
    state: SaleState,
    taken: BySku,
    released: BySku,
) -> BySku:
    """Units that the sale's lost orders hold, by offer index: what Valkey calls taken and no order has."""
    if not await ledger.fetchval(
        f"SELECT EXISTS (SELECT FROM ({LOST}) AS lost WHERE sale = $2)",  # noqa: S608
        found.numbers,
        number,
    ):
        return {}
    # Orders whose units Valkey had back already, while the ledger still calls them held.
    back = await ledger.fetch(
        "SELECT line.sku, sum(line.units)::int8 FROM held AS h JOIN orders AS o ON o.id = h.id"
        " CROSS JOIN unnest(o.skus, o.quantities) AS line (sku, units)"
        " WHERE h.sale = $1 AND lower(h.letter) = ANY ($2::text[]) AND NOT o.status = ANY ($3::text[])"
        " GROUP BY line.sku",
        number, _BACK, [holds.status_of(letter).value for letter in _BACK],
    )  # fmt: skip
    also: Counter[int] = Counter({row[0]: row[1] for row in back})
    lost = {}
    for sku, supply in enumerate(state.supply):
        gone = supply - state.available[sku] if sku < len(state.available) else 0
        units = gone - (taken.get(sku, 0) - released.get(sku, 0)) + also[sku]
        free = supply - (taken.get(sku, 0) - released.get(sku, 0)) - _sum(state, sku)
        if min(units, free) > 0:
            lost[sku] = min(units, free)
    return lost


def _sum(state: SaleState, sku: int) -> int:
    return sum(units for (of, _), units in state.guarantees.items() if of == sku)


async def _cover_promises(
    ledger: asyncpg.Connection[asyncpg.Record], found: Survey, channels: dict[str, int], journal: _Journal
) -> int:
    """SKUs of which more is promised than there is, two stories having sold the same units: their supply becomes what
    is promised, for both have a word. Returns how many."""
    if not found.gap:
        return 0
    partition, for_ever = found.known.id, (2**53, 0)
    supplied = await movements.supplies(ledger, partition, for_ever)
    taken = await orders.taken_units(ledger, partition, for_ever)
    released = await movements.released_units(ledger, partition, for_ever)
    left = await held.guarantees_left(ledger, partition, for_ever, channels)
    first = len(journal.rows)
    for number in supplied.keys() | taken.keys():
        of, gone = supplied.get(number, {}), taken.get(number, {})
        for sku in of.keys() | gone.keys():
            guaranteed = sum(units for (each, _), units in left.get(number, {}).items() if each == sku)
            free = of.get(sku, 0) - gone.get(sku, 0) + released.get(number, {}).get(sku, 0) - guaranteed
            if free < 0:
                journal.add("adjust", number, sku, -free, supply=of.get(sku, 0) - free, twice=True)
    added = journal.rows[first:]
    await movements.store(ledger, added)
    return len(added)
