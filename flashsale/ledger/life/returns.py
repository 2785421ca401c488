"""Returns: asked for by the shopper, accepted or refused, received and inspected. The price goes back on receipt."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from flashsale.errors import Refused
from flashsale.ledger import returns
from flashsale.ledger.life.change import Change, amount_due, line_money, units_of
from flashsale.ledger.life.steps import Lines, units_by_line
from flashsale.ledger.pool import Connection
from flashsale.ledger.returns import ReturnRow
from flashsale.sale.aftersales import worth
from flashsale.sale.lifecycle import Status

RETURNABLE = frozenset({Status.SHIPPED, Status.DELIVERED, Status.UNDELIVERABLE})


async def request_return(
    connection: Connection,
    order_id: str,
    lines: Lines,
    reason: str,
    return_ms: int,
    now_ms: int,
    *,
    key: str | None = None,
) -> ReturnRow:
    """Asks to return shipped units, until `return_ms` after the last shipment or delivery. Raises Refused: not-found,
    not-returnable, refund-exceeds-payment, payment-disputed, invalid-request."""
    change = await Change.begin(connection, order_id, now_ms)
    order, payment = change.order, change.payment
    if key is not None and (before := await returns.by_key(connection, order_id, key)) is not None:
        return before
    if change.status not in RETURNABLE or (payment is None and not order.collected):
        raise Refused("not-returnable", f"The order is {order.status}.", order_status=order.status)
    moved_ms = await connection.fetchval(
        "SELECT max(at_ms) FROM history WHERE order_id = $1"
        " AND event IN ('order.shipped', 'order.delivered', 'order.undeliverable')",
        order_id,
    )
    if now_ms > moved_ms + return_ms:
        raise Refused(
            "not-returnable", "The time for returns is over.", returnable_until=_rfc3339(moved_ms + return_ms)
        )
    if payment is not None and payment.dispute in ("open", "lost"):
        raise Refused("payment-disputed")
    count = len(order.skus)
    left = [
        shipped - back
        for shipped, back in zip(units_of(order.shipped, count), units_of(order.returned, count), strict=True)
    ]
    for other in await returns.of_order(connection, order_id):
        if other.status in ("requested", "accepted"):
            for sku, units in zip(other.skus, other.quantities, strict=True):
                left[order.skus.index(sku)] -= units
    wanted = units_by_line(order, lines, left, "not-returnable")
    asked = sum(
        worth(line, min(units, line.units - line.refunded))
        for line, units in zip(line_money(order), wanted, strict=True)
    )
    # A capture may still be under way when the parcel comes back.
    if payment is None:
        refundable = amount_due(order, None)  # the channel has the money, and gives it back
    else:
        refundable = payment.refundable if payment.captured else (payment.todo_amount or 0)
    if asked > refundable:
        raise Refused("refund-exceeds-payment", refundable={"amount": refundable, "currency": order.currency})
    asked_for = [(sku, units) for sku, units in zip(order.skus, wanted, strict=True) if units]
    return_id = f"rt-{order_id}-{order.changes + 1}"
    await change.record("return.requested", {"return": return_id, "lines": asked_for, "reason": reason, "key": key})
    return await returns.insert(connection, return_id, order_id, asked_for, reason, now_ms)


async def decide_return(connection: Connection, return_id: str, accept: bool, now_ms: int) -> ReturnRow:
    """Accepts or refuses a requested return; the same decision again changes nothing. Raises Refused: not-found,
    not-returnable."""
    row, change = await _begin(connection, return_id, now_ms)
    status = "accepted" if accept else "refused"
    if row.status == status or (accept and row.status == "received"):
        return row
    if row.status != "requested":
        raise Refused("not-returnable", f"The return is {row.status}.", return_status=row.status)
    await change.record(f"return.{status}", {"return": return_id})
    return await returns.set_status(connection, return_id, status, now_ms)


async def receive_return(
    connection: Connection,
    return_id: str,
    lines: Sequence[tuple[int, int, bool]],
    now_ms: int,
    *,
    sale_open: bool,
    quota: bool,
) -> ReturnRow:
    """An accepted return arrived: (offer index, units, whether they go back on the shelf). The price of what arrived
    goes back; units are for sale again where that is asked and the sale is open. `quota`: the shopper may buy again.
    Raises Refused: not-found, not-returnable, invalid-request."""
    row, change = await _begin(connection, return_id, now_ms)
    if row.status == "received":
        return row
    if row.status != "accepted":
        raise Refused("not-returnable", f"The return is {row.status}.", return_status=row.status)
    order = change.order
    asked = [0] * len(order.skus)
    for sku, units in zip(row.skus, row.quantities, strict=True):
        asked[order.skus.index(sku)] = units
    arrived = units_by_line(order, [(sku, units) for sku, units, _ in lines], asked, "not-returnable")
    shelved = [0] * len(order.skus)
    for sku, units, restock in lines:
        if restock and sale_open:
            shelved[order.skus.index(sku)] += units
    count = len(order.skus)
    refunded = [
        min(units, back + came)
        for units, back, came in zip(order.quantities, units_of(order.refunded, count), arrived, strict=True)
    ]
    if change.status is Status.UNDELIVERABLE:
        refunded = list(order.quantities)  # given back when it could not be delivered
    restocked = [(sku, units) for sku, units in zip(order.skus, shelved, strict=True) if units]
    came = [(sku, units) for sku, units in zip(order.skus, arrived, strict=True) if units]
    number = await change.record(
        "return.received",
        {"return": return_id, "lines": came, "restocked": restocked},
        returned=_sum(units_of(order.returned, count), arrived),
        restocked=_sum(units_of(order.restocked, count), shelved),
        refunded=refunded,
    )
    if restocked:
        await change.sell((sku, -units) for sku, units in restocked)
    if restocked or order.limit_use:
        await change.give_back(number, restocked, quota=quota, arrived=arrived)
    await change.settle("return")
    return await returns.received(
        connection,
        return_id,
        [arrived[order.skus.index(sku)] for sku in row.skus],
        [shelved[order.skus.index(sku)] for sku in row.skus],
        now_ms,
    )


async def _begin(connection: Connection, return_id: str, now_ms: int) -> tuple[ReturnRow, Change]:
    found = await returns.get(connection, return_id)
    if found is None:
        raise Refused("not-found", "There is no such return.")
    change = await Change.begin(connection, found.order_id, now_ms)
    row = await returns.get(connection, return_id)  # as it is now that its order is locked
    assert row is not None  # noqa: S101  returns are never deleted
    return row, change


def _rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]
