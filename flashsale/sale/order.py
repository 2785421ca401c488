"""An order as a shopper sends it: its shape, how it is decoded from JSON or MessagePack, and every fault in it.

The good path is one typed decode. Only what that refuses is decoded again without types, to tell malformed bytes (400)
from an order that is not valid (422) and to name every field at fault, not the first alone. Pure; relies on msgspec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from string import ascii_uppercase
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

LINES_MAX = 20
QUANTITY_MAX = 10_000
AMOUNT_MAX = 10**15
FAULTS_MAX = 100  # fields of strangers' making that an answer names: a body can hold tens of thousands

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
    """The body of `POST /v1/orders`."""

    sale: Name
    lines: Annotated[list[Line], Meta(min_length=1, max_length=LINES_MAX)]
    market: Annotated[str, Meta(min_length=1, max_length=8)]
    channel: Name | None = None
    lane: Name | None = None
    ship_to: Address | None = None
    expected_total: Amount | None = None


class MalformedBody(Exception):
    """The bytes are not what their media type says."""


class InvalidOrder(Exception):
    """The body decodes, and is not a valid order. `fields` maps each field at fault to what is wrong with it."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields)
        self.fields = fields


_decode_json = msgspec.json.Decoder(OrderRequest).decode
_decode_msgpack = msgspec.msgpack.Decoder(OrderRequest).decode
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_COUNTRIES = frozenset(a + b for a in ascii_uppercase for b in ascii_uppercase)
_known_tags: set[str | None] = {None}
_KNOWN_TAGS_MAX = 4096  # channels and lanes that passed the pattern; a stranger can't make the set grow beyond it


def from_json(body: bytes) -> OrderRequest:
    """The order in a JSON body. Raises MalformedBody or InvalidOrder."""
    try:
        order = _decode_json(body)
    except _UNDECODABLE:
        _explain(body, _decode_any_json)
    _check(order)
    if b"\\" in body:  # an escape is the only way for U+0000 into a JSON string that msgspec lets through
        _check_texts(order)
    return order


def from_msgpack(body: bytes) -> OrderRequest:
    """The order in a MessagePack body. Raises MalformedBody or InvalidOrder."""
    try:
        order = _decode_msgpack(body)
    except _UNDECODABLE:
        _explain(body, _decode_any_msgpack)
    _check(order)
    _check_texts(order)
    return order


def _check(order: OrderRequest) -> None:
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
    _name_repeated_skus([line.sku for line in order.lines], faults)
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
        raise InvalidOrder(faults)


def _name_repeated_skus(skus: list[str], faults: dict[str, str]) -> None:
    seen: set[str] = set()
    for number, sku in enumerate(skus):
        if sku in seen:
            faults[f"lines[{number}].sku"] = "named before: one line a SKU"
        seen.add(sku)


def _check_texts(order: OrderRequest) -> None:
    faults: dict[str, str] = {}
    _name_unstorable(msgspec.to_builtins(order), "", faults)
    if faults:
        raise InvalidOrder(faults)


def _name_unstorable(value: Any, path: str, faults: dict[str, str]) -> None:
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            faults[path] = "U+0000 and lone surrogates can't be stored"
    elif isinstance(value, dict):
        for key, inner in value.items():
            _name_unstorable(inner, f"{path}.{key}" if path else str(key), faults)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _name_unstorable(inner, f"{path}[{number}]", faults)


def _decode_any_json(body: bytes) -> Any:
    """Any JSON document. A lone surrogate, which msgspec calls malformed JSON, is the fault of a field."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as fault:
        if b"\\u" not in body:
            raise
        try:
            document = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise fault from None
        faults: dict[str, str] = {}
        _name_unstorable(document, "", faults)
        if not faults:
            raise
        raise InvalidOrder(faults) from None


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _decode_any_msgpack(body: bytes) -> Any:
    """Any MessagePack document. A timestamp beyond Python's years, which msgspec can't hold, is no order's field."""
    try:
        return msgspec.msgpack.decode(body)
    except ValueError as fault:
        if isinstance(fault, _UNDECODABLE) and not isinstance(fault, msgspec.ValidationError):
            raise
        said, _, path = str(_refusal(body)).partition(" - at `$")
        raise InvalidOrder({path.removeprefix(".").removesuffix("`") or "$": said}) from None


def _refusal(body: bytes) -> Exception | None:
    """What the typed decode has against a MessagePack body: the first fault."""
    try:
        _decode_msgpack(body)
    except _UNDECODABLE as fault:
        return fault
    return None


def _explain(body: bytes, decode: Callable[[bytes], Any]) -> Any:
    """Why the typed decode refused: always raises."""
    try:
        document = decode(body)
    except _UNDECODABLE as fault:
        raise MalformedBody(f"{fault}" or "nested too deeply") from None
    faults: dict[str, str] = {}
    if isinstance(document, dict):
        _name_faults(document, OrderRequest, "", faults)
    else:
        faults["$"] = "an order is an object"
    raise InvalidOrder(faults or {"$": "not a valid order"})


def _name_faults(document: dict[Any, Any], shape: type[Struct], path: str, faults: dict[str, str]) -> None:
    """Every field of *document* that is not as *shape* wants it, with its path and why."""
    fields = {field.name: field for field in msgspec.structs.fields(shape)}
    for key in document:
        if key not in fields:
            if len(faults) >= FAULTS_MAX:
                break
            faults[f"{path}{_shown(key)}"] = "unknown field"
    for name, field in fields.items():
        where = path + name
        if name not in document:
            if field.required:
                faults[where] = "missing"
            continue
        value = document[name]
        if name == "lines" and isinstance(value, list) and 1 <= len(value) <= LINES_MAX:
            for number, line in enumerate(value):
                if isinstance(line, dict):
                    _name_faults(line, Line, f"{where}[{number}].", faults)
                else:
                    faults[f"{where}[{number}]"] = "a line is an object"
        elif name == "ship_to" and isinstance(value, dict):
            _name_faults(value, Address, f"{where}.", faults)
        elif name == "expected_total" and isinstance(value, dict):
            _name_faults(value, Amount, f"{where}.", faults)
        else:
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as fault:
                faults[where] = str(fault).partition(" - at ")[0]


def _shown(key: Any) -> str:
    """A stranger's field name, fit for an answer: short, printable."""
    return ascii(key)[1:-1][:60] if isinstance(key, str) else ascii(key)[:60]
