"""The bytes of refusals and replays: when to ask again, and what a used key's order has become."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from flashsale.front.verdicts import Answers, time_text
from flashsale.reservation.holds import Hold
from flashsale.sale.catalogue import Sale
from flashsale.sale.order import Line, OrderRequest
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests.integration.shop import FAN, FILE, FRIDGE

NOW_MS = 1_762_790_400_123
HOLD_MS, EXTENSION_MS = 900_000, 600_000


@pytest.fixture
def order() -> Order:
    sale = Sale.from_file(parse_sale_file(FILE.format(id="sale"), "sale.toml"), 1, bytes(32))
    made = Order()
    made.shopper, made.key, made.msgpack = "ann", "key", False
    made.request = OrderRequest(
        sale="sale", market="SG", lines=[Line(sku=FRIDGE, quantity=2), Line(sku=FAN, quantity=1)]
    )
    priced = PricedSale(replace(sale, extension_ms=EXTENSION_MS), 1)
    priced.identify(made)
    priced.price(made)
    return made


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers by lower-case name, body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(headers) == len(lines)
    assert int(headers["content-length"]) == len(body)
    return int(first.split()[1]), headers, orjson.loads(body)


@pytest.mark.parametrize(
    ("wait_ms", "seconds"),
    [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60), (3_600_000, 3600), (86_400_000, 3600)],
)
def test_a_sold_out_order_is_told_when_to_ask_again(order: Order, wait_ms: int, seconds: int) -> None:
    details = iter([1, 0, NOW_MS + wait_ms, "the next order's"])
    status, headers, body = parsed(Answers().sold_out(order, details, NOW_MS))
    assert next(details) == "the next order's"
    assert (status, headers["retry-after"]) == (409, str(seconds))
    assert body["type"].endswith("/sold-out")
    assert body["lines"] == [
        {"sku": FRIDGE, "requested": 2, "available": 1},
        {"sku": FAN, "requested": 1, "available": 0},
    ]
    assert (body["id"], body["retry_after"], body["holds_until"]) == (order.id, seconds, time_text(NOW_MS + wait_ms))


def test_where_no_hold_may_return_nobody_is_told_to_come_back(order: Order) -> None:
    _, headers, body = parsed(Answers().sold_out(order, iter([1, 0, 0]), NOW_MS))
    assert "retry-after" not in headers
    assert not {"retry_after", "holds_until"} & body.keys()


@pytest.mark.parametrize(
    ("letter", "status", "extended"),
    [
        ("h", "reserved", False), ("H", "reserved", True), ("e", "expired", False), ("p", "paid", False),
        ("P", "paid", True), ("s", "shipped", False), ("d", "delivered", False), ("u", "undeliverable", False),
        ("C", "cancelled", True),
    ],
)  # fmt: skip
def test_a_replay_says_what_has_become_of_the_order(order: Order, letter: str, status: str, extended: bool) -> None:
    hold = Hold(letter, bytes(8), 1, NOW_MS, 0, 7)
    answer = Answers().replayed(order, hold)
    code, headers, body = parsed(answer)
    assert (code, headers["idempotent-replayed"]) == (201, "true")
    assert body["status"] == status
    assert body["reserved_until"] == time_text(NOW_MS + HOLD_MS + extended * EXTENSION_MS)
