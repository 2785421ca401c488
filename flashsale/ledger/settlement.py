"""The settlement book: what of every order's money is whose, booked behind the order's history.

A duty follows the history by its transactions. For each order that changed it compares what is booked with what is kept
of its money now, and books the difference, merchant by merchant; so the book adds up to the payments wherever the mark
has passed, and a refund is taken from whom the goods were bought.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog
from msgspec import Struct

from flashsale.ledger import followers, set_aside
from flashsale.ledger.life.change import amount_due, units_of
from flashsale.ledger.merchants import HOUSE
from flashsale.ledger.orders import OrderRow, of_ids
from flashsale.ledger.payments import PaymentRow, of_orders
from flashsale.ledger.pool import Connection
from flashsale.sale.settlement import SoldLine, split

VERSIONS_KEPT = 16
MARK: followers.Mark = "settlement_mark"

log = structlog.get_logger(__name__)


class _Offer(Struct):
    merchant: str = ""


class _Sale(Struct):
    number: int
    offers: tuple[_Offer, ...]


class _Catalogue(Struct):
    """What is read of a catalogue's document; the rest of it is passed over."""

    sales: tuple[_Sale, ...]


_decoder = msgspec.msgpack.Decoder(_Catalogue)


class Merchants:
    """Whose each offer is, by catalogue version, each read once."""

    def __init__(self) -> None:
        self._versions: dict[int, dict[int, list[str]]] = {}

    async def of_order(self, connection: Connection, order: OrderRow) -> list[str]:
        """The merchant of each line, at the version that the order was priced at."""
        known = self._versions.get(order.catalogue_version)
        if known is None:
            query = "SELECT document FROM catalogue WHERE version = $1"
            document = await connection.fetchval(query, order.catalogue_version)
            if document is None:
                raise LookupError(f"there is no version {order.catalogue_version} of the catalogue")
            catalogue = _decoder.decode(document)
            known = {sale.number: [offer.merchant or HOUSE for offer in sale.offers] for sale in catalogue.sales}
            while len(self._versions) >= VERSIONS_KEPT:
                self._versions.pop(next(iter(self._versions)))
            self._versions[order.catalogue_version] = known
        return [known[order.sale][sku] for sku in order.skus]


class Entry(NamedTuple):
    """A booking, as reports show it."""

    order_id: str
    number: int
    currency: str
    amount: int
    units: int
    booked_ms: int


class Totals(NamedTuple):
    """A day of a merchant in a currency: orders that money moved for, units and money in and back (both above 0)."""

    currency: str
    orders: int
    units_sold: int
    units_returned: int
    sales: int
    refunds: int


async def book(connection: Connection, merchants: Merchants, *, rows: int, now_ms: int) -> bool:
    """Books the next `rows` changes or so (a transaction is never divided) and moves the mark; whether there is more to
    do at once."""
    async with connection.transaction():
        at = await followers.next_stretch(connection, MARK, rows)
        if at is None:
            return False
        changed = await connection.fetch(
            "SELECT order_id, max(number) FROM history WHERE tx >= $1::text::xid8 AND tx < $2::text::xid8"
            " GROUP BY order_id",
            at.mark, at.upto,
        )  # fmt: skip
        await _book_orders(connection, merchants, {row[0]: row[1] for row in changed}, now_ms)
        await followers.move(connection, MARK, at.upto)
        return at.more


async def book_again(connection: Connection, order_id: str, now_ms: int) -> None:
    """Books one order that was set aside, in a transaction of its own. Raises what made it fail."""
    async with connection.transaction():
        if not await set_aside.take_back(connection, set_aside.SETTLEMENT, order_id):
            return
        number = await connection.fetchval("SELECT max(number) FROM history WHERE order_id = $1", order_id)
        await _book_orders(connection, Merchants(), {order_id: number or 1}, now_ms, alone=True)


