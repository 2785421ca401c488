"""The payments sandbox, driven by Stripe's own client: every operation, its errors, its webhooks, its death."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests.payments_sandbox import WEBHOOK_SECRET, Receiver, Sandbox

WITHIN_S = 10


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path_factory.mktemp("sandbox"), receiver.url).start()
    yield made
    made.stop()


@pytest.fixture
def sandbox(shared: Sandbox, receiver: Receiver) -> Iterator[Sandbox]:
    receiver.received.clear()
    receiver.status = 200
    yield shared
    shared.faults()


@pytest.fixture
def own_sandbox(tmp_path: Path, receiver: Receiver) -> Iterator[Sandbox]:
    receiver.received.clear()
    receiver.status = 200
    made = Sandbox(tmp_path / "sandbox", receiver.url).start()
    yield made
    made.stop()


@pytest.fixture
def client(sandbox: Sandbox) -> stripe.StripeClient:
    return sandbox.client()


def until(condition: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


BY_HAND: dict[str, Any] = {
    "amount": 5000,
    "currency": "sgd",
    "payment_method_types": ["card", "alipay", "grabpay"],
    "payment_method_options": {"card": {"capture_method": "manual"}},
    "metadata": {"order": "order-1"},
}
SESSION: dict[str, Any] = {
    "mode": "payment",
    "line_items": [
        {"price_data": {"currency": "sgd", "unit_amount": 2500, "product_data": {"name": "Order"}}, "quantity": 2}
    ],
    "payment_method_types": ["card", "alipay", "grabpay"],
    "payment_method_options": {"card": {"capture_method": "manual"}},
    "payment_intent_data": {"metadata": {"order": "order-2"}, "description": "<b>Order</b>"},
    "metadata": {"order": "order-2"},
    "success_url": "http://shop.test/done?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "http://shop.test/back",
}


def refused(call: Callable[[], Any]) -> stripe.StripeError:
    with pytest.raises(stripe.StripeError) as caught:
        call()
    return caught.value


def test_a_card_is_authorised_then_captured_in_part_then_refunded(client: stripe.StripeClient) -> None:
    intent = client.v1.payment_intents.create(BY_HAND)
    assert (intent.status, intent.amount_capturable) == ("requires_payment_method", 0)
    intent = client.v1.payment_intents.confirm(
        intent.id, {"payment_method": "pm_card_visa", "expand": ["latest_charge"]}
    )
    assert (intent.status, intent.amount_capturable, intent.amount_received) == ("requires_capture", 5000, 0)
    charge = intent.latest_charge
    assert isinstance(charge, stripe.Charge)
    assert not charge.captured
    assert charge.payment_method_details is not None
    assert charge.payment_method_details["card"]["capture_before"] > time.time() + 6 * 86_400
    intent = client.v1.payment_intents.capture(intent.id, {"amount_to_capture": 3000})
    assert (intent.status, intent.amount_capturable, intent.amount_received) == ("succeeded", 0, 3000)
    refund = client.v1.refunds.create(
        {"payment_intent": intent.id, "amount": 1000, "metadata": {"order": "order-1", "refund": "r1"}}
    )
    assert (refund.status, refund.amount, refund.payment_intent) == ("succeeded", 1000, intent.id)
    kept = client.v1.refunds.retrieve(refund.id).metadata
    assert kept is not None
    assert kept.to_dict() == {"order": "order-1", "refund": "r1"}
    rest = client.v1.refunds.create({"payment_intent": intent.id})
    assert rest.amount == 2000
    fault = refused(lambda: client.v1.refunds.create({"payment_intent": intent.id}))
    assert fault.code == "charge_already_refunded"
    assert [found.id for found in client.v1.refunds.list({"payment_intent": intent.id}).data] == [rest.id, refund.id]


def test_more_than_was_paid_is_not_refunded(client: stripe.StripeClient) -> None:
    intent = client.v1.payment_intents.create(
        {"amount": 700, "currency": "sgd", "payment_method": "pm_card_visa", "confirm": True}
    )
    assert intent.status == "succeeded"
    assert "greater than" in str(
        refused(lambda: client.v1.refunds.create({"payment_intent": intent.id, "amount": 701}))
    )
    unpaid = client.v1.payment_intents.create(BY_HAND)
    assert "successful charge" in str(refused(lambda: client.v1.refunds.create({"payment_intent": unpaid.id})))


def test_a_declined_card_leaves_the_intent_open(client: stripe.StripeClient) -> None:
    intent = client.v1.payment_intents.create(BY_HAND)
    fault = refused(
        lambda: client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_visa_chargeDeclined"})
    )
    assert isinstance(fault, stripe.CardError)
    assert fault.error is not None
    assert (fault.http_status, fault.code, fault.error.decline_code) == (402, "card_declined", "generic_decline")
    intent = client.v1.payment_intents.retrieve(intent.id)
    assert intent.status == "requires_payment_method"
    assert intent.last_payment_error is not None
    assert intent.last_payment_error.charge == intent.latest_charge
    assert client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_card_visa"}).status == "requires_capture"


@pytest.mark.parametrize(
    ("wallet", "action"), [("alipay", "alipay_handle_redirect"), ("grabpay", "redirect_to_url")], ids=str
)
def test_a_wallet_is_captured_on_its_own_page(
    sandbox: Sandbox, client: stripe.StripeClient, wallet: str, action: str
) -> None:
    intent = client.v1.payment_intents.create(BY_HAND)
    params: Any = {"payment_method_data": {"type": wallet}, "return_url": "http://shop.test/back?a=1#end"}
    intent = client.v1.payment_intents.confirm(intent.id, params)
    assert intent.status == "requires_action"
    assert intent.next_action is not None
    assert intent.next_action.type == action
    url = intent.next_action[action]["url"]
    status, target, _ = sandbox.choose(url, wallet, "decline")
    assert status == 303
    assert target == f"http://shop.test/back?a=1&payment_intent={intent.id}&redirect_status=failed#end"
    declined = client.v1.payment_intents.retrieve(intent.id)
    assert declined.status == "requires_payment_method"
    client.v1.payment_intents.confirm(intent.id, params)
    status, target, _ = sandbox.choose(url, wallet)
    assert status == 303
    assert "redirect_status=succeeded" in str(target)
    paid = client.v1.payment_intents.retrieve(intent.id)
    assert (paid.status, paid.amount_received) == ("succeeded", 5000)
    assert sandbox.choose(url, wallet)[0] == 200  # again: nothing more is paid
    refund = client.v1.refunds.create({"payment_intent": intent.id})
    assert refund.status == "pending"
    until(lambda: client.v1.refunds.retrieve(refund.id).status == "succeeded")


def test_a_wallet_needs_a_place_to_return_to(client: stripe.StripeClient) -> None:
    intent = client.v1.payment_intents.create(BY_HAND)
    fault = refused(lambda: client.v1.payment_intents.confirm(intent.id, {"payment_method": "pm_alipay"}))
    assert isinstance(fault, stripe.InvalidRequestError)
    assert fault.param == "return_url"


def test_cancelling_releases_what_was_authorised(client: stripe.StripeClient) -> None:
    intent = client.v1.payment_intents.create({**BY_HAND, "payment_method": "pm_card_visa", "confirm": True})
    assert intent.status == "requires_capture"
    cancelled = client.v1.payment_intents.cancel(intent.id, {"cancellation_reason": "abandoned"})
    assert (cancelled.status, cancelled.amount_capturable) == ("canceled", 0)
    for again in (client.v1.payment_intents.cancel, client.v1.payment_intents.capture):
        fault = refused(lambda again=again: again(intent.id))  # type: ignore[misc]
        assert fault.code == "payment_intent_unexpected_state"


@pytest.mark.parametrize(
    ("asked", "language", "words"),
    [
        ("th-TH,th;q=0.9", "th", ["ชำระด้วย GrabPay", "SGD\xa050.00"]),
        ("zh-HK", "zh-Hant", ["使用GrabPay付款", "SGD\xa050.00"]),
        ("vi", "vi", ["Thanh toán bằng GrabPay", "50,00\xa0SGD"]),
        ("de", "en", ["Pay with GrabPay", "This is a sandbox: no money moves."]),
    ],
)
def test_the_pay_page_is_in_the_browser_s_language(
    asked: str, language: str, words: list[str], client: stripe.StripeClient
) -> None:
    session = client.v1.checkout.sessions.create(SESSION)
    assert session.url is not None
    with urllib.request.urlopen(urllib.request.Request(session.url, headers={"Accept-Language": asked})) as page:  # noqa: S310 - ours
        text = page.read().decode()
        assert (page.headers["Content-Language"], page.headers["Vary"]) == (language, "Accept-Language")
    assert f'<html lang="{language}">' in text
    for each in words:
        assert each in text


def test_the_pay_page_of_a_session(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    session = client.v1.checkout.sessions.create(SESSION)
    assert (session.status, session.payment_status, session.amount_total) == ("open", "unpaid", 5000)
    assert session.url is not None
    with urllib.request.urlopen(session.url) as page:  # noqa: S310 - ours
        text = page.read().decode()
        assert "form-action 'self' http://shop.test" in page.headers["Content-Security-Policy"]
    assert "SGD\xa050.00" in text
    assert "&lt;b&gt;Order&lt;/b&gt;" in text
    status, _, text = sandbox.choose(session.url, "card", "decline")
    assert (status, "declined" in text) == (200, True)
    status, target, _ = sandbox.choose(session.url, "card")
    assert (status, target) == (303, f"http://shop.test/done?session={session.id}")
    session = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["payment_intent.latest_charge"]})
    assert (session.status, session.payment_status) == ("complete", "unpaid")
    assert isinstance(session.payment_intent, stripe.PaymentIntent)
    assert session.payment_intent.status == "requires_capture"
    assert isinstance(session.payment_intent.latest_charge, stripe.Charge)


def test_an_expired_session_can_not_be_paid(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    session = client.v1.checkout.sessions.create(SESSION)
    intent_id, url = str(session.payment_intent), str(session.url)
    fault = refused(lambda: client.v1.payment_intents.cancel(intent_id))
    assert "Expire the Checkout Session" in str(fault)
    assert client.v1.checkout.sessions.expire(session.id).status == "expired"
    assert client.v1.payment_intents.retrieve(intent_id).status == "canceled"
    assert sandbox.choose(url, "card")[0] == 200
    assert client.v1.payment_intents.retrieve(intent_id).status == "canceled"
    assert refused(lambda: client.v1.checkout.sessions.expire(session.id)).http_status == 400


def test_a_session_expires_by_itself(own_sandbox: Sandbox) -> None:
    client = own_sandbox.client()
    session = client.v1.checkout.sessions.create({**SESSION, "expires_at": int(time.time()) + 1900})
    own_sandbox.post("/sandbox/clock", {"advance_s": 2000})
    until(lambda: client.v1.checkout.sessions.retrieve(session.id).status == "expired")
    assert client.v1.payment_intents.retrieve(str(session.payment_intent)).status == "canceled"
    fault = refused(lambda: client.v1.checkout.sessions.create({**SESSION, "expires_at": int(time.time()) + 2010}))
    assert "30 minutes" in str(fault)


def test_one_key_is_one_change(own_sandbox: Sandbox) -> None:
    client = own_sandbox.client()
    intent = client.v1.payment_intents.create(BY_HAND, {"idempotency_key": "k"})
    again = client.v1.payment_intents.create(BY_HAND, {"idempotency_key": "k"})
    assert again.id == intent.id
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"  # type: ignore[index]
    other: Any = {**BY_HAND, "amount": 5001}
    assert isinstance(
        refused(lambda: client.v1.payment_intents.create(other, {"idempotency_key": "k"})), stripe.IdempotencyError
    )
    # A refusal of the state is kept too; one of the parameters is not.
    for _ in range(2):
        fault = refused(lambda: client.v1.payment_intents.capture(intent.id, {}, {"idempotency_key": "c"}))
        assert fault.code == "payment_intent_unexpected_state"
    refused(lambda: client.v1.payment_intents.create({"amount": 0, "currency": "sgd"}, {"idempotency_key": "p"}))
    assert client.v1.payment_intents.create(BY_HAND, {"idempotency_key": "p"}).id
    own_sandbox.post("/sandbox/clock", {"advance_s": 24 * 3600 + 1})
    assert client.v1.payment_intents.create(BY_HAND, {"idempotency_key": "k"}).id != intent.id


def test_lists_are_paged_and_filtered(client: stripe.StripeClient) -> None:
    before = int(time.time())
    made = [client.v1.payment_intents.create(BY_HAND).id for _ in range(7)]
    page = client.v1.payment_intents.list({"limit": 3, "created": {"gte": before}})
    assert [found.id for found in page.data] == made[:-4:-1]
    assert page.has_more
    following = client.v1.payment_intents.list({"limit": 3, "starting_after": page.data[-1].id})
    assert [found.id for found in following.data] == made[-4:-7:-1]
    back = client.v1.payment_intents.list({"limit": 3, "ending_before": following.data[0].id})
    assert [found.id for found in back.data] == [found.id for found in page.data]
    assert client.v1.payment_intents.list({"created": {"gt": before + 10_000}}).data == []
    walked = [found.id for found in client.v1.payment_intents.list({"limit": 2}).auto_paging_iter()]
    assert set(made) <= set(walked)
    events = client.v1.events.list({"type": "payment_intent.created", "limit": 1}).data
    assert events[0].data.object["id"] == made[-1]
    assert client.v1.events.retrieve(events[0].id).type == "payment_intent.created"
    session = client.v1.checkout.sessions.create(SESSION)
    assert session.payment_intent is not None
    listed = client.v1.checkout.sessions.list({"payment_intent": str(session.payment_intent)})
    assert [found.id for found in listed.data] == [session.id]


@pytest.mark.parametrize(
    ("params", "param", "code"),
    [
        ({"currency": "sgd"}, "amount", "parameter_missing"),
        ({"amount": 1}, "currency", "parameter_missing"),
        ({"amount": "x", "currency": "sgd"}, "amount", "parameter_invalid_integer"),
        ({"amount": -5, "currency": "sgd"}, "amount", "parameter_invalid_integer"),
        ({"amount": 5, "currency": "xxx"}, "currency", None),
        ({"amount": 5, "currency": "sgd", "colour": "red"}, "colour", "parameter_unknown"),
        ({"amount": 5, "currency": "sgd", "metadata": {"a": "x" * 501}}, "metadata[a]", None),
        ({"amount": 5, "currency": "sgd", "payment_method_types": ["cheque"]}, "payment_method_types", None),
        ({"amount": 5, "currency": "sgd", "payment_method": "pm_nobody"}, "payment_method", "resource_missing"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(client: stripe.StripeClient, params: Any, param: str, code: str | None) -> None:
    fault = refused(lambda: client.v1.payment_intents.create(params))
    assert isinstance(fault, stripe.InvalidRequestError)
    assert fault.param == param
    assert code is None or fault.code == code


def test_what_is_not_there_and_who_may_not_ask(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    assert refused(lambda: client.v1.payment_intents.retrieve("pi_none")).code == "resource_missing"
    assert refused(lambda: client.v1.customers.list()).http_status == 404
    assert isinstance(
        refused(lambda: sandbox.client("sk_test_another").v1.payment_intents.list()), stripe.AuthenticationError
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(sandbox.url + "/v1/payment_intents")  # noqa: S310 - ours
    assert caught.value.code == 401
    too_long: Any = {**BY_HAND, "description": "x" * 70_000}
    assert refused(lambda: client.v1.payment_intents.create(too_long)).http_status == 413
    with pytest.raises(urllib.error.HTTPError) as caught:
        sandbox.faults(decline=2)
    assert caught.value.code == 400


def test_webhooks_carry_stripes_signature_and_decode_as_its_events(
    sandbox: Sandbox, client: stripe.StripeClient, receiver: Receiver
) -> None:
    intent = client.v1.payment_intents.create({**BY_HAND, "payment_method": "pm_card_visa", "confirm": True})
    client.v1.payment_intents.capture(intent.id)
    refund = client.v1.refunds.create({"payment_intent": intent.id, "amount": 10})
    sandbox.post(f"/sandbox/refunds/{refund.id}/fail")
    until(lambda: {"payment_intent.succeeded", "refund.created", "refund.failed"} <= set(receiver.types()))
    for signature, body in list(receiver.received):
        event = stripe.Webhook.construct_event(body, signature, WEBHOOK_SECRET)
        assert event.api_version == stripe.api_version
        kind = {"payment_intent": stripe.PaymentIntent, "refund": stripe.Refund}[event.data.object["object"]]
        assert isinstance(event.data.object, kind)
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body, signature, "whsec_another")
    assert client.v1.refunds.retrieve(refund.id).failure_reason == "expired_or_canceled_card"
    assert client.v1.refunds.create({"payment_intent": intent.id}).amount == 5000  # the failed one came back


def test_a_dispute_blocks_refunds_until_it_is_won(
    sandbox: Sandbox, client: stripe.StripeClient, receiver: Receiver
) -> None:
    intent = client.v1.payment_intents.create(
        {"amount": 700, "currency": "sgd", "payment_method": "pm_card_visa", "confirm": True}
    )
    dispute = sandbox.post(f"/sandbox/intents/{intent.id}/dispute", {"reason": "fraudulent"})
    assert (dispute["status"], dispute["amount"]) == ("needs_response", 700)
    assert refused(lambda: client.v1.refunds.create({"payment_intent": intent.id})).code == "charge_disputed"
    assert sandbox.post(f"/sandbox/disputes/{dispute['id']}/close", {"status": "won"})["status"] == "won"
    assert client.v1.refunds.create({"payment_intent": intent.id}).status == "succeeded"
    until(lambda: {"charge.dispute.created", "charge.dispute.closed"} <= set(receiver.types()))


def test_webhooks_that_are_not_taken_come_again_also_after_a_kill(own_sandbox: Sandbox, receiver: Receiver) -> None:
    receiver.status = 503
    client = own_sandbox.client()
    intents = {
        client.v1.payment_intents.create({**BY_HAND, "payment_method": "pm_card_visa", "confirm": True}).id
        for _ in range(5)
    }
    until(lambda: len(receiver.received) >= 10)
    own_sandbox.kill()
    receiver.received.clear()
    receiver.status = 200
    own_sandbox.start()
    until(lambda: {event["data"]["object"]["id"] for event in receiver.events()} == intents)
    until(lambda: own_sandbox.get("/sandbox/health")["webhooks_waiting"] == 0)


def test_faults_repeat_reorder_and_lose_webhooks(
    sandbox: Sandbox, client: stripe.StripeClient, receiver: Receiver
) -> None:
    def pay(count: int) -> list[str]:
        receiver.received.clear()
        return [
            client.v1.payment_intents.create(
                {"amount": 700, "currency": "sgd", "payment_method": "pm_card_visa", "confirm": True}
            ).id
            for _ in range(count)
        ]

    def arrived() -> list[str]:
        return [event["data"]["object"]["id"] for event in receiver.events()]

    sandbox.faults(seed=1, repeat=1)
    intents = pay(3)
    until(lambda: sorted(arrived()) == sorted(intents * 2))
    sandbox.faults(seed=1, reorder=0.5)
    intents = pay(20)
    until(lambda: len(arrived()) == 20)
    assert sorted(arrived()) == sorted(intents)
    assert arrived() != intents
    sandbox.faults(seed=1, lose=1)
    pay(3)
    until(lambda: sandbox.get("/sandbox/health")["webhooks_waiting"] == 0)
    assert arrived() == []
    sandbox.faults(seed=1, decline=1)
    refused(lambda: pay(1))


def test_faults_delay_and_keep_answers_back(sandbox: Sandbox, client: stripe.StripeClient) -> None:
    sandbox.faults(delay_ms=300)
    began = time.monotonic()
    client.v1.payment_intents.list()
    assert time.monotonic() - began >= 0.3
    sandbox.faults(charge_then_timeout=1)
    params: Any = {**BY_HAND, "metadata": {"order": "swallowed"}}
    assert isinstance(
        refused(lambda: client.v1.payment_intents.create(params, {"idempotency_key": "swallowed"})),
        stripe.APIConnectionError,
    )
    sandbox.faults()
    again = client.v1.payment_intents.create(params, {"idempotency_key": "swallowed"})
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"  # type: ignore[index]


def test_a_kill_amid_traffic_loses_nothing_answered(own_sandbox: Sandbox) -> None:
    answered: list[str] = []
    stop = threading.Event()

    def shop() -> None:
        client = own_sandbox.client()
        while not stop.is_set():
            try:
                params: Any = {**BY_HAND, "payment_method": "pm_card_visa", "confirm": True}
                answered.append(client.v1.payment_intents.create(params).id)
            except stripe.StripeError:
                time.sleep(0.02)

    shoppers = [threading.Thread(target=shop) for _ in range(4)]
    for shopper in shoppers:
        shopper.start()
    for _ in range(3):
        count = len(answered)
        until(lambda count=count: len(answered) > count + 20)  # type: ignore[misc]
        own_sandbox.kill()
        own_sandbox.start()
    stop.set()
    for shopper in shoppers:
        shopper.join()
    kept = {
        found.id: found.status
        for found in own_sandbox.client().v1.payment_intents.list({"limit": 100}).auto_paging_iter()
    }
    assert [intent_id for intent_id in answered if kept.get(intent_id) != "requires_capture"] == []
    authorised = own_sandbox.client().v1.events.list({"limit": 100, "type": "payment_intent.amount_capturable_updated"})
    assert {event.data.object["id"] for event in authorised.auto_paging_iter()} == set(kept)


def test_it_ends_within_a_second_whatever_hangs(own_sandbox: Sandbox) -> None:
    own_sandbox.post("/sandbox/faults", {"charge_then_timeout": 1, "hang_ms": 60_000})
    hung = threading.Thread(
        target=lambda: refused(lambda: own_sandbox.client().v1.payment_intents.create(BY_HAND)), daemon=True
    )
    hung.start()
    until(lambda: own_sandbox.client().v1.payment_intents.list().data)
    assert own_sandbox.stop() < 1
    hung.join(5)


def test_two_do_not_share_a_directory(own_sandbox: Sandbox) -> None:
    with pytest.raises(AssertionError, match="ended with 1"):
        Sandbox(own_sandbox.directory).start()
