"""Tokens: what is minted is understood by PyJWT, what is tampered with is refused by both, and vectors of others."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.errors import Refused
from flashsale.front.auth import LEEWAY_S, TOKEN_MAX_BYTES, Verifier, bearer, mint
from tests import corpora

SECRET = b"0123456789abcdef0123456789abcdef"
NOW_S = 1_800_000_000
CLAIMS = {"sub": "ada", "role": "shopper", "iss": "flashsale", "aud": "flashsale", "exp": NOW_S + 60}
verifier = Verifier(SECRET)


def signed(claims: Any, secret: bytes = SECRET, header: dict[str, Any] | None = None) -> bytes:
    """A token with a right HS256 signature over whatever claims and header."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    head = json.dumps(header or {"alg": "HS256", "typ": "JWT"}).encode()
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (head, payload))
    return text + b"." + Verifier(secret).sign(text)


def is_refused(token: bytes, now_s: float = NOW_S) -> bool:
    try:
        verifier.verify(token, now_s)
    except Refused as refused:
        assert refused.name == "unauthenticated"
        return True
    return False


def pyjwt_refuses(token: bytes) -> bool:
    try:
        jwt.decode(
            token,
            SECRET,
            algorithms=["HS256"],
            audience="flashsale",
            issuer="flashsale",
            options={"require": ["exp", "sub", "aud", "iss"], "verify_exp": False, "verify_nbf": False},
        )
    except (jwt.PyJWTError, ValueError):
        return True
    return False


SUBJECTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128)


@given(SUBJECTS, st.sampled_from(["shopper", "admin"]), st.integers(1, 10**9))
def test_a_minted_token_says_the_same_to_us_and_to_pyjwt(sub: str, role: str, ttl_s: int) -> None:
    (token,) = mint(SECRET, sub, role, ttl_s, NOW_S)
    claims = verifier.verify(token.encode(), NOW_S)
    assert (claims.sub, claims.role, claims.exp) == (sub, role, NOW_S + ttl_s)
    read = jwt.decode(
        token, SECRET, algorithms=["HS256"], audience="flashsale", issuer="flashsale", options={"verify_iat": False}
    )
    assert (read["sub"], read["role"], read["exp"], read["iat"]) == (sub, role, NOW_S + ttl_s, NOW_S)


def test_counted_tokens_are_numbered_from_one() -> None:
    subjects = [verifier.verify(token.encode(), NOW_S).sub for token in mint(SECRET, 'a"\\', "shopper", 60, NOW_S, 3)]
    assert subjects == ['a"\\-1', 'a"\\-2', 'a"\\-3']


TOKEN = signed(CLAIMS)


@given(st.data())
def test_a_token_tampered_with_anywhere_is_refused_by_us_and_by_pyjwt(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(TOKEN) - 1))
    changed = data.draw(st.binary(max_size=3))
    kept = data.draw(st.integers(0, 3))
    token = TOKEN[:place] + changed + TOKEN[place + kept :]
    if token == TOKEN:
        assert not is_refused(token)
        return
    assert is_refused(token)
    # PyJWT takes a signature whose unused last bits are set, as RFC 7515 does not: there we are the stricter ones.
    if token[:-1] != TOKEN[:-1]:
        assert pyjwt_refuses(token)


@given(st.binary(max_size=64), st.binary(min_size=1, max_size=200))
def test_rubbish_is_refused_never_an_error(rubbish: bytes, secret: bytes) -> None:
    assert is_refused(rubbish)
    assert is_refused(b".".join([rubbish, rubbish, rubbish]))
    assert is_refused(signed(CLAIMS, secret))  # another key
    assert is_refused(signed(rubbish))  # our key, rubbish claims


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.just(value), st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.integers())
            for name, value in (CLAIMS | {"nbf": NOW_S}).items()
        },
    )
)
def test_no_claim_makes_an_error_and_what_we_take_pyjwt_takes(claims: dict[str, Any]) -> None:
    token = signed(claims)
    if not is_refused(token):
        assert not pyjwt_refuses(token)


@pytest.mark.parametrize(
    "changed",
    [
        {"sub": ""},
        {"sub": "x" * 129},
        {"sub": "a\0b"},
        {"sub": "a\nb"},
        {"sub": "a\x85b"},
        {"sub": "\ud800"},
        {"sub": 7},
        {"role": "root"},
        {"role": ["admin"]},
        {"iss": "elsewhere"},
        {"aud": "xflashsalex"},
        {"aud": ["elsewhere"]},
        {"aud": []},
        {"exp": NOW_S},
        {"exp": str(NOW_S + 60)},
        {"exp": True},
        {"exp": None},
        {"nbf": NOW_S + LEEWAY_S + 1},
        {"iat": NOW_S + LEEWAY_S + 1},
    ],
)
def test_a_wrong_claim_is_refused_under_a_right_signature(changed: dict[str, Any]) -> None:
    assert is_refused(signed(CLAIMS | changed))


@pytest.mark.parametrize("missing", ["sub", "role", "iss", "aud", "exp"])
def test_a_missing_claim_is_refused(missing: str) -> None:
    assert is_refused(signed({name: value for name, value in CLAIMS.items() if name != missing}))


@pytest.mark.parametrize("changed", [{"aud": ["other", "flashsale"]}, {"nbf": NOW_S}, {"exp": NOW_S + 0.5}, {"x": [1]}])
def test_what_rfc_7519_allows_is_taken(changed: dict[str, Any]) -> None:
    assert not is_refused(signed(CLAIMS | changed))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS512"},
        {"alg": "hs256"},
        {"alg": ["HS256"]},
        {"typ": "JWT"},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "crit": ["exp"], "exp": 1},
        {"alg": "HS256", "b64": False},
    ],
)
def test_a_header_of_another_kind_is_refused_under_a_right_signature(header: dict[str, Any]) -> None:
    assert is_refused(signed(CLAIMS, header=header))


