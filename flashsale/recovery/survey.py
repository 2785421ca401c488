"""What Valkey knows that the ledger does not: looked at before anything is rebuilt, changing nothing.

The comparison lies in temporary tables of the ledger's connection: `held` (every hold in Valkey) and `survivor` (every
order that stands in the journal, whole). A hold says who an order is, not what it is: only the journal says that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum

import asyncpg
import redis.asyncio
from redis.exceptions import ResponseError

from flashsale.ledger import partitions, sales
from flashsale.ledger.partitions import Partition
from flashsale.ledger.sales import SaleRow
from flashsale.pipeline.journal_rows import read_journal
from flashsale.pipeline.ledger_writer import copy_carefully
from flashsale.recovery import before, catalogues
from flashsale.recovery.valkey import KEYS_A_SCAN, answer
from flashsale.recovery.verdict import last_entry
from flashsale.reservation import commands, holds, keys
from flashsale.reservation.commands import PartitionState, SaleState
from flashsale.reservation.movements import Entry, VersionSet
from flashsale.sale.catalogue import Catalogue, Sale
from flashsale.sale.lifecycle import LETTERS

EntryId = tuple[int, int]

HOLDS_A_COPY = 5000  # lines of COPY text that are gathered: half a megabyte
ENTRIES_A_READ = 100  # of the journal: a full batch each is some 10 MB

_TABLES = (
    "DROP TABLE IF EXISTS held, survivor;"
    'CREATE TEMP TABLE held (id text COLLATE "C", sale int4, letter text, journal_ms int8, journal_seq int8);'
    "CREATE TEMP TABLE survivor (LIKE orders INCLUDING DEFAULTS INCLUDING GENERATED)"
)
_NO_ROW = "NOT EXISTS (SELECT FROM orders AS o WHERE o.id = h.id)"
# One that PostgreSQL refused is named already: its line lies there, whole.
_NO_LETTER = "NOT EXISTS (SELECT FROM dead_letter AS d WHERE encode(substr(d.record, 1, 30), 'escape') = h.id)"
_NO_SURVIVOR = "NOT EXISTS (SELECT FROM survivor AS s WHERE s.id = h.id AND s.sale = ANY ($1::int4[]))"
LOST = f"SELECT h.* FROM held AS h WHERE {_NO_ROW} AND {_NO_LETTER} AND {_NO_SURVIVOR}"  # noqa: S608
"""SQL: the holds of which neither ledger nor journal has the order. $1: the sales whose survivors are taken in."""

AHEAD = (
    "SELECT h.*, o.status FROM held AS h JOIN orders AS o ON o.id = h.id"
    " JOIN unnest($1::text[], $2::int4[]) AS v (letter, rank) ON v.letter = lower(h.letter)"
    " JOIN unnest($3::text[], $4::int4[]) AS l (status, rank) ON l.status = o.status WHERE v.rank > l.rank"
)
"""SQL: the holds that say a later status than the ledger. $1 and $2: letters and their ranks, $3 and $4: the same of
statuses."""


class Kin(Enum):
    """What Valkey's data are to the ledger's. LINE: Valkey's is the same story, perhaps further on. BRANCH: one story
    once, and each went on by itself. STRANGER: another engine's."""

    LINE = "line"
    BRANCH = "branch"
    STRANGER = "stranger"


