"""Quotes, markets and lanes over HTTP: what an order across a border would cost, and where it may go."""

from typing import Any

import pytest

from flashsale import merchandising
from flashsale.sale.market import MARKETS
from flashsale.sale.salefile import parse_sale_file
from tests.integration.house import BOTH, House

HEAD = """
[sale]
id = "across"
name = "Across"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2096-01-01T00:00:00Z
hold_seconds = 900
ships_from = "CN"
"""
OFFER = """
[[offers]]
sku = "{sku}"
brand = "Haier"
title = {{ en = "Goods" }}
stock = 10
quota = 0
weight_g = {weight_g}
hs_code = "{hs_code}"
origin = "{origin}"
prices = {{ {prices} }}
{more}
"""
KETTLE = OFFER.format(
    sku="KETTLE", weight_g=900, hs_code="8516.79", origin="CN", more="",
    prices='SG = "31.90", MY = "99.00", HK = "189.00", AU = "39.00"',
)  # fmt: skip
BEER = OFFER.format(sku="BEER", weight_g=500, hs_code="2203.00", origin="CN", more="", prices='MY = "77.90"')
PAST = OFFER.format(
    sku="PAST", weight_g=100, hs_code="6105.10", origin="CN", prices='AU = "20.00"',
    more="windows = { AU = [2021-11-01, 2022-03-01] }",
)  # fmt: skip
ANVIL = OFFER.format(sku="ANVIL", weight_g=90_000_000, hs_code="8516.79", origin="CN", more="", prices='SG = "99.00"')
SERUM = OFFER.format(sku="SERUM", weight_g=200, hs_code="3304.99", origin="JP", more="", prices='CN = "590.00"')
ACROSS = HEAD + KETTLE + BEER + PAST + ANVIL + SERUM


async def _open(house: House) -> None:
    await merchandising.create(house.valkey, house.ledger, parse_sale_file(ACROSS, "across.toml"), ACROSS)


def asked(sku: str = "KETTLE", market: str = "SG", quantity: int = 2, **more: object) -> dict[str, Any]:
    return {"sale": "across", "market": market, "lines": [{"sku": sku, "quantity": quantity}], **more}


@pytest.mark.parametrize("market", ["SG", "MY", "HK", "AU"])
async def test_a_quote_adds_up_by_each_lane(house: House, market: str) -> None:
    await _open(house)
    quote = await house.post("/v1/quotes", asked(market=market))
    (line,) = quote["lines"]
    goods = line["price"]["amount"] * line["quantity"]
    duty, tax = line["duty"]["amount"], line["tax"]["amount"]
    assert (duty, tax) == (quote["duty"]["amount"], quote["tax"]["amount"])
    assert quote["total"]["amount"] == goods + quote["shipping"]["amount"] + duty + tax
    assert {quote[name]["currency"] for name in ("total", "shipping", "duty", "tax")} == {MARKETS[market].currency}
    assert len(quote["lanes"]) >= 3
    default = quote["lanes"][0]
    assert default["recommended"] and default["carrier"] == "cainiao"
    assert (quote["lane"], quote["shipping"], quote["total"]) == (
        default["lane"],
        default["shipping"],
        default["total"],
    )
    for lane in quote["lanes"]:
        chosen = await house.post("/v1/quotes", asked(market=market, lane=lane["lane"]))
        assert (chosen["lane"], chosen["shipping"], chosen["total"]) == (lane["lane"], lane["shipping"], lane["total"])


async def test_singapore_s_tax_on_what_is_cheap_is_the_seller_s_to_collect(house: House) -> None:
    """GST 9% since 2024-01-01 on goods and freight of an item up to 400 SGD (IRAS); no duty: 9% of 2 * 31.90 and
    the freight."""
    await _open(house)
    quote = await house.post("/v1/quotes", asked())
    value = 2 * 3190 + quote["shipping"]["amount"]
    assert quote["tax"]["amount"] == (value * 9 + 50) // 100
    assert quote["duty"]["amount"] == 0
    assert quote["due_on_delivery"] == {name: {"amount": 0, "currency": "SGD"} for name in ("duty", "tax")}


