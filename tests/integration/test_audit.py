"""The audit on real servers: silent while all is well, at rest and while selling; else it names SKU or order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flashsale import merchandising
from flashsale.audit import AuditReport, Fault, audit
from flashsale.embedded import ValkeyServer
from flashsale.pipeline.ledger_writer import LedgerWriter
from flashsale.reservation import commands, keys, server
from tests.integration.shop import FAN, FRIDGE, KETTLE, Shop


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Shop]:
    async with Shop(valkey_memory.url, ledger) as made:
        await made.open()
        for number in range(20):
            lines = [(FRIDGE, 1 + number % 2)] + ([(KETTLE, 3)] if number % 3 == 0 else [])
            assert (await made.buy(f"shopper-{number}", *lines))[0] == "A"
        yield made


async def look(shop: Shop) -> AuditReport:
    return await audit(shop.redis_url, shop.database_url)


async def only_fault(shop: Shop) -> Fault:
    report = await look(shop)
    assert len(report.faults) == 1, report.faults
    assert not report.as_dict()["ok"]
    return report.faults[0]


@pytest.mark.parametrize("written", [True, False])
async def test_a_sound_sale_has_no_faults_with_and_without_a_writer(shop: Shop, written: bool) -> None:
    if written:
        await shop.write()
        await shop.trim()
    report = await look(shop)
    assert report.faults == []
    counts = report.counts
    assert (counts.orders_valkey, counts.orders_ledger + counts.backlog, counts.units) == (20, 20, 51)
    assert (counts.orders_ledger, counts.backlog) == ((20, 0) if written else (0, 20))
    assert counts.as_of.endswith("Z")


async def test_it_is_exact_while_selling(shop: Shop) -> None:
    writer = LedgerWriter(shop.redis_url, shop.database_url, rows=7)
    writing = asyncio.create_task(writer.run())
    sold_enough = asyncio.Event()

    async def sell(seller: int) -> None:
        client = server.connect(shop.redis_url)
        number = 0
        while not sold_enough.is_set():
            number += 1
            await shop.buy(f"s{seller}-{number % 50}", (FRIDGE, 1), (KETTLE, 1), client=client)
        await client.aclose()

    selling = [asyncio.create_task(sell(seller)) for seller in range(3)]
    for _ in range(5):
        report = await look(shop)
        assert report.faults == []
        await merchandising.suspend(shop.valkey, "sale", FAN)
        await merchandising.unsuspend(shop.valkey, "sale", FAN)
    sold_enough.set()
    await asyncio.gather(*selling)
    await merchandising.pause(shop.valkey, "sale")
    await merchandising.resume(shop.valkey, "sale")
    writer.stop()
    await writing
    assert (await look(shop)).faults == []


async def test_a_counter_that_drifted_names_its_sku(shop: Shop) -> None:
    await shop.write()
    await shop.valkey.hincrby(keys.stock(0, "sale"), "1", 1)
    fault = await only_fault(shop)
    assert (fault.invariant, fault.sale, fault.sku) == ("I1", "sale", KETTLE)


async def test_a_supply_that_no_movement_explains_names_its_sku(shop: Shop) -> None:
    await shop.valkey.hincrby(keys.stock(0, "sale"), "2", 5)
    await shop.valkey.hincrby(keys.supply(0, "sale"), "2", 5)
    fault = await only_fault(shop)
    assert (fault.invariant, fault.sku) == ("I1", FAN)


async def test_a_counter_that_is_gone_names_its_sku(shop: Shop) -> None:
    await shop.valkey.hdel(keys.stock(0, "sale"), "1")
    fault = await only_fault(shop)
    assert (fault.invariant, fault.sku) == ("I1", KETTLE)


@pytest.mark.parametrize("written", [True, False])
async def test_an_order_that_is_lost_or_twice_is_named(shop: Shop, written: bool) -> None:
    _, order = await shop.buy("ann", (FRIDGE, 1))
    await shop.write()
    if not written:
        await shop.ledger.execute("DELETE FROM orders WHERE id = $1", order)
        faults = (await look(shop)).faults
        assert ("I3", order) in [(fault.invariant, fault.order) for fault in faults]
        assert ("I1", FRIDGE) in [(fault.invariant, fault.sku) for fault in faults]
    else:
        await shop.ledger.execute("INSERT INTO orders SELECT * FROM orders WHERE id = $1", order)
        faults = (await look(shop)).faults
        assert ("I3", order) in [(fault.invariant, fault.order) for fault in faults]


async def test_a_hold_that_is_gone_or_differs_is_named(shop: Shop) -> None:
    _, gone = await shop.buy("ann", (FRIDGE, 1))
    _, other = await shop.buy("bob", (FRIDGE, 1))
    await shop.write()
    holds = keys.holds(0, "sale")
    await shop.valkey.hdel(holds, bytes.fromhex(gone)[-12:])
    value = await shop.valkey.hget(holds, bytes.fromhex(other)[-12:])
    await shop.valkey.hset(holds, bytes.fromhex(other)[-12:], value[:1] + b"\0" * 8 + value[9:])
    faults = {(fault.invariant, fault.order) for fault in (await look(shop)).faults}
    assert faults == {("I3", gone), ("I4", other)}


async def test_a_quota_that_does_not_add_up_is_named(shop: Shop) -> None:
    await shop.buy("ann", (FAN, 1))
    quota = keys.quota(0, "sale")
    field = next(name for name in await shop.valkey.hkeys(quota) if name.endswith(b"\0\2"))
    await shop.valkey.hset(quota, field, 0)
    fault = await only_fault(shop)
    assert (fault.invariant, fault.sku) == ("I4", FAN)
    assert "ann" in fault.detail
    assert (await shop.buy("ann", (FAN, 1)))[0] == "A"  # and so she gets one too many
    faults = {(fault.invariant, fault.sku) for fault in (await look(shop)).faults}
    assert faults == {("I2", FAN), ("I4", FAN)}


async def test_an_order_outside_the_window_or_of_a_suspended_sku_is_named(shop: Shop) -> None:
    await merchandising.pause(shop.valkey, "sale")
    await shop.valkey.hset(keys.state(0, "sale"), "status", "open")  # behind the journal's back
    _, early = await shop.buy("ann", (FRIDGE, 1))
    await shop.valkey.hset(keys.state(0, "sale"), "status", "paused")
    await merchandising.resume(shop.valkey, "sale")
    await merchandising.suspend(shop.valkey, "sale", FAN)
    await shop.valkey.hset(keys.state(0, "sale"), "suspended", "")
    _, suspended = await shop.buy("ann", (FAN, 1))
    faults = [(fault.invariant, fault.order, fault.sku) for fault in (await look(shop)).faults]
    assert faults == [("I2", early, None), ("I2", suspended, FAN)]


async def test_an_order_whose_lines_do_not_agree_is_named(shop: Shop) -> None:
    _, order = await shop.buy("ann", (FRIDGE, 1), (KETTLE, 2))
    await shop.write()
    await shop.ledger.execute("UPDATE orders SET total = total + 1 WHERE id = $1", order)
    fault = await only_fault(shop)
    assert (fault.invariant, fault.order) == ("I7", order)


async def test_a_dead_letter_is_a_fault(shop: Shop) -> None:
    entry = {"o": b"no order at all\n", "w": 0}
    state = await commands.read_partition(shop.valkey)
    assert state is not None
    entry["w"] = state.written + 16
    await shop.valkey.xadd(keys.journal(0), entry)
    await shop.valkey.hset(keys.partition(0), "written", entry["w"])
    assert (await only_fault(shop)).invariant == "I3"
    await shop.write()
    assert (await only_fault(shop)).invariant == "I3"


async def test_a_journal_with_a_hole_is_a_fault(shop: Shop) -> None:
    entries = await shop.valkey.xrange(keys.journal(0))
    await shop.valkey.xdel(keys.journal(0), entries[-3][0])
    report = await look(shop)
    assert "I3" in {fault.invariant for fault in report.faults}


async def test_a_part_that_is_away_is_said_at_once(shop: Shop) -> None:
    report = await audit("redis://127.0.0.1:1", shop.database_url)
    assert [fault.invariant for fault in report.faults] == ["unreachable"]
    report = await audit(shop.redis_url, "postgresql://nobody@127.0.0.1:1/none")
    assert [fault.invariant for fault in report.faults] == ["unreachable"]
    assert not report.ok
