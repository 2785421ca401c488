"""Lanes: spans of time without a gap, promises that never come earlier, days off, tariffs, and the packaged data."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.offer import Offer
from flashsale.sale.shipping.calendars import calendar, day_number, day_of
from flashsale.sale.shipping.lanes import LaneAt, LaneBook
from flashsale.sale.shipping.load import parse
from flashsale.sale.shipping.tariff import Tariff

BOOK = LaneBook.load()
START = datetime(2026, 9, 20, tzinfo=UTC)
MARKETS = ("SG", "MY", "TH", "VN", "PH", "ID", "HK", "TW", "JP", "KR", "AU", "NZ", "GB", "US", "CA", "DE", "FR")
FREE = frozenset({"SG", "MY", "TH", "VN", "PH", "ID", "HK", "TW", "JP", "KR"})


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def at(market: str, when: datetime, lane: str) -> LaneAt:
    return next(each for each in BOOK.at(market, "CN", ms(when)) if each.id == lane)


def offer(**more: Any) -> Offer:
    return Offer("SKU", 0, "Haier", {"en": "x"}, 1, 0, 500, {"HK": 100}, **more)


times = st.integers(ms(START), ms(datetime(2028, 3, 1, tzinfo=UTC)))
routes = st.sampled_from([(lane.id, country) for lane in BOOK.lanes for country in lane.routes])


@given(route=routes, when=times)
def test_spans_follow_each_other_and_nothing_changes_within_one(route: tuple[str, str], when: int) -> None:
    def look(at_ms: int) -> LaneAt:
        return next(each for each in BOOK.at(route[1], "CN", at_ms) if each.id == route[0])

    def said(lane: LaneAt) -> tuple[object, ...]:
        return (lane.from_ms, lane.until_ms, lane.dispatch_day, lane.promised_by, lane.days, lane.shipping(700))

    here = look(when)
    assert here.from_ms <= when < here.until_ms
    assert said(look(here.from_ms)) == said(look(here.until_ms - 1)) == said(here)
    after, before = look(here.until_ms), look(here.from_ms - 1)
    assert (after.from_ms, before.until_ms) == (here.until_ms, here.from_ms)
    assert before.promised_by <= here.promised_by <= after.promised_by
    assert before.dispatch_day <= here.dispatch_day <= after.dispatch_day
    lane = BOOK.lane(route[0])
    assert lane is not None
    days = next(each for each in BOOK.calendars if each.id == lane.calendar)
    assert days.works(here.dispatch_day)


@given(
    tariff=st.builds(Tariff, st.integers(0, 10**6), st.integers(1, 5000), st.integers(0, 10**5), st.integers(1, 5000)),
    weight=st.integers(0, 10**6),
    more=st.integers(0, 10**4),
    free=st.booleans(),
)
def test_more_weight_never_costs_less(tariff: Tariff, weight: int, more: int, free: bool) -> None:
    assert 0 <= tariff.price(weight, free) <= tariff.price(weight + more, free)
    assert tariff.price(weight) - tariff.price(weight, True) == tariff.first


@pytest.mark.parametrize(
    ("weight_g", "price"), [(0, 500), (500, 500), (501, 620), (600, 620), (601, 740), (1500, 1700)]
)
def test_each_step_begun_is_paid(weight_g: int, price: int) -> None:
    assert Tariff(500, 500, 120, 100).price(weight_g) == price


@pytest.mark.parametrize("market", MARKETS)
def test_cainiao_is_the_default_everywhere_and_others_stand_beside_it(market: str) -> None:
    lanes = [lane for lane in BOOK.at(market, "CN", ms(datetime(2026, 11, 11, 3, tzinfo=UTC))) if lane.takes([offer()])]
    assert (lanes[0].carrier, lanes[0].recommended) == ("cainiao", True)
    assert lanes[0].days <= 6
    assert len({lane.carrier for lane in lanes}) >= 3


@pytest.mark.parametrize("market", MARKETS)
def test_the_first_weight_is_free_in_ten_countries(market: str) -> None:
    lane = at(market, datetime(2026, 11, 11, 3, tzinfo=UTC), "cainiao-standard")
    assert (lane.shipping(500) == 0) == (market in FREE)
    assert (lane.shipping(501) or 0) > 0


@pytest.mark.parametrize(
    ("when", "promised", "days"),
    [
        (datetime(2026, 11, 11, 17, 59, 59, 999_000), "2026-11-12", 1),
        (datetime(2026, 11, 11, 18, 0), "2026-11-13", 2),
        (datetime(2026, 11, 11, 0, 0), "2026-11-12", 1),
    ],
)
def test_the_supermarket_brings_it_to_hong_kong_the_next_day(when: datetime, promised: str, days: int) -> None:
    there = when.replace(tzinfo=ZoneInfo("Asia/Hong_Kong"))
    lane = at("HK", there, "tmall-supermarket-hk")
    assert (lane.promised_by, lane.days) == (promised, days)
    assert lane.takes([offer(service="supermarket")])
    assert not lane.takes([offer(service="supermarket"), offer()])
    first = BOOK.at("HK", "CN", ms(there))[0]
    assert first.id == "tmall-supermarket-hk"


def test_nothing_is_dispatched_on_china_s_national_day() -> None:
    lane = at("SG", datetime(2026, 9, 30, 15, tzinfo=UTC), "cainiao-standard")  # an hour after the cut-off
    assert day_of(lane.dispatch_day) > date(2026, 10, 3)


def test_the_data_may_say_otherwise_than_the_library() -> None:
    day = date(2026, 10, 1)
    assert not calendar("cn", "CN", (2026, 2026)).works(day_number(day))
    assert calendar("cn", "CN", (2026, 2026), opened=[day]).works(day_number(day))
    assert not calendar("cn", "CN", (2026, 2026), closed=[date(2026, 11, 11)]).works(day_number(date(2026, 11, 11)))


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [((1500, 300, 400), True), ((1501, 1, 1), False), ((1500, 400, 351), False), ((1500, 400, 350), True), ((), True)],
)
def test_a_parcel_s_longest_side_and_girth_are_bounded(sizes: tuple[int, ...], fits: bool) -> None:
    lane = at("SG", START, "cainiao-standard")
    assert lane.takes([offer(size_mm=sizes)]) is fits


def test_what_is_too_heavy_is_not_carried() -> None:
    lane = at("SG", START, "cainiao-standard")
    assert (lane.shipping(30_000) is None, lane.shipping(30_001)) == (False, None)


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ('zone = "Asia/Shanghai"', 'zone = "Asia/Nowhere"', "Asia/Nowhere"),
        ('cutoff = "22:00"', 'cutoff = "24:00"', "24:00"),
        ("number = 2", "number = 1", "same number"),
        ('calendar = "cn"', 'calendar = "xx"', "no calendar"),
        ('country = "HK"', 'country = "XX"', "not known"),
        ("SG = {", "QQ = {", "QQ"),
        ("capacity = 100000000", "capacity = -1", "capacity"),
    ],
)
def test_data_that_is_wrong_is_named(written: str, instead: str, said: str) -> None:
    text = (LANES := _text()).replace(written, instead, 1)
    assert text != LANES
    with pytest.raises(ValueError, match=said):
        parse(text.encode())


def _text() -> str:
    from importlib.resources import files

    return files("flashsale.sale.shipping").joinpath("data/lanes.toml").read_text(encoding="utf-8")
