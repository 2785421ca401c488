"""Holds that nobody pays: units and quota go back once, whatever dies in between and whoever repeats it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from flashsale.embedded import ValkeyServer
from flashsale.ledger import history, life, outbox, partitions
from flashsale.reservation import commands, keys
from flashsale.sale.payment import IntentState
from tests.integration.life import GRACE_S, HOLD_MS, Life
from tests.integration.shop import FAN, FRIDGE, KETTLE

FULL = {0: 1000, 1: 500, 2: 3}


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Life]:
    async with Life(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


async def bought(shop: Life, shopper: str, *lines: tuple[str, int], key: str | None = None) -> str:
    outcome, order_id = await shop.buy(shopper, *lines, key=key)
    assert outcome == "A"
    await shop.write()
    return order_id


async def events(shop: Life, order_id: str) -> list[str]:
    return [row.event for row in await history.of_order(shop.ledger, order_id)]


# --- what a shopper sees ---


async def test_an_unpaid_hold_goes_back_after_its_deadline_with_its_quota_and_not_before(shop: Life) -> None:
    order_id = await bought(shop, "ann", (FRIDGE, 2), (KETTLE, 1))
    assert await shop.expire(HOLD_MS - 60_000) == 0
    assert await shop.status(order_id) == "reserved"
    assert await shop.expire() == 1
    assert await shop.status(order_id) == "expired"
    assert (await shop.available())[0] == 998, "the units wait in the outbox"
    await shop.drain()
    assert await shop.available() == FULL
    assert await shop.quota_used() == 0
    assert await events(shop, order_id) == ["order.expired"]
    assert await shop.expire() == 0
    assert (await shop.buy("ann", (FRIDGE, 2)))[0] == "A"
    await shop.write()
    assert await shop.faults() == []


async def test_a_retry_with_the_first_key_after_expiry_takes_no_unit_again(shop: Life) -> None:
    order_id = await bought(shop, "ann", (FRIDGE, 1), key="first")
    await shop.expire()
    await shop.drain()
    assert await shop.buy("ann", (FRIDGE, 1), key="first") == ("R", order_id)
    await shop.write()
    assert await shop.available() == FULL
    hold = await commands.find_hold(shop.valkey, "sale", order_id)
    assert hold is not None
    assert hold.letter == "e"


async def test_thousands_of_holds_expire_in_few_transactions_and_calls(shop: Life) -> None:
    for number in range(450):
        assert (await shop.buy(f"s{number}", (KETTLE, 1)))[0] == "A"
    await shop.write()
    assert await shop.expire() == 450
    assert await shop.ledger.fetchval("SELECT count(*) FROM outbox") == 5
    await shop.drain()
    assert await shop.available() == FULL
    assert await shop.faults() == []


async def test_an_idle_sweep_remembers_where_the_unpaid_holds_begin(shop: Life) -> None:
    await bought(shop, "ann", (FRIDGE, 1))
    await shop.expire()
    until_ms = await shop.now_ms() + HOLD_MS + 1
    later = await bought(shop, "bob", (FRIDGE, 1))
    (from_ms,) = shop.expiry._from_ms.values()
    first_ms = await shop.ledger.fetchval("SELECT journal_ms FROM orders WHERE id = $1", later)
    assert first_ms - 60_000 < from_ms <= first_ms, "what comes next is looked at, what was is not"
    assert await shop.expiry.sweep(shop.ledger, until_ms + 1000) == 1
    assert await shop.status(later) == "expired"


# --- payments beside it ---


async def test_an_open_intent_is_closed_at_the_provider_before_its_order_expires(shop: Life) -> None:
    order_id = await bought(shop, "ann", (FRIDGE, 1))
    await shop.begin_payment(order_id)
    assert await shop.expire() == 0
    todo = await shop.ledger.fetchval("SELECT todo FROM payment WHERE order_id = $1", order_id)
    assert (await shop.status(order_id), todo) == ("reserved", "close")
    await shop.told(order_id, IntentState.CLOSED)
    assert await shop.expire() == 1
    await shop.drain()
    assert await shop.available() == FULL


async def test_with_the_provider_away_it_expires_after_the_grace(shop: Life) -> None:
    order_id = await bought(shop, "ann", (FRIDGE, 1))
    await shop.begin_payment(order_id)
    assert await shop.expire(HOLD_MS + 1000) == 0
    assert await shop.expire(HOLD_MS + GRACE_S * 1000 - 1000) == 0
    assert await shop.expire(HOLD_MS + GRACE_S * 1000 + 1000) == 1
    await shop.drain()
    assert await shop.available() == FULL


async def test_who_pays_in_time_keeps_the_order(shop: Life) -> None:
    order_id = await bought(shop, "ann", (FRIDGE, 1))
    await shop.begin_payment(order_id)
    await shop.pay(order_id)
    assert await shop.expire() == 0
    await shop.drain()
    assert await shop.status(order_id) == "paid"
    hold = await commands.find_hold(shop.valkey, "sale", order_id)
    assert hold is not None
    assert hold.letter == "p"


async def expired_with_open_intent(shop: Life, shopper: str, *lines: tuple[str, int]) -> str:
    order_id = await bought(shop, shopper, *lines)
    await shop.begin_payment(order_id)
    await shop.expire(HOLD_MS + GRACE_S * 1000 + 1000)
    await shop.drain()
    assert await shop.status(order_id) == "expired"
    return order_id


async def test_a_late_payment_takes_the_units_again(shop: Life) -> None:
    order_id = await expired_with_open_intent(shop, "ann", (FRIDGE, 2), (KETTLE, 1))
    assert await shop.available() == FULL
    await shop.pay(order_id)
    await shop.drain()
    await shop.outbox.round(shop.ledger)
    assert await shop.status(order_id) == "paid"
    assert await shop.available() == {0: 998, 1: 499, 2: 3}
    assert await shop.quota_used() == 2
    await shop.drain()
    assert await shop.faults() == []


async def test_a_late_payment_whose_units_are_gone_is_given_back(shop: Life) -> None:
    order_id = await expired_with_open_intent(shop, "ann", (FRIDGE, 1), (FAN, 1))
    for number in range(3):
        await bought(shop, f"faster-{number}", (FAN, 1))
    await shop.pay(order_id)
    await shop.drain()
    assert await shop.status(order_id) == "expired"
    late, todo = await shop.ledger.fetchrow("SELECT late, todo FROM payment WHERE order_id = $1", order_id)
    assert (late, todo) == ("refused", "release")
    assert await shop.available() == {0: 1000, 1: 500, 2: 0}
    assert await shop.faults() == []


async def test_a_late_payment_beyond_the_quota_is_given_back(shop: Life) -> None:
    order_id = await expired_with_open_intent(shop, "ann", (FRIDGE, 2))
    await bought(shop, "ann", (FRIDGE, 1))
    await shop.pay(order_id)
    await shop.drain()
    assert await shop.status(order_id) == "expired"
    assert await shop.quota_used() == 1


async def test_who_paid_before_the_deadline_is_judged_by_the_events_arrival_however_late_it_is_applied(
    shop: Life,
) -> None:
    order_id = await bought(shop, "ann", (FRIDGE, 1))
    await shop.ledger.execute(
        "UPDATE orders SET hold_ms = $1 - journal_ms - 1 WHERE id = $2", await shop.now_ms(), order_id
    )
    await shop.begin_payment(order_id)
    event = await shop.valkey.xadd(keys.PAYMENT_EVENTS, {"e": b"paid"})
    sweeping = asyncio.create_task(shop.expiry._judged(await shop.now_ms()))
    await asyncio.wait({sweeping}, timeout=0.3)
    assert not sweeping.done(), "an event waits"
    await shop.pay(order_id)
    await shop.valkey.xdel(keys.PAYMENT_EVENTS, event)
    assert await asyncio.wait_for(sweeping, 5)
    assert await shop.expire() == 0
    assert await shop.status(order_id) == "paid"


# --- what dies in between ---


async def test_a_worker_that_dies_after_the_commit_and_before_the_script_gives_the_units_back_once(shop: Life) -> None:
    await bought(shop, "ann", (FRIDGE, 2))
    await shop.expire()
    shop.outbox = shop.new_outbox()
    await shop.drain()
    assert await shop.available() == FULL
    assert await shop.faults() == []


async def test_a_worker_that_dies_after_the_script_and_before_the_journal_is_stored_gives_them_back_once(
    shop: Life,
) -> None:
    await bought(shop, "ann", (FRIDGE, 2))
    await shop.expire()
    await shop.outbox.round(shop.ledger)
    shop.outbox = shop.new_outbox()
    await shop.outbox.round(shop.ledger)  # sends it again: already
    assert await shop.ledger.fetchval("SELECT count(*) FROM outbox") == 1
    await shop.drain()
    assert await shop.available() == FULL
    assert await shop.faults() == []


async def test_a_sweep_that_dies_before_its_commit_did_nothing(shop: Life) -> None:
    order_id = await bought(shop, "ann", (FRIDGE, 2))
    until_ms = await shop.now_ms() + HOLD_MS + 1
    dying = await asyncpg.connect(shop.database_url)
    transaction = dying.transaction()
    await transaction.start()
    assert (await life.expire(dying, until_ms, grace_ms=0)).expired == 1
    dying.terminate()
    assert await shop.status(order_id) == "reserved"
    assert await shop.expire() == 1
    await shop.drain()
    assert await shop.available() == FULL


async def test_a_dispatcher_with_a_stale_list_moves_nothing(shop: Life) -> None:
    order_id = await expired_with_open_intent(shop, "ann", (FRIDGE, 1))
    # Paid late and cancelled: released, taken again, released.
    stale: list[outbox.OutboxRow] = []
    await shop.pay(order_id)
    stale += await outbox.pending(shop.ledger, 10)
    await shop.drain()
    await shop.cancel(order_id)
    stale += await outbox.pending(shop.ledger, 10)
    await shop.drain()
    assert (await shop.status(order_id), await shop.available()) == ("cancelled", FULL)
    paused = shop.new_outbox()
    known = await partitions.get(shop.ledger, 0)
    assert known is not None
    for _ in range(2):
        for row in stale:
            await paused._tell(shop.ledger, known, row)
    await shop.write()
    assert await shop.available() == FULL
    assert await shop.faults() == []


async def test_rows_that_were_pending_while_valkey_was_rebuilt_are_told_to_the_new_one(shop: Life) -> None:
    unsent = await bought(shop, "ann", (FRIDGE, 2))
    await shop.expire()
    await shop.valkey.flushall()
    assert (await shop.recover()).rebuilt
    await shop.outbox.round(shop.ledger)
    await shop.drain()
    assert await shop.available() == FULL
    assert await shop.quota_used() == 0
    assert await shop.status(unsent) == "expired"
    assert await shop.faults() == []


async def test_what_was_sent_to_a_valkey_that_was_lost_with_its_journal_is_sent_again(shop: Life) -> None:
    await bought(shop, "ann", (FRIDGE, 2))
    await shop.expire()
    await shop.outbox.round(shop.ledger)
    assert await shop.available() == FULL
    await shop.valkey.flushall()  # before the writer has read of it
    assert (await shop.recover()).rebuilt
    assert (await shop.available())[0] == 998
    await shop.drain()
    assert await shop.available() == FULL
    assert await shop.faults() == []


async def test_a_forced_rebuild_saves_what_the_journal_has_and_the_row_is_cleared(shop: Life) -> None:
    await bought(shop, "ann", (FRIDGE, 2))
    await shop.expire()
    await shop.outbox.round(shop.ledger)
    assert (await shop.recover(force=True)).rebuilt
    assert await shop.available() == FULL
    await shop.drain()
    assert await shop.available() == FULL
    assert await shop.faults() == []


# --- rows that nothing comes of ---


async def test_a_poisoned_order_does_not_stop_the_others(shop: Life) -> None:
    ids = [await bought(shop, f"s{number}", (FAN, 1)) for number in range(2)]
    await shop.expire()
    await shop.ledger.execute(
        "UPDATE outbox SET items = jsonb_set(items, '{0,lines,0,1}', '1000000')"
        " WHERE items -> 0 ->> 'order' = ANY ($1)",
        ids,
    )
    await bought(shop, "bob", (KETTLE, 1))
    await shop.expire()
    await shop.drain()
    assert await shop.available() == {0: 1000, 1: 500, 2: 2}


async def test_a_row_of_a_settled_sale_is_cleared_and_its_late_payer_gets_the_money_back(shop: Life) -> None:
    order_id = await expired_with_open_intent(shop, "ann", (FRIDGE, 1))
    await bought(shop, "bob", (FRIDGE, 1))
    await shop.expire(HOLD_MS + GRACE_S * 1000 + 5000)
    await shop.pay(order_id)
    await shop.valkey.delete(keys.holds(0, "sale"), keys.state(0, "sale"))
    await shop.drain()
    late = await shop.ledger.fetchval("SELECT late FROM payment WHERE order_id = $1", order_id)
    assert (await shop.status(order_id), late) == ("expired", "refused")


async def test_a_malformed_row_stays_and_does_not_stop_the_others(shop: Life) -> None:
    broken = await outbox.add(shop.ledger, 0, 1, outbox.RELEASE, [{"order": "0" * 30}])
    await bought(shop, "ann", (FRIDGE, 1))
    await shop.expire()
    for _ in range(3):
        await shop.outbox.round(shop.ledger)
        await shop.write()
    assert await shop.available() == FULL
    assert [row.number for row in await outbox.pending(shop.ledger, 10)] == [broken]


# --- 'sold out, but holds may return' ---


async def test_the_earliest_deadline_of_a_sold_out_sku_is_told_and_vanishes_when_no_hold_may_return(shop: Life) -> None:
    returns = shop.new_returns()
    ids = [await bought(shop, f"s{number}", (FAN, 1)) for number in range(3)]
    deadlines = [
        await shop.ledger.fetchval("SELECT journal_ms + hold_ms FROM orders WHERE id = $1", order_id)
        for order_id in ids
    ]

    async def told() -> dict[bytes, bytes]:
        await returns.look(shop.ledger)
        returns._rested_at.clear()
        return dict(await shop.valkey.hgetall(keys.returns(0, "sale")))

    assert await told() == {b"2": str(deadlines[0]).encode()}
    await shop.begin_payment(ids[0])
    await shop.pay(ids[0])
    assert await told() == {b"2": str(deadlines[1]).encode()}
    await shop.cancel(ids[1])
    assert await told() == {b"2": str(deadlines[2]).encode()}
    await shop.drain()
    assert await told() == {}, "a unit is available: nothing to wait for"
    assert (await shop.buy("late", (FAN, 1)))[0] == "A"
    await shop.write()
    assert await told() == {b"2": str(deadlines[2]).encode()}
    for order_id in await shop.ledger.fetch("SELECT id FROM orders WHERE status = 'reserved'"):
        await shop.begin_payment(order_id[0])
        await shop.pay(order_id[0])
    assert await told() == {}
