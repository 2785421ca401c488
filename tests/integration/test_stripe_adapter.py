"""Stripe's adapter against the sandbox: whatever fails in between, money moves once."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import stripe

from flashsale.partners.payments.provider import Opened, Payable, ProviderAway, ProviderRefused
from flashsale.partners.payments.stripe import StripeProvider
from flashsale.sale.payment import IntentState, PaymentFact, RefundState
from tests.conftest import free_port
from tests.payments_sandbox import API_KEY, Sandbox

T = TypeVar("T")
DAY_S = 24 * 3600
ORDERS = 12


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path_factory.mktemp("sandbox")).start()
    yield made
    made.stop()


@pytest.fixture
def sandbox(shared: Sandbox) -> Iterator[Sandbox]:
    yield shared
    shared.faults()


@pytest.fixture
async def provider(sandbox: Sandbox) -> AsyncIterator[StripeProvider]:
    made = StripeProvider(API_KEY, sandbox.url, timeout_s=2, return_url="http://shop.test/")
    yield made
    await made.aclose()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def payable(order_id: str, amount: int = 5000, currency: str = "SGD") -> Payable:
    return Payable(
        order_id, amount, currency, ("card", "alipay", "grabpay"), None, now_ms() + 900_000, f"Order {order_id}"
    )


def order_id() -> str:
    return f"order-{time.time_ns()}"


async def until_known(call: Callable[[], Awaitable[T]]) -> T:
    """As the workers do: while the provider is away, the same again."""
    for _ in range(100):
        try:
            return await call()
        except ProviderAway:
            await asyncio.sleep(0.01)
    raise AssertionError("it stays away")


def pay(sandbox: Sandbox, opened: Opened, method: str = "pm_card_visa") -> None:
    """The shopper pays, and tries again while the answer does not come."""
    client = sandbox.client()
    while True:
        try:
            client.v1.payment_intents.confirm(str(opened.provider_id), {"payment_method": method})
            return
        except stripe.APIConnectionError:
            pass
        except stripe.InvalidRequestError as fault:
            assert fault.code == "payment_intent_unexpected_state"  # the try before went through
            return
        except stripe.CardError:
            pass


async def test_an_order_opened_again_is_the_same_session(sandbox: Sandbox, provider: StripeProvider) -> None:
    order = payable(order_id())
    created_ms = now_ms()
    opened = await provider.open(order, created_ms)
    assert await provider.open(order, created_ms) == opened
    # Its hold was extended, its shopper comes from elsewhere: still the one session.
    assert await provider.open(
        order._replace(expires_ms=order.expires_ms + 1, return_url="http://b.test/"), created_ms
    ) == (opened)
    fact = await provider.look(order.order_id, opened.session_id, None)
    assert fact == await provider.look(order.order_id, opened.session_id, opened.provider_id)
    assert (fact.state, fact.authorised) == (IntentState.OPEN, 0)


async def test_an_order_opened_days_ago_is_found(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "sandbox").start()
    provider = StripeProvider(API_KEY, sandbox.url, return_url="http://shop.test/")
    try:
        order = payable(order_id())
        for _ in range(3):
            await provider.open(payable(order_id()), now_ms())
        opened = await provider.open(order, now_ms())
        sandbox.post("/sandbox/clock", {"advance_s": DAY_S + 1})
        # Its key has lapsed: made again it would be a second session, which could be paid too.
        assert (await provider.open(order, now_ms() - DAY_S * 1000)).session_id == opened.session_id
    finally:
        await provider.aclose()
        sandbox.stop()


async def test_a_card_is_captured_once_and_in_part(sandbox: Sandbox, provider: StripeProvider) -> None:
    order = payable(order_id())
    opened = await provider.open(order, now_ms())
    intent = str(opened.provider_id)
    pay(sandbox, opened)
    fact = await provider.look(order.order_id, opened.session_id, intent)
    assert (fact.state, fact.method, fact.authorised, fact.captured) == (IntentState.AUTHORISED, "card", 5000, 0)
    assert fact.capture_before_ms is not None
    assert 6 * DAY_S * 1000 < fact.capture_before_ms - now_ms() <= 7 * DAY_S * 1000
    first = await provider.capture(order.order_id, intent, 3000)
    assert (first.state, first.authorised, first.captured) == (IntentState.CAPTURED, 5000, 3000)
    assert await provider.capture(order.order_id, intent, 3000) == first
    assert await provider.capture(order.order_id, intent, 5000) == first  # it was captured already
    assert await provider.release(order.order_id, intent) == first  # and is not released any more
    with pytest.raises(ProviderRefused):
        await provider.capture("another-order", intent, 3000)


async def test_closing_tells_whether_the_payer_was_faster(sandbox: Sandbox, provider: StripeProvider) -> None:
    unpaid, authorised, captured = (payable(order_id()) for _ in range(3))
    opened = [await provider.open(order, now_ms()) for order in (unpaid, authorised, captured)]
    pay(sandbox, opened[1])
    url = await provider.wallet(opened[2], "alipay", "http://shop.test/back", "w1")
    assert sandbox.choose(url, "alipay")[0] == 303

    async def closed(order: Payable, opened: Opened) -> PaymentFact:
        fact = await provider.close(order.order_id, opened.session_id, opened.provider_id)
        assert await provider.close(order.order_id, opened.session_id, None) == fact
        return fact

    assert (await closed(unpaid, opened[0])).state is IntentState.CLOSED
    assert sandbox.choose(opened[0].pay_url, "card")[0] == 200
    assert (await provider.look(unpaid.order_id, opened[0].session_id, opened[0].provider_id)).authorised == 0
    assert (await closed(authorised, opened[1])).state is IntentState.AUTHORISED
    released = await provider.release(authorised.order_id, str(opened[1].provider_id))
    assert (released.state, released.authorised, released.captured) == (IntentState.CLOSED, 5000, 0)
    assert await provider.release(authorised.order_id, str(opened[1].provider_id)) == released
    with pytest.raises(ProviderRefused, match="foreign"):
        await provider.capture("another-order", str(opened[1].provider_id), 1)
    assert (await provider.capture(authorised.order_id, str(opened[1].provider_id), 1)).state is IntentState.CLOSED
    fact = await closed(captured, opened[2])
    assert (fact.state, fact.method, fact.captured) == (IntentState.CAPTURED, "alipay", 5000)


async def test_a_wallet_is_changed_for_another_and_back(sandbox: Sandbox, provider: StripeProvider) -> None:
    order = payable(order_id())
    opened = await provider.open(order, now_ms())
    alipay = await provider.wallet(opened, "alipay", "http://shop.test/", f"{order.order_id}-a")
    assert await provider.wallet(opened, "alipay", "http://shop.test/", f"{order.order_id}-a") == alipay
    grabpay = await provider.wallet(opened, "grabpay", "http://shop.test/", f"{order.order_id}-g")
    assert grabpay != alipay
    assert await provider.wallet(opened._replace(provider_id=None), "grabpay", "http://x.test/", "k") == opened.pay_url
    # One the intent does not take: the page offers what there is.
    assert await provider.wallet(opened, "paypay", "http://x.test/", f"{order.order_id}-p") == opened.pay_url
    pay(sandbox, opened)
    with pytest.raises(ProviderRefused, match="payment_intent_unexpected_state"):
        await provider.wallet(opened, "alipay", "http://shop.test/", f"{order.order_id}-b")


async def test_a_decline_is_told_with_its_charge(sandbox: Sandbox, provider: StripeProvider) -> None:
    order = payable(order_id())
    opened = await provider.open(order, now_ms())
    with pytest.raises(stripe.CardError):
        sandbox.client().v1.payment_intents.confirm(
            str(opened.provider_id), {"payment_method": "pm_card_visa_chargeDeclinedInsufficientFunds"}
        )
    fact = await provider.look(order.order_id, opened.session_id, opened.provider_id)
    assert (fact.state, fact.failure, fact.method) == (IntentState.FAILED, "insufficient_funds", "card")
    assert str(fact.attempt).startswith("ch_")


async def test_a_refund_asked_for_again_days_later_moves_no_money(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "sandbox").start()
    provider = StripeProvider(API_KEY, sandbox.url, return_url="http://shop.test/")
    try:
        order = payable(order_id())
        opened = await provider.open(order, now_ms())
        intent = str(opened.provider_id)
        pay(sandbox, opened)
        await provider.capture(order.order_id, intent, 5000)
        first = await provider.refund("r1", order.order_id, intent, 1000, now_ms())
        assert (first.state, first.amount, first.refund_id) == (RefundState.SUCCEEDED, 1000, "r1")
        sandbox.post("/sandbox/clock", {"advance_s": DAY_S + 1})
        again = await provider.refund("r1", order.order_id, intent, 1000, now_ms() - DAY_S * 1000)
        assert again == first
        whole = await provider.refund("r2", order.order_id, intent, 4000, now_ms())
        sandbox.post("/sandbox/clock", {"advance_s": DAY_S + 1})
        # The caller's clock is behind, it trusts a key that is gone: refused as too much, found as done.
        assert await provider.refund("r2", order.order_id, intent, 4000, now_ms()) == whole
        with pytest.raises(ProviderRefused, match="charge_already_refunded"):
            await provider.refund("r3", order.order_id, intent, 1, now_ms())
        assert [fact.refund_id async for fact in provider.list_refunds(0)] == ["r2", "r1"]
        sandbox.post(f"/sandbox/refunds/{whole.provider_id}/fail")
        failed = {fact.refund_id: fact async for fact in provider.list_refunds(0)}["r2"]
        assert (failed.state, failed.failure) == (RefundState.FAILED, "expired_or_canceled_card")
    finally:
        await provider.aclose()
        sandbox.stop()


async def test_with_every_fault_on_money_moves_once(sandbox: Sandbox, provider: StripeProvider) -> None:
    sandbox.faults(seed=4, decline=0.2, charge_then_timeout=0.4, delay_ms=1, repeat=0.3, reorder=0.3, lose=0.3)

    async def live(number: int) -> tuple[str, str]:
        order = payable(f"faulty-{order_id()}-{number}")
        created_ms = now_ms()
        opened = await until_known(lambda: provider.open(order, created_ms))
        assert await until_known(lambda: provider.open(order, created_ms)) == opened
        intent = str(opened.provider_id)
        await asyncio.to_thread(pay, sandbox, opened)
        closed = await until_known(lambda: provider.close(order.order_id, opened.session_id, intent))
        assert closed.state is IntentState.AUTHORISED
        for _ in range(2):
            fact = await until_known(lambda: provider.capture(order.order_id, intent, 4000))
            assert (fact.state, fact.captured) == (IntentState.CAPTURED, 4000)
        for name, amount in (("a", 700), ("b", 300), ("a", 700)):
            refund = await until_known(
                lambda name=name, amount=amount: provider.refund(  # type: ignore[misc]
                    f"{name}-{order.order_id}", order.order_id, intent, amount, created_ms
                )
            )
            assert (refund.amount, refund.order_id) == (amount, order.order_id)
        return order.order_id, intent

    lived = dict(await asyncio.gather(*(live(number) for number in range(ORDERS))))
    sandbox.faults()
    client = sandbox.client()
    made = Counter(
        str(session.client_reference_id)
        for session in client.v1.checkout.sessions.list({"limit": 100}).auto_paging_iter()
    )
    assert {order: made[order] for order in lived} == dict.fromkeys(lived, 1)
    for intent in lived.values():
        assert client.v1.payment_intents.retrieve(intent).amount_received == 4000
        refunds = client.v1.refunds.list({"payment_intent": intent}).data
        assert sorted(refund.amount for refund in refunds) == [300, 700]
    facts = {fact.order_id: fact async for fact in provider.list_intents(0)}
    assert {facts[order].captured for order in lived} == {4000}


async def test_amounts_travel_in_stripes_digits(sandbox: Sandbox, provider: StripeProvider) -> None:
    for currency, minor, at_stripe in (("ISK", 500, 50_000), ("JPY", 500, 500), ("KWD", 1230, 1230), ("HUF", 55, 55)):
        order = payable(order_id(), minor, currency)._replace(methods=("card",))
        opened = await provider.open(order, now_ms())
        intent = sandbox.client().v1.payment_intents.retrieve(str(opened.provider_id))
        assert (intent.amount, intent.currency) == (at_stripe, currency.lower())
        pay(sandbox, opened)
        fact = await provider.capture(order.order_id, intent.id, minor)
        assert (fact.authorised, fact.captured) == (minor, minor)
        assert (await provider.refund(order.order_id, order.order_id, intent.id, minor, now_ms())).amount == minor
    with pytest.raises(ProviderRefused, match="amount_not_representable"):
        await provider.open(payable(order_id(), 1231, "KWD"), now_ms())


async def test_a_provider_that_hangs_or_is_gone_is_away(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "sandbox").start()
    provider = StripeProvider(API_KEY, sandbox.url, timeout_s=0.3, return_url="http://shop.test/")
    wrong = StripeProvider("sk_test_wrong", sandbox.url, return_url="http://shop.test/")
    try:
        sandbox.faults(delay_ms=2000)
        with pytest.raises(ProviderAway):
            await provider.look("o", "cs_1", None)
        sandbox.faults()
        with pytest.raises(ProviderRefused, match="resource_missing"):
            await provider.look("o", "cs_1", None)
        with pytest.raises(ProviderAway, match="API key"):
            await wrong.look("o", "cs_1", None)
        sandbox.kill()
        with pytest.raises(ProviderAway):
            await provider.look("o", "cs_1", None)
    finally:
        await provider.aclose()
        await wrong.aclose()
        sandbox.stop()


class _Answers(http.server.BaseHTTPRequestHandler):
    """A provider that answers one thing; how often it was asked is kept."""

    status, body, asked, cut = 200, b"{}", 0, False
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body) + (10 if self.cut else 0)))
        self.end_headers()
        self.wfile.write(self.body)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (500, b'{"error": {"type": "api_error", "message": "m"}}', ProviderAway),
        (503, b"<html>busy</html>", ProviderAway),
        (429, b'{"error": {"type": "invalid_request_error", "code": "rate_limit"}}', ProviderAway),
        (409, b'{"error": {"type": "idempotency_error", "code": "idempotency_key_in_use"}}', ProviderAway),
        (400, b'{"error": {"type": "invalid_request_error", "code": "rate_limit"}}', ProviderAway),
        (401, b'{"error": {"type": "invalid_request_error"}}', ProviderAway),
        (403, b'{"error": {"type": "invalid_request_error"}}', ProviderAway),
        (200, b"no JSON", ProviderAway),
        (200, b'{"id": 5}', ProviderAway),
        (
            200,
            b'{"id": "cs_1", "object": "checkout.session", "status": "odd", "metadata": {"order": "o"}}',
            ProviderAway,
        ),
        (400, b'{"error": {"type": "idempotency_error", "message": "m"}}', ProviderRefused),
        (400, b'{"error": {"type": "invalid_request_error", "code": "amount_too_small"}}', ProviderRefused),
        (402, b'{"error": {"type": "card_error", "code": "card_declined", "decline_code": "x"}}', ProviderRefused),
        (404, b'{"error": {"type": "invalid_request_error", "code": "resource_missing"}}', ProviderRefused),
        (200, b'{"id": "cs_1", "object": "checkout.session", "status": "open"}', ProviderRefused),
    ],
    ids=str,
)
async def test_each_error_is_one_of_two_and_nothing_is_asked_twice(
    status: int, body: bytes, expected: type[Exception]
) -> None:
    answers: Any = type("Answers", (_Answers,), {"status": status, "body": body})
    await _asked(answers, expected)


async def test_an_answer_that_breaks_off_is_no_answer() -> None:
    answers: Any = type("Answers", (_Answers,), {"body": b'{"id": "cs_1"', "cut": True})
    await _asked(answers, ProviderAway)


async def _asked(answers: Any, expected: type[Exception]) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    provider = StripeProvider(API_KEY, f"http://127.0.0.1:{server.server_port}/", return_url="http://shop.test/")
    try:
        with pytest.raises(expected):
            await provider.look("o", "cs_1", None)
        assert answers.asked == 1
    finally:
        await provider.aclose()
        server.shutdown()
        server.server_close()
