"""Checks of what Valkey decided: counters (I1), windows and suspensions (I2), quotas (I2 and I4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import SCAN, EntryId, Snapshot, copy_text
from flashsale.ledger import held
from flashsale.ledger.movements import MOVED, QUOTA_BACK
from flashsale.ledger.sales import SaleRow
from flashsale.recovery import limited_lines
from flashsale.reservation.commands import SaleState
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.identity import SaleIdentity

CLOCK_SLACK_MS = 100  # Redis 7.0 takes the entry's time after the decision's: a script's duration at most
FOR_EVER = 2**62


async def check_counters(look: Snapshot, sale: SaleRow, state: SaleState, channels: dict[str, int]) -> None:
    """I1: Valkey's counters are the ledger's sums up to the journal id read with them. I2: none is below 0. `channels`:
    their numbers."""
    upto = (sale.number, *state.last_entry)
    until = "sale = $1 AND (journal_ms, journal_seq) <= ($2::int8, $3::int8)"
    moved = f"SELECT sku, sum(units)::int8 FROM moved WHERE {until} AND sku IS NOT NULL"  # noqa: S608
    supplied = await _units(look, f"{moved} AND kind IN ('create', 'adjust') GROUP BY sku", *upto)
    released = await _units(look, f"{moved} AND {MOVED} GROUP BY sku", *upto)
    taken = await _units(
        look,
        "SELECT line.sku, sum(line.units)::int8 FROM seen, unnest(skus, quantities) AS line (sku, units)"  # noqa: S608
        f" WHERE {until} GROUP BY line.sku",
        *upto,
    )
    for sku in range(max([len(state.supply), *(sku + 1 for sku in (*supplied, *taken, *released))])):
        supply = state.supply[sku] if sku < len(state.supply) else 0
        available = state.available[sku] if sku < len(state.available) else 0
        gone = taken.get(sku, 0) - released.get(sku, 0)
        look.report.counts.units += gone
        name = {"sale": sale.id, "sku": look.sku(sale.number, sku)}
        if supply != supplied.get(sku, 0):
            look.fault("I1", f"supply is {supply} in Valkey, {supplied.get(sku, 0)} by the movements", **name)
        if supply != available + gone:
            look.fault("I1", f"supply {supply} is not available {available} + taken {gone} (ledger)", **name)
        if available < 0 or gone > supply:
            look.fault("I2", f"{gone} units are taken of {supply}", **name)
    by_ledger = {sku: supplied.get(sku, 0) - taken.get(sku, 0) + released.get(sku, 0) for sku in supplied}
    await _check_pools(look, sale, state, channels, by_ledger)


async def _check_pools(
    look: Snapshot, sale: SaleRow, state: SaleState, channels: dict[str, int], available: dict[int, int]
) -> None:
    """I1 of each pool: channels' guarantees, and what the common pool has beside them. `available`: of all pools of a
    SKU, by the ledger."""
    moved = "SELECT EXISTS (SELECT FROM moved WHERE sale = $1 AND kind IN ('move', 'drawn'))"
    if not state.guarantees and not await look.ledger.fetchval(moved, sale.number):
        return  # a sale without guarantees has one pool, which is counted already
    left = await held.guarantees_left(
        look.ledger, look.partition, state.last_entry, channels, orders="seen", movement="moved"
    )
    guarantees = left.get(sale.number, {})
    for sku, channel in sorted(guarantees.keys() | state.guarantees.keys()):
        units, known = guarantees.get((sku, channel), 0), state.guarantees.get((sku, channel), 0)
        if units != known or known < 0:
            detail = f"the guarantee of channel number {channel} has {known} units in Valkey, {units} by the ledger"
            look.fault("I1", detail, sale=sale.id, sku=look.sku(sale.number, sku))
    for sku in sorted({sku for sku, _ in guarantees} & available.keys()):
        units = available[sku] - sum(each for (of, _), each in guarantees.items() if of == sku)
        known = state.common[sku] if sku < len(state.common) else 0
        if units != known:
            detail = f"the common pool has {known} units in Valkey, {units} by the ledger"
            look.fault("I1", detail, sale=sale.id, sku=look.sku(sale.number, sku))


async def _units(look: Snapshot, query: str, *arguments: int) -> dict[int, int]:
    return {row[0]: row[1] for row in await look.ledger.fetch(query, *arguments)}


async def check_window(look: Snapshot, sale: SaleRow) -> None:
    """I2: every order was decided while the sale was open and its SKUs were not suspended."""
    rows = await look.ledger.fetch(
        "SELECT kind, sku, journal_ms, journal_seq, detail FROM moved WHERE sale = $1"
        " AND (kind IN ('status', 'suspend', 'unsuspend') OR (kind = 'create' AND sku IS NULL))"
        " ORDER BY journal_ms, journal_seq",
        sale.number,
    )
    windows = open_windows([(row[0], (row[2], row[3]), json.loads(row[4])) for row in rows])
    columns = [[window[column] for window in windows] for column in range(6)]
    for row in await look.ledger.fetch(
        "SELECT id FROM seen WHERE sale = $1 AND NOT EXISTS (SELECT FROM"  # noqa: S608
        " unnest($2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[])"
        " AS w (from_ms, from_seq, to_ms, to_seq, opens, closes)"
        " WHERE (journal_ms, journal_seq) > (from_ms, from_seq) AND (journal_ms, journal_seq) < (to_ms, to_seq)"
        f" AND journal_ms >= opens AND journal_ms < closes + {CLOCK_SLACK_MS:d}) LIMIT $8",
        sale.number, *columns, FAULTS_MAX,
    ):  # fmt: skip
        look.fault("I2", "accepted while the sale was not open", sale=sale.id, order=row[0])
    spans = suspended_spans([(row[0], row[1], (row[2], row[3])) for row in rows])
    if not spans:
        return
    columns = [[span[column] for span in spans] for column in range(5)]
    for row in await look.ledger.fetch(
        "SELECT id, s.sku FROM seen JOIN unnest($2::int2[], $3::int8[], $4::int8[], $5::int8[], $6::int8[])"
        " AS s (sku, from_ms, from_seq, to_ms, to_seq) ON s.sku = ANY (skus)"
        " AND (journal_ms, journal_seq) > (from_ms, from_seq) AND (journal_ms, journal_seq) < (to_ms, to_seq)"
        " WHERE sale = $1 LIMIT $7",
        sale.number, *columns, FAULTS_MAX,
    ):  # fmt: skip
        sku = look.sku(sale.number, row[1])
        look.fault("I2", "accepted while the SKU was suspended", sale=sale.id, sku=sku, order=row[0])


def open_windows(rows: Sequence[tuple[str, EntryId, dict[str, Any]]]) -> list[tuple[int, int, int, int, int, int]]:
    """(from ms, from sequence, to ms, to sequence, opens, closes) of each stretch of the journal in which the sale was
    open, from its movements (kind, journal id, detail) in the journal's order. The ends themselves are movements."""
    windows: list[tuple[int, int, int, int, int, int]] = []
    status, since, opens, closes = "", (0, 0), 0, 0
    for kind, entry, detail in [*rows, ("end", (FOR_EVER, 0), {})]:
        if kind in ("suspend", "unsuspend"):
            continue
        if status == "open":
            windows.append((*since, *entry, opens, closes))
        if kind == "end":
            break
        status = detail.get("status", status or "open")
        since, opens, closes = entry, detail["opens_at"], detail["closes_at"]
    return windows


