"""The audit: supply, Valkey, journal, ledger and money compared, exact while selling, paying and expiring, and at rest.

Order of things (`snapshot.py`): the newest journal id (`since`); Valkey's holds and quotas copied into temporary
tables; counters and newest journal id in one call (`until`); then one snapshot of the ledger, completed by what the
journal still holds up to `until`. Counters must agree at `until` to the unit. What was scanned in between must agree
for every order up to `since`, and may or may not know those between the two. What the ledger alone knows (units given
back, money, histories) must agree in its snapshot. PostgreSQL compares, so memory stays bounded at any size.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg
from redis.exceptions import RedisError

from flashsale.audit import holds, limits, money, orders, parcels, promises, settlement, stock
from flashsale.audit.report import AuditReport as AuditReport
from flashsale.audit.report import Counts as Counts
from flashsale.audit.report import Fault as Fault
from flashsale.audit.snapshot import POLL_S, Progress, Snapshot, rfc3339
from flashsale.ledger import sales, statistics
from flashsale.ledger.pool import CONNECTION_LOST, LedgerAway, connect
from flashsale.recovery import channel_numbers
from flashsale.reservation import server
from flashsale.sale.catalogue import Catalogue

LEDGER_BACK_WITHIN_S = 5.0  # a PostgreSQL that was killed replays its log, and /readyz says nothing of it: orders go on
SNAPSHOTS_MAX = 20  # the writer trims while the rest of the journal is read: so often it is begun again


async def audit(
    redis_url: str, database_url: str, *, partition: int = 0, progress: Progress | None = None
) -> AuditReport:
    """Checks I1 to I7, money, histories, promises and parcels. Never raises for a server that is away: that is a fault,
    `unreachable`."""
    report = AuditReport()
    report.counts.as_of = rfc3339(int(time.time() * 1000))
    client = server.connect(redis_url, connections=2)
    ledger: asyncpg.Connection[asyncpg.Record] | None = None
    try:
        try:
            await server.run_id(client)
        except (OSError, RedisError) as fault:
            report.faults.append(Fault("unreachable", f"Valkey: {fault or type(fault).__name__}"))
        try:
            ledger = await _patiently_connected(database_url)
        except LedgerAway as away:
            report.faults.append(Fault("unreachable", str(away)))
        if ledger is not None and not report.faults:
            await _look(Snapshot(client, ledger, partition, report, progress or _silent))
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


async def _look(look: Snapshot) -> None:
    if not await look.begin():
        return
    await statistics.ensure(look.ledger)
    await look.scan()
    await look.wait_for_writer()
    found = len(look.report.faults)
    for attempt in range(SNAPSHOTS_MAX):
        del look.report.faults[found:]
        snapshot = look.ledger.transaction(isolation="repeatable_read")
        await snapshot.start()
        try:
            gap = await look.load()
            if gap is not None and attempt < SNAPSHOTS_MAX - 1:
                continue  # trimmed under our hands: the ledger has it now
            if gap is not None:
                look.fault("I3", gap)
            await _compare(look)
            return
        finally:
            await snapshot.rollback()


async def _compare(look: Snapshot) -> None:
    documents = await sales.catalogues(look.ledger)
    catalogues = {version: Catalogue.decode(document) for version, document in documents.items()}
    channels = channel_numbers(catalogues)
    look.progress("orders")
    await orders.check(look)
    for sale in look.sales:
        look.progress(f"orders of {sale.id}")
        state = look.states.get(sale.number)
        if sale.number in look.unreadable:
            continue
        if state is None:
            if await look.ledger.fetchval("SELECT EXISTS (SELECT FROM moved WHERE sale = $1)", sale.number):
                look.fault("I1", "Valkey does not know the sale", sale=sale.id)
            continue
        await stock.check_counters(look, sale, state, channels)
        await stock.check_window(look, sale)
        await holds.check(look, sale)
        await stock.check_quotas(look, sale, catalogues)
    look.progress("lanes, imports and grants")
    await limits.check(look, catalogues)
    look.progress("what became of the orders")
    await orders.check_lives(look)
    look.progress("promises")
    await promises.check(look)
    look.progress("parcels")
    await parcels.check(look)
    look.progress("money")
    await money.check(look)
    look.progress("settlement")
    await settlement.check(look)
