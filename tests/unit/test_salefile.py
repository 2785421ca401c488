"""The sale file: what is written is what is sold, and what is wrong is named with file, line and field, all at once."""

import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import flashsale.sale
from flashsale.sale.market import MARKETS
from flashsale.sale.money import AMOUNT_MAX_MINOR, format_amount
from flashsale.sale.salefile import (
    FILE_MAX_BYTES,
    OFFERS_MAX,
    Fault,
    SaleFile,
    SaleFileFaults,
    canonical,
    parse_sale_file,
)

DEMO = Path(flashsale.sale.__file__).with_name("double11.toml")

EXAMPLE = """\
[sale]
id = "double11"
name = "Double 11"
opens_at = 2026-11-10T16:00:00Z
closes_at = 2026-11-11T16:00:00Z
hold_seconds = 900

[[offers]]
sku = "HAIER-FRIDGE-320"
brand = "Haier"
title = { en = "320 l fridge" }
stock = 1000
quota = 2                                  # units a shopper, per sale; 0 = no limit
weight_g = 68000
prices = { SG = "899.00", TH = "18990" }   # by market, in the market's currency
"""


def faults_of(text: str | bytes) -> list[Fault]:
    with pytest.raises(SaleFileFaults) as caught:
        parse_sale_file(text, "sale.toml")
    return caught.value.faults


def named(text: str | bytes) -> list[tuple[int, str]]:
    """Line and field of each fault."""
    return [(fault.line, fault.field) for fault in faults_of(text)]


# --- any sale, however written ----------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40).filter(str.strip)
skus = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)
prices = st.dictionaries(st.sampled_from(sorted(MARKETS)), st.integers(1, AMOUNT_MAX_MINOR), min_size=1, max_size=5)
titles = st.dictionaries(st.sampled_from(["en", "zh", "zh-TW", "th", "ja", "fil"]), words, min_size=1)
offers = st.fixed_dictionaries(
    {
        "sku": skus,
        "brand": words,
        "title": titles,
        "stock": st.integers(0, 10**9),
        "quota": st.integers(0, 10_000),
        "weight_g": st.integers(0, 10**8),
        "prices": prices,
    }
)
sales = st.fixed_dictionaries(
    {
        "id": st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True),
        "name": words,
        "opens_at": st.integers(946_684_800_001, 4_000_000_000_000),
        "hold_seconds": st.integers(1, 604_800),
        "offers": st.lists(offers, min_size=1, max_size=4, unique_by=lambda offer: offer["sku"]),
    }
)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def plain(text: str) -> str:
    """A literal string where one can hold the text: the other way to write it."""
    return quoted(text) if "'" in text else f"'{text}'"


