"""Whether this Valkey is the one that the ledger knows, and how it is built again from ledger and journal if it isn't.

Fronts take orders only while the partition's `run_id` in Valkey is that of the running process; this module alone sets
it, last of all, after a check (the ledger writer takes it away where it finds the ledger older than the journal).
Relies on every step being repeatable: killed anywhere, the next run does it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, cast

import asyncpg
import redis.asyncio
import structlog
from redis.exceptions import RedisError, ResponseError

from flashsale.ledger import held, movements, orders, partitions, sales
from flashsale.ledger.partitions import Partition
from flashsale.ledger.pool import CONNECTION_LOST, LedgerAway, connect
from flashsale.pipeline.journal_rows import read_journal
from flashsale.pipeline.ledger_writer import MarkMoved, store_entries
from flashsale.reservation import commands, holds, keys, server
from flashsale.reservation.limits import identity_field, lane_field
from flashsale.reservation.movements import EpochSet, encode_movement, parse_entry_id
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.identity import SaleIdentity

log = structlog.get_logger(__name__)

Progress = Callable[[int, int], None]

REBUILD_LOCK = 0x666C7262  # with the partition an advisory lock's two keys: one rebuilder at a time
POLL_S = 0.25  # a restarted Valkey is noticed within this
BACKOFF_S = (0.1, 1.0)  # first and longest pause while a server is away
SURVIVORS = 100  # journal entries a transaction while what survived is stored
FIELDS = 500  # hash fields a command: keeps each write to Valkey's log short
COMMANDS = 20  # commands a round trip of the rebuild
KEYS_A_SCAN = 500
OLDER = "the ledger is older than Valkey: is it the right database?"

LOST: tuple[type[BaseException], ...] = (*CONNECTION_LOST, LedgerAway, RedisError, asyncpg.PostgresError)


class Verdict(NamedTuple):
    """What a look at Valkey and ledger said. `shortcomings`: what an operator has to change first. `differs`: why
    Valkey has to be rebuilt, None if it is as the ledger knows it. `doubt`: why not without being told."""

    run_id: str
    epoch: int
    shortcomings: list[str]
    differs: str | None
    doubt: str | None

    @property
    def sound(self) -> bool:
        """Whether the fronts may take orders with it."""
        return self.differs is None and not self.shortcomings


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made: the new epoch, sales and orders written to Valkey, entries saved from the old journal."""

    epoch: int
    sales: int
    orders: int
    saved: int


async def verify(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    *,
    durability: str,
    backlog_max_bytes: int = 0,
    partition: int = 0,
) -> Verdict:
    """Compares Valkey with the ledger; changes nothing but making the partition's row where it is absent."""
    known = await partitions.ensure(ledger, partition)
    run_id = await server.run_id(client)
    lacks = await server.shortcomings(client, durability, backlog_max_bytes)
    state = await commands.read_partition(client, partition)
    doubt = None
    if state is None:
        differs: str | None = "Valkey is empty"
    elif state.trimmed > known.mark_bytes:
        # What was cut had been committed: PostgreSQL came back without it, or it is another one.
        differs, doubt = f"the journal is cut {state.trimmed - known.mark_bytes} bytes beyond the ledger's mark", OLDER
    elif state.epoch != known.epoch:
        differs = f"Valkey is of epoch {state.epoch}, the ledger of {known.epoch}"
        if state.epoch > known.epoch:
            doubt = OLDER
    else:
        differs = await _older_than_ledger(client, known, state)
    return Verdict(run_id, known.epoch, lacks, differs, doubt)


async def _older_than_ledger(
    client: redis.asyncio.Redis, known: Partition, state: commands.PartitionState
) -> str | None:
    last = await last_entry(client, known.id)
    if last < known.mark:
        return f"Valkey's journal ends at {last[0]}-{last[1]}, before the ledger's mark {known.mark[0]}-{known.mark[1]}"
    if state.written < max(known.mark_bytes, state.trimmed):
        return f"Valkey wrote {state.written} bytes of journal, the ledger read {known.mark_bytes}"
    if state.version < known.version:
        return f"Valkey's catalogue is version {state.version}, the ledger's {known.version}"
    if state.version and not await _answer(client.hexists(keys.CATALOGUE, str(state.version))):
        return f"Valkey lacks version {state.version} of the catalogue"
    return None


