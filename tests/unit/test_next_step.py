"""Whenever a shopper comes back, the order says one thing to do, and it is one that makes sense."""

from itertools import product

import pytest

from flashsale.sale.lifecycle import Payment, Status
from flashsale.sale.next_step import Do, Situation, next_step
from flashsale.sale.payment import RefundState

YES_NO = (False, True)
EVERY = [
    Situation(*state)
    for state in product(
        Status,
        Payment,
        YES_NO,
        YES_NO,
        YES_NO,
        YES_NO,
        (None, *RefundState),
        (None, "requested", "accepted"),
        YES_NO,
        YES_NO,
    )
]
OVER = (Status.EXPIRED, Status.CANCELLED)
SHOP_HAS_MONEY = (Payment.AUTHORISED, Payment.CAPTURED, Payment.PART_REFUNDED)


def test_every_state_has_one_step_and_a_reason() -> None:
    for now in EVERY:
        step = next_step(now)
        assert isinstance(step.do, Do)
        assert step.why.endswith(".")


def test_nobody_is_sent_to_pay_twice_or_in_vain() -> None:
    paying = [now for now in EVERY if next_step(now).do is Do.PAY]
    assert paying
    for now in paying:
        assert now.status is Status.RESERVED
        assert now.payment in (Payment.NONE, Payment.FAILED)
        assert not now.overdue
        assert not now.processing


def test_nobody_orders_again_while_the_first_order_may_come_back_or_holds_money() -> None:
    again = [now for now in EVERY if next_step(now).do is Do.ORDER_AGAIN]
    assert again
    for now in again:
        assert now.status is Status.EXPIRED
        assert not now.deciding
        assert now.payment not in SHOP_HAS_MONEY


def test_an_order_that_is_over_is_not_done_with_while_the_shop_has_money() -> None:
    for now in EVERY:
        if now.status in OVER and (now.payment in SHOP_HAS_MONEY or now.refund is RefundState.PENDING):
            assert next_step(now).do in (Do.WAIT, Do.CONTACT)


def test_a_failed_refund_is_never_passed_over() -> None:
    assert {next_step(now).do for now in EVERY if now.refund is RefundState.FAILED} == {Do.CONTACT}


def test_only_what_arrived_is_sent_back() -> None:
    for now in EVERY:
        if next_step(now).do in (Do.RETURN, Do.SEND_BACK):
            assert now.status is Status.DELIVERED


@pytest.mark.parametrize(
    ("now", "do"),
    [
        (Situation(Status.RESERVED), Do.PAY),
        (Situation(Status.RESERVED, Payment.FAILED), Do.PAY),
        (Situation(Status.RESERVED, processing=True), Do.WAIT),
        (Situation(Status.RESERVED, overdue=True), Do.WAIT),
        (Situation(Status.EXPIRED), Do.ORDER_AGAIN),
        (Situation(Status.EXPIRED, Payment.CAPTURED, deciding=True), Do.WAIT),
        (Situation(Status.EXPIRED, Payment.REFUNDED), Do.ORDER_AGAIN),
        (Situation(Status.CANCELLED), Do.NOTHING),
        (Situation(Status.CANCELLED, Payment.CAPTURED, refund=RefundState.PENDING), Do.WAIT),
        (Situation(Status.CANCELLED, Payment.REFUNDED), Do.NOTHING),
        (Situation(Status.PAID, Payment.AUTHORISED), Do.WAIT),
        (Situation(Status.PAID, Payment.AUTHORISED, restated=True), Do.WAIT),
        (Situation(Status.SHIPPED, Payment.CAPTURED), Do.WAIT),
        (Situation(Status.DELIVERED, Payment.CAPTURED, returnable=True), Do.RETURN),
        (Situation(Status.DELIVERED, Payment.CAPTURED, sent_back="accepted"), Do.SEND_BACK),
        (Situation(Status.DELIVERED, Payment.CAPTURED), Do.NOTHING),
        (Situation(Status.UNDELIVERABLE, Payment.AUTHORISED), Do.WAIT),
        (Situation(Status.UNDELIVERABLE, Payment.CAPTURED), Do.CONTACT),
        (Situation(Status.UNDELIVERABLE, Payment.REFUNDED), Do.NOTHING),
    ],
)
def test_the_step_of_a_plain_case(now: Situation, do: Do) -> None:
    assert next_step(now).do is do
