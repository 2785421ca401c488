"""Promises to deliver by a day: whether one was kept, how many of a lane's were, and when that is too few.

A promise is kept if the parcel is there before the promised day ends where it goes to, in the one zone that a market's
parcels keep (sale/market.py). A parcel that could not be delivered broke its promise.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from msgspec import Struct

from flashsale.sale.market import MARKETS

LAST = 200
"""A lane's share counts so many of its newest deliveries to a country, or all while there are fewer."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AlertRule(Struct, frozen=True):
    """Too few promises are kept to one of these markets: less than `below_percent` of its last deliveries, of which
    there must be `deliveries`, so that one parcel late in the morning says nothing yet."""

    markets: tuple[str, ...]
    below_percent: int
    deliveries: int


class Share(NamedTuple):
    """How many of the last deliveries kept their promise."""

    deliveries: int
    on_time: int

    @property
    def ratio(self) -> float:
        """From 0 to 1; 1 where nothing was delivered yet."""
        return self.on_time / self.deliveries if self.deliveries else 1.0

    def alerts(self, rule: AlertRule | None, market: str) -> bool:
        """Whether that is too few after the lane's rule."""
        if rule is None or market not in rule.markets or self.deliveries < rule.deliveries:
            return False
        return 100 * self.on_time < rule.below_percent * self.deliveries


def day_there(market: str, at_ms: int) -> date:
    """The day that it is in the market's zone."""
    known = MARKETS.get(market)
    zone = ZoneInfo(known.zone) if known is not None else UTC
    return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(zone).date()


def kept(promised_by: date, restated_by: date | None, ended_on: date, delivered: bool) -> bool:
    """Whether the parcel came by the day that the shopper was told last."""
    return delivered and ended_on <= (restated_by or promised_by)
