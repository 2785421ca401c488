"""Orders that a sales channel sends, many at once: their shape, and each one's own faults.

The good path is one typed decode of all of them. Only a body that it refuses is taken apart, so that one order's fault
is that order's alone. Pure; relies on order.py and msgspec.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from flashsale.sale.decoding import (
    UNDECODABLE,
    InvalidBody,
    MalformedBody,
    check_texts,
    explain_json,
    explain_msgpack,
)
from flashsale.sale.order import OrderRequest, check

ORDERS_MAX = 500

_REFERENCE = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class ChannelOrder(OrderRequest, kw_only=True, gc=False, forbid_unknown_fields=True):
    """One order. `reference` is the channel's own id of it, `shopper` the channel's own id of the shopper.
    `collected_by` "channel": the channel has the money."""

    reference: Annotated[str, Meta(min_length=1, max_length=64)]
    shopper: Annotated[str, Meta(min_length=1, max_length=100)]
    collected_by: Literal["channel"] | None = None


class _Orders(Struct, gc=False, forbid_unknown_fields=True):
    orders: Annotated[list[ChannelOrder], Meta(min_length=1, max_length=ORDERS_MAX)]


class _Apart(Struct, gc=False, forbid_unknown_fields=True):
    orders: Annotated[list[Raw], Meta(min_length=1, max_length=ORDERS_MAX)]


class Faulty:
    """An order that is none: its reference, if it has one, and its faults."""

    __slots__ = ("fault", "reference")

    def __init__(self, reference: str | None, fault: InvalidBody) -> None:
        self.reference, self.fault = reference, fault


_json, _msgpack = msgspec.json.Decoder(_Orders).decode, msgspec.msgpack.Decoder(_Orders).decode
_json_apart, _msgpack_apart = msgspec.json.Decoder(_Apart).decode, msgspec.msgpack.Decoder(_Apart).decode
_json_one, _msgpack_one = msgspec.json.Decoder(ChannelOrder).decode, msgspec.msgpack.Decoder(ChannelOrder).decode


def orders_of(body: bytes, packed: bool, channel: str) -> list[ChannelOrder | Faulty]:
    """The orders in a JSON or (`packed`) MessagePack body, each as it is or with its faults; `channel` is the one that
    sends them. Raises MalformedBody or InvalidBody where the body as a whole is not a list of 1 to ORDERS_MAX."""
    texts = packed or b"\\" in body  # an escape is the only way for U+0000 into a JSON string
    try:
        orders = (_msgpack if packed else _json)(body).orders
    except UNDECODABLE:
        return [_apart(raw, packed, channel) for raw in _raw(body, packed)]
    return [_checked(order, texts, channel) for order in orders]


def _raw(body: bytes, packed: bool) -> list[Raw]:
    try:
        return (_msgpack_apart if packed else _json_apart)(body).orders
    except UNDECODABLE:
        (explain_msgpack if packed else explain_json)(body, _Apart)


def _apart(raw: Raw, packed: bool, channel: str) -> ChannelOrder | Faulty:
    text = bytes(raw)
    try:
        order = (_msgpack_one if packed else _json_one)(text)
    except UNDECODABLE:
        try:
            (explain_msgpack if packed else explain_json)(text, ChannelOrder)
        except InvalidBody as fault:
            return Faulty(_reference(text, packed), fault)
        except MalformedBody as fault:
            return Faulty(None, InvalidBody({"$": str(fault)}))
    return _checked(order, True, channel)


def _reference(text: bytes, packed: bool) -> str | None:
    """The reference of an order that is none, where it has a usable one."""
    document: Any = None
    try:
        document = msgspec.msgpack.decode(text) if packed else msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    reference = document.get("reference") if isinstance(document, dict) else None
    return reference if isinstance(reference, str) and _REFERENCE.fullmatch(reference) else None


def _checked(order: ChannelOrder, texts: bool, channel: str) -> ChannelOrder | Faulty:
    """What the types do not say."""
    reference = order.reference
    try:
        if (
            _REFERENCE.fullmatch(reference) is None
            or (not order.shopper.isprintable() and _CONTROL.search(order.shopper) is not None)
            or order.recipient is not None
            or (order.channel is not None and order.channel != channel)
        ):
            _name_faults(order, channel)
        order.channel = channel
        check(order)
        if texts:
            check_texts(order)
    except InvalidBody as fault:
        return Faulty(reference if _REFERENCE.fullmatch(reference) else None, fault)
    return order


def _name_faults(order: ChannelOrder, channel: str) -> None:
    faults: dict[str, str] = {}
    if _REFERENCE.fullmatch(order.reference) is None:
        faults["reference"] = "printable ASCII, without a space at either end"
    if _CONTROL.search(order.shopper):
        faults["shopper"] = "holds no control characters"
    if order.recipient is not None:
        faults["for"] = "only an agent's order says whom it is for"
    if order.channel is not None and order.channel != channel:
        faults["channel"] = f"is {channel} here"
    raise InvalidBody(faults)
