"""What the ledger wants of the provider is done there: captured, released, closed, refunded; once, whatever fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flashsale.ledger import life, refunds
from flashsale.partners.payments.provider import ProviderAway
from flashsale.pipeline import provider_calls
from flashsale.pipeline.provider_calls import pause
from flashsale.pipeline.refund_jobs import RefundJobs
from flashsale.sale.payment import PaymentFact, RefundFact
from tests.integration.shop import FAN, KETTLE
from tests.integration.till import HELD, TAKEN, Till, running, until

DAY_MS = 86_400_000
EXPIRED = ("expired", "none", "closed")


async def paid(till: Till, count: int = 1, method: str = "pm_card_visa", *lines: tuple[str, int]) -> list[str]:
    orders = await till.orders(count, *lines)
    for order_id in orders:
        await till.confirm(order_id, method)
    await till.tell()
    return orders


async def at_provider(till: Till, order_id: str) -> tuple[str, int, int]:
    intent = await asyncio.to_thread(till.client.v1.payment_intents.retrieve, await till.intent(order_id))
    return intent.status, intent.amount_received, intent.amount_capturable


async def refunds_at_provider(till: Till, order_id: str) -> list[int]:
    params: Any = {"payment_intent": await till.intent(order_id)}
    return [each.amount for each in (await asyncio.to_thread(till.client.v1.refunds.list, params)).data]


async def settled(till: Till, order_id: str) -> bool:
    found = await refunds.of_order(till.ledger, order_id)
    return bool(found) and all(refund.status != "pending" for refund in found)


# --- capture, release, close ---


async def test_a_card_is_captured_at_shipment_and_in_part_where_a_part_ships(till: Till) -> None:
    whole, part, cancelled = await paid(till, 3, "pm_card_visa", (KETTLE, 2))
    await till.ship(whole)
    await till.ship(part, (1, 1))
    await till.cancel(cancelled)
    async with running(till.calls()):
        await till.until_state(whole, "shipped", "captured", "captured")
        await till.until_state(part, "shipped", "captured", "captured")
        await till.until_state(cancelled, "cancelled", "refunded", "closed")
    total = await till.ledger.fetchval("SELECT total FROM orders WHERE id = $1", whole)
    assert await at_provider(till, whole) == ("succeeded", total, 0)
    assert await at_provider(till, cancelled) == ("canceled", 0, 0)
    status, received, _ = await at_provider(till, part)
    assert status == "succeeded"
    row = await till.ledger.fetchrow("SELECT authorised, captured, released FROM payment WHERE order_id = $1", part)
    assert 0 < received < total
    assert tuple(row) == (total, received, total - received)
    assert await till.history(cancelled) == ["order.paid", "order.cancelled", "payment.released"]
    # What the provider tells of it afterwards changes nothing.
    before = [await till.history(order_id) for order_id in (whole, part, cancelled)]
    await till.tell()
    assert [await till.history(order_id) for order_id in (whole, part, cancelled)] == before
    await till.drain()
    assert await till.faults() == []


async def test_an_authorisation_is_captured_before_the_provider_drops_it(till: Till) -> None:
    soon, later = await paid(till, 2)
    await till.ledger.execute(
        "UPDATE payment SET capture_before_ms = $2::int8, due_ms = $2::int8 - $3::int8 WHERE order_id = $1",
        soon, await till.now_ms() + DAY_MS // 2, DAY_MS,
    )  # fmt: skip
    async with running(till.calls()):
        await till.until_state(soon, *TAKEN)
    assert await till.states([later]) == [HELD]


async def test_an_expired_order_can_not_be_paid_any_more(till: Till) -> None:
    (order_id,) = await till.orders(1)
    assert await till.expire() == 0  # its intent is open: the provider is told first
    async with running(till.calls()):
        await till.until_state(order_id, "reserved", "none", "closed")
    assert await till.expire() == 1
    assert await till.states([order_id]) == [EXPIRED]
    with pytest.raises(Exception, match="canceled"):
        await till.confirm(order_id)


async def test_a_payer_who_was_faster_than_the_closing_has_paid(till: Till) -> None:
    card, wallet = await till.orders(2)
    await till.confirm(card)
    await till.confirm(wallet, "pm_alipay")
    await till.expire()  # nothing was heard of either
    async with running(till.calls()):
        await till.until_state(card, *HELD)
        await till.until_state(wallet, *TAKEN)
    assert await till.expire() == 0


@pytest.mark.parametrize("method", ["pm_card_visa", "pm_alipay"])
async def test_a_late_payment_gets_its_units_again_or_the_money_goes_back(till: Till, method: str) -> None:
    lucky, unlucky = (await till.orders(1, (KETTLE, 1))) + (await till.orders(1, (FAN, 1)))
    # The provider is away beyond its grace: the orders expire, their intents stay open.
    await till.expire()
    await till.expire(later_ms=900_000 + 61_000)
    await till.drain()
    assert [state[0] for state in await till.states([lucky, unlucky])] == ["expired", "expired"]
    for number in range(3):
        await till.buy(f"quick-{number}", (FAN, 1))
    await till.write()
    for order_id in (lucky, unlucky):
        await till.confirm(order_id, method)
    await till.tell()
    await till.drain()
    async with till.ledger.transaction():
        await life.settle_again(till.ledger, await till.now_ms())
    await till.drain()
    async with running(till.calls(), till.jobs()):
        await till.until_state(lucky, *(TAKEN if method == "pm_alipay" else HELD))
        if method == "pm_alipay":
            await until(lambda: settled(till, unlucky), "the money has gone back")
            await till.until_state(unlucky, "expired", "refunded", "captured")
            assert await refunds_at_provider(till, unlucky) == [1000]
        else:
            await till.until_state(unlucky, "expired", "refunded", "closed")
    assert await till.faults() == []


# --- what fails in between ---


async def test_answers_that_never_come_are_asked_for_again(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_calls, "AGAIN_MS", (10, 50))
    monkeypatch.setattr(provider_calls, "BRAKE_S", (0.01, 0.05))
    shipped, cancelled, wallet = [*await paid(till, 2), *await paid(till, 1, "pm_alipay")]
    await till.ship(shipped)
    await till.cancel(cancelled)
    await till.cancel(wallet)
    till.sandbox.faults(seed=7, charge_then_timeout=0.7)
    async with running(till.calls(), till.jobs()):
        await till.until_state(shipped, "shipped", "captured", "captured")
        await till.until_state(cancelled, "cancelled", "refunded", "closed")
        await until(lambda: settled(till, wallet), "the refund is settled")
    till.sandbox.faults()
    assert len(await refunds_at_provider(till, wallet)) == 1
    assert (await at_provider(till, shipped))[0] == "succeeded"


async def test_a_provider_that_is_away_is_asked_less_and_less_and_loses_nothing(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = await paid(till, 3)
    for order_id in orders:
        await till.ship(order_id)

    async def away(*arguments: Any) -> PaymentFact:
        raise ProviderAway("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(till.provider, "capture", away)
        async with running(till.calls()):
            await asyncio.sleep(1)
    tries = [row[0] for row in await till.ledger.fetch("SELECT tries FROM payment WHERE todo = 'capture'")]
    assert len(tries) == 3
    assert max(tries) <= 3
    async with running(till.calls()):
        for order_id in orders:
            await till.until_state(order_id, "shipped", "captured", "captured")


def test_the_pause_before_another_try_grows_to_a_minute() -> None:
    class Tried:
        def __init__(self, tries: int) -> None:
            self.tries = tries

    pauses = [pause(Tried(tries)) for tries in (0, 1, 2, 3, 10, 10_000)]  # type: ignore[arg-type]
    assert pauses == [1000, 1000, 2000, 4000, 60_000, 60_000]


async def test_what_the_provider_refuses_is_looked_at(till: Till) -> None:
    (order_id,) = await paid(till)
    await till.ship(order_id)
    # A clerk cancels it by hand, and its event is lost: the capture is refused, the look tells why.
    await asyncio.to_thread(till.client.v1.payment_intents.cancel, await till.intent(order_id))
    async with running(till.calls()):
        await till.until_state(order_id, "shipped", "refunded", "closed")


@pytest.mark.parametrize("point", ["before the provider is asked", "after the provider has done it"])
async def test_a_worker_that_dies_is_followed_by_one_that_does_it_once(
    till: Till, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    orders = await paid(till, 4)
    for order_id in orders:
        await till.ship(order_id)
    real = till.provider.capture
    reached = asyncio.Event()

    async def dies(*arguments: Any) -> PaymentFact:
        if point.startswith("after"):
            await real(*arguments)
        reached.set()
        await asyncio.sleep(3600)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(till.provider, "capture", dies)
        dying = asyncio.create_task(till.calls().run())
        await asyncio.wait_for(reached.wait(), 10)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    async with running(till.calls()):
        for order_id in orders:
            await till.until_state(order_id, "shipped", "captured", "captured")
    for order_id in orders:
        assert await till.history(order_id) == ["order.paid", "order.shipped", "payment.captured"]
        assert await at_provider(till, order_id) == ("succeeded", 4100, 0)


async def test_a_session_that_nobody_noted_is_found_and_closed(till: Till) -> None:
    """A front that died between the provider's answer and the ledger: the shopper may have the page open."""
    known, never = await till.orders(2)
    sessions = await till.ledger.fetchval("SELECT session_id FROM payment WHERE order_id = $1", known)
    await till.ledger.execute("UPDATE payment SET session_id = NULL, provider_id = NULL, pay_url = NULL")
    await till.expire()
    async with running(till.calls()):
        await till.until_state(known, "reserved", "none", "closed")
        await till.until_state(never, "reserved", "none", "closed")
    assert await till.ledger.fetchval("SELECT session_id FROM payment WHERE order_id = $1", known) == sessions
    assert await till.expire() == 2


