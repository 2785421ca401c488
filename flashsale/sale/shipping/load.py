"""The packaged lanes: TOML in, a LaneBook out, or the one line that says what is wrong with the data."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from flashsale.sale.market import MARKETS
from flashsale.sale.money import parse_amount
from flashsale.sale.shipping.calendars import calendar
from flashsale.sale.shipping.lanes import Campaign, Lane, LaneBook, Route
from flashsale.sale.shipping.promises import LAST, AlertRule
from flashsale.sale.shipping.tariff import Tariff

NUMBER_MAX = 65_535


class _Calendar(Struct, forbid_unknown_fields=True):
    id: str
    country: str
    years: tuple[int, int]
    closed: list[date] = []
    open: list[date] = []


class _Campaign(Struct, forbid_unknown_fields=True):
    id: str
    markets: list[str]
    since: datetime = msgspec.field(name="from")
    until: datetime


class _Route(Struct, forbid_unknown_fields=True):
    first: str
    step: str
    days: int


class _Alert(Struct, forbid_unknown_fields=True):
    markets: list[str]
    below_percent: int
    deliveries: int


class _Lane(Struct, forbid_unknown_fields=True):
    id: str
    number: int
    carrier: str
    name: str
    recommended: bool
    ships_from: list[str]
    zone: str
    cutoff: str
    calendar: str
    capacity: int
    weight_max_g: int
    side_max_mm: int
    girth_max_mm: int
    first_g: int
    step_g: int
    routes: dict[str, _Route]
    service: str = ""
    alert: _Alert | None = None


class _File(Struct, forbid_unknown_fields=True):
    calendars: list[_Calendar]
    campaigns: list[_Campaign]
    lanes: list[_Lane]


@cache
def packaged() -> LaneBook:
    """The lanes of data/lanes.toml."""
    return parse(files("flashsale.sale.shipping").joinpath("data/lanes.toml").read_bytes())


def parse(text: bytes) -> LaneBook:
    """The lanes that a file of that form describes. Raises ValueError (msgspec.DecodeError is one) for another."""
    file = msgspec.toml.decode(text, type=_File)
    calendars = tuple(calendar(each.id, each.country, each.years, each.closed, each.open) for each in file.calendars)
    known = {each.id for each in calendars}
    lanes = tuple(_lane(each, known) for each in file.lanes)
    for name in ("id", "number"):
        values = [getattr(lane, name) for lane in lanes]
        if len(set(values)) != len(values):
            raise ValueError(f"two lanes have the same {name}")
    return LaneBook(lanes, calendars, tuple(map(_campaign, file.campaigns)))


def _campaign(written: _Campaign) -> Campaign:
    if written.since.tzinfo is None or written.until.tzinfo is None or written.since >= written.until:
        raise ValueError(f"campaign {written.id}: it lasts from a time with an offset until a later one")
    return Campaign(written.id, tuple(written.markets), _ms(written.since), _ms(written.until))


def _ms(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _lane(written: _Lane, calendars: set[str]) -> Lane:
    name = f"lane {written.id}"
    if not 1 <= written.number <= NUMBER_MAX:
        raise ValueError(f"{name}: its number is 1 to {NUMBER_MAX}")
    if written.calendar not in calendars:
        raise ValueError(f"{name}: there is no calendar {written.calendar!r}")
    if min(written.first_g, written.step_g, written.weight_max_g) < 1 or written.capacity < 0:
        raise ValueError(f"{name}: weights are 1 g and more, a capacity 0 and more")
    try:
        ZoneInfo(written.zone)
        hours, minutes = (int(part) for part in written.cutoff.split(":"))
    except (ValueError, KeyError, OSError) as fault:
        raise ValueError(f"{name}: zone {written.zone!r}, cutoff {written.cutoff!r}: {fault}") from None
    if not (0 <= hours < 24 and 0 <= minutes < 60):
        raise ValueError(f"{name}: there is no time of day {written.cutoff!r}")
    routes = {}
    for country, route in written.routes.items():
        market = MARKETS.get(country)
        if market is None:
            raise ValueError(f"{name}: there is no market {country!r}")
        first, step = (parse_amount(amount, market.currency) for amount in (route.first, route.step))
        if route.days < 0:
            raise ValueError(f"{name}: {route.days} days to {country}")
        routes[country] = Route(Tariff(first, written.first_g, step, written.step_g), route.days)
    return Lane(
        written.id,
        written.number,
        written.carrier,
        written.name,
        written.recommended,
        written.service,
        tuple(written.ships_from),
        written.zone,
        hours * 3600 + minutes * 60,
        written.calendar,
        written.capacity,
        written.weight_max_g,
        written.side_max_mm,
        written.girth_max_mm,
        routes,
        None if written.alert is None else _alert(name, written.alert, routes.keys()),
    )


def _alert(lane: str, written: _Alert, countries: Collection[str]) -> AlertRule:
    if unknown := [market for market in written.markets if market not in countries]:
        raise ValueError(f"{lane}: its alert names {unknown[0]!r}, where it does not go")
    if not (written.markets and 1 <= written.below_percent <= 100 and 1 <= written.deliveries <= LAST):
        raise ValueError(
            f"{lane}: an alert is for a market at least, below 1 to 100 per cent of 1 to {LAST} deliveries and more"
        )
    return AlertRule(tuple(written.markets), written.below_percent, written.deliveries)
