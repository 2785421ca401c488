"""Whose an order's money is: the goods' price is their merchants', shipping, duty and tax the platform's. Pure.

The platform pays carriers and customs. What is kept of an order (captured and not given back) is split so that the
parts add up to it, to the minor unit, always: by what each part comes to now, and where that is another sum than what
is kept (a refund is under way, goodwill was granted), in proportion to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from flashsale.sale.aftersales import share

PLATFORM = "platform"
"""Whose the shipping, duty and tax are, in place of a merchant's id."""

ZONE = ZoneInfo("Asia/Shanghai")
"""A day of settlement is one of this zone, for every merchant: so each movement of money is of one day."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SoldLine(NamedTuple):
    """A line: its merchant, what its goods cost and what customs take (minor units, of all units), its units, and of
    how many the price went back."""

    merchant: str
    goods: int
    customs: int
    units: int
    refunded: int


def split(total: int, kept: int, lines: Sequence[SoldLine]) -> dict[str, int]:
    """What of `kept` is each merchant's and the platform's; `total` is what the order cost at first. The values add up
    to `kept`, none is below 0."""
    parts = _parts(total, lines)
    if not any(parts.values()):  # all went back, and money is still here: on its way, or shipping that was not refunded
        parts = _parts(total, [line._replace(refunded=0) for line in lines])
    return dict(zip(parts, allocate(kept, list(parts.values())), strict=True))


def _parts(total: int, lines: Sequence[SoldLine]) -> dict[str, int]:
    """What each one's part comes to now."""
    parts = {PLATFORM: total - sum(line.goods + line.customs for line in lines)}  # shipping
    gone = all(line.refunded == line.units for line in lines)
    if gone:
        parts[PLATFORM] = 0
    for line in lines:
        whole = line.goods + line.customs
        left = whole - share(whole, line.units, line.refunded)
        goods = min(left, line.goods - share(line.goods, line.units, line.refunded))
        parts[line.merchant] = parts.get(line.merchant, 0) + goods
        parts[PLATFORM] += left - goods
    return parts


def allocate(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in parts as the weights are, largest remainders first, earlier ones where they are equal. Adds up to
    `total`; weights that add up to it are the parts themselves. Raises ValueError where no weight is above 0."""
    whole = sum(weights)
    if whole <= 0:
        if total == 0:
            return [0] * len(weights)
        raise ValueError(f"{total} can't be split by {list(weights)}")
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: (-(total * weights[place] % whole), place))
    for place in by_remainder[: total - sum(parts)]:
        parts[place] += 1
    return parts


def day_of(at_ms: int) -> date:
    """The day of settlement of that time."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZONE).date()


def day_span_ms(day: date) -> tuple[int, int]:
    """From when until before when the day is, ms."""
    begins, ends = (datetime.combine(each, time(), ZONE) for each in (day, day + timedelta(days=1)))
    return (begins - _EPOCH) // timedelta(milliseconds=1), (ends - _EPOCH) // timedelta(milliseconds=1)
