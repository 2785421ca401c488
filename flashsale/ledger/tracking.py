"""What carriers tell, applied: a parcel that moves ships its order, and where it ends the order ends.

An event that was told before changes nothing. What does not fit its order (a parcel that travels although its order was
cancelled, one that is called delivered and failed) moves the parcel alone, and is noted on it for a person to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.errors import Refused
from flashsale.ledger import life, orders, parcels
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.parcels import ParcelRow
from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import Status
from flashsale.sale.tracking import Code, ParcelStatus, after, end_of

_GONE = frozenset({Status.SHIPPED, Status.DELIVERED, Status.UNDELIVERABLE})
_ENDS = {ParcelStatus.DELIVERED: Status.DELIVERED, ParcelStatus.FAILED: Status.UNDELIVERABLE}


class Told(NamedTuple):
    """An event as the carrier told it."""

    id: str
    code: Code
    at_ms: int
    detail: str | None
    country: str | None


async def apply_events(
    connection: Connection, carrier: str, waybill: str, told: Sequence[Told], *, now_ms: int, silent_ms: int
) -> list[str]:
    """Applies events of one parcel, in any order; the ids of those that were new. A parcel that nothing is heard of for
    `silent_ms` is asked about. Raises Refused: not-found (the carrier has no such waybill from us), invalid-request."""
    parcel = await parcels.lock(connection, carrier, waybill)
    if parcel is None:
        raise Refused("not-found", "There is no parcel of this carrier's with that waybill.")
    new = []
    status, note = ParcelStatus(parcel.status), None
    for event in sorted(told, key=lambda each: (each.at_ms, each.id)):
        if await _keep(connection, parcel, event, now_ms):
            new.append(event.id)
            status, unfit = after(status, event.code), await _move_order(connection, parcel, event, now_ms)
            note = note or unfit
    if new:
        ended = end_of_way(status)
        await connection.execute(
            "UPDATE parcel SET status = $2, heard_ms = $3, due_ms = $4, attempts = 0, error = coalesce($5, error)"
            " WHERE order_id = $1",
            *(parcel.order_id, status.value, now_ms, None if ended else now_ms + silent_ms, note),
        )
    return new


def end_of_way(status: ParcelStatus) -> bool:
    """Whether nothing more is asked about a parcel."""
    return status in _ENDS


async def _keep(connection: Connection, parcel: ParcelRow, event: Told, now_ms: int) -> bool:
    """Keeps the event; False: it was told before. Raises Refused("invalid-request") where it was told of another
    parcel."""
    kept = await connection.fetchval(
        "INSERT INTO parcel_event (carrier, id, order_id, code, at_ms, detail, country, heard_ms)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (carrier, id) DO NOTHING RETURNING true",
        *(parcel.carrier, event.id, parcel.order_id, event.code.value, event.at_ms, event.detail, event.country),
        now_ms,
    )
    if kept is None:
        whose = await connection.fetchval(
            "SELECT order_id FROM parcel_event WHERE carrier = $1 AND id = $2", parcel.carrier, event.id
        )
        if whose != parcel.order_id:
            raise Refused("invalid-request", fields={"id": "this event was told before, of another parcel"})
    return kept is not None


async def _move_order(connection: Connection, parcel: ParcelRow, event: Told, now_ms: int) -> str | None:
    """Ships and ends the order as the event says; why it does not fit the order, None where it does."""
    order = await orders.find(connection, parcel.order_id)
    if order is None:
        raise Refused("not-found", "There is no such order.")
    end = end_of(event.code)
    try:
        if order.status == Status.PAID:
            order = await life.ship(connection, order.id, None, now_ms, key=parcel.waybill)
        if end is not None and order.status == Status.SHIPPED:
            # No parcel arrived before it was made, whatever the carrier's clock says.
            ended_ms = max(event.at_ms, parcel.created_ms)
            order = await life.deliver(connection, order.id, end is ParcelStatus.DELIVERED, now_ms, ended_ms=ended_ms)
    except Refused as refused:  # it went another way in this very moment
        return refused.detail
    return _unfit(order, end)


def _unfit(order: OrderRow, end: ParcelStatus | None) -> str | None:
    if order.status not in _GONE:
        return f"the order is {order.status}, and its parcel travels"
    if end is not None and order.status != _ENDS[end]:
        return f"the order is {order.status}, and the carrier calls its parcel {end}"
    return None
