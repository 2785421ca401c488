"""The steps that somebody takes with one order: pay, extend, cancel, ship, deliver, give money back.

Lines are (offer index, units). A step that was taken before under the same Idempotency-Key changes nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashsale.errors import Refused
from flashsale.ledger import history, payments, promises
from flashsale.ledger.life.change import AUTHORISED, OVER, Change, amount_due, units_of
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.payments import PaymentRow
from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import Status
from flashsale.sale.payment import IntentState

Lines = Sequence[tuple[int, int]]


async def begin_payment(
    connection: Connection, order_id: str, method: str, return_url: str | None, now_ms: int, silent_ms: int
) -> tuple[OrderRow, PaymentRow]:
    """Notes that the order is about to be paid, before the provider is asked; the second time, the same payment with
    the method chosen now. `silent_ms`: the provider is asked how it is if nothing was heard for so long.

    Raises Refused: not-found, already-paid, not-payable.
    """
    change = await Change.begin(connection, order_id, now_ms)
    payment = change.payment
    if change.status not in OVER and payment is not None and payment.rank >= AUTHORISED and payment.authorised:
        raise Refused("already-paid", order_status=change.order.status)
    if change.status is not Status.RESERVED:
        raise Refused("not-payable", f"The order is {change.order.status}.", order_status=change.order.status)
    owed = amount_due(change.order, payment)
    if payment is None or (payment.state == IntentState.CLOSED and not payment.authorised):
        await payments.insert(
            connection,
            order_id,
            sale=change.order.sale,
            method=method,
            amount=owed,
            currency=change.order.currency,
            return_url=return_url,
            now_ms=now_ms,
            ask_ms=now_ms + silent_ms,
        )
    elif payment.todo == "close":
        raise Refused("not-payable", "The hold has run out.", order_status=change.order.status)
    else:
        await payments.choose(connection, order_id, method, return_url)
    found = await payments.find(connection, order_id)
    assert found is not None  # noqa: S101  just written
    return change.order, found


async def extend(connection: Connection, order_id: str, extension_ms: int, now_ms: int, guard_ms: int) -> OrderRow:
    """Moves the order's deadline by the sale's extension, once. `now_ms` is Valkey's clock. Raises Refused:
    not-found, not-extendable."""
    change = await Change.begin(connection, order_id, now_ms)
    order = change.order
    deadline_ms = order.journal_ms + order.hold_ms
    if change.status is not Status.RESERVED:
        why = f"The order is {order.status}."
    elif order.extended:
        why = "The hold was extended before, and is extended once."
    elif extension_ms <= 0:
        why = "This sale extends no holds."
    elif deadline_ms - now_ms < guard_ms:
        why = "The hold is in its last seconds, or over."
    else:
        await change.record(
            "order.extended", {"by_ms": extension_ms}, extended=True, hold_ms=order.hold_ms + extension_ms
        )
        await change.mirror()
        return change.order
    raise Refused("not-extendable", why, order_status=order.status)


async def cancel(
    connection: Connection,
    order_id: str,
    lines: Lines | None,
    now_ms: int,
    *,
    reason: str | None = None,
    by: str = "shopper",
    key: str | None = None,
) -> OrderRow:
    """Cancels units of an order that was not shipped; None: all that is left. Units and quota go back, and the money
    for them. Raises Refused: not-found, not-cancellable, invalid-request (units that the order has not)."""
    change = await Change.begin(connection, order_id, now_ms)
    if await _taken_before(change, ("order.part_cancelled", "order.cancelled"), key):
        return change.order
    if change.status is Status.CANCELLED and lines is None:
        return change.order
    if change.status not in (Status.RESERVED, Status.PAID):
        raise Refused("not-cancellable", f"The order is {change.order.status}.", order_status=change.order.status)
    left = change.left()
    wanted = left if lines is None else units_by_line(change.order, lines, left, "not-cancellable")
    gone = [(sku, units) for sku, units in zip(change.order.skus, wanted, strict=True) if units]
    detail = {"lines": gone, "reason": reason, "by": by, "key": key}
    await _cancel_units(change, wanted, detail)
    await change.settle("cancellation")
    return change.order


async def _cancel_units(change: Change, wanted: Sequence[int], detail: dict[str, Any]) -> None:
    """Takes units off an order that is not shipped, and gives them back."""
    order = change.order
    lines = len(order.skus)
    cancelled = [a + b for a, b in zip(units_of(order.cancelled, lines), wanted, strict=True)]
    refunded = [a + b for a, b in zip(units_of(order.refunded, lines), wanted, strict=True)]
    whole = cancelled == list(order.quantities)
    gone = [(sku, units) for sku, units in zip(order.skus, wanted, strict=True) if units]
    if change.is_sold():
        await change.sell((sku, -units) for sku, units in gone)
    if whole:
        number = await change.record(
            "order.cancelled", detail, Status.CANCELLED, cancelled=cancelled, refunded=refunded
        )
    else:
        number = await change.record("order.part_cancelled", detail, cancelled=cancelled, refunded=refunded)
    await change.give_back(number, gone, quota=True)


async def ship(
    connection: Connection, order_id: str, lines: Lines | None, now_ms: int, *, key: str | None = None
) -> OrderRow:
    """Ships units of a paid order (None: all that is left). What does not ship is cancelled: a card is captured once,
    so its part is taken and the rest released. Raises Refused: not-found, not-shippable, invalid-request."""
    change = await Change.begin(connection, order_id, now_ms)
    if await _taken_before(change, ("order.shipped",), key):
        return change.order
    if change.status is not Status.PAID:
        raise Refused("not-shippable", f"The order is {change.order.status}.", order_status=change.order.status)
    left = change.left()
    shipped = left if lines is None else units_by_line(change.order, lines, left, "not-shippable")
    rest = [a - b for a, b in zip(left, shipped, strict=True)]
    if any(rest):
        await _cancel_units(change, rest, {"reason": "not shipped", "by": "admin", "key": None})
    units = [(sku, count) for sku, count in zip(change.order.skus, shipped, strict=True) if count]
    await change.record("order.shipped", {"lines": units, "key": key}, Status.SHIPPED, shipped=list(shipped))
    await change.mirror()
    await change.settle("cancellation")
    return change.order


async def deliver(
    connection: Connection, order_id: str, delivered: bool, now_ms: int, *, ended_ms: int | None = None
) -> OrderRow:
    """What became of the parcel. What could not be delivered is given back at once; its units come home as a return.
    `ended_ms`: when it was there, or given up, after somebody who knows; None: now. The promise is judged by that.
    Raises Refused: not-found, not-shippable."""
    change = await Change.begin(connection, order_id, now_ms)
    status = Status.DELIVERED if delivered else Status.UNDELIVERABLE
    if change.status is status:
        return change.order
    if change.status is not Status.SHIPPED:
        raise Refused("not-shippable", f"The order is {change.order.status}.", order_status=change.order.status)
    if delivered:
        await change.record("order.delivered", None, status)
    else:
        await change.record("order.undeliverable", None, status, refunded=list(change.order.quantities))
    await promises.note(connection, change.order, delivered, now_ms if ended_ms is None else min(ended_ms, now_ms))
    await change.mirror()
    await change.settle("undeliverable")
    return change.order


async def refund_goodwill(
    connection: Connection, order_id: str, amount: int, reason: str, now_ms: int, *, key: str | None = None
) -> OrderRow:
    """Gives money back beyond what lines were worth. Raises Refused: not-found, refund-exceeds-payment,
    payment-disputed."""
    change = await Change.begin(connection, order_id, now_ms)
    if await _taken_before(change, ("refund.granted",), key):
        return change.order
    payment = change.payment
    refundable = min(payment.refundable, amount_due(change.order, payment)) if payment is not None else 0
    if payment is None or amount > refundable:
        raise Refused("refund-exceeds-payment", refundable={"amount": refundable, "currency": change.order.currency})
    if payment.dispute in ("open", "lost"):
        raise Refused("payment-disputed")
    await change.pay(goodwill=payment.goodwill + amount)
    await change.record("refund.granted", {"amount": amount, "reason": reason, "key": key})
    await change.settle("goodwill")
    return change.order


async def capture_before_deadline(connection: Connection, order_id: str, now_ms: int) -> PaymentRow | None:
    """Has an authorisation captured that the provider would drop soon, though nothing was shipped; the payment as it is
    then, None where nothing is to be captured."""
    change = await Change.begin(connection, order_id, now_ms)
    payment = change.payment
    if payment is None or payment.rank != AUTHORISED or payment.todo is not None or change.status is not Status.PAID:
        return None
    amount = min(amount_due(change.order, payment), payment.authorised)
    await change.pay(todo="capture", todo_amount=amount, due_ms=now_ms, tries=0)
    return change.payment


async def _taken_before(change: Change, events: Sequence[str], key: str | None) -> bool:
    if key is None:
        return False
    for event in events:
        if await history.by_key(change.connection, change.order.id, event, key) is not None:
            return True
    return False


def units_by_line(order: OrderRow, lines: Lines, left: Sequence[int], problem: str) -> list[int]:
    """The wanted units of each of the order's lines. Raises Refused where there are not so many left."""
    wanted = [0] * len(order.skus)
    for sku, units in lines:
        if sku not in order.skus:
            raise Refused("invalid-request", fields={"lines": "names a SKU that the order has not"})
        wanted[order.skus.index(sku)] += units
    if not any(wanted):
        raise Refused("invalid-request", fields={"lines": "names no unit"})
    if any(units > rest for units, rest in zip(wanted, left, strict=True)):
        raise Refused(problem, "The order has fewer units left of a line.", order_status=order.status)
    return wanted
