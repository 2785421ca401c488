"""The demo sale across borders: what it promises of markets, seasons, services, guarantees and imports."""

import functools
from importlib import resources

from flashsale.sale.market import MARKETS
from flashsale.sale.salefile import SaleFile, parse_sale_file

MARKETS_OF_THE_DEMO = ("SG", "MY", "TH", "VN", "PH", "ID", "HK", "TW", "JP", "KR", "AU", "NZ", "GB", "US", "DE")
LAZADA = {f"lazada-{market.lower()}": market for market in ("SG", "MY", "TH", "ID", "PH")}


@functools.cache
def demo() -> SaleFile:
    """The demo sale, shipping from China whether or not the file as it lies there says so yet."""
    text = resources.files("flashsale.sale").joinpath("double11.toml").read_text()
    return parse_sale_file(text.replace('# ships_from = "CN"', 'ships_from = "CN"'), "double11.toml")


def test_the_demo_sells_in_more_than_twelve_markets_and_fifty_offers_in_singapore() -> None:
    assert demo().ships_from == "CN"
    sold = {market: sum(market in offer.prices for offer in demo().offers) for market in MARKETS}
    assert all(sold[market] >= 15 for market in MARKETS_OF_THE_DEMO)
    assert sold["SG"] >= 50


def test_every_offer_belongs_to_a_merchant() -> None:
    assert all(offer.merchant for offer in demo().offers)


def test_summer_goods_go_south_for_the_southern_summer_only() -> None:
    seasonal = [offer for offer in demo().offers if offer.windows]
    assert len(seasonal) >= 8
    assert all(set(offer.windows) == {"AU", "NZ"} for offer in seasonal)


def test_the_supermarket_s_offers_are_sold_in_hong_kong_alone() -> None:
    supermarket = [offer for offer in demo().offers if offer.service]
    assert len(supermarket) >= 5
    assert all(set(offer.prices) == {"HK"} and offer.service == "supermarket" for offer in supermarket)


def test_the_guarantees_are_a_small_part_of_offers_that_the_channel_s_country_is_sold() -> None:
    guaranteed = [offer for offer in demo().offers if offer.guarantees]
    assert {channel for offer in guaranteed for channel in offer.guarantees} == {*LAZADA, "tmall-global"}
    assert all(offer.index >= 10 for offer in guaranteed)
    assert all(sum(offer.guarantees.values()) <= offer.stock // 8 for offer in guaranteed)
    for offer in guaranteed:
        assert all(LAZADA.get(channel, "CN") in offer.prices for channel in offer.guarantees)


def test_what_is_sold_in_china_was_made_abroad() -> None:
    imported = [offer for offer in demo().offers if "CN" in offer.prices]
    assert len(imported) >= 5
    assert all(offer.origin != "CN" and set(offer.prices) == {"CN"} for offer in imported)
