"""One order under lock: its changes, and the money that follows from them.

`Change.settle` is the whole of the money's rules: it compares what was authorised and captured with what is due
(sale/aftersales.py) and asks the provider for the difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from flashsale.errors import Refused
from flashsale.ledger import history, orders, outbox, payments, refunds
from flashsale.ledger.history import HistoryRow
from flashsale.ledger.life.beside import beside
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.payments import PaymentRow
from flashsale.ledger.pool import Connection
from flashsale.sale.aftersales import LineMoney, due, payment_shown
from flashsale.sale.lifecycle import LETTERS, UNITS, Payment, Status, Units
from flashsale.sale.payment import RANK, IntentState

AUTHORISED, CAPTURED = RANK[IntentState.AUTHORISED], RANK[IntentState.CAPTURED]
# Statuses of orders that are over: whatever money comes for them goes back.
OVER = frozenset({Status.EXPIRED, Status.CANCELLED})


def units_of(line_units: Sequence[int] | None, lines: int) -> list[int]:
    """The units of each line in a column that is NULL while there are none."""
    return list(line_units) if line_units is not None else [0] * lines


def letter_of(status: Status, extended: bool) -> str:
    """The hold's letter for a status."""
    letter = LETTERS[status]
    return letter.upper() if extended else letter


def line_money(order: OrderRow) -> list[LineMoney]:
    """What each line cost, the seller's duty and tax with it, and how much of it went back."""
    count = len(order.skus)
    refunded, duties, taxes = (units_of(each, count) for each in (order.refunded, order.duties, order.taxes))
    return [
        LineMoney(price * units + duty + tax, units, back)
        for price, units, duty, tax, back in zip(order.prices, order.quantities, duties, taxes, refunded, strict=True)
    ]


def amount_due(order: OrderRow, payment: PaymentRow | None) -> int:
    """What the shopper owes now, minor units."""
    goodwill = payment.goodwill if payment is not None else 0
    return due(
        Status(order.status), order.total, line_money(order), goodwill=goodwill, shipped=order.shipped is not None
    )


async def add_sold(connection: Connection, changes: Counter[tuple[int, int]]) -> None:
    """Units sold (below 0: given back) by (sale, SKU), in one order for everybody: nobody waits in a ring."""
    rows = sorted((sale, sku, units) for (sale, sku), units in changes.items() if units)
    if rows:
        await connection.execute(
            "INSERT INTO sold (sale, sku, units) SELECT * FROM unnest($1::int4[], $2::int2[], $3::int8[])"
            " ON CONFLICT (sale, sku) DO UPDATE SET units = sold.units + excluded.units",
            *([row[column] for row in rows] for column in range(3)),
        )


def shown_payment(order: OrderRow, payment: PaymentRow | None) -> Payment:
    """Where the order's money is. What a channel collected is the channel's to give back, and counts as given back at
    once."""
    if order.collected:
        owed = amount_due(order, payment)
        if owed == order.total:
            return Payment.CAPTURED
        return Payment.PART_REFUNDED if owed else Payment.REFUNDED
    if payment is None:
        return Payment.NONE
    failed = payment.state == IntentState.FAILED
    return payment_shown(payment.authorised, payment.captured, payment.released, payment.refunded, failed)


def release_item(
    order: OrderRow, number: int, status: Status, lines: Iterable[tuple[int, int]], quota: bool, more: dict[str, Any]
) -> dict[str, Any]:
    """What the outbox says of units that go back (or are taken again); `more`: as beside() says it."""
    return {
        "order": order.id,
        "number": number,
        "letter": letter_of(status, order.extended),
        "shopper": order.shopper,
        "version": order.catalogue_version,
        "lines": [list(line) for line in lines if line[1]],
        "quota": quota,
        **more,
    }


