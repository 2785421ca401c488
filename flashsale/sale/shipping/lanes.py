"""Lanes: a carrier on its routes, what it asks, what it takes, and by when it promises to deliver.

A `Lane` is data; a `LaneAt` is one lane to one country while nothing of it changes: until the next cut-off, the next
midnight of its zone (a promise counts days from the day of the order) or the next campaign.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

from msgspec import Struct

from flashsale.sale.offer import Offer
from flashsale.sale.shipping.calendars import Calendar, day_number, day_of
from flashsale.sale.shipping.promises import AlertRule
from flashsale.sale.shipping.tariff import Tariff

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_MS = timedelta(milliseconds=1)
_DAY_MS = 86_400_000
_EARLIEST_MIDNIGHT_MS = 14 * 3_600_000  # Kiribati's days begin so long before UTC's


class Route(Struct, frozen=True):
    """A lane to one country: its tariff, in minor units of the market's currency, and the calendar days from dispatch
    to the promised day."""

    tariff: Tariff
    days: int


class Campaign(Struct, frozen=True):
    """From `from_ms` until before `until_ms` the first-weight part of every order to these markets is free."""

    id: str
    markets: tuple[str, ...]
    from_ms: int
    until_ms: int


class Lane(Struct, frozen=True):
    """A carrier on its routes. `number` 1 to 65,535 names it for ever. `service`: the kind of offers that it is for, ""
    any. `cutoff_s`: seconds after local midnight in `zone` until which an order is dispatched the same day. `capacity`
    parcels a dispatch day to all countries together, 0: no limit. Longest side and girth (longest side and twice the
    sum of the others) in mm. `alert`: when too few of its promises are kept; None: nobody is told."""

    id: str
    number: int
    carrier: str
    name: str
    recommended: bool
    service: str
    ships_from: tuple[str, ...]
    zone: str
    cutoff_s: int
    calendar: str
    capacity: int
    weight_max_g: int
    side_max_mm: int
    girth_max_mm: int
    routes: dict[str, Route]
    alert: AlertRule | None = None

    def takes(self, offer: Offer) -> bool:
        """Whether the offer may go by this lane, its weight apart. One whose sides are not known may."""
        if self.service and offer.service != self.service:
            return False
        if not offer.size_mm:
            return True
        sides = sorted(offer.size_mm, reverse=True)
        return sides[0] <= self.side_max_mm and sides[0] + 2 * sum(sides[1:]) <= self.girth_max_mm


class LaneAt:
    """A lane to one country, between `from_ms` and `until_ms`: while its next dispatch day, tariff and promise hold.

    `number` 1 to 65,535 names the lane for ever. `capacity` parcels a dispatch day (to all countries together), 0: no
    limit. `dispatch_day` days since 1970-01-01 in the lane's zone. `promised_by` ISO date, `days` calendar days from
    the day of the order in the lane's zone.
    """

    __slots__ = (
        "_first_free",
        "_lane",
        "_tariff",
        "capacity",
        "carrier",
        "days",
        "dispatch_day",
        "from_ms",
        "id",
        "name",
        "number",
        "promised_by",
        "recommended",
        "until_ms",
    )

    def __init__(self, lane: Lane, country: str, calendar: Calendar, campaigns: Sequence[Campaign], at_ms: int) -> None:
        self._lane = lane
        self.number, self.id, self.carrier, self.name = lane.number, lane.id, lane.carrier, lane.name
        self.recommended, self.capacity = lane.recommended, lane.capacity
        route = lane.routes[country]
        self._tariff = route.tariff
        edges = [edge for each in campaigns if country in each.markets for edge in (each.from_ms, each.until_ms)]
        self._first_free = any(
            country in each.markets and each.from_ms <= at_ms < each.until_ms for each in campaigns
        )  # fmt: skip
        zone = ZoneInfo(lane.zone)
        today = (_EPOCH + at_ms * _MS).astimezone(zone).date()
        midnight, cutoff, tomorrow = _ms(today, 0, zone), _ms(today, lane.cutoff_s, zone), _ms(today + _DAY, 0, zone)
        before = at_ms < cutoff
        day = day_number(today)
        self.dispatch_day = calendar.working_day(day if before else day + 1)
        promised = self.dispatch_day + route.days
        self.days = promised - day
        self.promised_by = day_of(promised).isoformat()
        edges += [midnight, cutoff, tomorrow]
        self.from_ms = max(edge for edge in edges if edge <= at_ms)
        self.until_ms = min(edge for edge in edges if edge > at_ms)

    def takes(self, offers: Sequence[Offer]) -> bool:
        """Whether all of these may go in one parcel of this lane, their weight apart (size, kind of goods)."""
        return all(map(self._lane.takes, offers))

    def shipping(self, weight_g: int) -> int | None:
        """What a parcel of that weight costs the shopper, minor units of the country's currency; None: too heavy."""
        if weight_g > self._lane.weight_max_g:
            return None
        return self._tariff.price(weight_g, self._first_free)