async def last_entry(client: redis.asyncio.Redis, partition: int) -> tuple[int, int]:
    """The newest journal id ever given out; (0, 0) where there is no journal."""
    try:
        info = await _answer(client.xinfo_stream(keys.journal(partition)))
    except ResponseError:
        return 0, 0
    return parse_entry_id(info["last-generated-id"])


async def accept(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    *,
    durability: str,
    backlog_max_bytes: int = 0,
    partition: int = 0,
) -> Verdict:
    """Lets the fronts take orders with this very process of Valkey if the verdict, which is returned, is sound.

    The mark stands still while it is compared, and a chunk that was read from an earlier process is not stored after.
    """
    await partitions.ensure(ledger, partition)
    async with ledger.transaction():
        await partitions.lock(ledger, partition)
        verdict = await verify(
            client, ledger, durability=durability, backlog_max_bytes=backlog_max_bytes, partition=partition
        )
        if verdict.sound:
            await partitions.set_verified(ledger, partition, verdict.run_id)
    if verdict.sound:
        await _answer(client.hset(keys.partition(partition), "run_id", verdict.run_id))
    return verdict


async def rebuild(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    *,
    partition: int = 0,
    progress: Progress | None = None,
) -> Rebuilt:
    """Builds the partition in Valkey from the ledger and what survived of the journal. `accept` then opens the doors.

    Raises redis-py's and asyncpg's errors where a server is lost; call it again then.
    """
    run_id = await server.run_id(client)
    state = await commands.read_partition(client, partition)
    # 1. No writer of the old epoch commits from here on; 2. no script of any epoch changes Valkey.
    await partitions.ensure(ledger, partition)
    epoch = await partitions.raise_epoch(ledger, partition, state.epoch if state is not None else 0)
    log.warning("Valkey is being rebuilt from the ledger", partition=partition, epoch=epoch)
    await _answer(client.delete(keys.partition(partition)))
    # 3. What was answered and had not reached the ledger.
    known, saved = await _save_survivors(client, ledger, partition)
    # 4. Everything, from the ledger alone.
    await _delete_keys(client, partition)
    async with ledger.transaction(isolation="repeatable_read", readonly=True):
        made_sales, made_orders = await _write(client, ledger, known, progress)
    # 5. A journal whose first entry the writer's mark passes, then the partition itself.
    entry = encode_movement(EpochSet(epoch))
    written = known.mark_bytes + len(entry)
    await _answer(
        client.xadd(keys.journal(partition), {"m": entry, "w": str(written)}, id=f"{known.mark[0]}-{known.mark[1] + 1}")
    )
    if await server.run_id(client) != run_id:
        raise RedisError("Valkey was restarted during the rebuild")
    await _answer(
        client.hset(
            keys.partition(partition),
            mapping={"epoch": epoch, "version": known.version, "written": written, "trimmed": known.mark_bytes},
        )
    )
    log.warning("Valkey is rebuilt", partition=partition, epoch=epoch, orders=made_orders, saved=saved)
    return Rebuilt(epoch, made_sales, made_orders, saved)


async def _save_survivors(
    client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], partition: int
) -> tuple[Partition, int]:
    """Stores what stands in the journal behind the mark; the partition afterwards, and how many entries."""
    saved = 0
    while True:
        known = await partitions.get(ledger, partition)
        assert known is not None  # noqa: S101  ensured by the caller
        items = await read_journal(client, partition, known.mark, SURVIVORS)
        if not items:
            return known, saved
        with contextlib.suppress(MarkMoved):  # the ledger writer stored them: look again
            await store_entries(ledger, known, items)
            saved += len(items)