async def test_a_worker_whose_postgresql_was_lost_goes_on(till: Till) -> None:
    shipped, wallet = [*await paid(till), *await paid(till, 1, "pm_alipay")]
    async with running(till.calls(), till.jobs()):
        await asyncio.sleep(0.3)
        await till.ledger.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await till.ship(shipped)
        await till.cancel(wallet)
        await till.until_state(shipped, "shipped", "captured", "captured")
        await until(lambda: settled(till, wallet), "the refund is settled")


# --- refunds ---


async def test_a_refund_is_watched_until_it_has_settled_and_may_fail_even_later(till: Till) -> None:
    (order_id,) = await paid(till, 1, "pm_alipay")
    await till.cancel(order_id)
    async with running(till.jobs()):
        await until(lambda: settled(till, order_id), "the wallet's refund has settled")
    await till.until_state(order_id, "cancelled", "refunded", "captured")
    (refund,) = await refunds.of_order(till.ledger, order_id)
    assert refund.status == "succeeded"
    await till.heard()
    till.sandbox.post(f"/sandbox/refunds/{refund.provider_id}/fail")
    await till.tell()
    (refund,) = await refunds.of_order(till.ledger, order_id)
    assert (refund.status, bool(refund.failure)) == ("failed", True)
    assert (await till.history(order_id))[-1] == "refund.failed"