def multi_line(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"""\\\n\n   {escaped}"""' if text[0].strip() else quoted(text)


def written(sale: dict, draw: Callable[[st.SearchStrategy], object]) -> tuple[str, dict[str, int]]:
    """The sale as TOML, in whatever style `draw` decides, and the line on which each field was put."""
    text, lines = "", {}

    def put(line: str, field: str = "") -> None:
        nonlocal text
        if field:
            lines[field] = text.count("\n") + 1
        text += line + draw(st.sampled_from(["\n", "\r\n", " # [[offers]] sku = '\n", '\n\n# """ {\n']))

    def string(value: str) -> str:
        return draw(st.sampled_from([quoted, plain, multi_line]))(value)

    def key(name: str) -> str:
        return draw(st.sampled_from([name, f'"{name}"', f"'{name}'", f'"\\u{ord(name[0]):04x}{name[1:]}"']))

    def table(place: str, name: str, values: dict[str, str], below: list) -> None:
        style = draw(st.sampled_from(["inline", "dotted", "header"]))
        field = f"{place}.{name}"
        if style == "inline":
            inner = ", ".join(f"{key(each)} = {string(value)}" for each, value in values.items())
            put(f"{key(name)} = {{ {inner} }}", field)
        elif style == "dotted":
            for each, value in values.items():
                put(f"{key(name)} . {key(each)} = {string(value)}", f"{field}.{each}")
        else:
            below.append((field, name, values))

    put("[sale]", "sale")
    put(f"{key('id')} = {string(sale['id'])}", "sale.id")
    put(f"name = {string(sale['name'])}", "sale.name")
    seconds, milliseconds = divmod(sale["opens_at"], 1000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    put(f"opens_at = {moment}.{milliseconds:03}Z", "sale.opens_at")
    put("closes_at = 2099-12-31T23:59:59+08:00", "sale.closes_at")
    put(f"hold_seconds = {sale['hold_seconds']}", "sale.hold_seconds")
    for index, offer in enumerate(sale["offers"]):
        place, below = f"offers[{index}]", []
        put(f"[[ {key('offers')} ]]", place)
        for name in draw(st.permutations(list(offer))):
            value = offer[name]
            if name == "prices":
                amounts = {market: format_amount(minor, MARKETS[market].currency) for market, minor in value.items()}
                table(place, name, amounts, below)
            elif name == "title":
                table(place, name, value, below)
            else:
                put(f"{key(name)} = {string(value) if isinstance(value, str) else value}", f"{place}.{name}")
        for field, name, values in below:
            put(f"[offers.{key(name)}]", field)
            for each, value in values.items():
                put(f"{key(each)} = {string(value)}", f"{field}.{each}")
    return text, lines


@given(sales, st.data())
def test_what_is_written_is_what_is_sold(sale: dict, data: st.DataObject) -> None:
    text, lines = written(sale, data.draw)
    file = parse_sale_file(text.encode(), "any.toml")
    assert (file.id, file.name, file.opens_at_ms) == (sale["id"], sale["name"], sale["opens_at"])
    assert file.hold_ms == sale["hold_seconds"] * 1000
    for index, (offer, expected) in enumerate(zip(file.offers, sale["offers"], strict=True)):
        assert offer.index == index
        assert {name: getattr(offer, name) for name in expected} == expected
    assert {field: file.line_of(field) for field in lines} == lines


@given(sales, st.data())
def test_the_same_sale_is_recognised_however_it_is_written(sale: dict, data: st.DataObject) -> None:
    one = parse_sale_file(written(sale, data.draw)[0], "one.toml")
    other = parse_sale_file(written(sale, data.draw)[0], "other.toml")
    assert canonical(one) == canonical(other)


@given(sales, st.data())
def test_another_sale_is_another(sale: dict, data: st.DataObject) -> None:
    one = parse_sale_file(written(sale, data.draw)[0], "one.toml")
    changed = data.draw(st.sampled_from(["stock", "quota", "weight_g"]))
    sale["offers"][-1][changed] += 1 if sale["offers"][-1][changed] == 0 else -1
    other = parse_sale_file(written(sale, data.draw)[0], "one.toml")
    assert canonical(one) != canonical(other)


# --- anything at all --------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [line + "\n" for line in EXAMPLE.splitlines()] + list("[]{}=,.\"'#\\\n\r\t \0") + ['"""', "'''"]
)


def verdict(text: str | bytes) -> SaleFile | list[Fault]:
    """A sale or faults that stand inside the file; anything else that is raised fails the test."""
    try:
        return parse_sale_file(text, "any.toml")
    except SaleFileFaults as error:
        assert error.faults
        last = text.count(b"\n" if isinstance(text, bytes) else "\n") + 1
        assert all(fault.source == "any.toml" and 1 <= fault.line <= last for fault in error.faults)
        assert len(str(error).splitlines()) == len(error.faults)
        return error.faults


@given(st.one_of(st.text(), st.binary(), st.lists(pieces).map("".join)))
@example("\ud800")
@example(b"\xff")
@example(EXAMPLE.replace("Haier", "Ha\0ier"))
def test_anything_is_a_sale_or_faults(text: str | bytes) -> None:
    verdict(text)


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_file_is_a_sale_or_faults(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(EXAMPLE)))
    until = data.draw(st.integers(at, min(at + 20, len(EXAMPLE))))
    verdict(EXAMPLE[:at] + data.draw(st.one_of(st.text(max_size=5), pieces)) + EXAMPLE[until:])


values = st.recursive(
    st.sampled_from(
        ["1", "1.5", "nan", "true", '"x"', "2026-11-10", "16:00:00", "2026-11-10T16:00:00Z", "0x" + "f" * 5000]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        inner.map(lambda part: f"{{ a = {part} }}"),
    ),
    max_leaves=5,
)


@given(values, st.sampled_from([line.split(" = ")[0] for line in EXAMPLE.splitlines() if " = " in line]))
def test_a_value_of_another_type_is_named_by_its_field(value: str, key: str) -> None:
    lines = EXAMPLE.splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.startswith(f"{key} = "))
    lines[number - 1] = f"{key} = {value}"
    found = verdict("\n".join(lines))
    if isinstance(found, list):
        assert number in {fault.line for fault in found} or (key == "opens_at" and found[0].field == "sale.closes_at")
    else:
        assert value in ("1", '"x"', "2026-11-10T16:00:00Z")