async def _delete_keys(client: redis.asyncio.Redis, partition: int) -> None:
    names = [name async for name in client.scan_iter(match=f"{keys.tag(partition)}:*", count=KEYS_A_SCAN)]
    for first in range(0, len(names), KEYS_A_SCAN):
        await _answer(client.unlink(*names[first : first + KEYS_A_SCAN]))
    await _answer(client.unlink(keys.CATALOGUE))


@dataclass(slots=True)
class SaleWindowState:
    """A sale's state as the movements tell it."""

    status: str = "open"
    opens_at: int = 0
    closes_at: int = 0
    suspended: set[int] = field(default_factory=set)


def replayed(rows: list[movements.MovementRow]) -> dict[int, SaleWindowState]:
    """Each sale's state, by number, after these movements (in the journal's order)."""
    states: dict[int, SaleWindowState] = {}
    for row in rows:
        if row.sale is None:
            continue
        state = states.setdefault(row.sale, SaleWindowState())
        if row.kind == "suspend" and row.sku is not None:
            state.suspended.add(row.sku)
        elif row.kind == "unsuspend" and row.sku is not None:
            state.suspended.discard(row.sku)
        else:
            detail = json.loads(row.detail)
            state.opens_at, state.closes_at = detail["opens_at"], detail["closes_at"]
            state.status = detail.get("status", state.status)
    return states


def limited_lines(catalogues: dict[int, Catalogue]) -> list[tuple[int, int, int]]:
    """(catalogue version, sale number, offer index) of every offer with a quota."""
    return [
        (version, sale.number, offer.index)
        for version, catalogue in catalogues.items()
        for sale in catalogue.sales
        for offer in sale.offers
        if offer.quota
    ]


def channel_numbers(catalogues: dict[int, Catalogue]) -> dict[str, int]:
    """Every channel's number, of any version: a number names its channel for ever."""
    return {channel.id: channel.number for catalogue in catalogues.values() for channel in catalogue.world.channels}