def suspended_spans(rows: Sequence[tuple[str, int | None, EntryId]]) -> list[tuple[int, int, int, int, int]]:
    """(offer index, from ms, from sequence, to ms, to sequence) of each stretch of the journal in which an SKU was
    suspended, from the movements (kind, offer index, journal id) in the journal's order."""
    spans: list[tuple[int, int, int, int, int]] = []
    since: dict[int, EntryId] = {}
    for kind, sku, entry in rows:
        if kind == "suspend" and sku is not None:
            since.setdefault(sku, entry)
        elif kind == "unsuspend" and sku in since:
            spans.append((sku, *since.pop(sku), *entry))
    return [*spans, *((sku, *entry, FOR_EVER, 0) for sku, entry in since.items())]


async def check_quotas(look: Snapshot, sale: SaleRow, catalogues: dict[int, Catalogue]) -> None:
    """I2: nobody has more than the quota. I4: Valkey counts what the orders took."""
    quotas = {
        (version, number, sku): catalogues[version].by_number(number).offers[sku].quota  # type: ignore[union-attr]
        for version, number, sku in limited_lines(catalogues)
        if number == sale.number
    }
    limits = [(version, sku, quota) for (version, _, sku), quota in quotas.items()]
    columns = [[limit[column] for limit in limits] for column in range(3)]
    await look.ledger.execute(
        'CREATE TEMP TABLE used (field text COLLATE "C", shopper text, sku int2, least int8, most int8, now int8,'
        " quota int8)"
    )
    identity = SaleIdentity(look.partition, sale.number, sale.key)
    text: list[str] = []
    # What moved while the hash was scanned, it may know or not.
    async for shopper, sku, least, most, now, quota in look.ledger.cursor(
        "SELECT shopper, line.sku,"  # noqa: S608
        " coalesce(sum(line.units - coalesce(back.all_back, 0) + coalesce(back.early_again, 0)) FILTER"
        "  (WHERE (o.journal_ms, o.journal_seq) <= ($5::int8, $6::int8)), 0)::int8,"
        " sum(line.units - coalesce(back.early_back, 0) + coalesce(back.all_again, 0))::int8,"
        " sum(line.units - coalesce(back.all_back, 0) + coalesce(back.all_again, 0))::int8, max(quota)"
        " FROM seen AS o CROSS JOIN unnest(skus, quantities) AS line (sku, units)"
        " JOIN unnest($2::int4[], $3::int2[], $4::int8[]) AS q (version, sku, quota)"
        "  ON q.version = catalogue_version AND q.sku = line.sku"
        " LEFT JOIN (SELECT order_id, sku, sum(units) FILTER (WHERE units > 0) AS all_back,"
        "  -sum(units) FILTER (WHERE units < 0) AS all_again,"
        "  sum(units) FILTER (WHERE units > 0 AND early) AS early_back,"
        "  -sum(units) FILTER (WHERE units < 0 AND early) AS early_again"
        "  FROM (SELECT order_id, sku, units, (journal_ms, journal_seq) <= ($5::int8, $6::int8) AS early FROM moved"
        f"   WHERE sale = $1 AND {MOVED} AND {QUOTA_BACK}) AS moves GROUP BY order_id, sku) AS back"
        "  ON back.order_id = o.id AND back.sku = line.sku"
        " WHERE o.sale = $1 GROUP BY shopper, line.sku",
        sale.number, *columns, *look.since, prefetch=5000,
    ):  # fmt: skip
        name = shopper.replace("\\", "\\\\")
        text.append(f"{identity.quota_field(shopper, sku).hex()}\t{name}\t{sku}\t{least}\t{most}\t{now}\t{quota}\n")
        if len(text) == SCAN:
            await copy_text(look.ledger, "used", "".join(text))
            text.clear()
    await copy_text(look.ledger, "used", "".join(text))
    await look.ledger.execute("ANALYZE used")
    for row in await look.ledger.fetch(
        "SELECT shopper, sku, now, quota FROM used WHERE now > quota LIMIT $1", FAULTS_MAX
    ):
        sku = look.sku(sale.number, row[1])
        look.fault("I2", f"shopper {row[0]!r} has {row[2]} units, the quota is {row[3]}", sale=sale.id, sku=sku)
    for row in await look.ledger.fetch(
        "SELECT field, shopper, sku, q.units, least, most FROM used FULL JOIN"
        " (SELECT DISTINCT ON (field) field, units FROM quota WHERE sale = $1 ORDER BY field, units DESC) AS q"
        " USING (field) WHERE coalesce(q.units, 0) < coalesce(least, 0) OR coalesce(q.units, 0) > coalesce(most, 0)"
        " LIMIT $2",
        sale.number,
        FAULTS_MAX,
    ):
        sku_index = row[2] if row[2] is not None else int(row[0][-4:], 16)
        who = repr(row[1]) if row[1] is not None else "unknown to the ledger"
        detail = f"Valkey counts {row[3] or 0} units of shopper {who}, the orders {row[5] or 0}"
        look.fault("I4", detail, sale=sale.id, sku=look.sku(sale.number, sku_index))
    await look.ledger.execute("DROP TABLE used")
