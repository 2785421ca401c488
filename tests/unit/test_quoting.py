"""A quoted market: its parts add up, it holds for its span and no longer, and each offer has its season."""

import functools
from datetime import UTC, datetime
from importlib import resources
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsale.sale.catalogue import Sale
from flashsale.sale.quoting import LaneUnavailable, NotSoldHere, Quoted, QuotedMarket
from flashsale.sale.salefile import parse_sale_file
from flashsale.sale.world import World, packaged

NOON_MS = int(datetime(2026, 11, 11, 12, tzinfo=UTC).timestamp() * 1000)
MARKETS = ("SG", "MY", "TH", "VN", "PH", "ID", "HK", "TW", "JP", "KR", "AU", "NZ", "GB", "US", "DE", "CN")
Basket = tuple[str, list[tuple[str, int]]]


@functools.cache
def demo() -> Sale:
    text = resources.files("flashsale.sale").joinpath("double11.toml").read_text()
    file = parse_sale_file(text.replace('# ships_from = "CN"', 'ships_from = "CN"'), "double11.toml")
    return Sale.from_file(file, 1, bytes(32))


@functools.cache
def quoted(code: str, at_ms: int = NOON_MS) -> QuotedMarket:
    return QuotedMarket(demo(), code, packaged(), at_ms)


def baskets() -> st.SearchStrategy[Basket]:
    """A market and up to three lines of what has a price there."""
    return st.sampled_from(MARKETS).flatmap(lambda code: st.tuples(st.just(code), _lines(sorted(quoted(code).offers))))


def _lines(skus: list[str]) -> st.SearchStrategy[list[tuple[str, int]]]:
    line = st.tuples(st.sampled_from(skus), st.integers(1, 5))
    return st.lists(line, min_size=1, max_size=3, unique_by=lambda each: each[0])


def cost(market: QuotedMarket, lines: list[tuple[str, int]], lane: str | None = None) -> Quoted | None:
    """None: it isn't sold or carried."""
    try:
        return market.land(lines, lane, None)
    except (NotSoldHere, LaneUnavailable):
        return None


@given(baskets())
def test_the_parts_add_up_to_the_total_and_none_is_below_nothing(basket: Basket) -> None:
    code, lines = basket
    market = quoted(code)
    found = cost(market, lines)
    if found is None:
        return
    goods = sum(market.offers[sku].price * quantity for sku, quantity in lines)
    landed = found.landed
    assert found.total == goods + found.shipping + sum(landed.duty) + sum(landed.tax)
    assert min(found.shipping, *landed.duty, *landed.tax, landed.due_duty, landed.due_tax) >= 0
    assert len(landed.duty) == len(landed.tax) == len(lines)


@given(baskets())
def test_each_lane_that_is_offered_can_be_chosen_and_the_first_is_the_default(basket: Basket) -> None:
    code, lines = basket
    market = quoted(code)
    try:
        offered = market.each_lane(lines, None)
    except NotSoldHere:
        return
    assert [cost(market, lines, each.lane.id) for each in offered] == offered
    assert cost(market, lines) == (offered[0] if offered else None)


@settings(max_examples=30)
@given(basket=baskets(), where=st.floats(0, 1))
def test_a_quote_holds_for_its_span_by_whichever_clock_within_it(basket: Basket, where: float) -> None:
    code, lines = basket
    market = quoted(code)
    assert market.from_ms <= NOON_MS < market.until_ms
    again = QuotedMarket(demo(), code, packaged(), market.from_ms + int((market.until_ms - 1 - market.from_ms) * where))
    assert (again.from_ms, again.until_ms) == (market.from_ms, market.until_ms)
    then, now = cost(again, lines), cost(market, lines)
    if then is None or now is None:
        assert then is now
    else:
        assert (then.total, then.landed, then.lane.dispatch_day) == (now.total, now.landed, now.lane.dispatch_day)


@pytest.mark.parametrize("code", ["AU", "NZ"])
def test_summer_begins_and_ends_at_midnight_in_the_south(code: str) -> None:
    zone = ZoneInfo({"AU": "Australia/Sydney", "NZ": "Pacific/Auckland"}[code])
    for midnight, before, after in ((datetime(2026, 11, 1), False, True), (datetime(2027, 3, 1), True, False)):
        edge_ms = int(midnight.replace(tzinfo=zone).timestamp() * 1000)
        for at_ms, sold in ((edge_ms - 1, before), (edge_ms, after)):
            market = quoted(code, at_ms)
            if sold:
                market.land([("HLA-POLO-WHITE", 1)], None, None)
            else:
                with pytest.raises(NotSoldHere) as refused:
                    market.land([("HLA-POLO-WHITE", 1)], None, None)
                assert refused.value.sku == "HLA-POLO-WHITE"
            market.land([("ROBOROCK-S8", 1)], None, None)  # it knows no season
        assert quoted(code, edge_ms - 1).until_ms == quoted(code, edge_ms).from_ms == edge_ms


def test_a_channel_sells_where_it_sells_and_a_word_that_is_none_everywhere() -> None:
    lines = [("XIAOMI-BAND-9", 1)]
    with pytest.raises(NotSoldHere):
        quoted("SG").land(lines, None, "lazada-my")
    for channel in ("lazada-sg", "tmall-world", "somebody-s-shop", None):
        assert quoted("SG").land(lines, None, channel) == quoted("SG").land(lines, None, None)


def test_a_lane_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(LaneUnavailable) as refused:
        quoted("SG").land([("XIAOMI-BAND-9", 1)], "pigeon", None)
    assert refused.value.lanes == tuple(lane.id for lane in quoted("SG").lanes)


def test_where_no_rule_is_known_nothing_is_sold_and_it_is_asked_again() -> None:
    market = QuotedMarket(demo(), "SG", World(), NOON_MS)
    with pytest.raises(NotSoldHere, match="import rules"):
        market.land([("XIAOMI-BAND-9", 1)], None, None)
    assert NOON_MS < market.until_ms <= NOON_MS + 3_600_000


def test_supermarket_offers_go_by_the_supermarket_s_lane_and_others_do_not() -> None:
    hong_kong = quoted("HK")
    together = hong_kong.land([("SUPER-RICE-5KG", 1), ("SUPER-SOY-SAUCE-500", 2)], None, None)
    assert together.lane.id == "tmall-supermarket-hk"
    mixed = hong_kong.land([("SUPER-RICE-5KG", 1), ("XIAOMI-BAND-9", 1)], None, None)
    assert mixed.lane.id != "tmall-supermarket-hk"
