"""Landed cost in general: it equals a slow reference, its parts add up, and more never costs less in one branch."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.catalogue import Catalogue
from flashsale.sale.market import MARKETS
from flashsale.sale.money import EXPONENTS, parse_amount
from flashsale.sale.trade.customs import NEVER, Customs, CustomsRules, Threshold
from flashsale.sale.trade.duty_rates import DutyRate, DutyTable
from flashsale.sale.trade.landed import Landed, Regime
from flashsale.sale.trade.load import packaged, parts, rows
from flashsale.sale.trade.load import rule as rule_of
from flashsale.sale.trade.rounding import half_up
from flashsale.sale.trade.rules import FOR_EVER_MS, Rule, TradeRules
from flashsale.sale.world import World
from tests.unit.landed_reference import Item, Reference

TRADE = TradeRules.load()
CODES = [country.code for country in TRADE.countries]
NOVEMBER = int(datetime(2026, 11, 11, tzinfo=UTC).timestamp()) * 1000
HS_CODES = (
    "851713",
    "851660",
    "850940",
    "610910",
    "620130",
    "62034231",
    "640411",
    "330499",
    "950300",
    "220421",
    "0106",
)

moments = st.one_of(
    st.just(NOVEMBER),
    st.integers(1_500_000_000, 1_900_000_000).map(lambda second: second * 1000),
    # A second around the midnights at which rules change, in the zones of the countries.
    st.sampled_from([
        int(datetime.fromisoformat(rule.since).timestamp()) for rule in TRADE.rules if rule.since
    ]).flatmap(lambda day: st.integers(-14, 14).map(lambda hours: (day + hours * 3600) * 1000)),
)  # fmt: skip


@st.composite
def consignments(draw: st.DrawFn, code: str, most_lines: int = 4) -> tuple[list[Item], int]:
    """Lines and freight, with prices near the thresholds as often as not."""
    reference = Reference(TRADE, code, "CN", NOVEMBER)
    names = {code, reference.country.bloc}
    near = [
        int(reference.amount(rule) * 10 ** EXPONENTS[reference.currency])
        for rule in TRADE.rules
        if rule.country in names and rule.currency
    ] or [10_000]
    price = st.one_of(
        st.integers(1, 5_000_000), st.sampled_from(near).flatmap(lambda at: st.integers(max(at - 2, 1), at + 2))
    )
    item = st.builds(
        Item, price, st.sampled_from([1, 1, 2, 7]), st.sampled_from(HS_CODES), st.sampled_from(["CN", "IT", "VN", ""])
    )
    return draw(st.lists(item, min_size=1, max_size=most_lines)), draw(st.sampled_from([0, 1, 990, 25_000]))


def land(regime: Regime, items: list[Item], freight: int) -> Landed | None:
    lines = []
    for item in items:
        prepared = regime.prepare(item.price, item.hs_code, item.origin)
        if prepared is None:
            return None
        lines.append((prepared, item.quantity))
    return regime.land(lines, freight)


@given(st.data(), st.sampled_from(CODES), moments, st.sampled_from(["CN", "US", "JP", "HK"]))
def test_an_order_lands_as_the_slow_reference_says(data: Any, code: str, at_ms: int, ships_from: str) -> None:
    if ships_from == code and code != "CN":
        ships_from = "SG" if code != "SG" else "CN"
    items, freight = data.draw(consignments(code))
    regime = TRADE.regime(code, ships_from, at_ms)
    expected = Reference(TRADE, code, ships_from, at_ms).land(items, freight)
    landed = land(regime, items, freight) if regime is not None else None
    if expected is None:
        assert landed is None
        return
    assert landed is not None
    assert [*landed.duty] == expected.duty
    assert [*landed.tax] == expected.tax
    assert (landed.due_duty, landed.due_tax) == (expected.due_duty, expected.due_tax)
    assert (landed.limit_use, landed.over_limit) == (expected.limit_use, expected.over_limit)
    assert landed.ddp == (expected.due_duty + expected.due_tax == 0)


@given(st.data(), st.sampled_from(CODES))
def test_parts_are_one_a_line_and_never_negative(data: Any, code: str) -> None:
    items, freight = data.draw(consignments(code))
    regime = TRADE.regime(code, "US" if code != "US" else "CN", NOVEMBER)
    assert regime is not None
    landed = land(regime, items, freight)
    if landed is None:
        return
    assert len(landed.duty) == len(landed.tax) == len(items)
    assert min(*landed.duty, *landed.tax, landed.due_duty, landed.due_tax) >= 0
    assert landed.ddp == (landed.due_duty == landed.due_tax == 0)


def branch(code: str, items: list[Item], freight: int) -> list[tuple[bool, ...]]:
    """Which thresholds each line is within: orders of one branch have the same."""
    reference = Reference(TRADE, code, "KZ", NOVEMBER)
    goods = sum(item.price * item.quantity for item in items)
    values = [reference.major(each) for each in (goods, goods + freight)]
    kinds = ("tax_at_sale", "tax_relief", "duty_relief", "flat_duty_limit", "duty_per_heading_limit", "single_limit")
    return [tuple(reference.within(kind, reference.major(item.price), *values)[0] for kind in kinds) for item in items]


@given(st.data(), st.sampled_from(CODES), st.integers(0, 3), st.integers(0, 20_000), st.integers(0, 2_000))
def test_more_value_never_costs_less_within_one_branch(
    data: Any, code: str, more_units: int, dearer: int, more_freight: int
) -> None:
    items, freight = data.draw(consignments(code, most_lines=1))
    regime = TRADE.regime(code, "KZ", NOVEMBER)
    assert regime is not None
    more = [replace(items[0], quantity=items[0].quantity + more_units, price=items[0].price + dearer)]
    before, after = land(regime, items, freight), land(regime, more, freight + more_freight)
    if before is None or after is None or branch(code, items, freight) != branch(code, more, freight + more_freight):
        return
    assert sum(after.duty) >= sum(before.duty)
    assert sum(after.tax) >= sum(before.tax)
    assert after.due_duty >= before.due_duty
    assert after.due_tax >= before.due_tax


@given(st.data(), st.sampled_from(CODES), st.integers(0, 20_000))
def test_dearer_freight_never_lowers_any_part_within_one_branch(data: Any, code: str, more_freight: int) -> None:
    items, freight = data.draw(consignments(code))
    regime = TRADE.regime(code, "KZ", NOVEMBER)
    assert regime is not None
    before, after = land(regime, items, freight), land(regime, items, freight + more_freight)
    if before is None or after is None or branch(code, items, freight) != branch(code, items, freight + more_freight):
        return
    assert all(now >= then for then, now in zip(before.duty + before.tax, after.duty + after.tax, strict=True))
    assert (after.due_duty, after.due_tax) >= (before.due_duty, before.due_tax)


@given(st.sampled_from(CODES), moments)
def test_a_regime_is_the_same_all_through_its_span_and_ends_where_the_next_begins(code: str, at_ms: int) -> None:
    regime = TRADE.regime(code, "KZ", at_ms)
    if regime is None:
        return
    assert regime.from_ms <= at_ms < regime.until_ms
    last = TRADE.regime(code, "KZ", regime.until_ms - 1)
    assert last is not None
    assert (last.from_ms, last.until_ms) == (regime.from_ms, regime.until_ms)
    following = TRADE.regime(code, "KZ", regime.until_ms)
    assert regime.until_ms == FOR_EVER_MS or following is None or following.from_ms == regime.until_ms


@given(st.integers(0, 10**18), st.integers(1, 10**12))
def test_half_up_is_the_nearest_and_a_half_the_next_above(numerator: int, denominator: int) -> None:
    rest = numerator - half_up(numerator, denominator) * denominator
    assert -denominator <= 2 * rest < denominator


def test_the_rules_travel_with_the_catalogue() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(TRADE), type=TradeRules) == TRADE
    catalogue = Catalogue(1, (), World(trade=TRADE))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(catalogue), type=Catalogue).world.trade == TRADE


def test_every_rule_names_source_and_grade_and_no_two_hold_at_once() -> None:
    assert all(rule.source and rule.grade in ("A", "B", "C") for rule in TRADE.rules)
    assert all(rate.source and rate.grade in ("A", "B", "C") for rate in TRADE.duty_rates)
    assert all(rule.grade == "C" for rule in TRADE.rules if not rule.url)
    for code in CODES:
        for rule in TRADE.rules:
            if rule.since:
                moment = int(datetime.fromisoformat(rule.since + "T12:00:00+00:00").timestamp()) * 1000
                Reference(TRADE, code, "US", moment).rule(rule.kind)  # asserts that one holds at most


def test_duty_rates_are_named_once() -> None:
    named = [(rate.country, rate.prefix, rate.origin, rate.since) for rate in TRADE.duty_rates]
    assert len(named) == len(set(named))


def test_the_longest_prefix_wins_and_then_the_origin() -> None:
    def rate(prefix: str, origin: str, ppm: int | None) -> DutyRate:
        return DutyRate("SG", prefix, origin, ppm, False, None, None, "a source", "", "A", "")

    table = DutyTable(
        [rate("", "", 5), rate("61", "", 12), rate("61", "CN", 7), rate("6109", "", 9), rate("22", "", None)]
    )
    found = [table.find(hs_code, origin) for hs_code, origin in [
        ("610910", "CN"), ("611020", "CN"), ("611020", "IT"), ("851713", "CN"), ("220421", "FR"),
    ]]  # fmt: skip
    assert [each and each.ppm for each in found] == [9, 7, 12, 5, None]


@pytest.mark.parametrize("hs_code", ["220421", "2402", ""])
@pytest.mark.parametrize("code", CODES)
def test_what_has_no_known_duty_rate_is_not_sold(code: str, hs_code: str) -> None:
    regime = TRADE.regime(code, "KZ", NOVEMBER)
    assert regime is not None
    assert regime.prepare(1000, hs_code, "CN") is None


def test_nothing_is_known_of_a_country_without_rules() -> None:
    assert TRADE.regime("BR", "CN", NOVEMBER) is None
    assert TradeRules().regime("SG", "CN", NOVEMBER) is None


@pytest.mark.parametrize(("code", "ships_from"), [("SG", "SG"), ("FR", "DE"), ("US", "US")])
def test_goods_that_cross_no_border_cost_their_price(code: str, ships_from: str) -> None:
    regime = TRADE.regime(code, ships_from, NOVEMBER)
    assert regime is not None
    assert land(regime, [Item(1000, 3, "610910", "CN")], 500) == Landed((0,), (0,), 0, 0, True, False)


def test_relief_of_the_excess_charges_only_what_is_above() -> None:
    free = Threshold(10_000, "FOB", excess=True)
    rules = CustomsRules(
        100_000, NEVER, True, free, free, NEVER, None, NEVER, 0, NEVER, True, 0, prepaid=False, estimated=False
    )
    duties = DutyTable([DutyRate("SG", "", "", 50_000, False, None, None, "", "", "A", "")])
    regime = Customs("SG", "SGD", 0, 1, rules, duties)
    # 150.00 with 100.00 free: a third is charged. Duty 50.00 x 5% = 2.50; tax (50.00 + 2.50) x 10% = 5.25.
    assert land(regime, [Item(15_000, 1, "610910", "CN")], 0) == Landed((0,), (0,), 250, 525, False, False)
    assert land(regime, [Item(10_000, 1, "610910", "CN")], 0) == Landed((0,), (0,), 0, 0, True, False)


def test_thresholds_in_another_currency_turn_with_its_rate() -> None:
    idr = next(rate for rate in TRADE.exchange_rates if rate.quote == "IDR")
    later = msgspec.structs.replace(idr, ppm=17_000 * 1_000_000, since="2026-11-20")
    trade = msgspec.structs.replace(TRADE, exchange_rates=(*TRADE.exchange_rates, later))
    regime = trade.regime("ID", "CN", NOVEMBER)
    assert regime is not None
    assert regime.until_ms == int(datetime(2026, 11, 20, tzinfo=UTC).timestamp()) * 1000
    following = trade.regime("ID", "CN", regime.until_ms)
    assert following is not None
    three_dollars = [Item(parse_amount("51000.00", MARKETS["ID"].currency), 1, "850940", "CN")]
    before, after = land(regime, three_dollars, 0), land(following, three_dollars, 0)
    assert before is not None and after is not None
    assert before.due_duty > 0 == after.due_duty


def test_a_later_rule_needs_no_code() -> None:
    more = Rule(
        "SG", "duty_relief", 1, "SGD", "CIF", "<=", False, "border", "", "2027-01-01", None, "a source", "", "C", ""
    )
    trade = msgspec.structs.replace(TRADE, rules=(*TRADE.rules, more))
    now, then = trade.regime("SG", "CN", NOVEMBER), TRADE.regime("SG", "CN", NOVEMBER)
    assert now is not None and then is not None
    assert now.until_ms == int(datetime(2026, 12, 31, 16, tzinfo=UTC).timestamp()) * 1000 < then.until_ms


@pytest.mark.parametrize("text", ["x", "-0.1", "0.0000001", "1e400000"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        parts(text)


HEADER = (
    "country,kind,value,currency,basis,relation,extent,collector,ships_from,effective_from,effective_to,"
    "source,url,grade,note"
)
GOOD = "SG,tax_at_sale,400,SGD,item,<=,whole,seller,,2023-01-01,,a source,,C,"


def test_a_good_row_is_a_rule() -> None:
    found = next(rows("a.csv", f"{HEADER}\n{GOOD}\n", rule_of))
    assert found is not None
    assert (found.value, found.since, found.to) == (40_000, "2023-01-01", None)


@pytest.mark.parametrize(("right", "wrong"), [
    ("tax_at_sale", "tax_at_sail"), ("400", "400.001"), ("400", "-4"), ("SGD", "XXX"), ("item", "things"), ("<=", "=<"),
    ("whole", "most"), ("seller", "nobody"), ("2023-01-01", "2023-02-29"), (",C,", ",D,"), (",C,", ",C"),
])  # fmt: skip
def test_a_faulty_row_is_named_with_its_line(right: str, wrong: str) -> None:
    text = f"{HEADER}\n{GOOD}\n{GOOD.replace(right, wrong, 1)}\n"
    with pytest.raises(ValueError, match=r"a\.csv, line 3: "):
        list(rows("a.csv", text, rule_of))


def test_the_packaged_rules_are_read_once() -> None:
    assert packaged() is packaged()