# --- hostile files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (b"[sale]\nid = \"\xe9\"\n", 2, "not UTF-8: byte 0xe9"),
        ("\n\n\ud800", 3, "surrogate"),
        (EXAMPLE.encode("utf-16"), 1, "not UTF-8"),
        (b"a = 1\n" * 2_000_000, 1, "larger than 8 MiB"),
        ("\n" + "a = " + "[" * 100_000, 2, "nested more than 8 deep"),
        ("a = " + "{a=" * 100_000, 1, "nested more than 8 deep"),
        ("a = " + "[\n" * 100_000, 9, "nested more than 8 deep"),
        ("a" + ".a" * 1_000_000 + " = 1", 1, "nested more than 8 deep"),
        ("[a" + ".a" * 1_000_000 + "]", 1, "nested more than 8 deep"),
        ("a = {a" + " . a" * 1_000_000 + " = 1}", 1, "nested more than 8 deep"),
        ("a = 1\nb = \0\n", 2, "not TOML"),
        ("a = " + "9" * 10_000, 1, "not TOML"),
        ("a = 1\n\na = 2", 3, "not TOML"),
        ("[sale]\nname = 'unclosed\n", 2, "not TOML"),
        ("[sale]\nname = '''unclosed\n", 2, "not TOML"),
        ("opens_at = 2026-02-30T00:00:00Z\n", 1, "not TOML"),
        ("[sale", 1, "not TOML"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)  # fmt: skip
def test_a_hostile_file_is_one_clear_fault(text: str | bytes, line: int, message: str) -> None:
    (fault,) = faults_of(text)
    assert (fault.line, fault.field) == (line, "")
    assert message in fault.message
    assert len(str(fault)) < 300


