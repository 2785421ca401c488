"""Catalogues as CSV: whatever dialect they are written in, the same products come out; every fault has its place."""

import csv
import gzip
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.products import skus
from flashsale.sale.products.columns import HEADERS
from flashsale.sale.products.numbers import NotANumber, decimal
from flashsale.sale.products.product import Finding, Product
from flashsale.sale.products.reading import Variant, read
from tests import corpora

OLD, NEW = 0, 1
FIELDS = ("handle", "title", "vendor", "option1 name", "option1 value", "sku", "price", "stock", "weight_g", "hs_code",
          "origin", "expect", "quota", "barcode", "image")  # fmt: skip


def header_of(field: str, generation: int) -> str:
    return HEADERS[field][min(generation, len(HEADERS[field]) - 1)]


def written(rows: list[dict[str, str]], *, generation: int = OLD, delimiter: str = ",", bom: bool = False,
            end: str = "\r\n") -> bytes:  # fmt: skip
    text = io.StringIO()
    file = csv.writer(text, delimiter=delimiter, lineterminator=end)
    file.writerow([header_of(field, generation).title() for field in FIELDS])
    for row in rows:
        file.writerow([row.get(field, "") for field in FIELDS])
    return ("\ufeff" if bom else "").encode() + text.getvalue().encode()


def products(data: bytes, **more: Any) -> tuple[list[Product], list[Finding]]:
    found = list(read(io.BytesIO(data), more.pop("currency", "USD"), **more))
    return [each for each in found if isinstance(each, Product)], [each for each in found if isinstance(each, Finding)]


def lamp(**more: str) -> dict[str, str]:
    return {"handle": "lamp", "title": "Lamp", "sku": "L1", "price": "9.99", "stock": "5", **more}


# --- every dialect ---

texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20).map(str.strip).filter(bool)
rows_of_catalogue = st.lists(
    st.fixed_dictionaries(
        {
            "handle": st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True),
            "title": texts,
            "vendor": texts,
            "sku": st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True),
            "price": st.integers(0, 10**7),
            "stock": st.integers(0, 10**6),
            "weight_g": st.integers(0, 10**5),
        }
    ),
    max_size=12,
    unique_by=(lambda row: row["sku"], lambda row: row["handle"]),  # type: ignore[no-any-return]
)


@given(
    rows_of_catalogue,
    st.sampled_from((OLD, NEW)),
    st.sampled_from(",;\t"),
    st.booleans(),
    st.sampled_from(("\n", "\r\n")),
    st.sampled_from((".", ",")),
)
def test_the_same_products_come_out_of_every_dialect(
    rows: list[dict[str, Any]], generation: int, delimiter: str, bom: bool, end: str, mark: str
) -> None:
    asked = [
        row | {"price": f"{row['price'] // 100}{mark}{row['price'] % 100:02d}", "stock": str(row["stock"]),
               "weight_g": str(row["weight_g"])}
        for row in rows
    ]  # fmt: skip
    data = written(asked, generation=generation, delimiter=delimiter, bom=bom, end=end)
    found, said = products(data)
    assert [finding for finding in said if finding.severity == "fault"] == []
    assert [
        (each.row, each.handle, each.title, each.vendor, each.sku, each.price, each.stock, each.weight_g)
        for each in found
    ] == [
        (place, row["handle"], {"en": row["title"]}, row["vendor"], row["sku"], row["price"], row["stock"],
         row["weight_g"])
        for place, row in enumerate(rows, 2)
    ]  # fmt: skip


def test_a_variant_has_what_its_product_s_first_row_says() -> None:
    first = lamp() | {"option1 name": "Colour", "option1 value": "red", "vendor": "Lux"}
    second = {"handle": "lamp", "option1 value": "blue", "sku": "L2", "price": "8"}
    picture = {"handle": "lamp", "image": "https://example.com/1.jpg"}
    found, said = products(written([first, picture, second]))
    assert said == []
    assert [(each.row, each.sku, each.options, each.title, each.vendor) for each in found] == [
        (2, "L1", (("Colour", "red"),), {"en": "Lamp"}, "Lux"),
        (4, "L2", (("Colour", "blue"),), {"en": "Lamp"}, "Lux"),
    ]
    assert found[1].stock is None  # blank: nothing is erased


def test_a_cell_may_hold_line_breaks_and_a_row_is_a_record() -> None:
    data = b'Handle,Body (HTML),Title,Variant Price,Variant SKU\na,"one\ntwo\r\nthree",A,1,A1\nb,,B,no,B1\n'
    found, said = products(data)
    assert [each.sku for each in found] == ["A1"]
    assert [(each.row, each.column, each.code) for each in said] == [(3, "Variant Price", "not-a-number")]


