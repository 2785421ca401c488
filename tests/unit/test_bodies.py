"""What a step's body may say, and that everything else is named."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.front import bodies
from flashsale.front.bodies import URL_MAX, fault_of_url
from flashsale.sale.decoding import InvalidBody, MalformedBody, Shape

LINE = {"sku": "A", "quantity": 1}
MONEY = {"amount": 1, "currency": "SGD"}
RIGHT: list[tuple[Shape[Any], Any]] = [
    (bodies.PAYMENT, {"method": "card"}),
    (bodies.PAYMENT, {"method": "alipay", "return_url": "https://shop.example/paid?order=1#top"}),
    (bodies.EXTENSION, {}),
    (bodies.CANCELLATION, {}),
    (bodies.CANCELLATION, {"lines": [LINE, {"sku": "B", "quantity": 10_000}], "reason": "too slow"}),
    (bodies.RETURN, {"lines": [LINE], "reason": "too small"}),
    (bodies.DECISION, {"accept": True}),
    (bodies.RECEIPT, {"lines": [LINE | {"restock": True}, {"sku": "B", "quantity": 1}]}),
    (bodies.SHIPMENT, {}),
    (bodies.SHIPMENT, {"lines": [LINE]}),
    (bodies.DELIVERY, {"delivered": False}),
    (bodies.REFUND, {"amount": MONEY, "reason": "sorry"}),
]
WRONG: list[tuple[Shape[Any], Any, set[str]]] = [
    (bodies.PAYMENT, {}, {"method"}),
    (bodies.PAYMENT, {"method": 5, "return_url": "https://a", "x": 1}, {"method", "x"}),
    (bodies.PAYMENT, {"method": "card", "return_url": "javascript:alert(1)"}, {"return_url"}),
    (bodies.PAYMENT, {"method": "card\0"}, {"method"}),
    (bodies.EXTENSION, {"minutes": 5}, {"minutes"}),
    (bodies.EXTENSION, [], {"$"}),
    (bodies.CANCELLATION, {"lines": []}, {"lines"}),
    (bodies.CANCELLATION, {"lines": [LINE, LINE]}, {"lines[1].sku"}),
    (bodies.CANCELLATION, {"lines": [LINE] * 21}, {"lines"}),
    (bodies.CANCELLATION, {"reason": "x" * 501}, {"reason"}),
    (bodies.CANCELLATION, {"reason": "a\0"}, {"reason"}),
    (bodies.RETURN, {"lines": [{"sku": "", "quantity": 0, "restock": True}]}, {
        "reason", "lines[0].sku", "lines[0].quantity", "lines[0].restock",
    }),
    (bodies.DECISION, {"accept": "yes"}, {"accept"}),
    (bodies.DECISION, {"accept": 1}, {"accept"}),
    (bodies.RECEIPT, {"lines": [LINE | {"restock": 1}]}, {"lines[0].restock"}),
    (bodies.DELIVERY, {}, {"delivered"}),
    (bodies.REFUND, {"amount": {"amount": -1, "currency": "S"}, "reason": ""}, {
        "amount.amount", "amount.currency", "reason",
    }),
    (bodies.REFUND, {"amount": MONEY | {"amount": 0}, "reason": "x"}, {"amount.amount"}),
    (bodies.REFUND, {"amount": 5, "reason": "x"}, {"amount"}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "body"), RIGHT)
def test_a_body_is_read_the_same_from_json_and_messagepack(shape: Shape[Any], body: Any) -> None:
    assert shape.from_json(json.dumps(body).encode()) == shape.from_msgpack(msgpack.packb(body))


@pytest.mark.parametrize(("shape", "body", "named"), WRONG)
def test_every_field_at_fault_is_named(shape: Shape[Any], body: Any, named: set[str]) -> None:
    for read, encoded in ((shape.from_json, json.dumps(body).encode()), (shape.from_msgpack, msgpack.packb(body))):
        with pytest.raises(InvalidBody) as fault:
            read(encoded)
        assert set(fault.value.fields) == named


@given(st.sampled_from([shape for shape, _ in RIGHT]), st.binary(max_size=100))
def test_any_bytes_are_malformed_or_named(shape: Shape[Any], body: bytes) -> None:
    for read in (shape.from_json, shape.from_msgpack):
        try:
            read(body)
        except (MalformedBody, InvalidBody):
            continue


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/",
        "https://shop.example:8443/a?b=c&d=%20#e",
        "http://127.0.0.1:3000/paid",
        "http://localhost/paid",
        "http://[::1]:3000/",
        "https://xn--fiq228c.example/",
    ],
)
def test_a_browser_may_be_sent_here(url: str) -> None:
    assert fault_of_url(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/paid",
        "//shop.example/",
        "http://shop.example/",
        "http://127.0.0.1.example/",
        "http://localhost.example/",
        "http://10.0.0.1/",
        "https://",
        "https:///paid",
        "https://:443/",
        "https://user@shop.example/",
        "https://user:secret@shop.example/",
        "https://@shop.example/",
        "https://shop.example:99999/",
        "https://shop.example:0/",
        "https://shop.example:x/",
        "https://[::1/",
        "https://shop.example/a b",
        "https://shop.example/\n",
        "https://shop.example\\@evil.example/",
        "https://商店.example/",
        "javascript:alert(1)",
        "data:text/html,x",
        "ftp://shop.example/",
    ],
)
def test_a_browser_is_not_sent_there(url: str) -> None:
    assert fault_of_url(url)


def test_an_address_has_a_bound() -> None:
    longest = "https://shop.example/".ljust(URL_MAX, "a")
    assert bodies.PAYMENT.from_json(json.dumps({"method": "card", "return_url": longest}).encode())
    with pytest.raises(InvalidBody):
        bodies.PAYMENT.from_json(json.dumps({"method": "card", "return_url": longest + "a"}).encode())


@given(st.text(max_size=60))
def test_any_address_is_judged(text: str) -> None:
    assert isinstance(fault_of_url("https://" + text), str)
