"""Promises made again at the payment: an order that is paid after its parcel's cut-off leaves on another day.

The time that counts is the one at which the ledger takes the order for paid, as its history has it: nothing is packed
before, so no earlier cut-off can be kept. What the order was promised first stays beside it.

The parcel stays counted on the day that it was held for, though it leaves later: its room there is taken, and to move
it would need Valkey's consent to an order that is paid already. So a lane carries, on the day after a cut-off, those
that were paid just behind it beside that day's own; the time of a hold bounds how many those are. Only a late payment,
which takes its units again anyhow, takes the room of the day on which it leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any, NamedTuple

from flashsale.ledger import lane_books
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import Connection
from flashsale.sale.shipping.lanes import LaneBook


class Promised(NamedTuple):
    """An order with a lane and a promise, and the dispatch day that both rest on."""

    order_id: str
    market: str
    catalogue_version: int
    lane_number: int | None
    dispatch_day: int | None
    promised_by: date | None


async def restated(connection: Connection, paid: Iterable[Promised], at_ms: int) -> dict[str, date]:
    """By order the day that its lane promises at that time, of those whose cut-off has passed. Asks the ledger for
    nothing where no order's dispatch day has come anywhere on Earth."""
    found: dict[str, date] = {}
    same: dict[tuple[int, int, str, int], date | None] = {}  # a batch has few lanes, countries and days
    books: dict[int, LaneBook] = {}
    for order in paid:
        if order.lane_number is None or order.dispatch_day is None or order.promised_by is None:
            continue
        if not LaneBook.may_have_passed(order.dispatch_day, at_ms):
            continue
        key = (order.catalogue_version, order.lane_number, order.market, order.dispatch_day)
        if key not in same:
            book = books.get(order.catalogue_version)
            if book is None:
                book = await lane_books.of_version(connection, order.catalogue_version)
                books[order.catalogue_version] = book
            lane = book.passed(order.lane_number, order.market, order.dispatch_day, at_ms)
            same[key] = None if lane is None else date.fromisoformat(lane.promised_by)
        by = same[key]
        if by is not None:
            found[order.order_id] = by
    return found


# Each order by its id, whatever the planner believes: in `facts` nested loops alone are let.
_RESTATE = """
UPDATE orders AS o SET restated_by = f.restated_by
FROM unnest($1::text[], $2::date[]) AS f (id, restated_by) WHERE o.id = f.id
"""


async def restate(connection: Connection, paid: Iterable[Promised], at_ms: int) -> dict[str, date]:
    """Writes what `restated` finds upon orders that this transaction has just paid, and returns it."""
    found = await restated(connection, paid, at_ms)
    if found:
        await connection.execute(_RESTATE, list(found), list(found.values()))
    return found


async def at_payment(connection: Connection, order: OrderRow, at_ms: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The same for one order under lock: its columns that change, and what its history says of it."""
    promised = Promised(
        order.id, order.market, order.catalogue_version, order.lane_number, order.dispatch_day, order.promised_by
    )
    by = (await restated(connection, [promised], at_ms)).get(order.id)
    return ({}, {}) if by is None else ({"restated_by": by}, said(order.promised_by, by))


def said(promised_by: date | None, restated_by: date) -> dict[str, str]:
    """What a history entry says of a promise that was made again: the first one, and the new one."""
    first = {} if promised_by is None else {"promised_by": promised_by.isoformat()}
    return {**first, "restated_by": restated_by.isoformat()}