def test_titles_in_other_languages() -> None:
    data = "Handle,Title,Title (th),Title (zh-Hans),Variant Price,Variant SKU\nl,Lamp,โคมไฟ,灯,1,A\n".encode()
    assert products(data)[0][0].title == {"en": "Lamp", "th": "โคมไฟ", "zh-Hans": "灯"}


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", "12"), ("12.5", "12.5"), ("12,5", "12.5"), ("9,99", "9.99"), ("1.234,50", "1234.50"),
        ("1,234.50", "1234.50"), ("1.234.567", "1234567"), ("1,234,567", "1234567"), ("1 234,50", "1234.50"),
        ("1'234.50", "1234.50"), ("0.125", "0.125"), ("0,125", "0.125"), ("1234,567", "1234.567"), ("-3", "-3"),
        ("1.2345", "1.2345"), ("-1.234,5", "-1234.5"),
    ],
)  # fmt: skip
def test_a_number_is_read_as_it_is_meant(text: str, number: str) -> None:
    assert decimal(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    ["1,234", "1.234", "999,000", "-1,234", "$5", "5 €", "1e3", "NaN", "Infinity", "--1", "1,23,456", "1.2.3", ".5",
     "5.", "1,234.5.6", "١٢", "0x10", "1_000", "9" * 30],
)  # fmt: skip
def test_what_may_be_two_numbers_or_none_is_refused(text: str) -> None:
    with pytest.raises(NotANumber):
        decimal(text)


def test_a_known_mark_settles_it() -> None:
    assert (decimal("1,234", "."), decimal("1,234", ",")) == (Decimal(1234), Decimal("1.234"))
    assert (decimal("1.234", "."), decimal("1.234", ",")) == (Decimal("1.234"), Decimal(1234))


@given(st.integers(0, 10**12), st.integers(0, 4), st.sampled_from((".", ",")), st.booleans())
def test_a_written_number_is_read_exactly_or_refused(number: int, places: int, mark: str, grouped: bool) -> None:
    exact = Decimal(number).scaleb(-places)
    plain = f"{exact:{',' if grouped else ''}.{places}f}"
    text = plain if mark == "." else plain.translate(str.maketrans(".,", ",."))
    assert decimal(text, mark) == exact
    try:
        assert decimal(text) == exact
    except NotANumber as refusal:
        assert "may be" in str(refusal)  # the two readings are named


# --- SKUs ---


def test_a_blank_sku_gets_the_same_one_at_every_import() -> None:
    rows = [lamp(sku="") | {"option1 name": "Size", "option1 value": size} for size in ("S", "M")]
    rows[1]["title"] = ""
    once, again = products(written(rows))[0], products(written(rows[:1] + rows[1:], delimiter=";"))[0]
    assert [each.sku for each in once] == [each.sku for each in again]
    assert len({each.sku for each in once}) == 2
    assert all(skus.is_sku(each.sku) and each.sku.startswith("lamp-") for each in once)


def test_a_repeated_sku_is_a_warning_and_a_derived_one_that_stays() -> None:
    rows = [lamp(), lamp(handle="desk", title="Desk")]
    found, said = products(written(rows))
    assert [finding.code for finding in said] == ["sku-repeated"]
    assert found[0].sku == "L1" and found[1].sku.startswith("L1-")
    known: dict[str, Variant] = {each.sku: (each.handle, each.options) for each in found}
    turned, _ = products(written(rows[::-1]), known=known)
    assert {(each.handle, each.sku) for each in turned} == {(each.handle, each.sku) for each in found}


def test_a_known_sku_under_another_handle_is_the_same_product() -> None:
    found, said = products(written([lamp(handle="new-name")]), known={"L1": ("lamp", ())})
    assert [each.sku for each in found] == ["L1"] and said == []


@given(st.text(min_size=1, max_size=100))
def test_a_sku_that_can_t_stay_as_it_is_gets_one_that_can(sku: str) -> None:
    made = skus.rewritten(sku)
    assert skus.is_sku(made) and made == skus.rewritten(sku)
    assert skus.is_sku(skus.of_variant(sku, (("a", sku),)))


# --- faults and warnings ---


