"""The order's shape: what is taken, what is malformed, and that every fault is named by its field."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.decoding import FAULTS_MAX, InvalidBody, MalformedBody
from flashsale.sale.order import LINES_MAX, QUANTITY_MAX, OrderRequest, from_json, from_msgpack

ORDER: dict[str, Any] = {"sale": "double11", "lines": [{"sku": "A", "quantity": 1}], "market": "SG"}
WHOLE = ORDER | {
    "channel": "tmall-world",
    "lane": "cainiao-standard",
    "ship_to": {"name": "陳大文", "country": "SG", "street": "a\tb\\N\u2028"},
    "expected_total": {"amount": 89900, "currency": "SGD"},
}
LINE = {"sku": "A", "quantity": 1}


def faults(document: Any) -> dict[str, str]:
    """The fields at fault, the same in both forms; none for an order that is taken."""
    found = []
    for read, body in ((from_json, json.dumps(document).encode()), (from_msgpack, _packed(document))):
        if body is None:
            continue
        try:
            read(body)
        except InvalidBody as fault:
            found.append(fault.fields)
        else:
            found.append({})
    assert [set(one) for one in found] == [set(found[0])] * len(found)
    return found[0]


def _packed(document: Any) -> bytes | None:
    try:
        packed: bytes = msgpack.packb(document)
    except (UnicodeEncodeError, OverflowError):  # lone surrogates and huge numbers have no MessagePack
        return None
    return packed


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed_or_no_order(body: bytes) -> None:
    for read in (from_json, from_msgpack):
        with pytest.raises((MalformedBody, InvalidBody)):
            read(body)


@given(st.data(), st.sampled_from([json.dumps(WHOLE).encode(), msgpack.packb(WHOLE)]))
def test_a_damaged_order_is_taken_or_refused_never_an_error(data: st.DataObject, body: bytes) -> None:
    place = data.draw(st.integers(0, len(body)))
    damaged = body[:place] + data.draw(st.binary(max_size=12)) + body[place + data.draw(st.integers(0, 4)) :]
    for read in (from_json, from_msgpack):
        try:
            order = read(damaged)
        except (MalformedBody, InvalidBody):
            continue
        assert isinstance(order, OrderRequest)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("sale", "lines", "market", "channel", "lane", "ship_to", "expected_total", "other")


@given(st.sampled_from(FIELDS), ANYTHING)
def test_a_field_of_any_value_is_taken_or_named(field: str, value: Any) -> None:
    try:
        from_json(json.dumps(WHOLE | {field: value}).encode())
    except MalformedBody:
        assert "NaN" in json.dumps(value) or "Infinity" in json.dumps(value)
    except InvalidBody as fault:
        named = {name.partition(".")[0].partition("[")[0] for name in fault.fields}
        assert named == {field}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sale": None}, {"sale"}),
        ({"sale": ""}, {"sale"}),
        ({"sale": "x" * 65}, {"sale"}),
        ({"market": 5}, {"market"}),
        ({"lines": []}, {"lines"}),
        ({"lines": {}}, {"lines"}),
        ({"lines": [{"sku": str(n), "quantity": 1} for n in range(LINES_MAX + 1)]}, {"lines"}),
        ({"lines": [LINE, LINE, LINE]}, {"lines[1].sku", "lines[2].sku"}),
        ({"lines": [LINE, 5]}, {"lines[1]"}),
        ({"lines": [{"sku": "", "quantity": 0}]}, {"lines[0].sku", "lines[0].quantity"}),
        ({"lines": [{"sku": "A", "quantity": QUANTITY_MAX + 1}]}, {"lines[0].quantity"}),
        ({"lines": [{"sku": "A", "quantity": 1.5}]}, {"lines[0].quantity"}),
        ({"lines": [{"sku": "A", "quantity": True}]}, {"lines[0].quantity"}),
        ({"lines": [{"sku": "A", "quantity": "1"}]}, {"lines[0].quantity"}),
        ({"lines": [{"sku": "A", "quantity": 2**70}]}, {"lines[0].quantity"}),
        ({"lines": [{"sku": "A"}]}, {"lines[0].quantity"}),
        ({"lines": [{"sku": "A", "quantity": 1, "price": 1}]}, {"lines[0].price"}),
        ({"channel": "-x"}, {"channel"}),
        ({"channel": "a b", "lane": "\\N"}, {"channel", "lane"}),
        ({"lane": ""}, {"lane"}),
        ({"ship_to": {}}, {"ship_to.country"}),
        ({"ship_to": {"country": "sg"}}, {"ship_to.country"}),
        ({"ship_to": {"country": "SGP"}}, {"ship_to.country"}),
        ({"ship_to": {"country": "SG", "name": "x" * 201}}, {"ship_to.name"}),
        ({"ship_to": {"country": "SG", "name": "a\0b"}}, {"ship_to.name"}),
        ({"ship_to": {"country": "SG", "planet": "x"}}, {"ship_to.planet"}),
        ({"expected_total": {"amount": -1, "currency": "SGDX"}}, {"expected_total.amount", "expected_total.currency"}),
        ({"coupon": "x", "sale": 5}, {"coupon", "sale"}),
        ({"sale": "\0", "market": "\0"}, {"sale", "market"}),
        ({"lines": [{"sku": "A\0", "quantity": 1}]}, {"lines[0].sku"}),
    ],
)
def test_every_field_at_fault_is_named(changes: dict[str, Any], named: set[str]) -> None:
    assert set(faults(ORDER | changes)) == named


def test_fields_that_are_missing_are_named() -> None:
    assert faults({}).keys() == {"sale", "lines", "market"}
    assert faults([]).keys() == {"$"}
    assert faults(None).keys() == {"$"}


@pytest.mark.parametrize(
    "field", ["name", "street", "street2", "district", "city", "region", "postcode", "phone", "email"]
)
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\0"])
def test_what_no_ledger_can_store_is_named(field: str, text: str) -> None:
    body = json.dumps(ORDER | {"ship_to": {"country": "SG", field: text}}).encode()
    with pytest.raises(InvalidBody) as fault:
        from_json(body)
    assert set(fault.value.fields) == {f"ship_to.{field}"}


def test_a_pair_of_surrogates_is_one_character() -> None:
    order = from_json(
        b'{"sale":"a","lines":[{"sku":"A","quantity":1}],"market":"SG","ship_to":{"country":"SG","name":"\\ud83d\\ude00"}}'
    )
    assert order.ship_to is not None
    assert order.ship_to.name == "\U0001f600"


def test_a_stranger_s_fields_are_named_up_to_a_bound_and_printable() -> None:
    assert len(faults(ORDER | {f"x{number}": 1 for number in range(10_000)})) == FAULTS_MAX
    assert faults(ORDER | {"\x1b[31m\n" + "x" * 1000: 1}).keys() == {ascii("\x1b[31m\n" + "x" * 1000)[1:-1][:60]}


def test_nesting_without_end_is_malformed() -> None:
    for read, body in ((from_json, b"[" * 100_000), (from_json, b'[{"":' * 50_000), (from_msgpack, b"\x91" * 200_000)):
        with pytest.raises(MalformedBody):
            read(body)


@pytest.mark.parametrize(
    "timestamp",
    [
        bytes.fromhex("c70cff3b9ac9ff0000003afff44180"),  # the year 10000
        bytes.fromhex("c70cff00000000fffffff1868b8400"),  # the year 0
        bytes.fromhex("d6ff00000000"),
    ],
)
def test_a_timestamp_however_far_is_no_field_of_an_order(timestamp: bytes) -> None:
    for name, changes in (("sale", {"sale": "@"}), ("lines[0].sku", {"lines": [{"sku": "@", "quantity": 1}]})):
        with pytest.raises(InvalidBody) as fault:
            from_msgpack(msgpack.packb(ORDER | changes).replace(b"\xa1@", timestamp))
        assert set(fault.value.fields) == {name}
    with pytest.raises(InvalidBody):
        from_msgpack(timestamp)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=200))
def test_any_text_is_read_to_the_letter_in_both_forms(text: str) -> None:
    document = ORDER | {"ship_to": {"country": "SG", "name": text}}
    read = [
        from_json(json.dumps(document).encode()),
        from_json(json.dumps(document, ensure_ascii=False).encode()),
        from_msgpack(msgpack.packb(document)),
    ]
    for order in read:
        assert order.ship_to is not None
        assert order.ship_to.name == text
