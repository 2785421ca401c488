"""Valkey rebuilt from ledger and journal: right to the unit, old keys replay, whatever dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from flashsale import merchandising
from flashsale.audit import audit
from flashsale.embedded import ValkeyServer
from flashsale.ledger import orders, partitions
from flashsale.ledger.migrate import migrate
from flashsale.pipeline.journal_rows import read_journal
from flashsale.pipeline.ledger_writer import WRITER_LOCK, LedgerWriter, MarkMoved, store_entries
from flashsale.recovery import LOST, Guard
from flashsale.reservation import commands, keys, server
from tests.integration.life import GRACE_S, HOLD_MS, Life
from tests.integration.lives import every_life
from tests.integration.shop import FAN, FRIDGE, KETTLE, Shop

WITHIN_S = 20
PAUSE_MS = 1500  # within it the guard is caught between its two looks; without that the test is only weaker


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Shop]:
    async with Shop(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


@pytest.fixture
async def living(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Life]:
    async with Life(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


async def busy(shop: Shop) -> list[tuple[str, str]]:
    """A sale in which everything happened; (shopper, key) of accepted orders."""
    bought = []
    for number in range(30):
        name, key = f"shopper-{number}", f"k{number}"
        lines = [(FRIDGE, 1 + number % 2)] + ([(KETTLE, 3)] if number % 3 == 0 else [])
        assert (await shop.buy(name, *lines, key=key))[0] == "A"
        bought.append((name, key))
    assert (await shop.buy("shopper-1", (FRIDGE, 1)))[0] == "Q"
    await merchandising.set_stock(shop.valkey, "sale", KETTLE, to=450, expect=500)
    await merchandising.suspend(shop.valkey, "sale", FAN)
    await merchandising.pause(shop.valkey, "sale")
    return bought


async def test_deleted_data_comes_back_to_the_unit_and_old_keys_replay(shop: Shop) -> None:
    bought = await busy(shop)
    await shop.write()
    before = await shop.dump()
    await shop.valkey.flushall()
    outcome = await shop.recover()
    assert (outcome.ok, outcome.rebuilt, outcome.orders, outcome.epoch) == (True, True, 30, 2)
    assert await shop.dump() == before
    assert (await shop.buy(bought[0][0], (FRIDGE, 1), (KETTLE, 3), key=bought[0][1]))[0] == "R"
    assert (await shop.buy("new", (FRIDGE, 1)))[0] == "P"
    await merchandising.resume(shop.valkey, "sale")
    assert (await shop.buy("new", (FAN, 1)))[0] == "U"
    assert (await shop.buy("shopper-1", (FRIDGE, 1)))[0] == "Q"
    assert (await shop.buy("new", (FRIDGE, 1)))[0] == "A"
    await shop.write()
    report = await audit(shop.redis_url, shop.database_url)
    assert report.faults == []


async def test_what_survives_in_the_journal_is_saved_first(shop: Shop) -> None:
    await busy(shop)
    before = await shop.dump()
    await shop.valkey.delete(keys.partition(0))
    outcome = await shop.recover()
    assert outcome.saved > 30
    assert await shop.dump() == before
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


def shown(dump: dict[str, dict[bytes, bytes]]) -> dict[str, dict[bytes, bytes]]:
    """A dump without quota fields of no units: Valkey keeps them, a rebuild does not write them."""
    return {name: {field: value for field, value in fields.items() if value != b"0"} for name, fields in dump.items()}


async def test_every_state_of_an_order_comes_back(living: Life) -> None:
    orders = await every_life(living)
    before = await living.dump()
    await living.valkey.flushall()
    assert (await living.recover()).ok
    assert shown(await living.dump()) == shown(before)
    assert await living.faults() == []
    assert (await living.buy("shopper-cancelled", (FRIDGE, 2)))[0] == "A"
    assert (await living.buy("shopper-restocked", (FRIDGE, 1)))[0] == "A"
    assert (await living.buy("shopper-kept_quota", (FRIDGE, 1)))[0] == "Q"
    assert (await living.buy("shopper-late_taken", (FRIDGE, 1)))[0] == "Q"
    await living.cancel(orders["paid"])
    await living.drain()
    assert await living.faults() == []


async def test_what_the_outbox_still_has_to_tell_is_told_once_to_a_rebuilt_valkey(living: Life) -> None:
    _, cancelled = await living.buy("ann", (FRIDGE, 2))
    _, told = await living.buy("bob", (FRIDGE, 2))
    await living.write()
    before = await living.available()
    await living.cancel(told)
    await living.outbox.round(living.ledger)  # Valkey knows it, the ledger does not
    await living.cancel(cancelled)
    for survives in (True, False):
        if not survives:
            await living.valkey.flushall()
        assert (await living.recover(force=True)).ok
        assert await living.faults() == []
    await living.drain()
    assert await living.available() == {**before, 0: before[0] + 4}
    assert await living.faults() == []


async def test_units_taken_for_a_late_payment_are_its_own_after_a_rebuild(living: Life) -> None:
    """Valkey took them and the ledger heard of it; that the order is paid is written only then."""
    _, order = await living.buy("ann", (FRIDGE, 2))
    await living.write()
    await living.begin_payment(order)
    assert await living.expire(HOLD_MS + GRACE_S * 1000 + 1000) == 1
    await living.drain()
    await living.pay(order)
    await living.outbox.round(living.ledger)
    await living.write()
    assert await living.ledger.fetchval("SELECT outcome FROM outbox") == "taken"
    assert await living.faults() == []
    before = await living.dump()
    await living.valkey.flushall()
    assert (await living.recover()).ok
    assert shown(await living.dump()) == shown(before)
    assert await living.faults() == []
    await living.drain()
    assert await living.status(order) == "paid"
    assert await living.faults() == []


async def test_what_the_provider_told_survives_a_rebuild(shop: Shop) -> None:
    await shop.valkey.xadd(keys.PAYMENT_EVENTS, {"e": "an event"})
    await shop.valkey.hset(keys.PAYMENT_EVENTS_STATE, "written", 8)
    assert (await shop.recover(force=True)).ok
    assert await shop.valkey.xlen(keys.PAYMENT_EVENTS) == 1
    assert await shop.valkey.hgetall(keys.PAYMENT_EVENTS_STATE) == {b"written": b"8"}


async def test_an_old_front_is_fenced_by_the_epoch(shop: Shop) -> None:
    await shop.buy("ann", (FRIDGE, 1))
    await shop.write()
    assert (await shop.recover(force=True)).epoch == 2
    assert (await shop.buy("bob", (FRIDGE, 1), epoch=1))[0] == "fenced"


async def test_a_valkey_older_than_the_ledger_is_rebuilt(own_valkey: Callable[..., ValkeyServer], ledger: str) -> None:
    """A log that lost its end: what was answered is in the ledger, and comes back."""
    valkey = own_valkey("cut")
    valkey.start()
    async with Shop(valkey.url, ledger, "fsync") as shop:
        await shop.open()
        for number in range(5):
            await shop.buy(f"early-{number}", (FRIDGE, 1))
        log = next(path for path in valkey.directory.rglob("*.incr.aof"))
        size = log.stat().st_size
        for number in range(5):
            await shop.buy(f"late-{number}", (FRIDGE, 1))
        await shop.write()
        before = await shop.dump()
        valkey.kill()
        with log.open("r+b") as file:
            file.truncate(size)
        valkey.start()
    async with Shop(valkey.url, ledger, "fsync") as shop:
        assert await shop.dump() != before
        outcome = await shop.recover()
        assert outcome.rebuilt
        assert "before the ledger's mark" in (outcome.reason or "")
        assert await shop.dump() == before


@pytest.mark.parametrize("at", [0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
async def test_a_rebuild_that_is_killed_is_done_again(shop: Shop, at: float) -> None:
    """Cut by its connection at a share of the commands that a whole rebuild sends; the next one repairs all."""
    await busy(shop)
    before = await shop.dump()
    first = await _commands_of(shop)
    assert (await shop.recover(force=True)).ok
    whole = await _commands_of(shop) - first
    assert await shop.dump() == before

    allowed = await _commands_of(shop) + int(whole * at)
    recovering = asyncio.create_task(shop.recover(force=True))
    while not recovering.done() and await _commands_of(shop) < allowed:  # noqa: ASYNC110 - Valkey counts
        await asyncio.sleep(0)
    recovering.cancel()
    await asyncio.wait([recovering])
    state = await commands.read_partition(shop.valkey)
    outcome = await shop.recover()
    assert outcome.ok
    assert outcome.rebuilt or state is not None
    assert await shop.dump() == before
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


async def _commands_of(shop: Shop) -> int:
    return int((await shop.valkey.info("stats"))["total_commands_processed"])


async def test_a_new_ledger_never_wipes_a_valkey_that_has_orders(shop: Shop, postgres: str) -> None:
    await busy(shop)
    before = await shop.dump()
    await migrate(postgres)
    async with Shop(shop.redis_url, postgres) as stranger:
        outcome = await stranger.recover()
        assert not outcome.ok
        assert not outcome.rebuilt
        assert "the ledger is older" in (outcome.reason or "")
    assert await shop.dump() == before


async def lose_a_transaction(shop: Shop) -> None:
    """Leaves the ledger as a PostgreSQL that lost its newest commit leaves it: older than what was trimmed."""
    await shop.buy("early", (FRIDGE, 1))
    await shop.write()
    known = await partitions.get(shop.ledger, 0)
    assert known is not None
    await shop.buy("late", (FRIDGE, 1))
    await shop.write()
    await shop.trim()
    await shop.ledger.execute("DELETE FROM orders WHERE shopper = 'late'")
    await shop.ledger.execute(
        "UPDATE partition SET mark_ms = $1, mark_seq = $2, mark_bytes = $3", *known.mark, known.mark_bytes
    )


async def test_a_ledger_that_lost_a_transaction_is_not_accepted(shop: Shop) -> None:
    await lose_a_transaction(shop)
    before = await shop.dump()
    outcome = await shop.recover()
    assert (outcome.ok, outcome.rebuilt) == (False, False)
    assert "bytes beyond the ledger's mark" in (outcome.reason or "")
    assert "the ledger is older than Valkey: is it the right database?" in (outcome.reason or "")
    assert "--force" in (outcome.reason or "")
    assert await shop.dump() == before
    assert (await shop.recover(force=True)).ok
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


async def test_a_ledger_that_lost_a_transaction_closes_the_doors_until_told(shop: Shop) -> None:
    """PostgreSQL comes back older while Valkey runs on: nothing is written on top, and the fronts are told."""
    guard = Guard(shop.redis_url, shop.database_url, durability="memory")
    writer = LedgerWriter(shop.redis_url, shop.database_url)
    running = [asyncio.create_task(guard.run()), asyncio.create_task(writer.run())]
    try:
        await until_verified(shop)
        await until(lambda: writer.writing and not guard.reasons, "the writer writes")
        # The writer's connection breaks as it does when PostgreSQL dies; it gets the lock again when all is set up.
        while not await shop.ledger.fetchval("SELECT pg_try_advisory_lock($1, $2)", WRITER_LOCK, 0):
            await shop.ledger.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await lose_a_transaction(shop)
        await shop.ledger.execute("SELECT pg_advisory_unlock($1, $2)", WRITER_LOCK, 0)
        await until(lambda: any("--force" in reason for reason in guard.reasons), "the guard says why")
        assert "bytes beyond the ledger's mark" in guard.reasons[0]
        state = await commands.read_partition(shop.valkey)
        assert state is not None
        assert state.run_id == ""
        assert not writer.writing
        await shop.buy("later", (FRIDGE, 1))
        known = await partitions.get(shop.ledger, 0)
        assert known is not None
        assert known.mark_bytes < state.trimmed
        assert (await shop.recover(force=True)).ok
        await until(lambda: writer.writing and not guard.reasons, "the doors are open again")
        await shop.buy("last", (FRIDGE, 1))
        report = await audit(shop.redis_url, shop.database_url)
        assert report.faults == []
        assert report.counts.orders_valkey == 3  # early, later (it survived in the journal), last
    finally:
        guard.stop()
        writer.stop()
        await asyncio.gather(*running)


async def test_what_was_read_before_a_restart_is_not_stored_after_the_verdict(shop: Shop) -> None:
    """Between reading a chunk and storing it Valkey dies, loses the chunk, and is accepted without it."""
    await shop.write()
    known = await partitions.get(shop.ledger, 0)
    assert known is not None
    await shop.buy("ann", (FRIDGE, 1))
    items = await read_journal(shop.valkey, 0, known.mark, 10)
    await partitions.set_verified(shop.ledger, 0, "another process")
    with pytest.raises(MarkMoved):
        await store_entries(shop.ledger, known, items)
    await shop.write()
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


async def test_valkey_is_compared_and_accepted_in_one_instant_of_the_ledger(shop: Shop) -> None:
    """A chunk that a restart lost is stored just while the guard looks: the verdict knows it, or it is not stored."""
    await shop.write()
    await partitions.set_verified(shop.ledger, 0, "the process before")
    known = await partitions.get(shop.ledger, 0)
    assert known is not None
    await shop.buy("ann", (FRIDGE, 1))
    items = await read_journal(shop.valkey, 0, known.mark, 10)
    sale, _ = await shop.sale()
    # The end of the log is lost.
    await shop.valkey.delete(keys.journal(0), keys.holds(0, "sale"), keys.quota(0, "sale"))
    await shop.valkey.xadd(keys.journal(0), {"m": "stored", "w": 0}, id=f"{known.mark[0]}-{known.mark[1]}")
    await shop.valkey.hset(keys.partition(0), "written", known.mark_bytes)
    await shop.valkey.hset(keys.stock(0, "sale"), "0", sale.offers[0].stock)
    await shop.valkey.client_pause(PAUSE_MS)
    recovering = asyncio.create_task(shop.recover())
    looks = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state LIKE 'idle%' AND query LIKE 'SELECT id, epoch%')"
    )
    while not await shop.ledger.fetchval(looks) and not recovering.done():  # noqa: ASYNC110 - PostgreSQL says so
        await asyncio.sleep(0.01)
    with contextlib.suppress(MarkMoved):
        await store_entries(shop.ledger, known, items)
    assert (await recovering).ok
    assert await orders.count(shop.ledger) == await shop.valkey.hlen(keys.holds(0, "sale"))
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def test_the_guard_opens_after_a_restart_and_after_a_loss(
    own_valkey: Callable[..., ValkeyServer], ledger: str
) -> None:
    valkey = own_valkey("guarded")
    valkey.start()
    guard = Guard(valkey.url, ledger, durability="fsync")
    writer = LedgerWriter(valkey.url, ledger)
    running = [asyncio.create_task(guard.run()), asyncio.create_task(writer.run())]
    try:
        async with Shop(valkey.url, ledger, "fsync") as shop:
            await until_verified(shop)
            await shop.open()
            await shop.buy("ann", (FRIDGE, 1), key="k")
        valkey.kill()
        valkey.start()
        async with Shop(valkey.url, ledger, "fsync") as shop:
            await until_verified(shop)
            assert (await shop.buy("ann", (FRIDGE, 1), key="k"))[0] == "R"
            await shop.write()
            before = await shop.dump()
            await shop.valkey.flushall()
            await until_verified(shop)
            assert await shop.dump() == before
            assert (await shop.buy("bob", (FRIDGE, 1)))[0] == "A"
            report = await audit(shop.redis_url, shop.database_url)
            assert report.faults == []
            assert report.counts.orders_valkey == 2
    finally:
        guard.stop()
        writer.stop()
        await asyncio.gather(*running)


async def until_verified(shop: Shop) -> None:
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            state = await commands.read_partition(shop.valkey)
            if state is not None and state.run_id == await server.run_id(shop.valkey):
                return
        except LOST:
            pass  # it is starting
        assert time.monotonic() < deadline, "the guard accepts Valkey"
        await asyncio.sleep(0.01)


async def test_a_valkey_that_evicts_is_refused_in_one_line(shop: Shop) -> None:
    await shop.valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        outcome = await shop.recover()
    finally:
        await shop.valkey.config_set("maxmemory-policy", "noeviction")
    assert not outcome.ok
    assert len(outcome.shortcomings) == 1
    assert "noeviction" in outcome.shortcomings[0]


async def test_a_dump_restored_without_statistics_is_rebuilt_in_seconds(shop: Shop) -> None:
    """PostgreSQL plans for ten rows where it knows nothing: with a nested loop 20,000 orders took it minutes."""
    limit = (
        "ALTER DATABASE " + await shop.ledger.fetchval("SELECT current_database()") + " SET statement_timeout = '8s'"
    )
    await shop.ledger.execute(limit)
    await shop.write()
    for table in ("orders", "movement"):
        await shop.ledger.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    await shop.ledger.execute(
        "INSERT INTO orders (id, sale, shopper, idempotency_key, market, channel, skus, quantities, prices, total,"
        " currency, catalogue_version, fingerprint, hold_ms, partition, journal_ms, journal_seq, status)"
        " SELECT lpad(to_hex(n), 30, '0'), 1, 'shopper-' || n, 'k', 'SG', 'direct', '{0}', '{1}', '{100}', 100,"
        " 'SGD', 1, decode('0011223344556677', 'hex'), 1, 0, n, 0, 'expired' FROM generate_series(1, 20000) AS n"
    )
    await shop.ledger.execute(
        "INSERT INTO movement SELECT 0, n, 1, 'release', 1, 0, 1, lpad(to_hex(n), 30, '0'),"
        """ '{"number": 2, "quota_back": true}' FROM generate_series(1, 20000) AS n"""
    )
    await shop.valkey.flushall()
    outcome = await shop.recover()
    assert (outcome.ok, outcome.orders) == (True, 20000)


async def test_a_partition_that_can_not_be_read_is_rebuilt_by_the_guard(shop: Shop) -> None:
    await busy(shop)
    await shop.write()
    before = await shop.dump()
    guard = Guard(shop.redis_url, shop.database_url, durability="memory")
    running = asyncio.create_task(guard.run())
    try:
        for damage in ("a field", "the key"):
            if damage == "a field":
                await shop.valkey.hset(keys.partition(0), "epoch", "?")
            else:
                await shop.valkey.set(keys.partition(0), "no hash")
            await until_readable(shop)
            assert await shop.dump() == before
    finally:
        guard.stop()
        await running
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


async def until_readable(shop: Shop) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                state = await commands.read_partition(shop.valkey)
                if state is not None and state.run_id == await server.run_id(shop.valkey):
                    return
            except (ValueError, *LOST):
                pass  # damaged still
            await asyncio.sleep(0.01)
