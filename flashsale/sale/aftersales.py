"""What an order's money comes to after its lines changed: the one place that says what the shopper owes.

Everything follows from the amount due. What was captured beyond it goes back, what was authorised is captured up to it,
and an order that is over owes nothing: so a late payment, a cancellation before the payment and a return are one case.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.sale.lifecycle import Payment, Status


class LineMoney(NamedTuple):
    """A line: what all its units cost together (minor units), how many they are, and of how many the price went back
    (or will never be taken)."""

    amount: int
    units: int
    refunded: int


def share(amount: int, units: int, done: int) -> int:
    """The part of `amount` that the first `done` of `units` carry, rounded down: the last unit takes the remainder, so
    whatever steps `done` goes in, the steps add up to the amount."""
    return amount * done // units


def worth(line: LineMoney, more: int) -> int:
    """What the next `more` units of the line that are given back are worth."""
    return share(line.amount, line.units, line.refunded + more) - share(line.amount, line.units, line.refunded)


def due(status: Status, total: int, lines: Sequence[LineMoney], *, goodwill: int = 0, shipped: bool = False) -> int:
    """What the shopper owes for the order now, in minor units; never below 0.

    What the total holds beyond its lines (shipping) goes back only when nothing remains and nothing was shipped.
    """
    if status in (Status.EXPIRED, Status.CANCELLED):
        return 0
    back = sum(share(line.amount, line.units, line.refunded) for line in lines)
    if not shipped and all(line.refunded == line.units for line in lines):
        back = total
    return max(0, total - back - goodwill)


def payment_shown(authorised: int, captured: int, released: int, refunded: int, failed: bool) -> Payment:
    """Where the money is, from the amounts that the provider confirmed."""
    if captured:
        if refunded >= captured:
            return Payment.REFUNDED
        return Payment.PART_REFUNDED if refunded else Payment.CAPTURED
    if authorised:
        return Payment.REFUNDED if released >= authorised else Payment.AUTHORISED
    return Payment.FAILED if failed else Payment.NONE
