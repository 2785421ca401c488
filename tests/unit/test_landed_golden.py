"""Landed cost against cases worked by hand: golden/landed.toml, each with its arithmetic and the source of its rule."""

import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flashsale.sale.market import MARKETS
from flashsale.sale.money import parse_amount
from flashsale.sale.trade.rules import TradeRules

CASES = tomllib.loads((Path(__file__).parent / "golden" / "landed.toml").read_text("utf-8"))["case"]
TRADE = TradeRules.load()
ASKED_FOR = (
    *("SG", "MY", "TH", "VN", "PH", "ID", "HK", "TW", "JP", "KR", "AU", "NZ", "GB", "US", "CA", "CN"),
    *("DE", "FR", "IE", "FI"),
)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_an_order_lands_as_worked_by_hand(case: dict[str, Any]) -> None:
    country, currency = case["to"], MARKETS[case["to"]].currency

    def minor(text: str) -> int:
        return parse_amount(text, currency)

    at_ms = int(datetime.fromisoformat(case["at"]).timestamp()) * 1000
    regime = TRADE.regime(country, case["ships_from"], at_ms)
    if not case.get("sold", True):
        assert regime is None
        return
    assert regime is not None
    assert regime.from_ms <= at_ms < regime.until_ms
    lines = []
    for price, quantity, hs_code, origin in case["lines"]:
        prepared = regime.prepare(minor(price), hs_code, origin)
        assert prepared is not None
        lines.append((prepared, quantity))
    landed = regime.land(lines, minor(case["freight"]))
    assert [*landed.duty] == [minor(text) for text in case["duty"]]
    assert [*landed.tax] == [minor(text) for text in case["tax"]]
    assert [landed.due_duty, landed.due_tax] == [minor(text) for text in case["due"]]
    assert ("DDP" if landed.ddp else "DAP") == case["terms"]
    assert landed.estimated == case["estimated"]
    assert landed.limit_use == minor(case.get("limit_use", "0"))
    assert landed.over_limit == case.get("over_limit", False)
    if "year" in case:
        assert regime.limit is not None
        assert regime.limit.year == case["year"]


def test_every_case_says_how_and_by_what_rule() -> None:
    assert len(CASES) >= 40
    assert all(case["arithmetic"] and case["source"] for case in CASES)
    assert {case["to"] for case in CASES} >= {*ASKED_FOR}


@pytest.mark.parametrize("case", [case for case in CASES if case["at"].endswith("59Z")], ids=lambda case: case["name"])
def test_a_rule_that_changes_at_midnight_ends_its_span_there(case: dict[str, Any]) -> None:
    at_ms = int(datetime.fromisoformat(case["at"]).timestamp()) * 1000
    regime = TRADE.regime(case["to"], case["ships_from"], at_ms)
    following = TRADE.regime(case["to"], case["ships_from"], at_ms + 1000)
    assert following is not None
    assert following.from_ms == at_ms + 1000
    if regime is not None:
        assert regime.until_ms == at_ms + 1000