class _HashWriter:
    """Gathers fields of many hashes and writes them in long commands, several a round trip."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._fields: dict[str, dict[Any, Any]] = {}
        self._pipeline = client.pipeline(transaction=False)

    async def put(self, key: str, name: str | bytes | int, value: str | bytes | int) -> None:
        fields = self._fields.setdefault(key, {})
        fields[name] = value
        if len(fields) >= FIELDS:
            self._pipeline.hset(key, mapping=self._fields.pop(key))
            if len(self._pipeline) >= COMMANDS:
                await self._pipeline.execute()

    async def flush(self) -> None:
        for key, fields in self._fields.items():
            self._pipeline.hset(key, mapping=fields)
        self._fields.clear()
        await self._pipeline.execute()


async def _write(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    known: Partition,
    progress: Progress | None,
) -> tuple[int, int]:
    """Writes every key of the partition but journal and partition; returns how many sales and orders."""
    partition, mark = known.id, known.mark
    rows = {row.number: row for row in await sales.all_sales(ledger)}
    documents = await sales.catalogues(ledger)
    catalogues = {version: Catalogue.decode(document) for version, document in documents.items()}
    writer = _HashWriter(client)

    for version, document in {0: Catalogue(0, ()).encode(), **documents}.items():
        await _answer(client.hset(keys.CATALOGUE, str(version), cast(str, document)))

    supplied = await movements.supplies(ledger, partition, mark)
    released = await movements.released_units(ledger, partition, mark)
    taken = await orders.taken_units(ledger, partition, mark)
    guarantees = await held.guarantees_left(ledger, partition, mark, channel_numbers(catalogues))
    states = replayed(await movements.of_sales(ledger, partition))
    for number, state in states.items():
        sale_id = rows[number].id
        suspended = "".join(f",{sku}" for sku in sorted(state.suspended))
        values: dict[str, str | int] = {
            "number": number,
            "status": state.status,
            "opens_at": state.opens_at,
            "closes_at": state.closes_at,
            "suspended": f"{suspended}," if suspended else "",
        }
        for name, value in values.items():
            await writer.put(keys.state(partition, sale_id), name, value)
        guaranteed: Counter[int] = Counter()
        for (sku, channel), units in guarantees.get(number, {}).items():
            guaranteed[sku] += units
            await writer.put(keys.stock(partition, sale_id), f"{sku}.{channel}", units)
        for sku, supply in supplied.get(number, {}).items():
            common = supply - taken.get(number, {}).get(sku, 0) + released.get(number, {}).get(sku, 0)
            common -= guaranteed[sku]
            await writer.put(keys.supply(partition, sale_id), sku, supply)
            await writer.put(keys.stock(partition, sale_id), sku, common)

    identities = {number: SaleIdentity(partition, number, row.key) for number, row in rows.items()}
    async for number, shopper, sku, units in orders.each_quota_use(ledger, partition, mark, limited_lines(catalogues)):
        quota_field = identities[number].quota_field(shopper, sku)
        await writer.put(keys.quota(partition, rows[number].id), quota_field, units)

    for (lane, day), parcels in (await held.lane_days(ledger, partition, mark)).items():
        await writer.put(keys.limits(partition), lane_field(lane, day), parcels)
    async for person, year, amount in held.each_import(ledger, partition, mark):
        await writer.put(keys.limits(partition), identity_field(person, year), amount)
    for (recipient, agent), grant in (await held.grants(ledger, partition, mark)).items():
        await writer.put(keys.grants(partition), commands.grant_field(recipient, agent), grant)

    count, total = 0, await orders.count(ledger) if progress is not None else 0
    async for order in orders.each_hold(ledger, partition, mark):
        hold = holds.Hold(
            order.letter, order.fingerprint, order.version, order.journal_ms, order.journal_seq, order.number
        )
        used_id = bytes.fromhex(order.id)[-commands.USED_ID_BYTES :]
        await writer.put(keys.holds(partition, rows[order.sale].id), used_id, holds.pack(hold))
        count += 1
        if progress is not None and count % FIELDS == 0:
            progress(count, total)
    await writer.flush()
    if progress is not None:
        progress(count, count)
    return len(states), count


@dataclass(slots=True)
class Recovered:
    """What `flashsale recover` did, and whether Valkey may serve now. `reason`: why it was, or was not, rebuilt."""

    ok: bool = False
    rebuilt: bool = False
    reason: str | None = None
    shortcomings: list[str] = field(default_factory=list)
    epoch: int = 0
    orders: int = 0
    saved: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def recover(
    redis_url: str,
    database_url: str,
    *,
    durability: str,
    backlog_max_bytes: int = 0,
    force: bool = False,
    partition: int = 0,
    progress: Progress | None = None,
) -> Recovered:
    """Verifies Valkey and rebuilds it where it differs; with `force` in any case. Raises one of LOST where a server is
    away."""
    client = server.connect(redis_url, connections=2)
    try:
        ledger = await connect(database_url)
        try:
            # Waits for a guard that is at work: what it repairs needs no second repair.
            await ledger.execute("SELECT pg_advisory_lock($1, $2)", REBUILD_LOCK, partition)
            return await _recover(client, ledger, durability, backlog_max_bytes, force, partition, progress)
        finally:
            ledger.terminate()
    finally:
        await client.aclose()


async def _recover(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    durability: str,
    backlog_max_bytes: int,
    force: bool,
    partition: int,
    progress: Progress | None,
) -> Recovered:
    limits: dict[str, Any] = {
        "durability": durability,
        "backlog_max_bytes": backlog_max_bytes,
        "partition": partition,
    }
    verdict = await (verify if force else accept)(client, ledger, **limits)
    outcome = Recovered(reason=verdict.differs, shortcomings=verdict.shortcomings, epoch=verdict.epoch)
    if verdict.shortcomings:
        return outcome
    if verdict.doubt is not None and not force:
        outcome.reason = f"{verdict.differs}; {verdict.doubt} --force rebuilds from it all the same"
        return outcome
    if verdict.differs is not None or force:
        outcome.reason = verdict.differs or "told to"
        rebuilt = await rebuild(client, ledger, partition=partition, progress=progress)
        outcome.rebuilt, outcome.orders, outcome.saved = True, rebuilt.orders, rebuilt.saved
        verdict = await accept(client, ledger, **limits)
        outcome.epoch, outcome.shortcomings = verdict.epoch, verdict.shortcomings
    outcome.ok = verdict.sound
    return outcome


class Guard:
    """Watches one Valkey: verifies each new process of it against the ledger, and rebuilds what is empty or old."""

    def __init__(
        self,
        redis_url: str,
        database_url: str,
        *,
        durability: str,
        backlog_max_bytes: int = 0,
        automatic: bool = True,
        partition: int = 0,
    ) -> None:
        """`automatic`: rebuild without being told. The first initialisation, of an empty Valkey by a ledger that never
        had one, needs no telling."""
        self._client = server.connect(redis_url, connections=2)
        self._database_url = database_url
        self._durability = durability
        self._backlog_max_bytes = backlog_max_bytes
        self._automatic = automatic
        self._partition = partition
        self._stopping = asyncio.Event()
        self.reasons: list[str] = ["Valkey was not looked at yet"]
        """Why this Valkey is not accepted, a line each; empty while it is."""

    async def run(self) -> None:
        """Guards until stop(); a server that is away is asked again for ever."""
        pause = BACKOFF_S[0]
        try:
            while not self._stopping.is_set():
                try:
                    reasons = await self._look()
                    pause = POLL_S
                except LOST as fault:
                    reasons = [f"{type(fault).__name__}: {fault}"]
                    pause = min(2 * pause, BACKOFF_S[1])
                if reasons and reasons != self.reasons:
                    log.warning("Valkey is not accepted", reasons=reasons)
                self.reasons = reasons
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
        finally:
            await self._client.aclose()

    def stop(self) -> None:
        """Ends run(), after a rebuild that is under way."""
        self._stopping.set()

    async def _look(self) -> list[str]:
        state = await commands.read_partition(self._client, self._partition)
        if state is not None and state.run_id == await server.run_id(self._client):
            return []
        ledger = await connect(self._database_url)
        try:
            return await self._attend(ledger)
        finally:
            ledger.terminate()  # gives the lock back whatever state the connection is in

    async def _attend(self, ledger: asyncpg.Connection[asyncpg.Record]) -> list[str]:
        if not await ledger.fetchval("SELECT pg_try_advisory_lock($1, $2)", REBUILD_LOCK, self._partition):
            return ["another worker verifies Valkey"]
        verdict = await self._accept(ledger)
        if verdict.shortcomings:
            return verdict.shortcomings
        if verdict.differs is not None:
            first = verdict.epoch == 0 and verdict.doubt is None
            if verdict.doubt is not None or not (self._automatic or first):
                lines = [verdict.differs, verdict.doubt or "rebuilding is not automatic here"]
                return [*lines, "run `flashsale recover --force`" if verdict.doubt else "run `flashsale recover`"]
            log.warning("Valkey is not as the ledger knows it", reason=verdict.differs)
            await rebuild(self._client, ledger, partition=self._partition)
            verdict = await self._accept(ledger)
            if not verdict.sound:
                return [*verdict.shortcomings, *([verdict.differs] if verdict.differs else [])]
        log.info("Valkey is verified", run_id=verdict.run_id, epoch=verdict.epoch)
        return []

    async def _accept(self, ledger: asyncpg.Connection[asyncpg.Record]) -> Verdict:
        return await accept(
            self._client,
            ledger,
            durability=self._durability,
            backlog_max_bytes=self._backlog_max_bytes,
            partition=self._partition,
        )


async def _answer(reply: Awaitable[Any] | Any) -> Any:
    """Redis-py types its commands as awaitable or not, since both of its clients share them."""
    return await cast(Awaitable[Any], reply)