class LaneBook(Struct, frozen=True, dict=True):
    """Every lane, calendar and shipping campaign that the engine knows."""

    lanes: tuple[Lane, ...] = ()
    calendars: tuple[Calendar, ...] = ()
    campaigns: tuple[Campaign, ...] = ()

    @staticmethod
    def load() -> LaneBook:
        """The packaged one."""
        from flashsale.sale.shipping.load import packaged  # it makes values of this module

        return packaged()

    @cached_property
    def _calendars(self) -> dict[str, Calendar]:
        return {calendar.id: calendar for calendar in self.calendars}

    def at(self, country: str, ships_from: str, at_ms: int) -> tuple[LaneAt, ...]:
        """The lanes from there to the country at that time, the default first: those of a service, which take its
        offers alone, then the recommended ones, then in the data's order."""
        found = [lane for lane in self.lanes if country in lane.routes and ships_from in lane.ships_from]
        found.sort(key=lambda lane: (not lane.service, not lane.recommended))
        return tuple(LaneAt(lane, country, self._calendars[lane.calendar], self.campaigns, at_ms) for lane in found)

    @staticmethod
    def may_have_passed(dispatch_day: int, at_ms: int) -> bool:
        """Whether the cut-off of that dispatch day may have passed by then on any lane: whether that day has begun
        anywhere on Earth."""
        return at_ms >= dispatch_day * _DAY_MS - _EARLIEST_MIDNIGHT_MS

    def passed(self, number: int, country: str, dispatch_day: int, at_ms: int) -> LaneAt | None:
        """The lane as it is at that time, if the cut-off of that dispatch day has passed by then; None: a parcel for
        that day still leaves on it, or the lane is not known."""
        lane = self._by_number.get(number)
        if lane is None or country not in lane.routes or not self.may_have_passed(dispatch_day, at_ms):
            return None
        now = LaneAt(lane, country, self._calendars[lane.calendar], self.campaigns, at_ms)
        return now if now.dispatch_day > dispatch_day else None

    @cached_property
    def _by_number(self) -> dict[int, Lane]:
        return {lane.number: lane for lane in self.lanes}

    def by_number(self, number: int) -> Lane | None:
        """The lane of that number."""
        return self._by_number.get(number)

    def lane(self, lane_id: str) -> Lane | None:
        """The lane of that id."""
        return next((lane for lane in self.lanes if lane.id == lane_id), None)


def _ms(day: date, seconds: int, zone: ZoneInfo) -> int:
    """The UNIX time (ms) of a time of day there; one that the clocks leave out is the moment at which they change."""
    clock = time(seconds // 3600, seconds // 60 % 60, seconds % 60)
    return (datetime.combine(day, clock, zone).astimezone(UTC) - _EPOCH) // _MS
