"""The audit: supply, Valkey, journal and ledger compared, exact while selling and at rest.

Order of things: the newest journal id (`since`); Valkey's holds and quotas copied into temporary tables; counters and
newest journal id in one call (`until`); then one snapshot of the ledger, completed by what the journal still holds up
to `until`. Counters must agree at `until` to the unit. What was scanned in between must agree for every order up to
`since`, and may or may not know those between the two. PostgreSQL compares, so memory stays bounded at any size.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError

from flashsale.ledger import dead_letters, movements, partitions, sales
from flashsale.ledger.partitions import Partition
from flashsale.ledger.pool import CONNECTION_LOST, LedgerAway, connect
from flashsale.pipeline.journal_rows import movement_rows, read_journal
from flashsale.pipeline.ledger_writer import WRITER_LOCK, copy_carefully
from flashsale.recovery import last_entry, limited_lines
from flashsale.reservation import commands, keys, server
from flashsale.reservation.movements import Entry
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.identity import SaleIdentity

FAULTS_MAX = 100  # named of each kind: a broken sale breaks every order, and nobody reads a million lines
WAIT_S = 2.0  # for the writer to reach the snapshot; what it has not by then is read from the journal
POLL_S = 0.02
LEDGER_BACK_WITHIN_S = 5.0  # a PostgreSQL that was killed replays its log, and /readyz says nothing of it: orders go on
SCAN = 2000  # fields a HSCAN: Valkey is busy for less than a millisecond
SORT_MEMORY_MB = 64  # of PostgreSQL, a sort or join of the comparison; beyond it they use temporary files
JOURNAL_ENTRIES = 200  # journal entries a read
SNAPSHOTS_MAX = 20  # the writer trims while the rest of the journal is read: so often it is begun again
CLOCK_SLACK_MS = 100  # Redis 7.0 takes the entry's time after the decision's: a script's duration at most
FOR_EVER = 2**62

EntryId = tuple[int, int]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it must be. `invariant`: I1 to I7 of the design, or `unreachable`."""

    invariant: str
    detail: str
    sale: str | None = None
    sku: str | None = None
    order: str | None = None


@dataclass(slots=True)
class Counts:
    """`orders_ledger`: rows, `backlog`: orders in the journal alone, `units`: taken and not given back."""

    orders_valkey: int = 0
    orders_ledger: int = 0
    backlog: int = 0
    units: int = 0
    as_of: str = ""


@dataclass(slots=True)
class AuditReport:
    """What `flashsale audit --json` prints."""

    faults: list[Fault] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "faults": [asdict(fault) for fault in self.faults], "counts": asdict(self.counts)}


async def audit(
    redis_url: str, database_url: str, *, partition: int = 0, progress: Progress | None = None
) -> AuditReport:
    """Checks I1 to I4 and I7. Never raises for a server that is away: that is a fault, `unreachable`."""
    report = AuditReport()
    report.counts.as_of = _rfc3339(int(time.time() * 1000))
    client = server.connect(redis_url, connections=2)
    ledger: asyncpg.Connection[asyncpg.Record] | None = None
    try:
        try:
            await _answer(client.ping())
        except (OSError, RedisError) as fault:
            report.faults.append(Fault("unreachable", f"Valkey: {fault or type(fault).__name__}"))
        try:
            ledger = await _patiently_connected(database_url)
        except LedgerAway as away:
            report.faults.append(Fault("unreachable", str(away)))
        if ledger is not None and not report.faults:
            await _Audit(client, ledger, partition, report, progress or _silent).run()
    except (RedisError, OSError) as fault:
        report.faults.append(Fault("unreachable", f"lost while it was asked: {fault or type(fault).__name__}"))
    except CONNECTION_LOST as fault:
        report.faults.append(Fault("unreachable", f"PostgreSQL, while it was asked: {fault}"))
    finally:
        await client.aclose()
        if ledger is not None:
            ledger.terminate()  # takes the temporary tables with it
    return report


async def _patiently_connected(database_url: str) -> asyncpg.Connection[asyncpg.Record]:
    """A connection to the ledger. Raises LedgerAway if none can be had for LEDGER_BACK_WITHIN_S."""
    deadline = time.monotonic() + LEDGER_BACK_WITHIN_S
    while True:
        try:
            return await connect(database_url)
        except LedgerAway:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_S)


