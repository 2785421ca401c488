"""A sale written as a file is read back as the same sale; a merchant's products become its offers."""

from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flashsale.sale.products.offers import StockEdit, merged
from flashsale.sale.products.product import Product
from flashsale.sale.salefile import SaleFile, canonical, parse_sale_file
from flashsale.sale.salefile_text import text_of

texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), min_size=1, max_size=30)


def demo() -> SaleFile:
    return parse_sale_file(resources.files("flashsale.sale").joinpath("double11.toml").read_bytes(), "double11.toml")


def test_the_demo_sale_comes_back() -> None:
    file = demo()
    assert canonical(parse_sale_file(text_of(file), "again")) == canonical(file)


@given(st.integers(1, 10**7), st.booleans(), texts, texts, st.integers(0, 10**9))
def test_any_sale_comes_back(opens_s: int, quota: bool, name: str, title: str, stock: int) -> None:
    file = demo()
    offers = (replace(file.offers[0], title={"en": title, "zh-Hans": name}, brand=name, stock=stock, guarantees={}),)
    file = replace(file, name=name, opens_at_ms=file.opens_at_ms - opens_s, return_quota=quota, offers=offers)
    try:
        again = parse_sale_file(text_of(file), "again")
    except Exception as refused:  # what a file may not say can't come back: a control character, say
        assert "offers[0]" in str(refused) or "sale.name" in str(refused)
        return
    assert canonical(again) == canonical(file)


def lamp(**more: object) -> Product:
    fields = {"row": 2, "handle": "lamp", "sku": "LAMP", "title": {"en": "Lamp"}, "price": 999, "stock": 5,
              "weight_g": 300, "hs_code": "940521", "origin": "CN", **more}  # fmt: skip
    return Product(**fields)  # type: ignore[arg-type]


def test_a_new_product_becomes_an_offer_and_the_sale_stays_readable() -> None:
    made = merged(demo(), "lux", "SG", [(lamp(options=(("Colour", "red"),)), None)])
    assert (made.added, made.edits, made.findings) == (1, [], [])
    again = parse_sale_file(text_of(made.file), "again").offers[-1]
    assert (again.sku, again.merchant, again.prices, again.stock) == ("LAMP", "lux", {"SG": 999}, 5)
    assert again.title == {"en": "Lamp – red"}


def test_an_offer_that_is_there_keeps_what_is_not_said_and_its_supply() -> None:
    first = merged(demo(), "lux", "SG", [(lamp(), None)]).file
    second = merged(first, "lux", "TH", [(lamp(price=2500, stock=9, weight_g=None, title={"th": "โคมไฟ"}), None)])
    assert second.added == 0
    offer = second.file.offers[-1]
    assert (offer.prices, offer.weight_g, offer.stock) == ({"SG": 999, "TH": 2500}, 300, 5)
    assert offer.title == {"en": "Lamp", "th": "โคมไฟ"}
    assert [(each.code, each.severity) for each in second.findings] == [("stock-kept", "warning")]
    third = merged(first, "lux", "SG", [(lamp(stock=9), 5)])
    assert (third.edits, third.findings) == ([StockEdit(2, "LAMP", 9, 5)], [])


@pytest.mark.parametrize("missing", ["hs_code", "origin", "weight_g"])
def test_goods_that_cross_a_border_must_say_what_they_are(missing: str) -> None:
    made = merged(demo(), "lux", "SG", [(lamp(**{missing: None}), None)])
    assert [each.severity for each in made.findings] == ["fault"]
    assert made.added == 0
    plain = replace(demo(), ships_from="")
    assert merged(plain, "lux", "SG", [(lamp(**{missing: None}), None)]).findings == []


def test_another_merchant_s_offer_is_a_fault_and_what_costs_nothing_is_left_out() -> None:
    first = merged(demo(), "lux", "SG", [(lamp(), None)]).file
    assert [each.code for each in merged(first, "dim", "SG", [(lamp(), None)]).findings] == ["not-yours"]
    free = merged(demo(), "lux", "SG", [(lamp(price=0), None)])
    assert (free.added, [each.code for each in free.findings]) == (0, ["not-offered"])
