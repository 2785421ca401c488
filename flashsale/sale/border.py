"""What crossing a border costs an order, as the hot path needs it: worked out once for orders that are alike.

In a flash sale nearly all orders of a market are alike: one line, the default lane. So the text of a record and of an
answer is made for the first of them and kept while the rules hold. Pure; relies on quoting.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.sale.market import MARKETS
from flashsale.sale.order import Line
from flashsale.sale.quoting import QuotedMarket
from flashsale.sale.trade.landed import ImportLimit

KEPT_MAX = 20_000
"""Orders of one line that are kept, by SKU, quantity, lane and channel: about a kilobyte each."""


NO_BORDER = "\t\\N" * 10
NO_LIMIT = "\t\\N" * 3
"""The columns of a record from `shipping` to `promised_by`, and those of an import limit, where there is neither."""


class Beyond(NamedTuple):
    """What an order takes beside units and quota. `parcel`: lane, dispatch day and its capacity (parcels, 0: no
    limit); `imported`: identity, year, its limit and what the order counts, minor units; `pools`: of each line the
    channel whose guarantee it draws on first, 0: none, empty: no line does; `grant`: the field of the agent's grant,
    empty: the shopper orders."""

    parcel: tuple[int, int, int] | None
    imported: tuple[bytes, int, int, int] | None
    pools: bytes
    grant: bytes


class Crossed(NamedTuple):
    """`total` minor units, `lane` its id, `parcel` lane number, dispatch day and capacity; `columns` those of the
    record from `shipping` to `promised_by`, each behind a tab; `json` what the answer says, with a comma before.
    `beyond` and `rest` (the record behind `hold_ms`) are those of an order that has nothing else of the kind.
    `limit`: that of the buyer's imports, None: there is none; `limit_use` what the order counts, `over_limit`: it is
    more than one order may."""

    total: int
    lane: str
    parcel: tuple[int, int, int]
    columns: str
    json: str
    limit: ImportLimit | None
    limit_use: int
    over_limit: bool
    beyond: Beyond
    rest: str


class Border:
    """The border of one market while its rules, lanes and windows hold."""

    __slots__ = ("_currency", "_kept", "from_ms", "quoted", "until_ms")

    def __init__(self, quoted: QuotedMarket) -> None:
        self.quoted = quoted
        self.from_ms, self.until_ms = quoted.from_ms, quoted.until_ms
        self._currency = MARKETS[quoted.code].currency
        self._kept: dict[tuple[str, int, str | None, str | None], Crossed] = {}

    def holds_at(self, at_ms: int) -> bool:
        """Whether nothing has changed at that time."""
        return self.from_ms <= at_ms < self.until_ms

    def cross(self, lines: Sequence[Line], lane: str | None, channel: str | None) -> Crossed:
        """The cost of an order's lines by that lane; None: by the default one. Raises NotSoldHere and
        LaneUnavailable."""
        if len(lines) > 1:
            return self._cross([(line.sku, line.quantity) for line in lines], lane, channel)
        key = (lines[0].sku, lines[0].quantity, lane, channel)
        crossed = self._kept.get(key)
        if crossed is None:
            crossed = self._cross([key[:2]], lane, channel)
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            self._kept[key] = crossed
        return crossed

    def _cross(self, lines: Sequence[tuple[str, int]], lane: str | None, channel: str | None) -> Crossed:
        quoted = self.quoted.land(lines, lane, channel)
        landed, by = quoted.landed, quoted.lane
        limit = self.quoted.regime.limit if self.quoted.regime is not None else None
        duty, tax = sum(landed.duty), sum(landed.tax)
        columns = (
            f"\t{quoted.shipping}\t{_array(landed.duty)}\t{_array(landed.tax)}\t{landed.due_duty}\t{landed.due_tax}"
            f"\t{_flag(landed.ddp)}\t{_flag(landed.estimated)}\t{by.number}\t{by.dispatch_day}\t{by.promised_by}"
        )
        said = crossing_json(
            self._currency, quoted.shipping, duty, tax, landed.due_duty, landed.due_tax, landed.ddp, landed.estimated,
            (by.id, by.promised_by),
        )  # fmt: skip
        parcel = (by.number, by.dispatch_day, by.capacity)
        beyond, rest = Beyond(parcel, None, b"", b""), f"\t\\N\tf{columns}{NO_LIMIT}\t\\N\n"
        of_limit = (limit, landed.limit_use, landed.over_limit)
        return Crossed(quoted.total, by.id, parcel, columns, said, *of_limit, beyond, rest)


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


def _array(values: Sequence[int]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def _flag(value: bool) -> str:
    return "t" if value else "f"
