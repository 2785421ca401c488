"""The events that the engine tells the outside: their published names and what each one means.

An order's history is written under these names, webhooks carry them as `type`, endpoints subscribe to them. A name is
never given another meaning and never taken away; what the table does not have stays inside the house.
"""

from collections.abc import Iterable, Mapping

EVENTS: Mapping[str, str] = {
    "order.paid": "The order is paid: a card is authorised, or a wallet has paid.",
    "order.expired": "The hold ran out unpaid; the units are on sale again.",
    "order.cancelled": "The whole order was cancelled.",
    "order.part_cancelled": "Some units of the order were cancelled; the rest stands.",
    "order.extended": "The hold lasts longer: `reserved_until` is later.",
    "order.shipped": "The order was handed to the carrier.",
    "order.delivered": "The order has arrived.",
    "order.undeliverable": "The carrier could not deliver the order.",
    "payment.failed": "The payment was declined; the shopper may try again.",
    "payment.late": "Money came too late: the order gets its units again, or the money goes back.",
    "payment.captured": "The authorised money was taken.",
    "payment.released": "The authorisation was let go: nothing is taken.",
    "refund.granted": "Money is given back beyond what lines were worth; its refund follows.",
    "refund.requested": "Money is to go back to the shopper.",
    "refund.succeeded": "The money went back.",
    "refund.failed": "The money could not be given back; also after it had seemed to succeed.",
    "dispute.opened": "The shopper's bank disputes the payment; refunds wait.",
    "dispute.closed": "The dispute is decided.",
    "return.requested": "The shopper asks to send units back.",
    "return.accepted": "The units may be sent back.",
    "return.refused": "The return was refused.",
    "return.received": "The units arrived and were inspected.",
}
EVERY = "*"
"""Subscribes to all of them, also to those that are added later."""


def unknown(names: Iterable[str]) -> list[str]:
    """Those of `names` that nobody publishes, in their order."""
    return [name for name in names if name != EVERY and name not in EVENTS]