@pytest.mark.parametrize(
    "unit", ['"""\\', "'''a", '"\\" """\\"', "[a]\n", "a=1\n", "[[a]]\n", "{", "'", "[[", "#\n", ". ", "=", "a,"]
)
def test_no_file_takes_longer_than_its_length_deserves(unit: str) -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        verdict(unit * (size // len(unit)))
        return time.process_time() - started

    seconds(1_000)
    assert seconds(400_000) < 0.05 + 40 * seconds(50_000)  # squares would be 64 times, and 8 is linear


def test_a_file_at_the_bound_is_still_read() -> None:
    filler = "# " + "x" * 97 + "\n"
    file = parse_sale_file(EXAMPLE + filler * ((FILE_MAX_BYTES - len(EXAMPLE)) // len(filler)), "sale.toml")
    assert len(file.offers) == 1


def test_too_many_offers_are_one_fault() -> None:
    assert [fault.field for fault in faults_of(EXAMPLE + "[[offers]]\n" * OFFERS_MAX)] == [f"offers[{OFFERS_MAX}]"]


# --- each fault by its name -------------------------------------------------------------------------------------------


def test_the_contract_s_own_example() -> None:
    file = parse_sale_file(EXAMPLE, "sale.toml")
    assert (file.id, file.name, file.hold_ms) == ("double11", "Double 11", 900_000)
    assert (file.opens_at_ms, file.closes_at_ms) == (1_794_326_400_000, 1_794_412_800_000)
    (offer,) = file.offers
    assert (offer.sku, offer.stock, offer.quota) == ("HAIER-FRIDGE-320", 1000, 2)
    assert offer.prices == {"SG": 89_900, "TH": 1_899_000}


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "message"),
    [
        ('"double11"', '"Double11"', 2, "sale.id", "a-z, 0-9 and -"),
        ('"double11"', '"' + "x" * 41 + '"', 2, "sale.id", "1 to 40"),
        ('"double11"', "11", 2, "sale.id", "must be text, not a whole number"),
        ('"Double 11"', '" "', 3, "sale.name", "must not be blank"),
        ('"Double 11"', '"Double\\n11"', 3, "sale.name", "control characters"),
        ('"Double 11"', '"Double\\u000011"', 3, "sale.name", "control characters"),
        ("2026-11-10T16:00:00Z", "2026-11-10T16:00:00", 4, "sale.opens_at", "offset"),
        ("2026-11-10T16:00:00Z", "2026-11-10", 4, "sale.opens_at", "offset"),
        ("2026-11-10T16:00:00Z", "1794326400", 4, "sale.opens_at", "not a whole number"),
        ("2026-11-10T16:00:00Z", '"2026-11-10T16:00:00Z"', 4, "sale.opens_at", "not text"),
        ("2026-11-10T16:00:00Z", "1999-11-10T16:00:00Z", 4, "sale.opens_at", "between 2000 and 2100"),
        ("2026-11-11T16:00:00Z", "2026-11-10T16:00:00Z", 5, "sale.closes_at", "after opens_at"),
        ("2026-11-11T16:00:00Z", "2026-11-10T23:59:59+08:00", 5, "sale.closes_at", "after opens_at"),
        ("hold_seconds = 900", "hold_seconds = 0", 6, "sale.hold_seconds", "1 to 604800, not 0"),
        ("hold_seconds = 900", "hold_seconds = 900.0", 6, "sale.hold_seconds", "not a number with a point"),
        ("hold_seconds = 900", "hold_secs = 900", 6, "sale.hold_secs", "did you mean hold_seconds?"),
        ("hold_seconds = 900", "", 1, "sale.hold_seconds", "is missing"),
        ("HAIER-FRIDGE-320", "HAIER FRIDGE", 9, "offers[0].sku", "without spaces"),
        ("HAIER-FRIDGE-320", "冰箱", 9, "offers[0].sku", "printable ASCII"),
        ("HAIER-FRIDGE-320", "x" * 65, 9, "offers[0].sku", "1 to 64"),
        ('"Haier"', '""', 10, "offers[0].brand", "must not be blank"),
        ('"Haier"', '"' + "x" * 81 + '"', 10, "offers[0].brand", "at most 80 characters, not 81"),
        ('{ en = "320 l fridge" }', '"320 l fridge"', 11, "offers[0].title", "must be a table, not text"),
        ('{ en = "320 l fridge" }', "{}", 11, "offers[0].title", "at least one language"),
        ("{ en =", "{ english =", 11, "offers[0].title.english", "no language"),
        ("stock = 1000", "stock = -1", 12, "offers[0].stock", "0 to 1000000000, not -1"),
        ("stock = 1000", "stock = 1000000001", 12, "offers[0].stock", "0 to 1000000000"),
        ("stock = 1000", "stock = true", 12, "offers[0].stock", "not true or false"),
        ("stock = 1000", "stock = 1e3", 12, "offers[0].stock", "not a number with a point"),
        ("stock = 1000", 'stock = "1000"', 12, "offers[0].stock", "not text"),
        ("stock = 1000", "stock = 0x" + "f" * 9999, 12, "offers[0].stock", "not a number of 39996 bits"),
        ("quota = 2 ", "quota = 10001", 13, "offers[0].quota", "0 to 10000"),
        ("quota = 2 ", "", 8, "offers[0].quota", "is missing"),
        ("weight_g = 68000", "weight_g = -5", 14, "offers[0].weight_g", "0 to 100000000"),
        ("weight_g = 68000", "weight_kg = 68", 14, "offers[0].weight_kg", "did you mean weight_g?"),
        ('"899.00"', "899.00", 15, "offers[0].prices.SG", "must be text"),
        ('"899.00"', '"899.001"', 15, "offers[0].prices.SG", "SGD has 2"),
        ('"899.00"', '"S$899"', 15, "offers[0].prices.SG", "not a decimal amount"),
        ('"899.00"', '"0.00"', 15, "offers[0].prices.SG", "above 0"),
        ("TH =", "JP =", 0, "", ""),
        ('TH = "18990"', 'JP = "18990.0"', 15, "offers[0].prices.JP", "JPY has none"),
        ("TH =", "XX =", 15, "offers[0].prices.XX", "no market"),
        ("TH =", "sg =", 15, "offers[0].prices.sg", "no market"),
        ('{ SG = "899.00", TH = "18990" }', "{}", 15, "offers[0].prices", "at least one market"),
        ("[sale]\n", "[extra]\n[sale]\n", 1, "extra", "is unknown"),
        ("[[offers]]", "[[offer]]", 8, "offer", "did you mean offers?"),
        ("[[offers]]", "[offers]", 8, "offers", "[[offers]] tables, not a table"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line_and_field(old: str, new: str, line: int, field: str, message: str) -> None:
    assert old in EXAMPLE
    text = EXAMPLE.replace(old, new)
    if not field:
        assert parse_sale_file(text, "sale.toml")
        return
    faults = [fault for fault in faults_of(text) if fault.field == field]
    assert [(fault.source, fault.line) for fault in faults] == [("sale.toml", line)]
    assert message in faults[0].message
    assert str(faults[0]).startswith(f"sale.toml:{line}: {field}: ")


@pytest.mark.parametrize("key", [line.split(" = ")[0] for line in EXAMPLE.splitlines() if " = " in line])
def test_no_key_may_be_left_out(key: str) -> None:
    text = "".join(line for line in EXAMPLE.splitlines(keepends=True) if not line.startswith(f"{key} = "))
    (fault,) = faults_of(text)
    assert fault.field.endswith(f".{key}")
    assert fault.message == "is missing"


def test_every_fault_is_named_at_once_in_the_order_of_lines() -> None:
    text = """\
[sale]
id = "X"
name = 3
opens_at = 2026-11-10
hold_seconds = true
[[offers]]
sku = "a b"
brand = "b"
title.en = ""
title.zh = "好"
stock = -1
quota = 0
weight_g = 1
[offers.prices]
SG = 1
MY = "1.234"
[[offers]]
sku = "same"
brand = "b"
title = { en = "t" }
stock = 1
quota = 0
weight_g = 1
prices = { SG = "1" }
[[offers]]
brand = "b"
sku = "same"
title = { en = "t" }
stock = 1
quota = 0
weight_g = 1
prices = {
"""
    assert named(text.removesuffix("prices = {\n") + 'prices = { QQ = "1" }\n') == [
        (1, "sale.closes_at"),
        (2, "sale.id"),
        (3, "sale.name"),
        (4, "sale.opens_at"),
        (5, "sale.hold_seconds"),
        (7, "offers[0].sku"),
        (9, "offers[0].title.en"),
        (11, "offers[0].stock"),
        (15, "offers[0].prices.SG"),
        (16, "offers[0].prices.MY"),
        (27, "offers[2].sku"),
        (32, "offers[2].prices.QQ"),
    ]


def test_offers_written_as_a_list_have_lines_too() -> None:
    offer = 'brand = "b", title = { en = "t" }, stock = 1, quota = 0, weight_g = 1, prices = { SG = "1" }'
    head = EXAMPLE.split("[[offers]]", maxsplit=1)[0].replace("[sale]\n", "").replace("\n", "\nsale.").rstrip("sale.\n")
    listed = f'sale.{head}\noffers = [\n  {{ sku = "a", {offer} }},\n  # between\n  {{ sku = "b c", {offer} }},\n]\n'
    assert tomllib.loads(listed)
    assert named(listed) == [(9, "offers[1].sku")]


def test_a_byte_order_mark_is_no_fault() -> None:
    assert parse_sale_file(b"\xef\xbb\xbf" + EXAMPLE.encode(), "sale.toml").id == "double11"


def test_an_empty_file_misses_both_parts() -> None:
    assert named("") == [(1, "sale"), (1, "offers")]


def test_another_id_is_checked_as_the_file_s_own() -> None:
    file = parse_sale_file(EXAMPLE, "sale.toml")
    assert file.with_id("again-2").id == "again-2"
    with pytest.raises(SaleFileFaults, match=r"^sale.toml:2: sale.id: 'No good' is no sale id"):
        file.with_id("No good")


def test_another_window_closes_after_it_opens() -> None:
    file = parse_sale_file(EXAMPLE, "sale.toml").with_window(5, 6)
    assert (file.opens_at_ms, file.closes_at_ms) == (5, 6)
    with pytest.raises(ValueError, match="closes after it opens"):
        file.with_window(6, 6)


# --- the demo sale ----------------------------------------------------------------------------------------------------


def test_the_demo_sale_is_a_real_crowd_s_worth() -> None:
    file = parse_sale_file(DEMO.read_bytes(), DEMO.name)
    brands = {offer.brand for offer in file.offers}
    assert file.id == "double11"
    assert len(file.offers) >= 104
    assert len(brands) >= 24
    assert brands >= {"Haier", "Midea", "Gree", "HLA", "Peacebird", "Joyoung", "Jahwa"}
    assert len({MARKETS[market].currency for offer in file.offers for market in offer.prices}) >= 6
    assert sum("SG" in offer.prices for offer in file.offers) >= 60
    assert all("en" in offer.title for offer in file.offers)
    assert {0, 1, 2} <= {offer.quota for offer in file.offers} <= set(range(6))
    assert all(24 <= offer.stock <= 20_000 for offer in file.offers)


def test_the_demo_sale_has_the_contract_s_own_offer() -> None:
    offer = next(offer for offer in parse_sale_file(DEMO.read_bytes(), "").offers if offer.sku == "HAIER-FRIDGE-320")
    assert (offer.stock, offer.quota, offer.weight_g, offer.title["en"]) == (1000, 2, 68_000, "320 l fridge")
    assert (offer.prices["SG"], offer.prices["TH"]) == (89_900, 1_899_000)
