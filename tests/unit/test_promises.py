"""Promises, pure: the day there, which one counts, cut-offs from both sides, shares and the rule of an alert."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.market import MARKETS
from flashsale.sale.shipping.calendars import day_number, day_of
from flashsale.sale.shipping.lanes import Lane, LaneBook
from flashsale.sale.shipping.load import parse
from flashsale.sale.shipping.promises import AlertRule, Share, day_there, kept

BOOK = LaneBook.load()
ROUTES = [(lane, country) for lane in BOOK.lanes for country in lane.routes]
SUPERMARKET = next(lane for lane in BOOK.lanes if lane.id == "tmall-supermarket-hk")


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def cutoff_ms(lane: Lane, dispatch_day: int) -> int:
    """When that day's parcels are handed over, off the wall clock there."""
    clock = time(lane.cutoff_s // 3600, lane.cutoff_s // 60 % 60)
    return ms(datetime.combine(day_of(dispatch_day), clock, ZoneInfo(lane.zone)))


# --- the day there ---


@pytest.mark.parametrize(
    ("market", "last_moment_utc"),
    [
        ("HK", datetime(2026, 11, 12, 15, 59, 59, 999000, UTC)),
        ("NZ", datetime(2026, 11, 12, 10, 59, 59, 999000, UTC)),  # summer time, +13
        ("GB", datetime(2026, 11, 12, 23, 59, 59, 999000, UTC)),
        ("US", datetime(2026, 11, 13, 4, 59, 59, 999000, UTC)),  # winter time, -5
        ("XX", datetime(2026, 11, 12, 23, 59, 59, 999000, UTC)),  # no market any more
    ],
)
def test_a_day_ends_at_the_destination_s_midnight(market: str, last_moment_utc: datetime) -> None:
    last = ms(last_moment_utc)
    assert (day_there(market, last), day_there(market, last + 1)) == (date(2026, 11, 12), date(2026, 11, 13))
    promised = date(2026, 11, 12)
    assert kept(promised, None, day_there(market, last), True)
    assert not kept(promised, None, day_there(market, last + 1), True)


@given(st.sampled_from(sorted(MARKETS)), st.integers(0, ms(datetime(2035, 1, 1, tzinfo=UTC))))
def test_the_day_there_is_the_zone_s(market: str, at_ms: int) -> None:
    there = datetime.fromtimestamp(at_ms // 1000, ZoneInfo(MARKETS[market].zone))
    assert day_there(market, at_ms) == there.date()


days = st.dates(date(2026, 1, 1), date(2026, 12, 31))


@given(days, st.none() | days, days, st.booleans())
def test_what_the_shopper_was_told_last_counts(
    promised: date, restated: date | None, ended: date, delivered: bool
) -> None:
    told = promised if restated is None else restated
    assert kept(promised, restated, ended, delivered) == (delivered and not ended > told)
    assert not kept(promised, restated, ended, False)


# --- cut-offs ---

times = st.integers(ms(datetime(2026, 9, 20, tzinfo=UTC)), ms(datetime(2028, 3, 1, tzinfo=UTC)))


@given(st.sampled_from(ROUTES), times)
def test_a_dispatch_day_is_over_from_its_cut_off_on_and_not_before(route: tuple[Lane, str], taken_ms: int) -> None:
    lane, country = route
    taken = next(each for each in BOOK.at(country, lane.ships_from[0], taken_ms) if each.id == lane.id)
    day, cutoff = taken.dispatch_day, cutoff_ms(lane, taken.dispatch_day)
    assert taken_ms < cutoff
    for early in (taken_ms, cutoff - 1):
        assert BOOK.passed(lane.number, country, day, early) is None
    late = BOOK.passed(lane.number, country, day, cutoff)
    assert late is not None and late.dispatch_day > day and late.promised_by > taken.promised_by
    # Then it is what a new order would be promised, and stays over.
    assert late.promised_by == next(
        each.promised_by for each in BOOK.at(country, lane.ships_from[0], cutoff) if each.id == lane.id
    )
    assert BOOK.passed(lane.number, country, day, cutoff + 40 * 86_400_000) is not None


@given(st.sampled_from(ROUTES), st.integers(day_number(date(2026, 1, 1)), day_number(date(2028, 12, 1))), times)
def test_what_is_cheap_to_ask_first_never_denies_a_cut_off(route: tuple[Lane, str], day: int, at_ms: int) -> None:
    if at_ms >= cutoff_ms(route[0], day):
        assert LaneBook.may_have_passed(day, at_ms)
    if LaneBook.may_have_passed(day, at_ms):
        assert at_ms >= ms(datetime.combine(day_of(day), datetime.min.time(), UTC)) - 14 * 3_600_000


def test_hong_kong_s_next_day_from_both_sides_of_its_cut_off() -> None:
    """11 November 2026 is a Wednesday: noodles ordered then and paid by six are there on the 12th, else on the 13th."""
    day = day_number(date(2026, 11, 11))
    six = datetime(2026, 11, 11, 18, tzinfo=ZoneInfo("Asia/Hong_Kong"))
    assert BOOK.passed(10, "HK", day, ms(six) - 1) is None
    late = BOOK.passed(10, "HK", day, ms(six))
    assert late is not None and late.promised_by == "2026-11-13"


def test_a_day_off_between_is_no_day_of_dispatch() -> None:
    """China's offices are closed from 1 to 7 October 2026: who pays on the eve, behind ten, has a week to wait."""
    cainiao = BOOK.by_number(1)
    assert cainiao is not None
    eve = day_number(date(2026, 9, 30))
    late = BOOK.passed(1, "SG", eve, cutoff_ms(cainiao, eve))
    days = next(each for each in BOOK.calendars if each.id == cainiao.calendar)
    assert late is not None and days.works(late.dispatch_day) and late.dispatch_day > eve + 1


@pytest.mark.parametrize(("number", "country"), [(999, "HK"), (10, "SG")])
def test_a_lane_or_country_that_is_not_known_has_no_cut_off(number: int, country: str) -> None:
    assert BOOK.passed(number, country, 20_000, ms(datetime(2027, 1, 1, tzinfo=UTC))) is None


# --- shares and alerts ---

RULE = AlertRule(("HK",), 90, 20)


def test_the_supermarket_s_rule_is_data_of_its_lane() -> None:
    assert SUPERMARKET.alert == RULE
    assert [lane.id for lane in BOOK.lanes if lane.alert is not None] == [SUPERMARKET.id]


@pytest.mark.parametrize(
    ("deliveries", "on_time", "alerts"),
    [(0, 0, False), (19, 0, False), (20, 17, True), (20, 18, False), (200, 179, True), (200, 180, False)],
)
def test_under_ninety_per_cent_of_twenty_and_more_alerts(deliveries: int, on_time: int, alerts: bool) -> None:
    share = Share(deliveries, on_time)
    assert share.alerts(RULE, "HK") == alerts
    assert not share.alerts(RULE, "SG")
    assert not share.alerts(None, "HK")


@given(st.integers(0, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_a_ratio_is_between_nothing_and_one_and_agrees_with_the_rule(counted: tuple[int, int]) -> None:
    share = Share(*counted)
    assert 0 <= share.ratio <= 1
    if share.deliveries >= RULE.deliveries:
        assert share.alerts(RULE, "HK") == (share.ratio < 0.9)


# --- the data ---

DATA = """
[[calendars]]
id = "hk"
country = "HK"
years = [2026, 2026]
[[campaigns]]
id = "c"
markets = []
from = 2026-01-01T00:00:00Z
until = 2026-02-01T00:00:00Z
[[lanes]]
id = "x"
number = 1
carrier = "c"
name = "X"
recommended = true
ships_from = ["CN"]
zone = "Asia/Hong_Kong"
cutoff = "18:00"
calendar = "hk"
capacity = 1
weight_max_g = 1
side_max_mm = 1
girth_max_mm = 1
first_g = 1
step_g = 1
alert = %s
[lanes.routes]
HK = { first = "1", step = "1", days = 1 }
"""


def test_an_alert_s_rule_is_read_and_kept_through_the_catalogue() -> None:
    book = parse((DATA % '{ markets = ["HK"], below_percent = 95, deliveries = 5 }').encode())
    assert book.lanes[0].alert == AlertRule(("HK",), 95, 5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(book), type=LaneBook).lanes == book.lanes


@pytest.mark.parametrize(
    "rule",
    [
        '{ markets = ["SG"], below_percent = 90, deliveries = 20 }',
        "{ markets = [], below_percent = 90, deliveries = 20 }",
        '{ markets = ["HK"], below_percent = 0, deliveries = 20 }',
        '{ markets = ["HK"], below_percent = 101, deliveries = 20 }',
        '{ markets = ["HK"], below_percent = 90, deliveries = 201 }',
        '{ markets = ["HK"], below_percent = 0.9, deliveries = 20 }',
        '{ markets = ["HK"], below_percent = 90 }',
    ],
)
def test_a_rule_that_can_t_be_meant_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"lane x|alert"):
        parse((DATA % rule).encode())


def test_lanes_of_an_earlier_release_have_no_rule() -> None:
    old = msgspec.msgpack.decode(msgspec.msgpack.encode(SUPERMARKET))
    del old["alert"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Lane).alert is None
