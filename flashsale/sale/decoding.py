"""Bodies that strangers send: from the bytes of JSON or MessagePack to a typed request, or to every fault in them.

The good path is one typed decode. Only what that refuses is decoded again without types, to tell malformed bytes (400)
from a body that is not valid (422) and to name every field at fault, not the first alone. Pure; relies on msgspec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Generic, NamedTuple, NoReturn, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

FAULTS_MAX = 100  # fields of strangers' making that an answer names: a body can hold tens of thousands
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a typed decode raises for bytes that it does not take."""

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_Request = TypeVar("_Request", bound=Struct)


class MalformedBody(Exception):
    """The bytes are not what their media type says."""


class InvalidBody(Exception):
    """The body decodes, and is not a valid request. `fields` maps each field at fault to what is wrong with it."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields)
        self.fields = fields


class Shape(Generic[_Request]):
    """How requests of one kind are decoded: a msgspec struct that forbids unknown fields. `check` names the faults
    that its types don't tell."""

    def __init__(
        self, shape: type[_Request], check: Callable[[_Request, dict[str, str]], None] = lambda *_: None
    ) -> None:
        self._shape, self._check = shape, check
        self._json = msgspec.json.Decoder(shape).decode
        self._msgpack = msgspec.msgpack.Decoder(shape).decode

    def from_json(self, body: bytes) -> _Request:
        """The request in a JSON body. Raises MalformedBody or InvalidBody."""
        try:
            request = self._json(body)
        except UNDECODABLE:
            explain_json(body, self._shape)
        return self._checked(request)

    def from_msgpack(self, body: bytes) -> _Request:
        """The request in a MessagePack body. Raises MalformedBody or InvalidBody."""
        try:
            request = self._msgpack(body)
        except UNDECODABLE:
            explain_msgpack(body, self._shape)
        return self._checked(request)

    def _checked(self, request: _Request) -> _Request:
        check_texts(request)
        faults: dict[str, str] = {}
        self._check(request, faults)
        if faults:
            raise InvalidBody(faults)
        return request


def check_texts(request: Struct) -> None:
    """Raises InvalidBody where a text holds what no ledger can store."""
    faults: dict[str, str] = {}
    _name_unstorable(msgspec.to_builtins(request), "", faults)
    if faults:
        raise InvalidBody(faults)


def name_repeated_skus(skus: list[str], faults: dict[str, str]) -> None:
    """Names each line whose SKU an earlier line has."""
    seen: set[str] = set()
    for number, sku in enumerate(skus):
        if sku in seen:
            faults[f"lines[{number}].sku"] = "named before: one line a SKU"
        seen.add(sku)


def explain_json(body: bytes, shape: type[Struct]) -> NoReturn:
    """Why the typed decode of a JSON body refused: always raises."""
    _explain(body, shape, _decode_any_json)


def explain_msgpack(body: bytes, shape: type[Struct]) -> NoReturn:
    """Why the typed decode of a MessagePack body refused: always raises."""
    _explain(body, shape, lambda packed: _decode_any_msgpack(packed, shape))


def _explain(body: bytes, shape: type[Struct], decode: Callable[[bytes], Any]) -> NoReturn:
    try:
        document = decode(body)
    except UNDECODABLE as fault:
        raise MalformedBody(f"{fault}" or "nested too deeply") from None
    faults: dict[str, str] = {}
    if isinstance(document, dict):
        _name_faults(document, shape, "", faults)
    else:
        faults["$"] = "the body is an object"
    raise InvalidBody(faults or {"$": "not a valid request"})


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
        raise InvalidBody(faults) from None


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _decode_any_msgpack(body: bytes, shape: type[Struct]) -> Any:
    """Any MessagePack document. A timestamp beyond Python's years, which msgspec can't hold, is no request's field."""
    try:
        return msgspec.msgpack.decode(body)
    except ValueError as fault:
        if isinstance(fault, UNDECODABLE) and not isinstance(fault, msgspec.ValidationError):
            raise
        said, _, path = str(_refusal(body, shape)).partition(" - at `$")
        raise InvalidBody({path.removeprefix(".").removesuffix("`") or "$": said}) from None


def _refusal(body: bytes, shape: type[Struct]) -> Exception | None:
    """What the typed decode has against a MessagePack body: the first fault."""
    try:
        msgspec.msgpack.decode(body, type=shape)
    except UNDECODABLE as fault:
        return fault
    return None


class _Inner(NamedTuple):
    """The struct inside a field's type: alone or absent, or each item of a list of so many."""

    shape: type[Struct]
    listed: bool
    at_least: int
    at_most: int


def _inner(annotation: Any) -> _Inner | None:
    """None for a field without a struct in it."""
    at_least, at_most = 0, FAULTS_MAX
    if get_origin(annotation) is Annotated:
        annotation, *metas = get_args(annotation)
        for meta in metas:
            if isinstance(meta, Meta):
                at_least, at_most = meta.min_length or 0, meta.max_length or FAULTS_MAX
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return _Inner(annotation, False, 0, 0)
    if get_origin(annotation) is list:
        item = _inner(get_args(annotation)[0])
        return item and _Inner(item.shape, True, at_least, at_most)
    return next(filter(None, map(_inner, get_args(annotation))), None)


def _name_faults(document: dict[Any, Any], shape: type[Struct], path: str, faults: dict[str, str]) -> None:
    """Every field of *document* that is not as *shape* wants it, with its path and why."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
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
        value, inner = document[name], _inner(field.type)
        if inner and inner.listed and isinstance(value, list) and inner.at_least <= len(value) <= inner.at_most:
            for number, item in enumerate(value):
                if isinstance(item, dict):
                    _name_faults(item, inner.shape, f"{where}[{number}].", faults)
                else:
                    faults[f"{where}[{number}]"] = "an object is wanted here"
        elif inner and not inner.listed and isinstance(value, dict):
            _name_faults(value, inner.shape, f"{where}.", faults)
        else:
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as fault:
                faults[where] = str(fault).partition(" - at ")[0]


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


def _shown(key: Any) -> str:
    """A stranger's field name, fit for an answer: short, printable."""
    return ascii(key)[1:-1][:60] if isinstance(key, str) else ascii(key)[:60]
