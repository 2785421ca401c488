"""What of the journal becomes rows of the ledger: orders as lines of COPY text, movements, and what the outbox hears.

Good records are never decoded: they are lines of COPY text already, to which the journal entry's id is put. Relies on
`reservation` for the journal's entries and on `ledger` for the shapes of the rows; stores nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis.asyncio

from flashsale.ledger.movements import MovementRow
from flashsale.reservation import keys
from flashsale.reservation.movements import (
    Adjusted,
    Created,
    Entry,
    EpochSet,
    Granted,
    Movement,
    PoolMoved,
    Released,
    ReleasedOrder,
    ReservedAgain,
    StatusSet,
    Suspended,
    Unsuspended,
    VersionSet,
    decode_entry,
    parse_entry_id,
)

OUTBOX_MAX = 2**63 - 1  # PostgreSQL's bigint


class Damaged(NamedTuple):
    """A journal entry that the scripts did not write; `payload`: its fields as they stand."""

    ms: int
    seq: int
    payload: bytes
    error: str


JournalItem = Entry | Damaged


class Line(NamedTuple):
    """One order's record, with its newline, and its place: journal id and which of the entry's lines, from 0."""

    ms: int
    seq: int
    number: int
    record: bytes


async def read_journal(
    client: redis.asyncio.Redis, partition: int, after: tuple[int, int], count: int, block_ms: int | None = None
) -> list[JournalItem]:
    """At most `count` entries behind `after`, oldest first; waits up to `block_ms` for the first one."""
    answer: Any = await client.xread({keys.journal(partition): f"{after[0]}-{after[1]}"}, count=count, block=block_ms)
    if not answer:
        return []
    found = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
    return [_item(entry_id, fields) for entry_id, fields in found]


def _item(entry_id: bytes, fields: dict[bytes, bytes]) -> JournalItem:
    try:
        return decode_entry(entry_id, fields)
    except ValueError as fault:
        payload = b" ".join(part for pair in fields.items() for part in pair)
        return Damaged(*parse_entry_id(entry_id), payload, str(fault))


def copy_text(partition: int, items: Sequence[JournalItem]) -> tuple[bytes, int]:
    """The entries' lines with their journal ids, and how many they are."""
    parts, count = [], 0
    for item in items:
        if isinstance(item, Entry) and item.records:
            records = _whole(item.records)
            count += records.count(b"\n")
            parts.append(records.replace(b"\n", _suffix(partition, item.ms, item.seq)))
    return b"".join(parts), count


def each_line(items: Sequence[JournalItem]) -> Iterable[Line]:
    """The entries' lines one by one."""
    for item in items:
        if isinstance(item, Entry) and item.records:
            for number, record in enumerate(_whole(item.records)[:-1].split(b"\n")):
                yield Line(item.ms, item.seq, number, record + b"\n")


def copy_text_of_lines(partition: int, lines: Iterable[Line]) -> bytes:
    """The same text of some lines."""
    return b"".join(line.record[:-1] + _suffix(partition, line.ms, line.seq) for line in lines)


def _suffix(partition: int, ms: int, seq: int) -> bytes:
    return b"\t%d\t%d\t%d\n" % (partition, ms, seq)


def _whole(records: bytes) -> bytes:
    """Records whose last line ends too: one without its newline must not run into the next entry's first."""
    return records if records.endswith(b"\n") else records + b"\n"


class Told(NamedTuple):
    """What the entries say of outbox rows: numbers of those that are done with, and whether those that asked for units
    again got them."""

    done: list[int]
    taken: dict[int, bool]


def told(items: Iterable[JournalItem]) -> Told:
    """What the outbox hears from these entries. A number that no row can have is not passed on: PostgreSQL would refuse
    the whole chunk for it, over and over."""
    heard = Told([], {})
    for item in items:
        movement = item.movement if isinstance(item, Entry) else None
        if isinstance(movement, Released | ReservedAgain) and 0 < movement.outbox <= OUTBOX_MAX:
            if isinstance(movement, Released):
                heard.done.append(movement.outbox)
            else:
                heard.taken[movement.outbox] = movement.taken
    return heard


def movement_rows(partition: int, items: Iterable[JournalItem]) -> list[MovementRow]:
    """The movements among the entries as rows, in the journal's order."""
    rows: list[MovementRow] = []
    for item in items:
        if isinstance(item, Entry) and item.movement is not None:
            rows += _rows_of(item.movement, partition, item.ms, item.seq)
    return rows


def _rows_of(movement: Movement, partition: int, ms: int, seq: int) -> list[MovementRow]:
    def row(
        kind: str, sale: int | None, sku: int | None, units: int | None, order: str | None = None, **detail: object
    ) -> MovementRow:
        return MovementRow(partition, ms, seq, kind, sale, sku, units, order, json.dumps(detail))

    def moved_beside(sale: int, of: ReleasedOrder | ReservedAgain, sign: int) -> list[MovementRow]:
        """What went back (or was taken again) beside the units: to guarantees, a lane's day, an import limit."""
        rows = [
            row("drawn", sale, sku, sign * units, of.order, channel=channel, number=of.number)
            for sku, channel, units in of.drawn
        ]
        if of.lane is not None:
            rows.append(row("lane", sale, None, sign, of.order, lane=of.lane[0], day=of.lane[1], number=of.number))
        if of.limit is not None:
            identity, year, amount = of.limit
            rows.append(
                row("limit", sale, None, sign * amount, of.order, identity=identity, year=year, number=of.number)
            )
        return rows

    match movement:
        case Created(sale, supply, opens_at, closes_at, guarantees):
            window = row("create", sale, None, None, opens_at=opens_at, closes_at=closes_at)
            supplied = [row("create", sale, sku, units) for sku, units in supply.items()]
            return [window, *supplied, *(row("move", sale, sku, -units, channel=to) for sku, to, units in guarantees)]
        case Adjusted(sale, sku, delta, supply):
            return [row("adjust", sale, sku, delta, supply=supply)]
        case Released(sale, outbox, orders):
            return [
                each
                for of in orders
                for each in (
                    *(
                        row(
                            "release", sale, sku, units, of.order,
                            number=of.number, outbox=outbox, quota_back=of.quota_back,
                        )
                        # Without lines no units moved, yet the hold knows this number from now on.
                        for sku, units in of.lines or ((None, None),)
                    ),
                    *moved_beside(sale, of, 1),
                )
            ]  # fmt: skip
        case ReservedAgain(sale, outbox, order, number, lines, taken, quota):
            named = {"number": number, "outbox": outbox, "quota_back": quota}
            if not taken:  # nothing moved, yet the hold knows this number from now on
                return [row("reserve_again", sale, None, None, order, **named)]
            again = [row("reserve_again", sale, sku, -units, order, **named) for sku, units in lines]
            return [*again, *moved_beside(sale, movement, -1)]
        case PoolMoved(sale, moves):
            return [row("move", sale, sku, units, channel=channel) for sku, channel, units in moves]
        case Granted(grant, recipient, agent, on):
            return [row("grant", None, None, None, grant=grant, recipient=recipient, agent=agent, on=on)]
        case StatusSet(sale, status, opens_at, closes_at):
            return [row("status", sale, None, None, status=status, opens_at=opens_at, closes_at=closes_at)]
        case Suspended(sale, sku):
            return [row("suspend", sale, sku, None)]
        case Unsuspended(sale, sku):
            return [row("unsuspend", sale, sku, None)]
        case VersionSet(version):
            return [row("version", None, None, None, version=version)]
        case EpochSet(epoch):
            return [row("epoch", None, None, None, epoch=epoch)]
