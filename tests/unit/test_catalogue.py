"""The catalogue: what is encoded comes back, and an update never takes anything away from those who hold it."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import flashsale.sale
from flashsale.sale.catalogue import CATALOGUE_VERSION_MAX, SALE_NUMBER_MAX, Catalogue, Offer, Sale, updated
from flashsale.sale.salefile import OFFERS_MAX, SaleFile, SaleFileFaults, canonical, parse_sale_file

DEMO = Path(flashsale.sale.__file__).with_name("double11.toml")
KEY = bytes(range(32))

offers_of_a_file = st.lists(
    st.builds(
        Offer,
        sku=st.sampled_from([f"SKU-{number}" for number in range(12)]),
        index=st.just(0),
        brand=st.sampled_from(["Haier", "海尔"]),
        title=st.dictionaries(st.sampled_from(["en", "zh"]), st.text(min_size=1, max_size=8), min_size=1),
        stock=st.integers(0, 10**9),
        quota=st.integers(0, 10_000),
        weight_g=st.integers(0, 10**8),
        prices=st.dictionaries(st.sampled_from(["SG", "TH", "JP"]), st.integers(1, 10**12), min_size=1),
    ),
    min_size=1,
    max_size=10,
    unique_by=lambda offer: offer.sku,
)


def in_order(offers: list[Offer]) -> tuple[Offer, ...]:
    return tuple(replace(offer, index=index) for index, offer in enumerate(offers))


def file_of(offers: list[Offer], sale_id: str = "s") -> SaleFile:
    return SaleFile(sale_id, "Name", 1_000, 2_000, 900_000, in_order(offers), "s.toml", {})


files = st.builds(file_of, offers_of_a_file)


def permitted_update(old: Sale, new: SaleFile) -> bool:
    after = {offer.sku: offer for offer in new.offers}
    return all(
        offer.sku in after
        and offer.prices.keys() <= after[offer.sku].prices.keys()
        and offer.stock == after[offer.sku].stock
        for offer in old.offers
    )


@st.composite
def updates(draw: st.DrawFn) -> tuple[Sale, SaleFile]:
    """A sale and a file that may update it: old offers changed within what is permitted, new ones, in any order."""
    old = Sale.from_file(draw(files), 1, KEY)
    fresh = [offer for offer in draw(offers_of_a_file) if offer.sku not in old.by_sku]
    changed = [
        replace(
            offer,
            quota=draw(st.integers(0, 10_000)),
            prices={market: draw(st.integers(1, 10**12)) for market in [*offer.prices, "HK"]},
        )
        for offer in old.offers
    ]
    return old, replace(file_of(draw(st.permutations(changed + fresh))), opens_at_ms=5, closes_at_ms=6, hold_ms=7)


@given(st.lists(files, max_size=3), st.integers(0, CATALOGUE_VERSION_MAX))
def test_what_is_encoded_comes_back(files_of_sales: list[SaleFile], version: int) -> None:
    sales = tuple(
        Sale.from_file(replace(file, id=f"s{number}"), number, KEY) for number, file in enumerate(files_of_sales, 1)
    )
    catalogue = Catalogue(version, sales)
    decoded = Catalogue.decode(catalogue.encode())
    assert decoded == catalogue
    for sale in sales:
        found = decoded.sale(sale.id)
        assert found == sale == decoded.by_number(sale.number)
        assert found is not None
        assert all(found.by_sku[offer.sku] is found.offers[offer.index] for offer in sale.offers)
        assert found.markets == {market for offer in sale.offers for market in offer.prices}


@given(updates())
def test_an_update_keeps_every_offer_where_it_was(case: tuple[Sale, SaleFile]) -> None:
    old, new = case
    after = updated(old, new)
    written = {offer.sku: offer for offer in new.offers}
    assert [offer.sku for offer in after.offers][: len(old.offers)] == [offer.sku for offer in old.offers]
    assert {offer.sku for offer in after.offers} == set(written)
    assert all(replace(offer, index=0) == replace(written[offer.sku], index=0) for offer in after.offers)
    assert (after.opens_at_ms, after.closes_at_ms, after.hold_ms) == (5, 6, 7)
    assert (after.id, after.number, after.key) == (old.id, old.number, old.key)


@given(updates())
def test_the_same_update_again_changes_nothing(case: tuple[Sale, SaleFile]) -> None:
    old, new = case
    after = updated(old, new)
    assert updated(after, new) == after


@given(files, files)
def test_an_update_is_made_exactly_where_nothing_is_taken_away(one: SaleFile, other: SaleFile) -> None:
    old = Sale.from_file(one, 1, KEY)
    try:
        updated(old, other)
    except SaleFileFaults as error:
        assert not permitted_update(old, other)
        assert all(fault.source == "s.toml" and fault.field for fault in error.faults)
    else:
        assert permitted_update(old, other)


@given(st.binary())
def test_any_bytes_are_a_catalogue_or_a_decode_error(document: bytes) -> None:
    try:
        Catalogue.decode(document)
    except msgspec.DecodeError:
        return


def test_an_update_s_faults_are_all_named_with_their_lines() -> None:
    text = DEMO.read_text()
    sale = Sale.from_file(parse_sale_file(text, "old.toml"), 1, KEY)
    first, second = sale.offers[0], sale.offers[1]
    changed = (
        text.replace('id = "double11"', 'id = "double12"')
        .replace(f"stock = {first.stock}\n", "stock = 4\n", 1)
        .replace('SG = "899.00", ', "", 1)
        .replace(f'"{second.sku}"', '"NEW"')
    )
    line = {name: number for number, name in reversed(list(enumerate(changed.splitlines(), 1)))}
    with pytest.raises(SaleFileFaults) as caught:
        updated(sale, parse_sale_file(changed, "new.toml"))
    by_field = {fault.field: fault for fault in caught.value.faults}
    assert set(by_field) == {"sale.id", "offers[0].stock", "offers[0].prices", "offers"}
    assert by_field["sale.id"].line == line['id = "double12"']
    assert by_field["offers[0].stock"].line == line["stock = 4"]
    assert "flashsale sale stock double11 HAIER-FRIDGE-320" in by_field["offers[0].stock"].message
    assert "market SG of 'HAIER-FRIDGE-320' is missing" in by_field["offers[0].prices"].message
    assert by_field["offers[0].prices"].line > by_field["offers[0].stock"].line
    assert repr(second.sku) in by_field["offers"].message


def test_updates_can_t_grow_a_sale_beyond_its_bound() -> None:
    def numbered(count: int) -> list[Offer]:
        return [Offer(str(number), 0, "b", {"en": "t"}, 1, 0, 1, {"SG": 1}) for number in range(count)]

    old = Sale.from_file(file_of(numbered(2)), 1, KEY)
    assert len(updated(old, file_of(numbered(OFFERS_MAX))).offers) == OFFERS_MAX
    with pytest.raises(SaleFileFaults, match=f"at most {OFFERS_MAX} offers"):
        updated(old, file_of(numbered(OFFERS_MAX + 1)))


def test_an_updated_sale_looks_its_offers_up_anew() -> None:
    offers = list(parse_sale_file(DEMO.read_bytes(), "").offers[:3])
    old = Sale.from_file(file_of(offers[:2]), 1, KEY)
    assert set(old.by_sku) == {offer.sku for offer in offers[:2]}
    assert set(updated(old, file_of(offers)).by_sku) == {offer.sku for offer in offers}


def test_a_new_version_takes_the_sale_s_place_or_adds_it() -> None:
    offers = list(parse_sale_file(DEMO.read_bytes(), "").offers[:1])
    one, two = Sale.from_file(file_of(offers, "one"), 1, KEY), Sale.from_file(file_of(offers, "two"), 2, KEY)
    first = Catalogue(0, ()).with_sale(one).with_sale(two)
    renamed = replace(one, name="Other")
    second = first.with_sale(renamed)
    assert (first.version, second.version) == (2, 3)
    assert (first.sales, second.sales) == ((one, two), (renamed, two))
    assert first.sale("three") is None
    assert first.by_number(3) is None


@pytest.mark.parametrize("number", [0, SALE_NUMBER_MAX + 1])
def test_a_sale_s_number_fits_two_bytes(number: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Sale("s", number, KEY, "n", 1, 2, 3, ())


def test_a_sale_needs_its_whole_key_and_its_offers_in_order() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        Sale("s", 1, KEY[1:], "n", 1, 2, 3, ())
    offer = Offer("a", 1, "b", {"en": "t"}, 1, 0, 1, {"SG": 1})
    with pytest.raises(ValueError, match="index order"):
        Sale("s", 1, KEY, "n", 1, 2, 3, (offer,))


def test_two_sales_of_one_id_or_number_are_no_catalogue() -> None:
    sale = Sale("s", 1, KEY, "n", 1, 2, 3, ())
    for other in (replace(sale, number=2), replace(sale, id="t")):
        with pytest.raises(ValueError, match="share an id or a number"):
            Catalogue(1, (sale, other))


def test_a_version_fits_three_bytes() -> None:
    for version in (-1, CATALOGUE_VERSION_MAX + 1):
        with pytest.raises(ValueError, match="version"):
            Catalogue(version, ())


def test_a_printed_sale_doesn_t_show_its_key() -> None:
    sale = Sale("s", 1, b"\xc0secret-secret-secret-secret-sec", "n", 1, 2, 3, ())
    for printed in (repr(sale), str(sale), repr(Catalogue(1, (sale,))), repr(list(sale.__rich_repr__()))):
        assert "secret" not in printed


def test_a_title_is_in_the_shopper_s_language_or_the_nearest() -> None:
    offer = Offer("a", 0, "b", {"zh": "冰箱", "en": "fridge", "zh-TW": "電冰箱"}, 1, 0, 1, {"SG": 1})
    assert [offer.title_in(locale) for locale in ("zh-TW", "zh-HK", "th-TH", "en-SG")] == [
        "電冰箱",
        "電冰箱",  # Hong Kong reads Traditional Chinese
        "fridge",
        "fridge",
    ]
    assert replace(offer, title={"zh": "冰箱"}).title_in("th-TH") == "冰箱"


def test_the_demo_sale_s_file_is_recognised_by_content() -> None:
    text = DEMO.read_text()
    file = parse_sale_file(text, "a.toml")
    assert canonical(file) == canonical(parse_sale_file("# again\n" + text, "b.toml"))
    assert canonical(file) != canonical(file.with_id("other"))
