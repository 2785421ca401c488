"""The audit on real servers: silent while all is well, at rest and while selling; else it names SKU or order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from flashsale import merchandising
from flashsale.audit import AuditReport, Fault, audit
from flashsale.embedded import ValkeyServer
from flashsale.errors import Refused
from flashsale.ledger.life import deliver
from flashsale.pipeline.ledger_writer import LedgerWriter
from flashsale.pipeline.outbox import Outbox
from flashsale.reservation import commands, keys, server
from tests.integration.life import GRACE_S, HOLD_MS, Life
from tests.integration.lives import every_life, step
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


# --- the life of an order ---


@pytest.fixture
async def living(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[tuple[Life, dict[str, str]]]:
    async with Life(valkey_memory.url, ledger) as made:
        await made.open()
        yield made, await every_life(made)


Living = tuple[Life, dict[str, str]]


async def test_every_state_of_an_order_is_sound_and_counted(living: Living) -> None:
    shop, orders = living
    report = await look(shop)
    assert report.faults == []
    counts = report.counts
    assert counts.orders_valkey == counts.orders_ledger == len(orders) + 2
    gone = {"reserved", "extended", "cancelled", "part_cancelled", "expired", "late_refused"}
    assert counts.orders_paid == len(set(orders) - gone)
    price = 2 * 89900 + 3 * 2050
    sums = counts.money["SGD"]
    assert counts.payments == len(orders) - 4  # the first four were never about to be paid
    assert sums["authorised"] == price * (len(orders) - 5)  # and the expired one never was
    assert sums["authorised"] == sums["captured"] + sums["released"] + sums["open"]
    assert sums["captured"] == sums["kept"] + sums["refunded"]
    assert sums["refunded"] == 2 * 89900
    assert sums["refund_failed"] == 89900
    assert sums["goodwill"] == 100
    assert sums["open"] == 4 * price  # paid, late_taken, late_refused (to be released), shipped (to be captured)


# What is broken, of which life, by which statement on its row, and what the audit calls it.
BROKEN = {
    "units never given back": ("cancelled", "DELETE FROM movement WHERE order_id = $1 AND sku = 0", {"I1", "I4", "I5"}),
    "units of a living order given back": (
        "paid",
        "INSERT INTO movement (partition, journal_ms, journal_seq, kind, sale, sku, units, order_id, detail)"
        " SELECT id, mark_ms, mark_seq, 'release', 1, 0, 1, $1,"
        ' \'{"number": 2, "outbox": 1, "quota_back": false}\' FROM partition',
        {"I1", "I5"},
    ),
    "units given back twice": (
        "restocked",
        "INSERT INTO movement (partition, journal_ms, journal_seq, kind, sale, sku, units, order_id, detail)"
        " SELECT partition, journal_ms - 1, journal_seq, kind, sale, sku, units, order_id, detail FROM movement"
        " WHERE order_id = $1",
        {"I1", "I4", "I5"},
    ),
    "a movement of no change": (
        "cancelled",
        "UPDATE movement SET detail = detail || '{\"number\": 9}' WHERE order_id = $1",
        {"I5"},
    ),
    "a release that the outbox lost": ("cancelled", "UPDATE orders SET status = 'reserved' WHERE id = $1", None),
    "more units cancelled than ordered": (
        "part_cancelled",
        "UPDATE orders SET cancelled = '{3, 0}' WHERE id = $1",
        {"I5", "I7"},
    ),
    "more units back than shipped": ("captured", "UPDATE orders SET returned = '{3, 0}' WHERE id = $1", {"I7"}),
    "a hold's number": ("expired", "VALKEY number", {"I5"}),
    "a hold's letter": ("paid", "VALKEY letter", {"I4"}),
    "an extension that Valkey forgot": ("extended", "VALKEY case", {"I4"}),
    "a sold counter": ("paid", "UPDATE sold SET units = units + 1 WHERE sku = 1 AND $1 <> ''", {"I1"}),
    "a gap in a history": ("shipped", "DELETE FROM history WHERE order_id = $1 AND number = 2", {"history"}),
    "a number twice in a history": (
        "shipped",
        "UPDATE history SET number = 3 WHERE order_id = $1 AND number = 2",
        {"history"},
    ),
    "a change without history": ("reserved", "UPDATE orders SET changes = 2 WHERE id = $1", {"history"}),
    "a history that ends otherwise": (
        "shipped",
        "UPDATE history SET payment = 'none' WHERE order_id = $1 AND number = 3",
        {"history"},
    ),
    "a history of no order": (
        "reserved",
        "INSERT INTO history (order_id, number, at_ms, event, status, payment)"
        " SELECT left(id, 29) || 'x', 2, 1, 'order.paid', 'paid', 'none' FROM orders WHERE id = $1",
        {"history"},
    ),
    "authorised money of an order that is over": (
        "late_refused",
        "UPDATE payment SET todo = NULL WHERE order_id = $1",
        {"I6"},
    ),
    "a late payment that nobody asks for": (
        "late_refused",
        "UPDATE payment SET late = 'asked' WHERE order_id = $1",
        {"I6"},
    ),
    "captured money of an order that is over": (
        "late_refused",
        "UPDATE payment SET todo = NULL, state = 'captured', rank = 3, captured = authorised WHERE order_id = $1",
        {"I6"},
    ),
    "an order without money": ("paid", "DELETE FROM payment WHERE order_id = $1", {"money"}),
    "money without an order": (
        "reserved",
        "INSERT INTO payment (order_id, sale, method, amount, currency, created_ms, heard_ms)"
        " SELECT left(id, 29) || 'x', 1, 'card', 1, 'SGD', 1, 1 FROM orders WHERE id = $1",
        {"I6"},
    ),
    "money that came from nowhere": (
        "captured",
        "UPDATE payment SET captured = captured + 1 WHERE order_id = $1",
        {"money"},
    ),
    "money that is neither captured nor released": (
        "captured",
        "UPDATE payment SET authorised = authorised + 1 WHERE order_id = $1",
        {"money"},
    ),
    "more refunded than captured": ("captured", "UPDATE payment SET refunded = captured + 1 WHERE order_id = $1", None),
    "a refund that its payment forgot": (
        "refunded",
        "UPDATE payment SET refunded = 0 WHERE order_id = $1",
        {"money"},
    ),
    "a refund that is lost": ("restocked", "DELETE FROM refund WHERE order_id = $1", {"money"}),
    "a refund that failed and is forgotten": (
        "refund_failed",
        "UPDATE payment SET refund_failed = 0 WHERE order_id = $1",
        {"money"},
    ),
    "more kept than is due": (
        "goodwill",
        "UPDATE payment SET goodwill = goodwill + 1 WHERE order_id = $1",
        {"money"},
    ),
    "less kept than is due": (
        "part_shipped",
        "UPDATE payment SET captured = captured - 1, released = released + 1 WHERE order_id = $1",
        {"money"},
    ),
    "another currency": ("paid", "UPDATE payment SET currency = 'THB' WHERE order_id = $1", {"money"}),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_what_is_broken_is_named(living: Living, broken: str) -> None:
    shop, orders = living
    life, statement, invariants = BROKEN[broken]
    order = orders[life]
    if statement.startswith("VALKEY"):
        await spoil(shop, order, statement.removeprefix("VALKEY "))
    else:
        await shop.ledger.execute(statement, order)
    faults = (await look(shop)).faults
    named = {fault.order for fault in faults if fault.order is not None}
    assert faults
    assert all(name[:29] == order[:29] for name in named), faults
    if invariants is not None:
        assert {fault.invariant for fault in faults} == invariants, faults
    assert named == {order} or broken in ("a sold counter", "a history of no order", "money without an order"), faults


async def spoil(shop: Life, order: str, what: str) -> None:
    """Changes a byte of the order's hold."""
    holds, field = keys.holds(0, "sale"), bytes.fromhex(order)[-12:]
    value = await shop.valkey.hget(holds, field)
    spoilt = {"number": value[:24] + b"\x09", "letter": b"h" + value[1:], "case": value[:1].lower() + value[1:]}
    await shop.valkey.hset(holds, field, spoilt[what])