@pytest.mark.parametrize(
    ("change", "column", "code"),
    [
        ({"price": "1,234"}, "Variant Price", "not-a-number"),
        ({"price": "1.999"}, "Variant Price", "not-a-number"),
        ({"price": "1.9999"}, "Variant Price", "too-many-decimals"),
        ({"price": "-1"}, "Variant Price", "out-of-range"),
        ({"price": "99999999999999"}, "Variant Price", "out-of-range"),
        ({"price": ""}, "Variant Price", "missing"),
        ({"title": ""}, "Title", "missing"),
        ({"title": "x" * 201}, "Title", "too-long"),
        ({"title": "a\nb"}, "Title", "control-character"),
        ({"stock": "2.5"}, "Variant Inventory Qty", "out-of-range"),
        ({"stock": "many"}, "Variant Inventory Qty", "not-a-number"),
        ({"weight_g": "-1"}, "Variant Grams", "out-of-range"),
        ({"quota": "20000"}, "Quota", "out-of-range"),
        ({"hs_code": "84.18"}, "Hs Code", "not-an-hs-code"),
        ({"hs_code": "fridge"}, "Hs Code", "not-an-hs-code"),
        ({"origin": "China"}, "Country Of Origin", "not-a-country"),
        ({"handle": ""}, "Handle", "missing"),
    ],
)
def test_a_fault_names_row_and_column(change: dict[str, str], column: str, code: str) -> None:
    found, said = products(written([lamp(sku="L0", handle="other"), lamp(**change)]))
    assert [each.sku for each in found] == ["L0"]
    assert [(each.row, each.column, each.code, each.severity) for each in said] == [(3, column, code, "fault")]


def test_every_fault_of_every_row_is_told() -> None:
    bad = lamp(price="x", stock="y", hs_code="z")
    _, said = products(written([bad | {"handle": f"h{number}", "sku": f"S{number}"} for number in range(50)]))
    assert len(said) == 150
    assert {each.row for each in said} == set(range(2, 52))


def test_negative_stock_counts_as_none() -> None:
    found, said = products(written([lamp(stock="-4")]))
    assert found[0].stock == 0
    assert [(each.severity, each.code) for each in said] == [("warning", "negative-stock")]


def test_the_same_variant_twice_is_a_fault() -> None:
    _, said = products(written([lamp(), lamp(sku="L2")]))
    assert [(each.row, each.code, each.message) for each in said] == [
        (3, "variant-twice", "the same product and options as in row 2")
    ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"\r\n", "empty"),
        (b"PK\x03\x04...", "not-csv"),
        ("Handle,Title".encode("utf-16"), "not-csv"),
        (b"Name,Price\na,1\n", "column-missing"),
        (b"Handle,Title,Price,Variant Price\na,b,1,2\n", "column-twice"),
        (b'Handle,Title,Price\na,"b,1\n', "not-csv"),
        (b"Handle,Title,Price,SKU\na,b,1,S,extra\n", "too-many-cells"),
        ("Handle,Title,Price,SKU\na,Träger,1,S\n".encode("latin-1"), "not-utf-8"),
    ],
)
def test_a_file_that_is_none_says_so(data: bytes, code: str) -> None:
    found, said = products(data)
    assert found == []
    assert [each.code for each in said] == [code]


@given(st.binary(max_size=300))
def test_no_bytes_are_a_crash(data: bytes) -> None:
    products(data)
    products(b"Handle,Title,Variant Price,Variant SKU\n" + data)


def test_minor_units_are_the_currency_s() -> None:
    assert products(written([lamp(price="899")]), currency="JPY")[0][0].price == 899
    assert products(written([lamp(price="1.2345")]), currency="KWD")[1][0].code == "too-many-decimals"


# --- catalogues that others wrote ---

CORPUS = {  # products, warnings
    "shopify_2023_apparel.csv": (22, 0),
    "shopify_2023_home-and-garden.csv": (21, 0),
    "shopify_2023_jewelery.csv": (23, 0),
    "shopify_apparel.csv": (96, 2),
    "shopify_bicycles.csv": (1121, 1172),
    "shopify_fashion.csv.gz": (3684, 13),
    "shopify_jewelry.csv": (24, 1),
    "shopify_snowdevil.csv": (622, 6),
}


@pytest.mark.skipif(bool(corpora.absent()), reason=corpora.absent())
@pytest.mark.parametrize("name", CORPUS)
def test_a_catalogue_of_others_is_read_whole(name: str) -> None:
    path = Path(corpora.FOLDER, "catalogue", name)
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    found, said = products(data)
    assert (len(found), len(said)) == CORPUS[name]
    assert {each.severity for each in said} <= {"warning"}
    assert len({each.sku for each in found}) == len(found)
    # Read by the standard library, each row with a price is a product of that price.
    rows = [row for row in csv.DictReader(io.StringIO(data.decode(), newline="")) if row["Variant Price"]]
    assert [each.price for each in found] == [int(Decimal(row["Variant Price"]) * 100) for row in rows]
    assert [each.handle for each in found] == [row["Handle"] for row in rows]
