"""A parcel's way as its carrier tells it: the codes of tracking events, and what each of them makes of the parcel.

Carriers tell late, twice and in any order, and leave steps out. So an event moves a parcel only forwards, and one that
says that the parcel moved says that it was picked up too: where a parcel ends depends on the set of its events alone.
A carrier that calls a parcel delivered and failed contradicts itself; what it said first stays, for money went by it.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """What happened to a parcel. `failed`: it could not be delivered, and will not be; `returned`: it came home."""

    PICKED_UP = "picked_up"
    IN_TRANSIT = "in_transit"
    CUSTOMS = "customs"
    OUT_FOR_DELIVERY = "out_for_delivery"
    DELIVERED = "delivered"
    FAILED = "failed"
    RETURNED = "returned"


class ParcelStatus(StrEnum):
    """Where a parcel is. `cancelling`: its carrier is still to be told; `refused`: the carrier will not take it, and a
    person has to see to it; `picked_up`: it is on its way."""

    TO_BOOK = "to_book"
    BOOKED = "booked"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    PICKED_UP = "picked_up"
    DELIVERED = "delivered"
    FAILED = "failed"


ENDED = frozenset({ParcelStatus.DELIVERED, ParcelStatus.FAILED})
"""Nothing that a carrier tells changes these any more."""

_ENDS = {
    Code.DELIVERED: ParcelStatus.DELIVERED,
    Code.FAILED: ParcelStatus.FAILED,
    Code.RETURNED: ParcelStatus.FAILED,  # what came home was not delivered
}


def end_of(code: Code) -> ParcelStatus | None:
    """How an event of that code ends a parcel's way; None: the parcel is still on it."""
    return _ENDS.get(code)


def after(status: ParcelStatus, code: Code) -> ParcelStatus:
    """The parcel's status after an event. A parcel that was cancelled, and travels all the same, travels."""
    return status if status in ENDED else _ENDS.get(code, ParcelStatus.PICKED_UP)
