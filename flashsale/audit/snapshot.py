"""One look at everything: what Valkey holds, what the journal has and one snapshot of the ledger, side by side.

What the checks compare lies in temporary tables and views of one connection: `hold`, `quota`, `limited` and `granted`
(scanned between the journal ids `since` and `until`), `seen` and `moved` (orders and movements up to `until`, from the
ledger or the journal), `told` (orders that the outbox named before the scan). All else they read in the ledger's
snapshot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import redis.asyncio

from flashsale.audit.report import AuditReport, Fault
from flashsale.ledger import movements, partitions, sales
from flashsale.ledger.partitions import Partition
from flashsale.pipeline.journal_rows import movement_rows, read_journal
from flashsale.pipeline.ledger_writer import WRITER_LOCK, copy_carefully
from flashsale.recovery import last_entry
from flashsale.reservation import commands, keys
from flashsale.reservation.movements import Entry

WAIT_S = 2.0  # for the writer to reach the snapshot; what it has not by then is read from the journal
POLL_S = 0.02
SCAN = 2000  # fields a HSCAN: Valkey is busy for less than a millisecond
SORT_MEMORY_MB = 64  # of PostgreSQL, a sort or join of the comparison; beyond it they use temporary files
JOURNAL_ENTRIES = 200  # journal entries a read

EntryId = tuple[int, int]
Progress = Callable[[str], None]


class Snapshot:
    """Takes the look, then answers the checks' questions. Call its steps in the order in which they stand here."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        ledger: asyncpg.Connection[asyncpg.Record],
        partition: int,
        report: AuditReport,
        progress: Progress,
    ) -> None:
        self.ledger, self.partition, self.report, self.progress = ledger, partition, report, progress
        self.sales: list[sales.SaleRow] = []
        self.states: dict[int, commands.SaleState] = {}
        self.unreadable: set[int] = set()
        """Sales whose counters are absent or no numbers."""
        self.before = ""
        """The ledger's transactions that were over before the scan (pg_snapshot)."""
        self.since: EntryId = (0, 0)
        self.until: EntryId = (0, 0)
        self._client = client
        self._skus: dict[int, list[str]] = {}

    # --- the steps ---

    async def begin(self) -> bool:
        """Looks at both sides' epochs; False where there is nothing to compare."""
        valkey = await commands.read_partition(self._client, self.partition)
        known = await partitions.get(self.ledger, self.partition)
        epochs = (valkey.epoch if valkey is not None else None, known.epoch if known is not None else None)
        if epochs[0] != epochs[1] or known is None:
            self.fault("I1", f"Valkey is of epoch {epochs[0]}, the ledger of {epochs[1]}: `flashsale recover`")
        return known is not None

    async def scan(self) -> None:
        """Copies holds and quotas, as hexadecimal text, into temporary tables; reads the counters last."""
        self.sales = await sales.all_sales(self.ledger)
        self.since = await last_entry(self._client, self.partition)
        # In this order: what was told after `before` without being in `told` is in the history after `before`.
        self.before = await self.ledger.fetchval("SELECT pg_current_snapshot()::text")
        await self.ledger.execute(
            f"SET work_mem = '{SORT_MEMORY_MB:d}MB';"  # noqa: S608  a number of ours
            "CREATE TEMP TABLE told AS SELECT DISTINCT item ->> 'order' AS id"
            " FROM outbox CROSS JOIN jsonb_array_elements(items) AS item;"
            'CREATE TEMP TABLE hold (sale int4, field text COLLATE "C", value text COLLATE "C");'
            'CREATE TEMP TABLE quota (sale int4, field text COLLATE "C", units int8);'
            'CREATE TEMP TABLE limited (field text COLLATE "C", used int8);'
            'CREATE TEMP TABLE granted (field text COLLATE "C", id text COLLATE "C")'
        )
        for sale in self.sales:
            self.progress(f"holds and quotas of {sale.id}")
            holds_key = keys.holds(self.partition, sale.id)
            await self._copy_hash(holds_key, "hold", lambda value: value.hex(), sale.number)
            await self._copy_hash(keys.quota(self.partition, sale.id), "quota", _decimal, sale.number)
        await self._copy_hash(keys.limits(self.partition), "limited", _decimal)
        await self._copy_hash(keys.grants(self.partition), "granted", _decimal)
        await self.ledger.execute("ANALYZE told; ANALYZE hold; ANALYZE quota; ANALYZE limited")
        await self._read_counters()

    async def wait_for_writer(self) -> None:
        """Spares the reading of the backlog where a writer is at work."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and await self.ledger.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database AS d ON d.oid = database WHERE locktype = 'advisory'"
            " AND granted AND classid = $1::int8::oid AND objid = $2::int8::oid AND datname = current_database())",
            WRITER_LOCK, self.partition,
        ):  # fmt: skip
            known = await partitions.get(self.ledger, self.partition)
            if known is None or known.mark >= self.until:
                return
            await asyncio.sleep(POLL_S)

    async def load(self) -> str | None:
        """`seen` and `moved`: orders and movements up to `until`, wherever they are now. Says so where the journal does
        not follow the ledger's mark without a gap."""
        known = await partitions.get(self.ledger, self.partition)
        assert known is not None  # noqa: S101  its row is never deleted
        await self.ledger.execute(
            "CREATE TEMP TABLE backlog (LIKE orders INCLUDING DEFAULTS);"
            "CREATE TEMP TABLE backlog_movement (LIKE movement)"
        )
        gap = await self._copy_journal(known)
        state = await commands.read_partition(self._client, self.partition)
        if gap is None and state is not None and state.trimmed > known.mark_bytes:
            gap = f"the journal is cut {state.trimmed - known.mark_bytes} bytes beyond the ledger's mark"
        ms, seq = self.until
        scope = f"partition = {self.partition:d} AND (journal_ms, journal_seq) <= ({ms:d}, {seq:d})"
        for view, table, more in (("seen", "orders", "backlog"), ("moved", "movement", "backlog_movement")):
            await self.ledger.execute(
                f"CREATE TEMP VIEW {view} AS SELECT * FROM public.{table} WHERE {scope}"  # noqa: S608  numbers of ours
                f" UNION ALL SELECT * FROM {more} WHERE {scope}"
            )
        self._skus = await sales.all_offers(self.ledger)
        return gap

    # --- how ---

    async def _copy_hash(self, key: str, table: str, shown: Callable[[bytes], str], sale: int | None = None) -> None:
        cursor, of_sale = 0, "" if sale is None else f"{sale}\t"
        while True:
            cursor, fields = await _answer(self._client.hscan(key, cursor, count=SCAN))
            text = "".join(f"{of_sale}{name.hex()}\t{shown(value)}\n" for name, value in fields.items())
            await copy_text(self.ledger, table, text)
            if cursor == 0:
                return

    async def _read_counters(self) -> None:
        """Each sale's counters with the newest journal id of that very instant."""
        self.until = self.since
        for sale in self.sales:
            try:
                state = await commands.read_state(self._client, sale.id, self.partition)
            except (LookupError, ValueError):
                await self._name_unreadable(sale)
                continue
            if state is not None:
                self.states[sale.number] = state
                self.until = max(self.until, state.last_entry)
                self.report.counts.as_of = rfc3339(state.now_ms)

    async def _name_unreadable(self, sale: sales.SaleRow) -> None:
        """I1: counters that are absent or no numbers."""
        self.unreadable.add(sale.number)
        for index, sku in enumerate(await sales.offers(self.ledger, sale.number)):
            for name in (keys.supply, keys.stock):
                value = await _answer(self._client.hget(name(self.partition, sale.id), str(index)))
                if value is None or not value.isdigit():
                    said = f"{name.__name__} is {value!r} in Valkey, not a number of units"
                    self.fault("I1", said, sale=sale.id, sku=sku)

        for field, value in (await _answer(self._client.hgetall(keys.stock(self.partition, sale.id)))).items():
            if b"." in field and not value.isdigit():
                self.fault("I1", f"the guarantee {field!r} is {value!r} in Valkey, not a number of units", sale=sale.id)

    async def _copy_journal(self, known: Partition) -> str | None:
        after = known.mark
        written: int | None = known.mark_bytes
        while after < self.until:
            items = await read_journal(self._client, self.partition, after, JOURNAL_ENTRIES)
            items = [item for item in items if (item.ms, item.seq) <= self.until]
            if not items:
                end = shown_entry(self.until)
                return f"the journal has no entry behind {shown_entry(after)}, but gave ids up to {end}"
            letters = await copy_carefully(self.ledger, self.partition, items, "backlog")
            for letter in letters:
                entry = shown_entry((letter.journal_ms, letter.journal_seq))
                detail = f"the ledger will refuse a line of journal entry {entry}: {letter.error}"
                self.fault("I3", detail, order=order_id_of(letter.record))
            await movements.store(self.ledger, movement_rows(self.partition, items), "backlog_movement")
            for item in items:
                if not isinstance(item, Entry):
                    written = None
                    continue
                if item.records and written not in (None, item.written - len(item.records)):
                    return f"journal entry {item.id} does not follow the one before it: bytes are missing"
                written = item.written
            after = (items[-1].ms, items[-1].seq)
        return None

    # --- words ---

    def sku(self, sale: int, index: int) -> str:
        """The SKU of an offer index."""
        skus = self._skus.get(sale, [])
        return skus[index] if 0 <= index < len(skus) else f"#{index}"

    def sale_id(self, number: int | None) -> str | None:
        """The id of a sale's number, if it is one."""
        return next((sale.id for sale in self.sales if sale.number == number), None)

    def fault(
        self, invariant: str, detail: str, sale: str | None = None, sku: str | None = None, order: str | None = None
    ) -> None:
        """Notes a fault."""
        self.report.faults.append(Fault(invariant, detail, sale, sku, order))


async def copy_text(ledger: asyncpg.Connection[asyncpg.Record], table: str, text: str) -> None:
    """Adds lines of COPY text to a table."""
    if text:
        source = memoryview(text.encode())
        await ledger.copy_to_table(table, source=source, format="text")  # type: ignore[arg-type]


def _decimal(value: bytes) -> str:
    return value.decode("ascii")


def shown_entry(entry: EntryId) -> str:
    """A journal id as Valkey writes it."""
    return f"{entry[0]}-{entry[1]}"


def hex_entry(entry: EntryId) -> str:
    """A journal id as the last ten bytes of a hold, in hexadecimal: text order is the journal's order."""
    return f"{entry[0]:012x}{entry[1]:08x}"


def order_id_of(record: bytes) -> str | None:
    """The order id that a refused line begins with, if it does."""
    head = record.partition(b"\t")[0]
    return head.decode("ascii") if len(head) == 30 and head.isalnum() else None


def rfc3339(ms: int) -> str:
    """Milliseconds as the contract writes a time."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _answer(reply: Any) -> Any:
    """Redis-py types its commands as awaitable or not, since both of its clients share them."""
    return await cast(Any, reply)