async def test_what_can_not_be_sold_somewhere_is_said_before_any_price(house: House) -> None:
    await _open(house)
    for sku, market in (("BEER", "MY"), ("PAST", "AU")):
        refused = await house.post("/v1/quotes", asked(sku, market), status=422)
        assert (refused["name"], refused["sku"]) == ("not-sold-here", sku)
    refused = await house.post("/v1/quotes", asked(channel="lazada-my"), status=422)
    assert refused["name"] == "not-sold-here" and "lazada-my" in refused["detail"]


async def test_a_lane_that_does_not_take_the_order_is_refused_with_those_that_do(house: House) -> None:
    await _open(house)
    refused = await house.post("/v1/quotes", asked(lane="pigeon"), status=422)
    taken = await house.post("/v1/quotes", asked())
    assert refused["name"] == "lane-unavailable"
    assert refused["lanes"] == [lane["lane"] for lane in taken["lanes"]]
    refused = await house.post("/v1/quotes", asked("ANVIL"), status=422)
    assert (refused["name"], refused["lanes"]) == ("lane-unavailable", [])


async def test_an_import_s_quote_says_what_it_takes_of_the_yearly_limit(house: House) -> None:
    """5,000 and 26,000 CNY since 2019-01-01 (Cai Guan Shui 2018 No. 49)."""
    await _open(house)
    limit = (await house.post("/v1/quotes", asked("SERUM", "CN", 1, channel="tmall-global")))["import_limit"]
    assert (limit["order"]["amount"], limit["annual"]["amount"]) == (500_000, 2_600_000)
    assert limit["counts"]["amount"] >= 59_000


@pytest.mark.parametrize(
    ("change", "status", "name"),
    [
        ({"sale": "nowhere"}, 404, "unknown-sale"),
        ({"market": "FR"}, 422, "invalid-order"),
        ({"lines": [{"sku": "SERUM", "quantity": 1}]}, 404, "unknown-sku"),
        ({"lines": []}, 422, "invalid-order"),
    ],
)
async def test_a_quote_is_checked_as_an_order_is(
    house: House, change: dict[str, object], status: int, name: str
) -> None:
    await _open(house)
    assert (await house.post("/v1/quotes", {**asked(), **change}, status=status))["name"] == name


async def test_a_quote_needs_no_token_but_a_wrong_one_is_refused(house: House) -> None:
    await _open(house)
    await house.post("/v1/quotes", asked(), **house.token("ann"))
    await house.post("/v1/quotes", asked(), **house.token("helpful", "agent"))
    assert (await house.post("/v1/quotes", asked(), status=401, Authorization="Bearer x"))["name"] == "unauthenticated"
    assert (await house.post("/v1/quotes", asked(), status=403, **house.token("m", "merchant")))["name"] == "forbidden"


async def test_a_sale_that_crosses_no_border_is_quoted_at_its_prices(house: House) -> None:
    await house.create_sale(("A", BOTH))
    quote = await house.post("/v1/quotes", {"sale": "night", "market": "SG", "lines": [{"sku": "A", "quantity": 2}]})
    assert quote["total"] == {"amount": 179_800, "currency": "SGD"}
    assert (quote["lane"], quote["lanes"], quote["shipping"]["amount"]) == (None, [], 0)


async def test_the_markets_and_the_lanes_that_lead_there(house: House) -> None:
    await _open(house)
    markets = {market["code"]: market for market in (await house.get("/v1/markets"))["markets"]}
    assert {"SG", "MY", "TH", "VN", "PH", "ID", "HK", "TW", "JP", "KR", "AU", "NZ", "GB", "US", "DE"} <= markets.keys()
    assert markets["AU"]["zone"] == "Australia/Sydney"
    assert markets["CN"]["import_limit"]["annual"] == {"amount": 2_600_000, "currency": "CNY"}
    lanes = (await house.get("/v1/lanes?market=HK"))["lanes"]
    assert len({lane["carrier"] for lane in lanes}) >= 3
    assert lanes[0]["recommended"] and lanes[0]["promise"]["days"] <= 7


@pytest.mark.parametrize("path", ["/v1/lanes", "/v1/lanes?market=ZZ", "/v1/markets?ships_from=china"])
async def test_a_parameter_that_means_nothing_is_refused(house: House, path: str) -> None:
    await _open(house)
    assert (await house.get(path, 400))["name"] == "malformed"