@pytest.mark.parametrize("point", ["before the provider is asked", "after the provider has done it"])
async def test_a_refund_whose_worker_dies_is_made_once(till: Till, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    (order_id,) = await paid(till, 1, "pm_alipay")
    await till.cancel(order_id)
    real = till.provider.refund
    reached = asyncio.Event()

    async def dies(*arguments: Any) -> RefundFact:
        if point.startswith("after"):
            await real(*arguments)
        reached.set()
        await asyncio.sleep(3600)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(till.provider, "refund", dies)
        dying = till.jobs()
        task = asyncio.create_task(dying.run())
        await asyncio.wait_for(reached.wait(), 10)
        # As a killed process leaves it: the job is picked, and gives no sign any more.
        await till.ledger.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        dying.stop()
        await asyncio.wait_for(task, 10)
    await till.ledger.execute("UPDATE pgqueuer SET status = 'picked', heartbeat = now() - interval '1 minute'")
    async with running(till.jobs(), till.jobs()):
        await until(lambda: settled(till, order_id), "the refund is settled")
    assert await refunds_at_provider(till, order_id) == [4100]
    assert (await till.states([order_id])) == [("cancelled", "refunded", "captured")]


async def test_a_stopped_worker_puts_its_jobs_back(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    (order_id,) = await paid(till, 1, "pm_alipay")
    await till.cancel(order_id)
    asked = asyncio.Event()

    async def hangs(*arguments: Any) -> RefundFact:
        asked.set()
        await asyncio.sleep(3600)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(till.provider, "refund", hangs)
        async with running(till.jobs()):
            await asyncio.wait_for(asked.wait(), 10)
    assert [row[0] for row in await till.ledger.fetch("SELECT status::text FROM pgqueuer")] == ["queued"]
    async with running(till.jobs()):
        await until(lambda: settled(till, order_id), "the refund is settled")


async def test_a_refund_that_the_provider_refuses_is_told_as_failed(till: Till) -> None:
    (order_id,) = await paid(till, 1, "pm_alipay")
    params: Any = {"payment_intent": await till.intent(order_id)}
    await asyncio.to_thread(till.client.v1.refunds.create, params)  # by hand
    await till.cancel(order_id)
    async with running(till.jobs()):
        await until(lambda: settled(till, order_id), "the refund is decided")
    (refund,) = await refunds.of_order(till.ledger, order_id)
    assert (refund.status, refund.failure) == ("failed", "charge_already_refunded")
    assert len(await refunds_at_provider(till, order_id)) == 1


async def test_a_refund_that_lost_its_job_gets_one_again(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_calls, "REFUND_LOST_MS", 0)
    (order_id,) = await paid(till, 1, "pm_alipay")
    await till.cancel(order_id)
    await till.ledger.execute("DELETE FROM pgqueuer")
    async with running(till.calls(), till.jobs()):
        await until(lambda: settled(till, order_id), "the refund is settled")


async def test_a_job_of_no_refund_ends(till: Till) -> None:
    await RefundJobs(till.pool, till.provider).handle("re-unknown")
