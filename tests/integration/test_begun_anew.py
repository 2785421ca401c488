"""A payment that the provider closed unpaid begins anew: what is told of its first intent is over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flashsale.embedded import ValkeyServer
from flashsale.ledger import life, payments
from flashsale.sale.payment import IntentState, PaymentFact
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