async def _book_orders(
    connection: Connection, merchants: Merchants, changed: dict[str, int], now_ms: int, *, alone: bool = False
) -> None:
    """Books what differs. An order that can't be divided is set aside, unless it was asked for `alone`."""
    if not changed:
        return
    query = "UPDATE settlement_mark SET booked_ms = greatest(booked_ms, $1) RETURNING booked_ms"
    booked_ms = await connection.fetchval(query, now_ms)
    ids = sorted(changed)
    found = await of_ids(connection, ids)
    paid = await of_orders(connection, ids)
    booked: dict[str, dict[str, tuple[int, int]]] = {}
    for order_id, merchant, amount, units in await connection.fetch(
        "SELECT order_id, merchant, sum(amount)::int8, sum(units)::int8 FROM settlement_entry"
        " WHERE order_id = ANY ($1::text[]) GROUP BY order_id, merchant",
        ids,
    ):
        booked.setdefault(order_id, {})[merchant] = amount, units
    entries, unfit = [], list[tuple[str, str]]()
    for order_id, order in found.items():
        try:
            now = await _shares(connection, merchants, order, paid.get(order_id))
        except (LookupError, TypeError, ValueError, ArithmeticError) as fault:
            if alone:
                raise
            unfit.append((order_id, f"{type(fault).__name__}: {fault}"))
            continue
        before = booked.get(order_id, {})
        for merchant in sorted(now.keys() | before.keys()):
            amount, units = (
                a - b for a, b in zip(now.get(merchant, (0, 0)), before.get(merchant, (0, 0)), strict=True)
            )
            if amount:
                entries.append(
                    (order_id, changed[order_id], merchant, order.sale, order.currency, amount, units, booked_ms)
                )
    await connection.copy_records_to_table("settlement_entry", records=entries)
    if unfit:
        await set_aside.put(connection, set_aside.SETTLEMENT, unfit, now_ms)
        for order_id, error in unfit:
            log.error("an order's money could not be divided: it is set aside", order=order_id, error=error)


async def _shares(
    connection: Connection, merchants: Merchants, order: OrderRow, payment: PaymentRow | None
) -> dict[str, tuple[int, int]]:
    """What of the order's kept money, and how many of its units paid for, are each merchant's."""
    kept = amount_due(order, None) if order.collected else 0
    if payment is not None:
        kept = payment.captured - payment.refunded
    if not kept:
        return {}
    whose = await merchants.of_order(connection, order)
    lines = sold_lines(order, whose)
    shares = split(order.total, kept, lines)
    units: dict[str, int] = {}
    for line in lines:
        units[line.merchant] = units.get(line.merchant, 0) + line.units - line.refunded
    return {merchant: (amount, units.get(merchant, 0)) for merchant, amount in shares.items() if amount}


def sold_lines(order: OrderRow, whose: Sequence[str]) -> list[SoldLine]:
    """The order's lines as the split needs them."""
    count = len(order.skus)
    duties, taxes, refunded = (units_of(each, count) for each in (order.duties, order.taxes, order.refunded))
    return [
        SoldLine(merchant, price * units, duty + tax, units, back)
        for merchant, price, units, duty, tax, back in zip(
            whose, order.prices, order.quantities, duties, taxes, refunded, strict=True
        )
    ]


async def totals(connection: Connection, merchant: str, from_ms: int, until_ms: int) -> list[Totals]:
    """The merchant's money of that time, by currency."""
    rows = await connection.fetch(
        "SELECT currency, count(DISTINCT order_id), coalesce(sum(units) FILTER (WHERE units > 0), 0)::int8,"
        " coalesce(-sum(units) FILTER (WHERE units < 0), 0)::int8,"
        " coalesce(sum(amount) FILTER (WHERE amount > 0), 0)::int8,"
        " coalesce(-sum(amount) FILTER (WHERE amount < 0), 0)::int8 FROM settlement_entry"
        " WHERE merchant = $1 AND booked_ms >= $2 AND booked_ms < $3 GROUP BY currency ORDER BY currency",
        merchant, from_ms, until_ms,
    )  # fmt: skip
    return [Totals(*row) for row in rows]


async def entries(
    connection: Connection, merchant: str, from_ms: int, until_ms: int, after: tuple[int, str, int] | None, limit: int
) -> list[Entry]:
    """The merchant's bookings of that time behind that one (time, order, number), in their order."""
    rows = await connection.fetch(
        "SELECT order_id, number, currency, amount, units, booked_ms FROM settlement_entry"
        " WHERE merchant = $1 AND booked_ms >= $2 AND booked_ms < $3"
        " AND ($4::int8 IS NULL OR (booked_ms, order_id, number) > ($4, $5, $6))"
        " ORDER BY booked_ms, order_id, number LIMIT $7",
        merchant, from_ms, until_ms, *(after or (None, None, None)), limit,
    )  # fmt: skip
    return [Entry(*row) for row in rows]


async def merchants_of(connection: Connection, from_ms: int, until_ms: int) -> list[str]:
    """Whose money moved in that time, the platform among them."""
    rows = await connection.fetch(
        "SELECT DISTINCT merchant FROM settlement_entry WHERE booked_ms >= $1 AND booked_ms < $2 ORDER BY merchant",
        from_ms, until_ms,
    )  # fmt: skip
    return [row[0] for row in rows]


async def booked_until_ms(connection: Connection) -> int:
    """When something was booked last: a day that ended before is over, and its report won't change."""
    found: int = await connection.fetchval("SELECT booked_ms FROM settlement_mark")
    return found
