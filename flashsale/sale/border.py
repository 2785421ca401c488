"""What crossing a border costs an order, as the hot path needs it: columns of its record, a part of its answer.

Worked out once for orders that are alike (see terms.py). Pure; relies on quoting.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashsale.sale.market import MARKETS
from flashsale.sale.order import Line
from flashsale.sale.quoting import QuotedMarket
from flashsale.sale.terms import Crossed, array


class Border:
    """The border of one market while its rules, lanes and windows hold."""

    __slots__ = ("_currency", "from_ms", "quoted", "until_ms")

    def __init__(self, quoted: QuotedMarket) -> None:
        self.quoted = quoted
        self.from_ms, self.until_ms = quoted.from_ms, quoted.until_ms
        self._currency = MARKETS[quoted.code].currency

    def holds_at(self, at_ms: int) -> bool:
        """Whether nothing has changed at that time."""
        return self.from_ms <= at_ms < self.until_ms

    def cross(self, lines: Sequence[Line], lane: str | None, channel: str | None) -> Crossed:
        """The cost of an order's lines by that lane; None: by the default one. Raises NotSoldHere and
        LaneUnavailable."""
        quoted = self.quoted.land([(line.sku, line.quantity) for line in lines], lane, channel)
        landed, by = quoted.landed, quoted.lane
        limit = self.quoted.regime.limit if self.quoted.regime is not None else None
        duty, tax = sum(landed.duty), sum(landed.tax)
        columns = (
            f"\t{quoted.shipping}\t{array(landed.duty)}\t{array(landed.tax)}\t{landed.due_duty}\t{landed.due_tax}"
            f"\t{_flag(landed.ddp)}\t{_flag(landed.estimated)}\t{by.number}\t{by.dispatch_day}\t{by.promised_by}"
        )
        said = crossing_json(
            self._currency, quoted.shipping, duty, tax, landed.due_duty, landed.due_tax, landed.ddp, landed.estimated,
            (by.id, by.promised_by),
        )  # fmt: skip
        parcel = (by.number, by.dispatch_day, by.capacity)
        return Crossed(quoted.total, by.id, parcel, columns, said, limit, landed.limit_use, landed.over_limit)


def crossing_json(
    currency: str,
    shipping: int,
    duty: int,
    tax: int,
    due_duty: int,
    due_tax: int,
    ddp: bool,
    estimated: bool,
    lane: tuple[str, str] | None,
) -> str:
    """The members of an order's answer that say what its border costs (minor units); `lane`: its id, and the date that
    it promises."""

    def money(amount: int) -> str:
        return f'{{"amount":{amount},"currency":"{currency}"}}'

    by, promised = (f'"{lane[0]}"', f'"{lane[1]}"') if lane is not None else ("null", "null")
    return (
        f',"lane":{by},"shipping":{money(shipping)},"duty":{money(duty)},"tax":{money(tax)},'
        f'"due_on_delivery":{{"duty":{money(due_duty)},"tax":{money(due_tax)}}},"terms":"{"DDP" if ddp else "DAP"}",'
        f'"estimated":{"true" if estimated else "false"},"promised_by":{promised}'
    )


def _flag(value: bool) -> str:
    return "t" if value else "f"
