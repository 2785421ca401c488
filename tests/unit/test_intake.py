"""From headers and bytes to an order: keys, media types, tokens, and the order in which faults are told."""

from __future__ import annotations

import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.errors import Refused
from flashsale.front.auth import Verifier, mint
from flashsale.front.framing import parse_head
from flashsale.front.identities import IdentityTokens
from flashsale.front.intake import KEY_MAX, Intake, answers_packed, idempotency_key, media_type

SECRET = b"0123456789abcdef0123456789abcdef"
NOW_S = 1_800_000_000
ORDER = {"sale": "double11", "lines": [{"sku": "A", "quantity": 1}], "market": "SG"}
BODY = json.dumps(ORDER).encode()
SHOPPER = next(mint(SECRET, "ada", "shopper", 60, NOW_S)).encode()
ADMIN = next(mint(SECRET, "root", "admin", 60, NOW_S)).encode()
intake = Intake(Verifier(SECRET), IdentityTokens(SECRET), lambda: NOW_S)

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=KEY_MAX)


def quoted(key: str) -> bytes:
    return b'"' + key.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'


def problem(*lines: bytes, body: bytes = BODY) -> str:
    """The name of the problem with an order under these headers, "" if there is none."""
    raw = b"\r\n".join([b"POST /v1/orders HTTP/1.1", b"Host: a", *lines])
    try:
        intake.read(parse_head(raw), body)
    except Refused as refused:
        return refused.name
    return ""


@given(PRINTABLE)
def test_a_key_is_the_same_quoted_and_bare(key: str) -> None:
    assert idempotency_key(quoted(key)) == key
    if not key.startswith((" ", '"')):
        assert idempotency_key(key.encode()) == key


@given(st.binary(max_size=80))
def test_any_header_is_a_key_or_refused(value: bytes) -> None:
    try:
        key = idempotency_key(value)
    except Refused as refused:
        assert refused.name == ("malformed" if value else "idempotency-key-missing")
    else:
        assert 1 <= len(key) <= KEY_MAX
        assert key.isascii()
        assert key.isprintable()


@pytest.mark.parametrize(
    "value", [b'""', b'"', b'"a', b'"a"b"', b'"a\\b"', b'"a\\"', b'a"\x7f', b"\xc3\xa9", b"x" * 65]
)
def test_what_is_no_key_is_malformed(value: bytes) -> None:
    with pytest.raises(Refused) as fault:
        idempotency_key(value)
    assert fault.value.name == "malformed"
    assert idempotency_key(b"x" * 64) == "x" * 64
    assert idempotency_key(quoted('"' * 64)) == '"' * 64


@pytest.mark.parametrize(
    ("lines", "packed"),
    [
        ((), False),
        ((b"Content-Type: application/json",), False),
        ((b"Content-Type: Application/JSON ; charset=utf-8",), False),
        ((b"Content-Type: application/msgpack",), True),
        ((b"Content-Type: application/x-msgpack",), True),
        ((b"Content-Type: application/vnd.msgpack; v=1",), True),
        ((b"Content-Type: text/plain",), None),
        ((b"Content-Type: application/jsonx",), None),
        ((b"Content-Type:",), None),
        ((b"Content-Encoding: gzip",), None),
        ((b"Content-Encoding: identity, br",), None),
        ((b"Content-Encoding: Identity",), False),
    ],
)
def test_the_media_type_says_how_the_body_is_read(lines: tuple[bytes, ...], packed: bool | None) -> None:
    head = parse_head(b"\r\n".join([b"POST /v1/orders HTTP/1.1", b"Host: a", *lines]))
    if packed is None:
        with pytest.raises(Refused) as fault:
            media_type(head)
        assert fault.value.name == "unsupported-media-type"
    else:
        assert media_type(head) == packed


@pytest.mark.parametrize(
    ("accept", "packed", "wanted"),
    [
        (b"application/json", True, False),
        (b"application/msgpack", False, True),
        (b"application/msgpack, application/json", True, True),
        (b"application/msgpack, application/json", False, False),
        (b"text/html, */*;q=0.1", True, True),
        (b"text/html", False, False),
        (b"APPLICATION/X-MSGPACK ;q=1", False, True),
        (b"", True, True),
    ],
)
def test_an_answer_is_in_kind_unless_only_the_other_is_accepted(accept: bytes, packed: bool, wanted: bool) -> None:
    assert answers_packed(accept, packed) == wanted


def test_the_first_fault_in_the_order_of_checks_is_the_answer() -> None:
    key, bearer = b"Idempotency-Key: k", b"Authorization: Bearer " + SHOPPER
    rubbish = b"{"
    assert problem(body=rubbish) == "idempotency-key-missing"
    assert problem(b"Content-Type: text/plain", body=rubbish) == "idempotency-key-missing"
    assert problem(key, b"Content-Type: text/plain", body=rubbish) == "unsupported-media-type"
    assert problem(key, body=rubbish) == "unauthenticated"
    assert problem(key, b"Authorization: Basic x", body=rubbish) == "unauthenticated"
    assert problem(key, b"Authorization: Bearer", body=rubbish) == "unauthenticated"
    assert problem(key, b"Authorization: Bearer " + ADMIN, body=rubbish) == "forbidden"
    assert problem(key, bearer, body=rubbish) == "malformed"
    assert problem(key, bearer, body=b"{}") == "invalid-order"
    assert problem(key, bearer) == ""
    assert problem(key, b"authorization: bEaReR  " + SHOPPER) == ""


@given(st.binary(max_size=100), st.booleans())
def test_a_body_of_any_bytes_is_malformed_or_no_order(body: bytes, packed: bool) -> None:
    kind = b"Content-Type: application/msgpack" if packed else b"Content-Type: application/json"
    wanted = ("malformed", "invalid-order")
    assert problem(b"Idempotency-Key: k", b"Authorization: Bearer " + SHOPPER, kind, body=body) in wanted


def test_an_order_in_either_form_is_the_same_request() -> None:
    lines = (b"POST /v1/orders HTTP/1.1", b"Host: a", b"Idempotency-Key: k", b"Authorization: Bearer " + SHOPPER)
    plain = intake.read(parse_head(b"\r\n".join(lines)), BODY)
    kind = b"Content-Type: application/msgpack"
    packed = intake.read(parse_head(b"\r\n".join([*lines, kind])), msgpack.packb(ORDER))
    assert (plain.request, plain.key, plain.shopper) == (packed.request, packed.key, packed.shopper)
    assert (plain.msgpack, packed.msgpack) == (False, True)