@dataclass(slots=True)
class Survey:
    """What was found. `gap`: the journal does not go on where the ledger's mark stands, for its beginning is cut."""

    known: Partition
    state: PartitionState | None
    phase: str
    told: bool
    last: EntryId
    gap: bool
    rows: dict[int, SaleRow]
    """The ledger's sales, by number."""
    kin: Kin = Kin.LINE
    catalogue: Catalogue | None = None
    """Valkey's newest that can be read."""
    ids: dict[str, int] = field(default_factory=dict)
    """Numbers of the sales that Valkey has holds or counters of, by their ids."""
    states: dict[str, SaleState] = field(default_factory=dict)
    """Counters, by the sale's id; without those that can't be read."""
    unreadable: list[str] = field(default_factory=list)
    """Sales whose counters are absent or no numbers."""
    only_sales: list[Sale] = field(default_factory=list)
    only_versions: list[int] = field(default_factory=list)
    version: int = 0
    """The newest catalogue version that the journal behind the mark put in force; 0: none."""
    survivors: int = 0
    """Orders in the journal that the ledger has not."""
    lost: int = 0
    ahead: int = 0

    @property
    def numbers(self) -> list[int]:
        """The sales whose surviving orders the ledger can take."""
        adopted = [sale.number for sale in self.only_sales] if self.kin is not Kin.STRANGER else []
        return [*self.rows, *adopted] if self.kin is not Kin.STRANGER else []

    @property
    def takes_counters(self) -> bool:
        """Whether Valkey's counters are newer than what the ledger and the journal say: all, or of a sale that it alone
        knows."""
        return self.gap and (self.kin is Kin.LINE or (self.kin is Kin.BRANCH and bool(self.only_sales)))

    def doubts(self) -> list[str]:
        """What a rebuild would lose or take over that nobody told it to, a line each."""
        lines = []
        if self.kin is Kin.STRANGER and self.catalogue is not None and self.catalogue.sales:
            named = ", ".join(sale.id for sale in self.catalogue.sales[:5])
            lines.append(f"Valkey's sales ({named}) are not this ledger's: it is another engine's")
        elif self.only_sales:
            named = ", ".join(sale.id for sale in self.only_sales[:5])
            lines.append(f"Valkey alone knows {_counted(len(self.only_sales), 'sale')}: {named}")
        if self.lost:
            lines.append(f"Valkey alone knows {_counted(self.lost, 'order')}, of which nothing else is left")
        if self.gap and self.survivors:
            lines.append(f"Valkey's journal alone has {_counted(self.survivors, 'order')} behind a gap")
        if self.ahead:
            lines.append(f"Valkey knows a later status of {_counted(self.ahead, 'order')}")
        return lines


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


async def survey(client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], partition: int) -> Survey:
    """Looks at both sides. The temporary tables stay until the next look or the connection's end."""
    known = await partitions.ensure(ledger, partition)
    here = await before.look(client, partition)
    rows = {row.number: row for row in await sales.all_sales(ledger)}
    last = await last_entry(client, partition)
    gap = await _gap(client, known, here.state)
    found = Survey(known, here.state, here.phase, here.told, last, gap, rows)
    await _relate(client, ledger, found)
    await _read_counters(client, partition, found)
    await ledger.execute(_TABLES)
    await _copy_holds(client, ledger, partition, found)
    await _copy_journal(client, ledger, partition, found)
    await ledger.execute("ANALYZE held; ANALYZE survivor")
    await _compare(ledger, found)
    return found


async def _gap(client: redis.asyncio.Redis, known: Partition, state: PartitionState | None) -> bool:
    """Whether the entries that follow the mark in Valkey's journal are not the ones that were written next."""
    try:
        first = await answer(client.xrange(keys.journal(known.id), min=f"({known.mark[0]}-{known.mark[1]}", count=1))
    except ResponseError:
        first = []
    if first:
        (_, fields), *_ = first
        payload = fields.get(b"o", fields.get(b"m", b""))
        written = fields.get(b"w", b"")
        if written.isdigit():
            return int(written) - len(payload) != known.mark_bytes
    return state is not None and state.trimmed > known.mark_bytes


async def _relate(client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], found: Survey) -> None:
    """Whose data Valkey's are, and which sales and catalogue versions it alone has."""
    in_valkey = await catalogues.in_valkey(client)
    in_force = found.state.version if found.state is not None else 0
    for version in sorted(in_valkey, key=lambda each: (each == in_force, each), reverse=True):
        found.catalogue = await catalogues.from_valkey(client, version)
        if found.catalogue is not None:
            break
    if found.catalogue is None:
        return
    by_id = {row.id: row for row in found.rows.values()}
    for sale in found.catalogue.sales:
        row = found.rows.get(sale.number, by_id.get(sale.id))
        if row is None:
            found.only_sales.append(sale)
        elif (row.number, row.id, row.key) != (sale.number, sale.id, sale.key):
            found.kin = Kin.STRANGER
    if found.rows and found.catalogue.sales and len(found.only_sales) == len(found.catalogue.sales):
        found.kin = Kin.STRANGER
    if found.kin is Kin.STRANGER:
        return
    stored = await catalogues.versions(ledger)
    found.only_versions = sorted(in_valkey - stored)
    if found.gap and found.state is not None and found.state.epoch < found.known.epoch and not found.phase:
        found.kin = Kin.BRANCH
    elif found.gap and found.catalogue.version in stored:
        theirs = await catalogues.from_ledger(ledger, found.catalogue.version)
        if theirs is not None and theirs != found.catalogue:
            found.kin = Kin.BRANCH