async def test_a_letter_may_lag_behind_what_the_outbox_has_to_tell(living: Living) -> None:
    shop, orders = living
    await shop.cancel(orders["paid"])
    await shop.begin_payment(orders["reserved"])
    await shop.pay(orders["reserved"])
    await step(shop, deliver, orders["captured"], True, await shop.now_ms())
    assert await shop.ledger.fetchval("SELECT count(*) FROM outbox") == 3
    assert (await look(shop)).faults == []
    await shop.ledger.execute("DELETE FROM outbox")  # nobody is ever going to tell it
    faults = {(fault.invariant, fault.order) for fault in (await look(shop)).faults}
    assert faults == {
        ("I4", orders["paid"]), ("I5", orders["paid"]), ("I4", orders["reserved"]), ("I4", orders["captured"])
    }  # fmt: skip


async def test_a_letter_never_runs_ahead(living: Living) -> None:
    shop, orders = living
    await step(shop, deliver, orders["captured"], True, await shop.now_ms())
    holds, field = keys.holds(0, "sale"), bytes.fromhex(orders["captured"])[-12:]
    value = await shop.valkey.hget(holds, field)
    await shop.valkey.hset(holds, field, b"c" + value[1:])
    assert (await only_fault(shop)).order == orders["captured"]


async def test_a_late_payment_is_sound_at_every_step(living: Living) -> None:
    shop, _ = living
    _, order = await shop.buy("ann", (FRIDGE, 1))
    await shop.write()
    await shop.begin_payment(order)
    await shop.expire(HOLD_MS + GRACE_S * 1000 + 1000)
    for _ in range(2):  # the release, then the units taken again
        assert (await look(shop)).faults == []
        await shop.outbox.round(shop.ledger)
        assert (await look(shop)).faults == []
        await shop.write()
        assert (await look(shop)).faults == []
        if await shop.status(order) == "expired":
            await shop.pay(order)
    await shop.drain()
    assert (await look(shop)).faults == []
    assert await shop.status(order) == "paid"


