"""All that the ledger has of one order, read as of one instant: what a page shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashsale.ledger import history, orders, parcels, payments, refunds, returns
from flashsale.ledger.history import HistoryRow
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.payments import PaymentRow
from flashsale.ledger.pool import Connection
from flashsale.ledger.refunds import RefundRow
from flashsale.ledger.returns import ReturnRow


@dataclass(frozen=True, slots=True)
class Dossier:
    """An order and what belongs to it, each list oldest first. The order's own row, the first entry of its history, is
    not among the `history`. `waybill`: what its parcel travels under."""

    order: OrderRow
    payment: PaymentRow | None = None
    history: Sequence[HistoryRow] = ()
    refunds: Sequence[RefundRow] = ()
    returns: Sequence[ReturnRow] = ()
    waybill: str | None = None


async def read(connection: Connection, order_id: str) -> Dossier | None:
    """The order of that id. Not in a transaction of the caller's."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        order = await orders.find(connection, order_id)
        return None if order is None else await gather(connection, order)


async def gather(connection: Connection, order: OrderRow) -> Dossier:
    """What belongs to `order`, in a transaction that nobody else's changes reach: it locks the order, or sees no more
    than one instant."""
    payment = await payments.find(connection, order.id)
    if order.changes == 1:  # nothing has become of it yet
        return Dossier(order, payment)
    return Dossier(
        order,
        payment,
        await history.of_order(connection, order.id),
        await refunds.of_order(connection, order.id),
        await returns.of_order(connection, order.id),
        # Only what crosses a border is given to a carrier.
        None if order.lane_number is None else await parcels.waybill_of(connection, order.id),
    )


async def changes(connection: Connection, order_ids: Sequence[str]) -> dict[str, int]:
    """How many entries the history of each of these orders has; those that the ledger does not have are left out."""
    rows = await connection.fetch("SELECT id, changes FROM orders WHERE id = ANY ($1::text[])", order_ids)
    return {row[0]: row[1] for row in rows}
