"""An order as a shopper sends it: its shape, and what its types do not say of it.

The hot path takes its own way through decoding.py: one typed decode, and texts are looked through only where they may
hide something. Pure; relies on msgspec.
"""

from __future__ import annotations

import re
from string import ascii_uppercase
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from flashsale.sale.decoding import (
    UNDECODABLE,
    InvalidBody,
    check_texts,
    explain_json,
    explain_msgpack,
    name_repeated_skus,
)

LINES_MAX = 20
QUANTITY_MAX = 10_000
AMOUNT_MAX = 10**15

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=200)]
Country = Annotated[str, Meta(min_length=2, max_length=2)]


class Line(Struct, gc=False, forbid_unknown_fields=True):
    """quantity units of one SKU."""

    sku: Name
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class Address(Struct, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """Where the parcel goes; `country` is an ISO 3166 code."""

    country: Country
    name: Text | None = None
    street: Text | None = None
    street2: Text | None = None
    district: Text | None = None
    city: Text | None = None
    region: Text | None = None
    postcode: Text | None = None
    phone: Text | None = None
    email: Text | None = None


class Amount(Struct, gc=False, forbid_unknown_fields=True):
    """Minor units of an ISO 4217 currency."""

    amount: Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
    currency: Annotated[str, Meta(min_length=3, max_length=3)]


class OrderRequest(Struct, gc=False, forbid_unknown_fields=True):
    """The body of `POST /v1/orders`. `recipient` is `for` outside: whom an agent orders for. `identity`: the verified
    one whose import limit the order counts for."""

    sale: Name
    lines: Annotated[list[Line], Meta(min_length=1, max_length=LINES_MAX)]
    market: Annotated[str, Meta(min_length=1, max_length=8)]
    channel: Name | None = None
    lane: Name | None = None
    ship_to: Address | None = None
    expected_total: Amount | None = None
    recipient: Annotated[str, Meta(min_length=1, max_length=128)] | None = msgspec.field(default=None, name="for")
    identity: Name | None = None


_decode_json = msgspec.json.Decoder(OrderRequest).decode
_decode_msgpack = msgspec.msgpack.Decoder(OrderRequest).decode
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COUNTRIES = frozenset(a + b for a in ascii_uppercase for b in ascii_uppercase)
_known_tags: set[str | None] = {None}
_KNOWN_TAGS_MAX = 4096  # channels and lanes that passed the pattern; a stranger can't make the set grow beyond it


def from_json(body: bytes) -> OrderRequest:
    """The order in a JSON body. Raises MalformedBody or InvalidBody."""
    try:
        order = _decode_json(body)
    except UNDECODABLE:
        explain_json(body, OrderRequest)
    check(order)
    if b"\\" in body:  # an escape is the only way for U+0000 into a JSON string that msgspec lets through
        check_texts(order)
    return order


def from_msgpack(body: bytes) -> OrderRequest:
    """The order in a MessagePack body. Raises MalformedBody or InvalidBody."""
    try:
        order = _decode_msgpack(body)
    except UNDECODABLE:
        explain_msgpack(body, OrderRequest)
    check(order)
    check_texts(order)
    return order


def check(order: OrderRequest) -> None:
    """What the types do not say."""
    lines, ship_to = order.lines, order.ship_to
    if (
        (len(lines) > 1 and len({line.sku for line in lines}) < len(lines))
        or order.channel not in _known_tags
        or order.lane not in _known_tags
        or (ship_to is not None and ship_to.country not in _COUNTRIES)
    ):
        _check_slowly(order)


def _check_slowly(order: OrderRequest) -> None:
    faults: dict[str, str] = {}
    name_repeated_skus([line.sku for line in order.lines], faults)
    for field in ("channel", "lane"):
        tag = getattr(order, field)
        if tag is None:
            continue
        if _TAG.fullmatch(tag) is None:
            faults[field] = "letters, digits, '.', '_' and '-', beginning with a letter or digit"
        elif len(_known_tags) < _KNOWN_TAGS_MAX:
            _known_tags.add(tag)
    if order.ship_to is not None and order.ship_to.country not in _COUNTRIES:
        faults["ship_to.country"] = "an ISO 3166 country code, two capital letters"
    if faults:
        raise InvalidBody(faults)
