"""What a shopper who comes back does next: one definite step for every state that an order and its money can be in.

Pure. The pages add where and until when.
"""

from enum import StrEnum
from typing import NamedTuple

from flashsale.sale.lifecycle import Payment, Status
from flashsale.sale.payment import RefundState


class Do(StrEnum):
    """The step, as the order's `next` names it."""

    PAY = "pay"
    WAIT = "wait"
    ORDER_AGAIN = "order-again"
    SEND_BACK = "send-back"
    RETURN = "return"
    CONTACT = "contact"
    NOTHING = "nothing"


class Situation(NamedTuple):
    """What decides. `overdue`: the hold's deadline has passed. `processing`: the bank or wallet has the payment.
    `deciding`: money came late, and the units are being asked for again. `refund`: a refund that has not succeeded, a
    failed one before a pending one. `sent_back`: the status of a return that is under way. `returnable`: units may
    still go back. `restated`: it was paid behind the day's cut-off, and comes later than was promised first."""

    status: Status
    payment: Payment = Payment.NONE
    overdue: bool = False
    processing: bool = False
    deciding: bool = False
    disputed: bool = False
    refund: RefundState | None = None
    sent_back: str | None = None
    returnable: bool = False
    restated: bool = False


class Step(NamedTuple):
    """What to do, and why, in a sentence for people."""

    do: Do
    why: str


_HELD = frozenset({Payment.AUTHORISED, Payment.CAPTURED, Payment.PART_REFUNDED})
"""Payments of which the shop holds money still."""


def next_step(now: Situation) -> Step:
    """The one step that is next."""
    if now.refund is RefundState.FAILED:
        return Step(Do.CONTACT, "A refund has failed: the shop has been told, ask it for the money another way.")
    match now.status:
        case Status.RESERVED:
            return _reserved(now)
        case Status.EXPIRED | Status.CANCELLED:
            return _over(now)
        case Status.PAID | Status.SHIPPED:
            return _under_way(now)
        case Status.DELIVERED:
            return _delivered(now)
        case Status.UNDELIVERABLE:
            return _undeliverable(now)


def _reserved(now: Situation) -> Step:
    if now.payment in (*_HELD, Payment.REFUNDED) or now.processing:
        return Step(Do.WAIT, "The payment is being confirmed.")
    if now.overdue:
        return Step(Do.WAIT, "The hold has run out: the order expires in a moment, unless a payment came in time.")
    if now.payment is Payment.FAILED:
        return Step(Do.PAY, "The last payment was declined: try again, or with another method.")
    return Step(Do.PAY, "The units are held until then.")


def _over(now: Situation) -> Step:
    if now.deciding:
        return Step(Do.WAIT, "The payment came late: either the order comes back, or the money goes back.")
    if now.refund is RefundState.PENDING or now.payment in _HELD:
        if now.disputed:
            return Step(Do.WAIT, "The payment is disputed: the bank decides where the money goes.")
        return Step(Do.WAIT, "The money is on its way back.")
    if now.status is Status.EXPIRED:
        return Step(Do.ORDER_AGAIN, "The hold ran out unpaid: if units are left, order again with a new key.")
    return Step(Do.NOTHING, "The order is cancelled.")


def _under_way(now: Situation) -> Step:
    if now.payment is Payment.FAILED:
        return Step(Do.CONTACT, "The payment fell through after the order was accepted: the shop decides what follows.")
    if now.status is Status.PAID and now.restated:
        return Step(
            Do.WAIT,
            "The order is paid and will be shipped. It was paid after the day's cut-off, so it comes later than was"
            " promised first.",
        )
    if now.status is Status.PAID:
        return Step(Do.WAIT, "The order is paid and will be shipped.")
    return Step(Do.WAIT, "The parcel is on its way.")


def _delivered(now: Situation) -> Step:
    if now.payment is Payment.FAILED:
        return Step(Do.CONTACT, "The payment fell through after the order was accepted: the shop decides what follows.")
    match now.sent_back:
        case "accepted":
            return Step(Do.SEND_BACK, "The return is accepted: send the units back.")
        case "requested":
            return Step(Do.WAIT, "The shop decides on the return.")
    if now.refund is RefundState.PENDING:
        return Step(Do.WAIT, "The money is on its way back.")
    if now.returnable:
        return Step(Do.RETURN, "The parcel has arrived. What is not wanted goes back until then.")
    return Step(Do.NOTHING, "The parcel has arrived.")


def _undeliverable(now: Situation) -> Step:
    if now.disputed:
        return Step(Do.WAIT, "The payment is disputed: the bank decides where the money goes.")
    # Given back when the carrier said so: what was authorised is released, what is captured later is refunded.
    if now.refund is RefundState.PENDING or now.payment is Payment.AUTHORISED:
        return Step(Do.WAIT, "The money is on its way back.")
    if now.payment is Payment.REFUNDED:
        return Step(Do.NOTHING, "The parcel could not be delivered; the money is back.")
    return Step(Do.CONTACT, "The parcel could not be delivered: tell the shop where it is to go, or ask for the money.")