def _silent(step: str) -> None:
    """Nobody watches."""


class _Audit:
    def __init__(
        self,
        client: redis.asyncio.Redis,
        ledger: asyncpg.Connection[asyncpg.Record],
        partition: int,
        report: AuditReport,
        progress: Progress,
    ) -> None:
        self._client, self._ledger, self._partition = client, ledger, partition
        self._report, self._progress = report, progress
        self._sales: list[sales.SaleRow] = []
        self._skus: dict[int, list[str]] = {}
        self._states: dict[int, commands.SaleState] = {}
        self._unreadable: set[int] = set()
        self._since: EntryId = (0, 0)
        self._until: EntryId = (0, 0)

    # --- the snapshot ---

    async def run(self) -> None:
        valkey = await commands.read_partition(self._client, self._partition)
        known = await partitions.get(self._ledger, self._partition)
        epochs = (valkey.epoch if valkey is not None else None, known.epoch if known is not None else None)
        if epochs[0] != epochs[1] or known is None:
            self._fault("I1", f"Valkey is of epoch {epochs[0]}, the ledger of {epochs[1]}: `flashsale recover`")
            if known is None:
                return
        self._sales = await sales.all_sales(self._ledger)
        self._since = await last_entry(self._client, self._partition)
        await self._scan()
        await self._read_counters()
        await self._wait_for_writer()
        found = len(self._report.faults)
        for attempt in range(SNAPSHOTS_MAX):
            del self._report.faults[found:]
            snapshot = self._ledger.transaction(isolation="repeatable_read")
            await snapshot.start()
            try:
                gap = await self._load_backlog()
                if gap is not None and attempt < SNAPSHOTS_MAX - 1:
                    continue  # trimmed under our hands: the ledger has it now
                if gap is not None:
                    self._fault("I3", gap)
                self._skus = await sales.all_offers(self._ledger)
                await self._compare()
                return
            finally:
                await snapshot.rollback()

    async def _scan(self) -> None:
        """Copies holds and quotas, as hexadecimal text, into temporary tables."""
        await self._ledger.execute(
            f"SET work_mem = '{SORT_MEMORY_MB:d}MB';"
            'CREATE TEMP TABLE hold (sale int4, field text COLLATE "C", value text COLLATE "C");'
            'CREATE TEMP TABLE quota (sale int4, field text COLLATE "C", units int8)'
        )
        for sale in self._sales:
            self._progress(f"holds and quotas of {sale.id}")
            holds_key = keys.holds(self._partition, sale.id)
            await self._copy_hash(holds_key, "hold", lambda value: value.hex(), sale.number)
            await self._copy_hash(keys.quota(self._partition, sale.id), "quota", _decimal, sale.number)
        await self._ledger.execute("ANALYZE hold; ANALYZE quota")

    async def _copy_hash(self, key: str, table: str, shown: Callable[[bytes], str], sale: int) -> None:
        cursor = 0
        while True:
            cursor, fields = await _answer(self._client.hscan(key, cursor, count=SCAN))
            text = "".join(f"{sale}\t{name.hex()}\t{shown(value)}\n" for name, value in fields.items())
            await _copy_text(self._ledger, table, text)
            if cursor == 0:
                return

    async def _read_counters(self) -> None:
        """Each sale's counters with the newest journal id of that very instant."""
        self._until = self._since
        for sale in self._sales:
            try:
                state = await commands.read_state(self._client, sale.id, self._partition)
            except (KeyError, ValueError):
                await self._name_unreadable(sale)
                continue
            if state is not None:
                self._states[sale.number] = state
                self._until = max(self._until, state.last_entry)
                self._report.counts.as_of = _rfc3339(state.now_ms)

    async def _name_unreadable(self, sale: sales.SaleRow) -> None:
        """I1: counters that are absent or no numbers."""
        self._unreadable.add(sale.number)
        for index, sku in enumerate(await sales.offers(self._ledger, sale.number)):
            for name in (keys.supply, keys.stock):
                value = await _answer(self._client.hget(name(self._partition, sale.id), str(index)))
                if value is None or not value.isdigit():
                    said = f"{name.__name__} is {value!r} in Valkey, not a number of units"
                    self._fault("I1", said, sale=sale.id, sku=sku)

    async def _wait_for_writer(self) -> None:
        """Spares the reading of the backlog where a writer is at work."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and await self._ledger.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database AS d ON d.oid = database WHERE locktype = 'advisory'"
            " AND granted AND classid = $1::int8::oid AND objid = $2::int8::oid AND datname = current_database())",
            WRITER_LOCK, self._partition,
        ):  # fmt: skip
            known = await partitions.get(self._ledger, self._partition)
            if known is None or known.mark >= self._until:
                return
            await asyncio.sleep(POLL_S)

    async def _load_backlog(self) -> str | None:
        """`seen` and `moved`: orders and movements up to `until`, wherever they are now. Says so where the journal does
        not follow the ledger's mark without a gap."""
        known = await partitions.get(self._ledger, self._partition)
        assert known is not None  # noqa: S101  its row is never deleted
        await self._ledger.execute(
            "CREATE TEMP TABLE backlog (LIKE orders INCLUDING DEFAULTS);"
            "CREATE TEMP TABLE backlog_movement (LIKE movement)"
        )
        gap = await self._copy_journal(known)
        state = await commands.read_partition(self._client, self._partition)
        if gap is None and state is not None and state.trimmed > known.mark_bytes:
            gap = f"the journal is cut {state.trimmed - known.mark_bytes} bytes beyond the ledger's mark"
        ms, seq = self._until
        scope = f"partition = {self._partition:d} AND (journal_ms, journal_seq) <= ({ms:d}, {seq:d})"
        for view, table, more in (("seen", "orders", "backlog"), ("moved", "movement", "backlog_movement")):
            await self._ledger.execute(
                f"CREATE TEMP VIEW {view} AS SELECT * FROM public.{table} WHERE {scope}"  # noqa: S608  numbers of ours
                f" UNION ALL SELECT * FROM {more} WHERE {scope}"
            )
        return gap

    async def _copy_journal(self, known: Partition) -> str | None:
        after = known.mark
        written: int | None = known.mark_bytes
        while after < self._until:
            items = await read_journal(self._client, self._partition, after, JOURNAL_ENTRIES)
            items = [item for item in items if (item.ms, item.seq) <= self._until]
            if not items:
                return f"the journal has no entry behind {_shown(after)}, but gave ids up to {_shown(self._until)}"
            letters = await copy_carefully(self._ledger, self._partition, items, "backlog")
            for letter in letters:
                entry = _shown((letter.journal_ms, letter.journal_seq))
                detail = f"the ledger will refuse a line of journal entry {entry}: {letter.error}"
                self._fault("I3", detail, order=_order_id(letter.record))
            await movements.store(self._ledger, movement_rows(self._partition, items), "backlog_movement")
            for item in items:
                if not isinstance(item, Entry):
                    written = None
                    continue
                if item.records and written not in (None, item.written - len(item.records)):
                    return f"journal entry {item.id} does not follow the one before it: bytes are missing"
                written = item.written
            after = (items[-1].ms, items[-1].seq)
        return None

    # --- the comparison ---

    async def _compare(self) -> None:
        counts = self._report.counts
        counts.orders_ledger = await self._ledger.fetchval("SELECT count(*) FROM orders")
        counts.backlog = await self._ledger.fetchval("SELECT count(*) FROM backlog")
        documents = await sales.catalogues(self._ledger)
        catalogues = {version: Catalogue.decode(document) for version, document in documents.items()}
        await self._dead_letters()
        await self._orders_themselves()
        for sale in self._sales:
            self._progress(f"orders of {sale.id}")
            state = self._states.get(sale.number)
            if sale.number in self._unreadable:
                continue
            if state is None:
                if await self._ledger.fetchval("SELECT EXISTS (SELECT FROM moved WHERE sale = $1)", sale.number):
                    self._fault("I1", "Valkey does not know the sale", sale=sale.id)
                continue
            await self._counters(sale, state)
            await self._window(sale)
            await self._holds(sale)
            await self._quotas(sale, catalogues)

    async def _dead_letters(self) -> None:
        for letter in await dead_letters.first(self._ledger, FAULTS_MAX):
            entry = _shown((letter.journal_ms, letter.journal_seq))
            detail = f"a line of journal entry {entry} lies in dead_letter: {letter.error}"
            self._fault("I3", detail, order=_order_id(letter.record))

    async def _orders_themselves(self) -> None:
        """I3: once. I7: every line counted, at its price."""
        self._progress("orders")
        names = {sale.number: sale.id for sale in self._sales}
        for row in await self._ledger.fetch(
            "SELECT id, sale, count(*) FROM seen GROUP BY id, sale HAVING count(*) > 1 LIMIT $1", FAULTS_MAX
        ):
            self._fault("I3", f"the ledger has it {row[2]} times", sale=names.get(row[1]), order=row[0])
        for row in await self._ledger.fetch(
            "SELECT id, sale FROM seen WHERE cardinality(skus) = 0 OR cardinality(skus) <> cardinality(quantities)"
            " OR cardinality(skus) <> cardinality(prices) OR 0 >= ANY (quantities) OR 0 > ANY (prices)"
            " OR total <> CASE WHEN cardinality(skus) = 1 THEN quantities[1] * prices[1] ELSE"
            "   (SELECT sum(units * price) FROM unnest(quantities, prices) AS line (units, price)) END"
            " OR (cardinality(skus) > 1 AND cardinality(skus) <> (SELECT count(DISTINCT sku) FROM unnest(skus) AS sku))"
            " LIMIT $1",
            FAULTS_MAX,
        ):
            self._fault("I7", "its lines, prices and total do not agree", sale=names.get(row[1]), order=row[0])
        for row in await self._ledger.fetch(
            "SELECT id, sale FROM seen WHERE NOT sale = ANY ($1::int4[]) OR left(id, 6) <> lpad(to_hex(sale), 6, '0')"
            " LIMIT $2",
            list(names),
            FAULTS_MAX,
        ):
            self._fault("I3", f"its id is not of sale number {row[1]}", sale=names.get(row[1]), order=row[0])

    async def _counters(self, sale: sales.SaleRow, state: commands.SaleState) -> None:
        """I1: Valkey's counters are the ledger's sums up to the journal id read with them. I2: none is below 0."""
        upto = (sale.number, *state.last_entry)
        until = "sale = $1 AND (journal_ms, journal_seq) <= ($2::int8, $3::int8)"
        supplied = dict(
            await self._pairs(
                f"SELECT sku, sum(units)::int8 FROM moved WHERE {until} AND kind IN ('create', 'adjust')"  # noqa: S608
                " AND sku IS NOT NULL GROUP BY sku",
                *upto,
            )
        )
        released = dict(
            await self._pairs(
                f"SELECT sku, sum(units)::int8 FROM moved WHERE {until} AND kind = 'release' GROUP BY sku",  # noqa: S608
                *upto,
            )
        )
        taken = dict(
            await self._pairs(
                "SELECT line.sku, sum(line.units)::int8 FROM seen, unnest(skus, quantities) AS line (sku, units)"  # noqa: S608
                f" WHERE {until} GROUP BY line.sku",
                *upto,
            )
        )
        skus = range(max([len(state.supply), *(sku + 1 for sku in (*supplied, *taken))]))
        for sku in skus:
            supply = state.supply[sku] if sku < len(state.supply) else 0
            available = state.available[sku] if sku < len(state.available) else 0
            gone = taken.get(sku, 0) - released.get(sku, 0)
            self._report.counts.units += gone
            name = {"sale": sale.id, "sku": self._sku(sale.number, sku)}
            if supply != supplied.get(sku, 0):
                self._fault("I1", f"supply is {supply} in Valkey, {supplied.get(sku, 0)} by the movements", **name)
            if supply != available + gone:
                self._fault("I1", f"supply {supply} is not available {available} + taken {gone} (ledger)", **name)
            if available < 0 or gone > supply:
                self._fault("I2", f"{gone} units are taken of {supply}", **name)

    async def _window(self, sale: sales.SaleRow) -> None:
        """I2: every order was decided while the sale was open and its SKUs were not suspended."""
        rows = await self._ledger.fetch(
            "SELECT kind, sku, journal_ms, journal_seq, detail FROM moved WHERE sale = $1"
            " AND (kind IN ('status', 'suspend', 'unsuspend') OR (kind = 'create' AND sku IS NULL))"
            " ORDER BY journal_ms, journal_seq",
            sale.number,
        )
        windows = open_windows([(row[0], (row[2], row[3]), json.loads(row[4])) for row in rows])
        columns = [[window[column] for window in windows] for column in range(6)]
        for row in await self._ledger.fetch(
            "SELECT id FROM seen WHERE sale = $1 AND NOT EXISTS (SELECT FROM"  # noqa: S608
            " unnest($2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[])"
            " AS w (from_ms, from_seq, to_ms, to_seq, opens, closes)"
            " WHERE (journal_ms, journal_seq) > (from_ms, from_seq) AND (journal_ms, journal_seq) < (to_ms, to_seq)"
            f" AND journal_ms >= opens AND journal_ms < closes + {CLOCK_SLACK_MS:d}) LIMIT $8",
            sale.number, *columns, FAULTS_MAX,
        ):  # fmt: skip
            self._fault("I2", "accepted while the sale was not open", sale=sale.id, order=row[0])
        spans = suspended_spans([(row[0], row[1], (row[2], row[3])) for row in rows])
        if not spans:
            return
        columns = [[span[column] for span in spans] for column in range(5)]
        for row in await self._ledger.fetch(
            "SELECT id, s.sku FROM seen JOIN unnest($2::int2[], $3::int8[], $4::int8[], $5::int8[], $6::int8[])"
            " AS s (sku, from_ms, from_seq, to_ms, to_seq) ON s.sku = ANY (skus)"
            " AND (journal_ms, journal_seq) > (from_ms, from_seq) AND (journal_ms, journal_seq) < (to_ms, to_seq)"
            " WHERE sale = $1 LIMIT $7",
            sale.number, *columns, FAULTS_MAX,
        ):  # fmt: skip
            sku = self._sku(sale.number, row[1])
            self._fault("I2", "accepted while the SKU was suspended", sale=sale.id, sku=sku, order=row[0])

    async def _holds(self, sale: sales.SaleRow) -> None:
        """I3: every hold has its order and every order its hold. I4: they say the same."""
        since, until = _hex_entry(self._since), _hex_entry(self._until)
        rows = await self._ledger.fetch(
            "WITH held AS (SELECT DISTINCT ON (field) field, value FROM hold"
            "  WHERE sale = $1 AND (length(value) <> 44 OR right(value, 20) <= $3) ORDER BY field),"
            " stored AS (SELECT DISTINCT ON (id) right(id, 24) AS field, id, encode(fingerprint, 'hex')"
            "  || lpad(to_hex(catalogue_version), 6, '0') AS head,"
            "  lpad(to_hex(journal_ms), 12, '0') || lpad(to_hex(journal_seq), 8, '0') AS entry"
            "  FROM seen WHERE sale = $1 ORDER BY id)"
            " SELECT coalesce(id, $5 || held.field), CASE WHEN stored.id IS NULL THEN 'lost'"
            "  WHEN held.field IS NULL THEN 'unheld' WHEN substr(value, 3, 22) <> head THEN 'differs' ELSE 'entry' END"
            " FROM held FULL JOIN stored USING (field)"
            " WHERE stored.id IS NULL OR (held.field IS NULL AND entry <= $2) OR substr(value, 3) <> head || entry"
            " LIMIT $4",
            sale.number, since, until, FAULTS_MAX, f"{self._partition:02x}{sale.number:04x}",
        )  # fmt: skip
        said = {
            "lost": ("I3", "Valkey holds it, neither ledger nor journal has it"),
            "unheld": ("I3", "the ledger has it, Valkey holds nothing for it"),
            "differs": ("I4", "fingerprint or catalogue version differ between its hold and the ledger"),
            "entry": ("I3", "its hold names another journal entry than the ledger"),
        }
        for order, kind in rows:
            invariant, detail = said[kind]
            self._fault(invariant, detail, sale=sale.id, order=order)
        self._report.counts.orders_valkey += await self._ledger.fetchval(
            "SELECT (SELECT count(DISTINCT field) FROM hold WHERE sale = $1 AND right(value, 20) <= $2)"
            " + (SELECT count(*) FROM seen WHERE sale = $1 AND (journal_ms, journal_seq) > ($3::int8, $4::int8))",
            sale.number, since, *self._since,
        )  # fmt: skip

    async def _quotas(self, sale: sales.SaleRow, catalogues: dict[int, Catalogue]) -> None:
        """I2: nobody has more than the quota. I4: Valkey counts what the orders took."""
        quotas = {
            (version, number, sku): catalogues[version].by_number(number).offers[sku].quota  # type: ignore[union-attr]
            for version, number, sku in limited_lines(catalogues)
            if number == sale.number
        }
        limits = [(version, sku, quota) for (version, _, sku), quota in quotas.items()]
        columns = [[limit[column] for limit in limits] for column in range(3)]
        await self._ledger.execute(
            'CREATE TEMP TABLE used (field text COLLATE "C", shopper text, sku int2, least int8, most int8, quota int8)'
        )
        identity = SaleIdentity(self._partition, sale.number, sale.key)
        text: list[str] = []
        async for shopper, sku, least, most, quota in self._ledger.cursor(
            "SELECT shopper, line.sku, coalesce(sum(line.units) FILTER"  # noqa: S608
            "  (WHERE (o.journal_ms, o.journal_seq) <= ($5::int8, $6::int8)), 0)::int8,"
            " sum(line.units)::int8, max(quota)"
            " FROM seen AS o CROSS JOIN unnest(skus, quantities) AS line (sku, units)"
            " JOIN unnest($2::int4[], $3::int2[], $4::int8[]) AS q (version, sku, quota)"
            "  ON q.version = catalogue_version AND q.sku = line.sku"
            f" LEFT JOIN (SELECT DISTINCT order_id FROM moved WHERE kind = 'release' AND {movements.QUOTA_BACK}) AS r"
            " ON r.order_id = o.id"
            " WHERE o.sale = $1 AND r.order_id IS NULL GROUP BY shopper, line.sku",
            sale.number, *columns, *self._since, prefetch=5000,
        ):  # fmt: skip
            name = shopper.replace("\\", "\\\\")
            text.append(f"{identity.quota_field(shopper, sku).hex()}\t{name}\t{sku}\t{least}\t{most}\t{quota}\n")
            if len(text) == SCAN:
                await _copy_text(self._ledger, "used", "".join(text))
                text.clear()
        await _copy_text(self._ledger, "used", "".join(text))
        await self._ledger.execute("ANALYZE used")
        for row in await self._ledger.fetch(
            "SELECT shopper, sku, most, quota FROM used WHERE most > quota LIMIT $1", FAULTS_MAX
        ):
            sku = self._sku(sale.number, row[1])
            self._fault("I2", f"shopper {row[0]!r} has {row[2]} units, the quota is {row[3]}", sale=sale.id, sku=sku)
        for row in await self._ledger.fetch(
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
            self._fault("I4", detail, sale=sale.id, sku=self._sku(sale.number, sku_index))
        await self._ledger.execute("DROP TABLE used")

    # --- words ---

    async def _pairs(self, query: str, *arguments: int) -> list[tuple[int, int]]:
        return [(row[0], row[1]) for row in await self._ledger.fetch(query, *arguments)]

    def _sku(self, sale: int, index: int) -> str:
        skus = self._skus.get(sale, [])
        return skus[index] if 0 <= index < len(skus) else f"#{index}"

    def _fault(
        self, invariant: str, detail: str, sale: str | None = None, sku: str | None = None, order: str | None = None
    ) -> None:
        self._report.faults.append(Fault(invariant, detail, sale, sku, order))


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


async def _copy_text(ledger: asyncpg.Connection[asyncpg.Record], table: str, text: str) -> None:
    if text:
        source = memoryview(text.encode())
        await ledger.copy_to_table(table, source=source, format="text")  # type: ignore[arg-type]


def _decimal(value: bytes) -> str:
    return value.decode("ascii")


def _shown(entry: EntryId) -> str:
    return f"{entry[0]}-{entry[1]}"


def _hex_entry(entry: EntryId) -> str:
    """A journal id as the last ten bytes of a hold, in hexadecimal: text order is the journal's order."""
    return f"{entry[0]:012x}{entry[1]:08x}"


def _order_id(record: bytes) -> str | None:
    """The order id that a refused line begins with, if it does."""
    head = record.partition(b"\t")[0]
    return head.decode("ascii") if len(head) == 30 and head.isalnum() else None


def _rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _answer(reply: Any) -> Any:
    """Redis-py types its commands as awaitable or not, since both of its clients share them."""
    return await cast(Any, reply)