class Change:
    """An order and its payment, locked; `order` and `payment` are as the changes so far have made them."""

    def __init__(self, connection: Connection, order: OrderRow, payment: PaymentRow | None, now_ms: int) -> None:
        self.connection, self.order, self.payment, self.now_ms = connection, order, payment, now_ms

    @classmethod
    async def begin(cls, connection: Connection, order_id: str, now_ms: int) -> Change:
        """Locks payment and order. Raises Refused("not-found")."""
        payment = await payments.lock(connection, order_id)
        order = await orders.lock(connection, order_id)
        if order is None:
            raise Refused("not-found", "There is no such order.")
        if payment is None:  # one that was begun while we waited for the order
            payment = await payments.lock(connection, order_id)
        return cls(connection, order, payment, now_ms)

    @property
    def status(self) -> Status:
        return Status(self.order.status)

    def left(self) -> list[int]:
        """Units of each line that were not cancelled."""
        cancelled = units_of(self.order.cancelled, len(self.order.skus))
        return [units - gone for units, gone in zip(self.order.quantities, cancelled, strict=True)]

    async def record(
        self, event: str, detail: dict[str, Any] | None = None, status: Status | None = None, **columns: Any
    ) -> int:
        """One change: the guarded update and its history entry; returns its number. `columns`: others of the order."""
        order, status = self.order, status or self.status
        payment = shown_payment(replace(order, status=status.value, **columns), self.payment)
        sets = "".join(f", {name} = ${place}" for place, name in enumerate(columns, 5))
        number: int | None = await self.connection.fetchval(
            "UPDATE orders SET changes = changes + 1, status = $3, payment = $4"  # noqa: S608  our own columns
            f"{sets} WHERE id = $1 AND status = $2 RETURNING changes",
            order.id, order.status, status.value, payment.value, *columns.values(),
        )  # fmt: skip
        if number is None:
            raise AssertionError(f"order {order.id} changed under its lock")
        self.order = replace(order, changes=number, status=status.value, payment=payment.value, **columns)
        row = HistoryRow(order.id, number, self.now_ms, event, status.value, payment.value, detail)
        await history.add(self.connection, [row])
        return number

    async def pay(self, **columns: Any) -> None:
        """Changes the payment's columns."""
        assert self.payment is not None  # noqa: S101  the callers have looked
        sets = ", ".join(f"{name} = ${place}" for place, name in enumerate(columns, 2))
        await self.connection.execute(
            f"UPDATE payment SET {sets} WHERE order_id = $1",  # noqa: S608  our own columns
            self.order.id,
            *columns.values(),
        )
        self.payment = replace(self.payment, **columns)

    # --- what Valkey has to be told ---

    async def give_back(
        self,
        number: int,
        lines: Sequence[tuple[int, int]],
        *,
        quota: bool,
        arrived: Sequence[int] | None = None,
    ) -> None:
        """Units back to the stock, as change `number`: (SKU, units). The order's columns hold them already. `arrived`:
        units of each line that came home, for which the import limit gets its share back whatever is restocked. What
        gives nothing back is not told."""
        order, count = self.order, len(self.order.skus)
        units = [dict(lines).get(sku, 0) for sku in order.skus]
        cancelled, returned, restocked = (
            units_of(each, count) for each in (order.cancelled, order.returned, order.restocked)
        )
        imported = None
        if arrived is not None:
            came_before = [a + b - c for a, b, c in zip(cancelled, returned, arrived, strict=True)]
            imported = came_before, arrived
        before = [a + b - c for a, b, c in zip(cancelled, restocked, units, strict=True)]
        whole = self.status in OVER  # a parcel that was not shipped, and never will be
        more = self._beside(before, units, imported, lane=whole)
        if lines or "limit" in more:
            await self._tell(outbox.RELEASE, [release_item(order, number, self.status, lines, quota, more)])

    async def take_again(self, number: int) -> None:
        """All units that are left, taken from the stock once more, with what they held beside."""
        order, left = self.order, self.left()
        lines = list(zip(order.skus, left, strict=True))
        more = self._beside(units_of(order.cancelled, len(order.skus)), left, None, lane=True)
        if more:
            more |= {"market": order.market, "at": order.journal_ms}
        await self._tell(outbox.RESERVE_AGAIN, [release_item(order, number, Status.PAID, lines, True, more)])

    def _beside(
        self,
        before: Sequence[int],
        units: Sequence[int],
        imported: tuple[Sequence[int], Sequence[int]] | None,
        *,
        lane: bool,
    ) -> dict[str, Any]:
        order = self.order
        return beside(
            channel=order.channel,
            skus=order.skus,
            quantities=order.quantities,
            prices=order.prices,
            drawn=order.drawn,
            lane=(order.lane_number, order.dispatch_day) if lane else (None, None),
            limit=(order.identity, order.limit_year, order.limit_use),
            before=before,
            units=units,
            imported=imported,
        )

    async def mirror(self) -> None:
        """The status, for retries of the first request."""
        letter = letter_of(self.status, self.order.extended)
        await self._tell(outbox.STATUS, [{"order": self.order.id, "letter": letter}])

    async def _tell(self, kind: str, items: list[dict[str, Any]]) -> None:
        await outbox.add(self.connection, self.order.partition, self.order.sale, kind, items)

    async def sell(self, lines: Iterable[tuple[int, int]]) -> None:
        """Units sold; below 0, no longer sold."""
        sold = Counter({(self.order.sale, sku): units for sku, units in lines})
        await add_sold(self.connection, sold)

    def is_sold(self) -> bool:
        """Whether the order's units count as sold."""
        return UNITS[self.status] is Units.SOLD

    # --- money ---

    async def settle(self, cause: str) -> None:
        """Asks the provider for what the amount due demands. Does nothing while a dispute or a late payment's units are
        undecided: what ends those settles again."""
        payment = self.payment
        if payment is None or payment.late == "asked":
            return
        owed = amount_due(self.order, payment)
        if payment.captured:
            excess = payment.refundable - owed
            if excess > 0 and payment.dispute in (None, "won"):
                await self._refund(excess, cause)
        elif payment.rank == AUTHORISED:
            if owed == 0:
                await self.pay(todo="release", todo_amount=None, due_ms=self.now_ms, tries=0)
            elif self.order.shipped is not None:
                amount = min(owed, payment.authorised)
                await self.pay(todo="capture", todo_amount=amount, due_ms=self.now_ms, tries=0)
        elif payment.rank < AUTHORISED and owed == 0 and payment.todo != "close":
            await self.pay(todo="close", todo_amount=None, due_ms=self.now_ms, tries=0)

    async def _refund(self, amount: int, cause: str) -> None:
        assert self.payment is not None  # noqa: S101  settle has looked
        await self.pay(refunding=self.payment.refunding + amount)
        number = self.order.changes + 1
        refund_id = f"re-{self.order.id}-{number}"
        detail = {"refund": refund_id, "amount": amount, "currency": self.order.currency, "cause": cause}
        await self.record("refund.requested", detail)
        await refunds.add(self.connection, refund_id, self.order.id, amount, self.order.currency, cause, self.now_ms)