def test_segments_must_be_canonical() -> None:
    header, payload, _ = TOKEN.split(b".")

    def resigned(*segments: bytes) -> bytes:
        text = b".".join(segments)
        return text + b"." + verifier.sign(text)

    assert not is_refused(resigned(header, payload))
    assert is_refused(resigned(header, payload + b"=" * (-len(payload) % 4 or 4)))
    assert is_refused(resigned(header, payload, payload))
    assert is_refused(resigned(payload))
    assert is_refused(resigned(header, payload + b"\n"))
    assert is_refused(TOKEN + b"=")
    assert is_refused(b" " + TOKEN)
    claims = json.dumps(CLAIMS).encode()
    claims += b" " * (2 - len(claims) % 3)  # two bytes in the last group: its last character has two unused bits
    loose = base64.urlsafe_b64encode(claims).rstrip(b"=")
    assert not is_refused(resigned(header, loose))
    assert is_refused(resigned(header, loose[:-1] + bytes([loose[-1] + 1])))


def test_a_token_longer_than_the_bound_is_refused() -> None:
    assert is_refused(signed(CLAIMS | {"pad": "x" * TOKEN_MAX_BYTES}))


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x", "x"])
def test_what_is_no_bearer_is_refused(value: str) -> None:
    with pytest.raises(Refused):
        bearer(value)


@pytest.mark.parametrize("value", ["Bearer a.b.c", "bearer a.b.c", b"BEARER  a.b.c"])
def test_the_scheme_is_in_any_case(value: str | bytes) -> None:
    assert bearer(value) == b"a.b.c"


@pytest.mark.parametrize(
    "arguments",
    [("", "shopper", 1), ("x" * 129, "shopper", 1), ("a\0", "shopper", 1), ("\udcff", "shopper", 1), ("a", "root", 1)],
)
def test_nothing_is_minted_that_would_be_refused(arguments: tuple[str, str, int]) -> None:
    with pytest.raises(ValueError, match=r"a subject|a role"):
        mint(SECRET, *arguments, NOW_S)


def vectors(name: str) -> list[dict[str, Any]]:
    found = corpora.load(f"jwt/{name}")
    groups: list[dict[str, Any]] = found["testGroups"] if found else []
    return groups


# Vectors whose verdict contradicts their text: the padding that 367 and 370 are named for is not in them, so that they
# are 357, which is valid; 372 and 373 hold a "?" that their signature does not cover, and are called valid.
WRONG_VERDICTS = {367: True, 370: True, 372: False, 373: False}


def test_wycheproof_what_hs256_can_verify_and_nothing_else() -> None:
    tried = 0
    for group in vectors("wycheproof_jws.json"):
        key = group.get("private") or group.get("public")
        symmetric = key["kty"] == "oct" and key.get("alg") == "HS256"
        secret = base64.urlsafe_b64decode(key["k"] + "==") if symmetric else json.dumps(key).encode()
        for vector in group["tests"]:
            tried += 1
            token = vector["jws"] if isinstance(vector["jws"], str) else json.dumps(vector["jws"])
            wanted = symmetric and WRONG_VERDICTS.get(vector["tcId"], vector["result"] == "valid")
            try:
                Verifier(secret).payload(token.encode())
                taken = True
            except Refused:
                taken = False
            assert taken == wanted, (vector["tcId"], vector["comment"], vector["flags"])
            with pytest.raises(Refused):  # their payloads are no claims of ours
                Verifier(secret).verify(token.encode(), NOW_S)
    for group in vectors("wycheproof_jwk.json"):
        for vector in group["tests"]:
            tried += 1
            assert is_refused(json.dumps(vector["jws"]).strip('"').encode())
    assert tried in (0, 427)


def test_a_token_never_seen_before_is_checked_in_microseconds() -> None:
    tokens = [token.encode() for token in mint(SECRET, "ada", "shopper", 60, NOW_S, 5000)]
    best_us = min(_verification_us(tokens) for _ in range(5))
    print(f"{best_us:.2f} µs a token never seen before")
    assert best_us < 40  # ten times what it takes: a guard against a slow way, not a bench


def _verification_us(tokens: list[bytes]) -> float:
    fresh = Verifier(SECRET)
    began = time.perf_counter()
    for token in tokens:
        fresh.verify(token, NOW_S)
    return (time.perf_counter() - began) / len(tokens) * 1e6


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_maker_whose_clock_is_a_little_ahead_is_believed(claim: str) -> None:
    assert not is_refused(signed(CLAIMS | {claim: NOW_S + LEEWAY_S}))


def test_an_expired_token_has_no_leeway() -> None:
    assert is_refused(signed(CLAIMS | {"exp": NOW_S}))
    assert not is_refused(signed(CLAIMS | {"exp": NOW_S + 0.001}))


def test_a_deeply_nested_token_is_refused_like_any_other() -> None:
    deep = b"[" * 1500 + b"]" * 1500
    header, payload = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in (b'{"alg":"HS256"}', deep))
    token = header + b"." + payload
    assert is_refused(token + b"." + verifier.sign(token))
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","x":' + deep + b"}").rstrip(b"=")
    token = header + b"." + base64.urlsafe_b64encode(b"{}").rstrip(b"=")
    assert is_refused(token[:3000] + b"." + verifier.sign(token[:3000]))