async def test_it_is_exact_while_selling_paying_cancelling_and_expiring(living: Living) -> None:
    shop, _ = living
    writer = LedgerWriter(shop.redis_url, shop.database_url, rows=7)
    duties: list[LedgerWriter | Outbox] = [writer, Outbox(shop.redis_url, shop.database_url)]
    running = [asyncio.create_task(duty.run()) for duty in duties]
    enough = asyncio.Event()
    waiting: asyncio.Queue[str] = asyncio.Queue()

    async def sell() -> None:
        client = server.connect(shop.redis_url)
        number = 0
        while not enough.is_set():
            number += 1
            outcome, order = await shop.buy(f"crowd-{number}", (FRIDGE, 1), (KETTLE, 1), client=client)
            if outcome == "A":
                await waiting.put(order)
        await client.aclose()

    async def live() -> None:
        async with Life(shop.redis_url, shop.database_url) as other:
            done = 0
            while not enough.is_set():
                order = await waiting.get()
                while not await other.ledger.fetchval("SELECT true FROM orders WHERE id = $1", order):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # the writer is behind
                done += 1
                if done % 4 == 0:
                    await other.expire(HOLD_MS + GRACE_S * 1000 + 1000)
                    continue
                with contextlib.suppress(Refused):
                    if done % 4 == 1:
                        await other.cancel(order)
                        continue
                    await other.begin_payment(order)
                    if done % 4 == 2:
                        await other.expire(HOLD_MS + GRACE_S * 1000 + 1000)
                    await other.pay(order)
                    if done % 8 == 3:
                        await other.cancel(order, [(0, 1)])

    crowd = [asyncio.create_task(sell()), asyncio.create_task(live()), asyncio.create_task(live())]
    try:
        for _ in range(12):
            assert (await look(shop)).faults == []
    finally:
        enough.set()
        for _ in range(2):
            await waiting.put(await shop.ledger.fetchval("SELECT id FROM orders LIMIT 1"))
        await asyncio.gather(*crowd)
        for duty in duties:
            duty.stop()
        await asyncio.gather(*running)
    await shop.write()
    await shop.drain()
    assert (await look(shop)).faults == []
    events = {row[0] for row in await shop.ledger.fetch("SELECT DISTINCT event FROM history")}
    assert {"order.paid", "order.cancelled", "order.expired", "payment.late"} <= events