async def _read_counters(client: redis.asyncio.Redis, partition: int, found: Survey) -> None:
    """Which sales Valkey has keys of, and their counters."""
    prefix = f"{keys.tag(partition)}:"
    numbers = {row.id: row.number for row in found.rows.values()}
    if found.catalogue is not None:
        numbers |= {sale.id: sale.number for sale in found.catalogue.sales}
    async for name in client.scan_iter(match=f"{prefix}*:*", count=KEYS_A_SCAN):
        sale_id, _, kind = name.decode("utf-8", "replace").removeprefix(prefix).rpartition(":")
        if kind not in ("holds", "state"):
            continue
        if sale_id not in numbers:  # no catalogue that can be read names it: its own hash may
            numbers[sale_id] = await _own_number(client, partition, sale_id)
        found.ids[sale_id] = numbers[sale_id]
    for sale_id in found.ids:
        try:
            state = await commands.read_state(client, sale_id, partition)
        except (LookupError, ValueError, ResponseError):
            found.unreadable.append(sale_id)
            continue
        if state is not None:
            found.states[sale_id] = state


async def _own_number(client: redis.asyncio.Redis, partition: int, sale_id: str) -> int:
    """The number that a sale's own hash says; 0, which is no sale's, where it says none."""
    try:
        value = await answer(client.hget(keys.state(partition, sale_id), "number"))
    except ResponseError:
        return 0
    return int(value) if value is not None and value.isdigit() else 0


async def _copy_holds(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    partition: int,
    found: Survey,
) -> None:
    lines: list[str] = []
    for sale_id, number in found.ids.items():
        prefix = f"{partition:02x}{number:04x}"
        try:
            async for used_id, value in commands.each_field(client, keys.holds(partition, sale_id)):
                try:
                    hold = holds.unpack(value)
                    holds.rank(hold.letter)
                except (struct.error, KeyError):  # no hold: the audit names what an order then lacks
                    continue
                lines.append(f"{prefix}{used_id.hex()}\t{number}\t{hold.letter}\t{hold.entry_ms}\t{hold.entry_seq}\n")
                if len(lines) == HOLDS_A_COPY:
                    await _copy(ledger, lines)
        except ResponseError:  # a key that is no hash
            continue
    await _copy(ledger, lines)


async def _copy(ledger: asyncpg.Connection[asyncpg.Record], lines: list[str]) -> None:
    if lines:
        source = memoryview("".join(lines).encode())
        await ledger.copy_to_table("held", source=source, format="text")  # type: ignore[arg-type]  # any buffer will do
        lines.clear()


async def _copy_journal(
    client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], partition: int, found: Survey
) -> None:
    """The journal's orders, and what else it says that has to be known beforehand. One that speaks of a sale that
    nobody knows can't be stored as a whole: it is gone through order by order, as one with a gap."""
    after = (0, 0)
    while True:
        try:
            items = await read_journal(client, partition, after, ENTRIES_A_READ)
        except ResponseError:  # a key that is no stream
            return
        if not items:
            return
        async with ledger.transaction():
            await copy_carefully(ledger, partition, items, "survivor")
        for item in items:
            if (
                isinstance(item, Entry)
                and isinstance(item.movement, VersionSet)
                and found.known.mark < (item.ms, item.seq)
            ):
                found.version = max(found.version, item.movement.version)
        after = (items[-1].ms, items[-1].seq)


async def _compare(ledger: asyncpg.Connection[asyncpg.Record], found: Survey) -> None:
    numbers = found.numbers
    found.gap = found.gap or await ledger.fetchval(
        "SELECT EXISTS (SELECT FROM survivor WHERE NOT sale = ANY ($1::int4[])"
        " AND (journal_ms, journal_seq) > ($2::int8, $3::int8))",
        numbers, *found.known.mark,
    )  # fmt: skip
    found.lost = await ledger.fetchval(f"SELECT count(*) FROM ({LOST}) AS lost", numbers)  # noqa: S608
    found.survivors = await ledger.fetchval(
        "SELECT count(DISTINCT id) FROM survivor AS s WHERE sale = ANY ($1::int4[])"
        " AND NOT EXISTS (SELECT FROM orders AS o WHERE o.id = s.id)",
        numbers,
    )
    if found.gap and found.kin is not Kin.STRANGER:
        found.ahead = await ledger.fetchval(f"SELECT count(*) FROM ({AHEAD}) AS ahead", *ranks())  # noqa: S608


def ranks() -> tuple[list[str], list[int], list[str], list[int]]:
    """What AHEAD asks for: letters and their ranks, statuses and their ranks."""
    letters = list(LETTERS.values())
    ranked = [holds.rank(letter) for letter in letters]
    return letters, ranked, [status.value for status in LETTERS], ranked
