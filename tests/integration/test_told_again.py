"""What the provider told of earlier tries, and tells again later: it changes nothing of what came after them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flashsale.embedded import ValkeyServer
from flashsale.ledger import history, life, payments
from flashsale.sale.payment import DisputeFact, DisputeState, IntentState, PaymentFact
from tests.integration.life import Life
from tests.integration.shop import FAN


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Life]:
    async with Life(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


async def told(shop: Life, order_id: str, intent: str, state: IntentState, authorised: int = 0) -> life.Applied:
    fact = PaymentFact(order_id, intent, state, "card", authorised, 0, None, None, None, "evt_1")
    async with shop.ledger.transaction():
        return await life.apply_facts(shop.ledger, [fact], await shop.now_ms())


async def opened(shop: Life, order_id: str, name: str) -> None:
    payment = await payments.find(shop.ledger, order_id)
    assert payment is not None
    await payments.opened(
        shop.ledger, order_id, payment.created_ms, f"cs_{name}", f"pi_{name}", f"https://pay.test/{name}"
    )


async def test_an_event_of_the_closed_intent_that_comes_again_does_not_take_the_new_ones_place(shop: Life) -> None:
    outcome, order_id = await shop.buy("ann", (FAN, 1))
    assert outcome == "A"
    await shop.write()
    for name in ("first", "second", "third"):
        await shop.begin_payment(order_id)
        for former in ("first", "second", "third")[: ("first", "second", "third").index(name)]:
            assert (await told(shop, order_id, f"pi_{former}", IntentState.CLOSED)).changed == 0
        await opened(shop, order_id, name)
        if name != "third":
            assert (await told(shop, order_id, f"pi_{name}", IntentState.CLOSED)).changed == 1
    payment = await payments.find(shop.ledger, order_id)
    assert payment is not None and (payment.provider_id, payment.state) == ("pi_third", "open")
    assert (await told(shop, order_id, "pi_third", IntentState.AUTHORISED, payment.amount)).paid == 1
    assert await shop.status(order_id) == "paid"


async def test_a_decline_that_is_told_again_after_a_later_one_changes_nothing(shop: Life) -> None:
    outcome, order_id = await shop.buy("ann", (FAN, 1))
    assert outcome == "A"
    await shop.write()
    await shop.begin_payment(order_id)
    changed = []
    for attempt in ("ch_1", "ch_2", "ch_1", "ch_2"):
        fact = PaymentFact(order_id, "pi_1", IntentState.FAILED, "card", 0, 0, None, "declined", attempt, "evt_1")
        async with shop.ledger.transaction():
            changed.append((await life.apply_facts(shop.ledger, [fact], await shop.now_ms())).failed)
    assert changed == [1, 1, 0, 0]
    assert [entry.event for entry in await history.of_order(shop.ledger, order_id)] == ["payment.failed"] * 2


async def test_a_dispute_that_was_decided_does_not_decide_a_later_one(shop: Life) -> None:
    outcome, order_id = await shop.buy("ann", (FAN, 1))
    assert outcome == "A"
    await shop.write()
    await shop.begin_payment(order_id)
    await shop.pay(order_id)
    seen = []
    told = ("A open", "B open", "A won", "A won", "A open", "B won", "C won", "C open", "B open", "D lost")
    for dispute, state in (each.split() for each in told):
        fact = DisputeFact(f"pi_{order_id}", f"dp_{dispute}", DisputeState(state), 1000, "evt_1")
        async with shop.ledger.transaction():
            await life.apply_facts(shop.ledger, [fact], await shop.now_ms())
        payment = await payments.find(shop.ledger, order_id)
        assert payment is not None
        seen.append(payment.dispute)
    assert seen == ["open"] * 5 + ["won"] * 4 + ["lost"]
