"""What may become of an order and of its payment: each as one table.

The ledger turns these tables into guarded updates (`WHERE status = ANY(sources(new))`); nothing here touches one.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class Status(StrEnum):
    """An order's status, as the ledger stores it."""

    RESERVED = "reserved"
    PAID = "paid"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    UNDELIVERABLE = "undeliverable"


class Payment(StrEnum):
    """Where an order's money is, as the ledger stores it. A column of its own: a cancelled order may be captured."""

    NONE = "none"
    AUTHORISED = "authorised"
    CAPTURED = "captured"
    PART_REFUNDED = "part_refunded"
    REFUNDED = "refunded"
    FAILED = "failed"


class Units(StrEnum):
    """Where an order's units are: held or sold they are taken from the supply, released they are available again."""

    HELD = "held"
    SOLD = "sold"
    RELEASED = "released"


STATUS_CHANGES: Mapping[Status, frozenset[Status]] = {
    Status.RESERVED: frozenset({Status.PAID, Status.EXPIRED, Status.CANCELLED}),
    # A late payment, if the units could be reserved again; else the money goes back and the order stays expired.
    Status.EXPIRED: frozenset({Status.PAID}),
    Status.PAID: frozenset({Status.SHIPPED, Status.CANCELLED}),
    Status.SHIPPED: frozenset({Status.DELIVERED, Status.UNDELIVERABLE}),
    Status.CANCELLED: frozenset(),
    Status.DELIVERED: frozenset(),
    Status.UNDELIVERABLE: frozenset(),
}

PAYMENT_CHANGES: Mapping[Payment, frozenset[Payment]] = {
    # A wallet pays in one step, a card is authorised first. What failed may be tried again until the deadline. An
    # authorisation that is released went back as well: to the shopper it is no other thing than a refund.
    Payment.NONE: frozenset({Payment.AUTHORISED, Payment.CAPTURED, Payment.FAILED}),
    Payment.FAILED: frozenset({Payment.AUTHORISED, Payment.CAPTURED}),
    Payment.AUTHORISED: frozenset({Payment.CAPTURED, Payment.REFUNDED}),
    Payment.CAPTURED: frozenset({Payment.PART_REFUNDED, Payment.REFUNDED}),
    Payment.PART_REFUNDED: frozenset({Payment.REFUNDED, Payment.CAPTURED}),
    # A refund may fail after it had succeeded: the money is with us again.
    Payment.REFUNDED: frozenset({Payment.PART_REFUNDED, Payment.CAPTURED}),
}

# Cancelling and expiring give the units back in the same breath; what comes home later (a return, an undeliverable
# parcel) is a movement of its own once it is on the shelf again, so until then it counts as sold.
UNITS: Mapping[Status, Units] = {
    Status.RESERVED: Units.HELD,
    Status.PAID: Units.SOLD,
    Status.EXPIRED: Units.RELEASED,
    Status.CANCELLED: Units.RELEASED,
    Status.SHIPPED: Units.SOLD,
    Status.DELIVERED: Units.SOLD,
    Status.UNDELIVERABLE: Units.SOLD,
}

LETTERS: Mapping[Status, str] = {
    Status.RESERVED: "h",
    Status.EXPIRED: "e",
    Status.PAID: "p",
    Status.SHIPPED: "s",
    Status.DELIVERED: "d",
    Status.UNDELIVERABLE: "u",
    Status.CANCELLED: "c",
}
"""How an order's hold tells its status; upper case where the hold was extended."""

_State = TypeVar("_State", bound=StrEnum)


def sources(new: _State, changes: Mapping[_State, frozenset[_State]]) -> tuple[_State, ...]:
    """The states from which `new` may be entered, in the table's order: what a guarded update compares with."""
    return tuple(old for old, permitted in changes.items() if new in permitted)


def may_become(old: _State, new: _State, changes: Mapping[_State, frozenset[_State]]) -> bool:
    """Whether a change is in the table. Staying as it is, is no change."""
    return new in changes[old]
