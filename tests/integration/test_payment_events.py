"""Events of the provider reach the ledger once in effect: twice, in any order, lost, damaged, foreign, cut off."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from flashsale.ledger import damaged_events, life
from flashsale.partners.payments.stripe import facts_of
from flashsale.pipeline import payment_events
from flashsale.pipeline.payment_events import PaymentEvents, events_applied
from flashsale.sale.payment import PaymentFact
from tests.integration.till import HELD, OPEN, TAKEN, Till, running, until


async def test_events_twice_and_in_any_order_pay_each_order_once(till: Till) -> None:
    orders = await till.orders(12)
    for place, order_id in enumerate(orders):
        await till.confirm(order_id, ("pm_card_visa", "pm_alipay")[place % 2])
    bodies = await till.heard()
    for seed in (1, 2):
        several = bodies * 2
        random.Random(seed).shuffle(several)
        await till.arrive(several, at_once=seed)
        async with running(till.events(), till.events()):
            await until(till.applied, "the events are applied")
        assert await till.states(orders) == [HELD, TAKEN] * 6
        assert [await till.history(order_id) for order_id in orders] == [["order.paid"]] * 12
    assert await till.ledger.fetchval("SELECT units FROM sold WHERE sku = 1") == 24
    await till.drain()
    assert await till.faults() == []


async def test_a_decline_and_another_try(till: Till) -> None:
    (order_id,) = await till.orders(1)
    with pytest.raises(Exception, match="declined"):
        await till.confirm(order_id, "pm_card_visa_chargeDeclined")
    await till.tell()
    assert await till.states([order_id]) == [("reserved", "failed", "failed")]
    await till.confirm(order_id)
    await till.tell()
    assert await till.states([order_id]) == [HELD]
    assert await till.history(order_id) == ["payment.failed", "order.paid"]


async def test_lost_events_are_found_by_asking(till: Till) -> None:
    silent = await till.orders(3, silent_ms=0)
    patient = await till.orders(1)
    for order_id in (*silent[:2], *patient):
        await till.confirm(order_id)
    async with running(till.calls()):
        for order_id in silent[:2]:
            await till.until_state(order_id, *HELD)

        async def asked_later() -> Any:
            return await till.ledger.fetchval(
                "SELECT due_ms > heard_ms + 50000 FROM payment WHERE order_id = $1", silent[2]
            )

        await until(asked_later, "an open intent is asked again later")
    assert await till.states([silent[2], *patient]) == [OPEN, OPEN]


async def test_what_is_cut_off_is_applied_and_only_that(till: Till) -> None:
    (order_id,) = await till.orders(1)
    await till.confirm(order_id)
    before_ms = await till.now_ms()
    assert await events_applied(till.valkey, before_ms)
    await asyncio.sleep(0.002)
    await till.arrive(await till.heard())
    now_ms = await till.now_ms()
    assert await events_applied(till.valkey, before_ms)
    assert not await events_applied(till.valkey, now_ms)
    async with running(till.events()):
        await until(lambda: events_applied(till.valkey, now_ms), "the events are applied")
        assert await till.states([order_id]) == [HELD]


@pytest.mark.parametrize("point", ["before the commit", "before the cut", "while reading"])
async def test_an_applier_that_dies_is_followed_by_one_that_does_the_same_again(
    till: Till, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    orders = await till.orders(4)
    for order_id in orders:
        await till.confirm(order_id)
    name = {"before the commit": "apply_carefully", "before the cut": "trim_events", "while reading": "decode"}[point]
    real = getattr(payment_events, name)
    reached = asyncio.Event()

    async def dies_after(*arguments: Any) -> Any:
        if point == "before the commit":
            await real(*arguments)
        reached.set()
        await asyncio.sleep(3600)

    def dies(*arguments: Any) -> Any:
        reached.set()
        raise asyncio.CancelledError

    await till.arrive(await till.heard(), at_once=1000)
    with monkeypatch.context() as patch:
        patch.setattr(payment_events, name, dies if name == "decode" else dies_after)
        dying = asyncio.create_task(till.events().run())
        await asyncio.wait_for(reached.wait(), 10)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    assert not await till.applied()
    assert await till.states(orders) == [HELD if point == "before the cut" else OPEN] * 4
    async with running(till.events()):
        await until(till.applied, "the next one applies them")
    assert await till.states(orders) == [HELD] * 4
    assert [await till.history(order_id) for order_id in orders] == [["order.paid"]] * 4
    assert await till.ledger.fetchval("SELECT units FROM sold WHERE sku = 1") == 8


async def test_an_applier_whose_postgresql_was_lost_goes_on(till: Till) -> None:
    orders = await till.orders(2)
    async with running(till.events()):
        await till.confirm(orders[0])
        await till.arrive(await till.heard())
        await until(till.applied, "the first events are applied")
        await till.ledger.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await till.confirm(orders[1])
        await till.arrive(await till.heard())
        await till.until_state(orders[1], *HELD)


async def test_money_that_is_not_the_orders_pays_nothing(till: Till) -> None:
    named, unnamed, less = await till.orders(3)
    # An order whose session has no intent yet is open to whatever names it: but not in another currency.
    await till.ledger.execute("UPDATE payment SET provider_id = NULL WHERE order_id = $1", unnamed)
    for order_id, currency in ((named, "sgd"), (unnamed, "usd"), ("nobody", "sgd")):
        params: Any = {
            "amount": 4100,
            "currency": currency,
            "payment_method": "pm_card_visa",
            "confirm": True,
            "metadata": {"order": order_id},
        }
        await asyncio.to_thread(till.client.v1.payment_intents.create, params)
    await till.tell()
    assert await till.states([named, unnamed]) == [OPEN, OPEN]
    assert await till.history(named) == await till.history(unnamed) == []
    # Money that is less than was asked for pays nothing either, and goes back.
    await till.ledger.execute("UPDATE payment SET amount = amount + 1 WHERE order_id = $1", less)
    await till.confirm(less)
    await till.tell()
    assert (await till.states([less]))[0][0] == "reserved"
    assert await till.history(less) == ["payment.failed"]
    async with running(till.calls()):
        await till.until_state(less, "reserved", "refunded", "closed")


async def test_one_poisonous_event_stops_no_other(till: Till) -> None:
    orders = await till.orders(6)
    for order_id in orders:
        await till.confirm(order_id)
    bodies = await till.heard()
    poison = orders[3]

    def read(body: bytes) -> Any:
        """As an adapter with two faults reads: it stumbles over one event, and tells nonsense of another."""
        if body == b"stumble":
            raise RuntimeError("a fault of the adapter's")
        fact = facts_of(body)
        if isinstance(fact, PaymentFact) and fact.order_id == poison:
            return fact._replace(authorised=2**70)
        return fact

    strange = [
        b"\x00\xff not json",
        b"{}",
        b"stumble",
        b'{"object":"event","id":"evt_1","type":"payment_intent.created"}',
    ]
    await till.arrive([*bodies[:5], *strange, *bodies[5:]], at_once=100)
    async with running(PaymentEvents(till.redis_url, till.database_url, read)):
        await until(till.applied, "the events are applied")
    states = await till.states(orders)
    assert states.pop(3) == OPEN
    assert states == [HELD] * 5
    aside = [event for _, event, _ in await damaged_events.numbered(till.ledger, 100)]
    assert set(strange) <= {event.body for event in aside}
    assert all(poison.encode() in event.body for event in aside if event.body not in strange)
    assert all(event.error for event in aside)


async def test_a_thousand_events_of_one_kind_are_few_statements(till: Till) -> None:
    """What is counted here is what the bench measures: a batch costs the same statements whatever its size."""
    orders = await till.orders(20)
    for order_id in orders:
        await till.confirm(order_id)
    bodies = await till.heard("payment_intent.amount_capturable_updated")
    facts: Any = [facts_of(body) for body in bodies]
    statements: list[str] = []
    till.ledger.add_query_logger(lambda query: statements.append(query.query))
    async with till.ledger.transaction():
        applied = await life.apply_facts(till.ledger, facts, await till.now_ms())
    assert applied.paid == 20
    assert len(statements) < 20, statements
