"""Who signed a webhook: the same verdicts as Stripe's own library gives, and where they differ, how and why.

Stripe's verifier looks only for times too far in the past, and takes any number that Python reads; ours looks both ways
and takes a number written plainly, once. So whatever ours lets through, Stripe's does too.
"""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import pytest
import stripe
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashsale.partners.payments.signature import HEADER_MAX, TOLERANCE_S, WebhookVerifier
from tests import corpora

SECRET = "whsec_test_secret"
BODY = b'{"id":"evt_1"}'
NOW_S = 1_800_000_000.0

VECTORS = [vector for vector in corpora.load("webhooks/signature_vectors.json") if vector["scheme"] == "stripe"]


def sign(time_text: bytes, body: bytes, secret: str = SECRET) -> bytes:
    return hmac.digest(secret.encode(), time_text + b"." + body, "sha256").hex().encode()


def ours(header: bytes, body: bytes, now_s: float, secret: str = SECRET) -> bool:
    try:
        WebhookVerifier(secret).verify(header, body, now_s)
    except ValueError:
        return False
    return True


def stripes(header: bytes, body: bytes, now_s: float, secret: str = SECRET) -> bool:
    """Stripe's verdict as if it were `now_s`; its payload is text, so a body that is none has no verdict here."""
    clock, time.time = time.time, lambda: now_s
    try:
        stripe.WebhookSignature.verify_header(body, header.decode("latin-1"), secret, tolerance=TOLERANCE_S)
    except stripe.SignatureVerificationError:
        return False
    finally:
        time.time = clock
    return True


seconds = st.integers(0, 2 * TOLERANCE_S)
bodies = st.text(max_size=60).map(str.encode)
secrets = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@st.composite
def signed(draw: st.DrawFn) -> tuple[bytes, bytes, str, float]:
    """A plain header, body, secret and time of which some are genuine, some not quite, and some not at all."""
    body, secret = draw(bodies), draw(secrets)
    at = int(NOW_S) - draw(seconds)
    text = b"%d" % at
    right = sign(text, body, secret)
    kinds = {
        "right": b"v1=" + right,
        "upper": b"v1=" + right.upper(),
        "cut": b"v1=" + right[:-1],
        "longer": b"v1=" + right + b"0",
        "other body": b"v1=" + sign(text, body + b" ", secret),
        "other secret": b"v1=" + sign(text, body, secret + "x"),
        "other time": b"v1=" + sign(b"%d" % (at + 1), body, secret),
        "test event": b"v0=" + right,
        "spaced": b" v1=" + right,
        "empty": b"v1=",
        "nothing": b"",
        "words": draw(st.text("abv01=t ", max_size=8)).encode().replace(b"t=", b"u="),
    }
    items = [kinds[kind] for kind in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=5))]
    where = draw(st.integers(0, len(items)))
    return b",".join([*items[:where], b"t=" + text, *items[where:]]), body, secret, NOW_S


@settings(max_examples=400)
@given(signed())
def test_a_plain_header_gets_the_verdict_of_stripes_library(case: tuple[bytes, bytes, str, float]) -> None:
    header, body, secret, now_s = case
    assert ours(header, body, now_s, secret) == stripes(header, body, now_s, secret)


@settings(max_examples=400)
@given(st.text("tv01=,.+_- 12a\u0663", max_size=40).map(str.encode), bodies)
@example(b"t=1800000000,t=1,v1=" + sign(b"1800000000", BODY), BODY)
@example(b"t=,t=1800000000,v1=" + sign(b"1800000000", BODY), BODY)
@example(b"t= 1800000000,v1=" + sign(b"1800000000", BODY), BODY)
@example(b"t=+1800000000,v1=" + sign(b"1800000000", BODY), BODY)
@example(b"t=1_800_000_000,v1=" + sign(b"1800000000", BODY), BODY)
@example(b"t=01800000000,v1=" + sign(b"1800000000", BODY), BODY)
def test_whatever_is_let_through_stripes_library_lets_through(header: bytes, body: bytes) -> None:
    assert not ours(header, body, NOW_S) or stripes(header, body, NOW_S)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"t=1800000000,t=1,v1=" + sign(b"1800000000", BODY), "two times: which one is signed is a guess"),
        (b"t= 1800000000,v1=" + sign(b"1800000000", BODY), "no plain number"),
        (b"t=+1800000000,v1=" + sign(b"1800000000", BODY), "no plain number"),
        (b"t=1_800_000_000,v1=" + sign(b"1800000000", BODY), "no plain number"),
        (b"t=01800000000,v1=" + sign(b"1800000000", BODY), "no plain number"),
        (b"t=1800000301,v1=" + sign(b"1800000301", BODY), "more than 300 s ahead"),
        (b"t=1800000000,v1=" + sign(b"1800000000", BODY) + b",v0=" + b"0" * HEADER_MAX, "longer than any real one"),
        (b"t=1800000000,v1=" + sign(b"1800000000", BODY) + b"=x", "a signature holds no ="),
    ],
)
def test_here_the_two_differ(header: bytes, why: str) -> None:
    assert stripes(header, BODY, NOW_S)
    assert not ours(header, BODY, NOW_S), why


@pytest.mark.parametrize("off_s", [-301, -300, -299, 0, 299, 300, 301])
def test_the_time_may_be_300_s_off_in_both_directions(off_s: int) -> None:
    text = b"%d" % (NOW_S + off_s)
    assert ours(b"t=" + text + b",v1=" + sign(text, BODY), BODY, NOW_S) == (abs(off_s) <= TOLERANCE_S)


def test_a_body_that_is_no_text_is_verified_as_the_bytes_that_it_is() -> None:
    body = bytes(range(256))
    assert ours(b"t=1800000000,v1=" + sign(b"1800000000", body), body, NOW_S)
    assert not ours(b"t=1800000000,v1=" + sign(b"1800000000", body), body[:-1], NOW_S)


def test_what_stripes_library_signs_is_genuine() -> None:
    signature = stripe.WebhookSignature.generate_signature_header(BODY.decode(), SECRET, int(NOW_S))
    assert ours(signature.encode(), BODY, NOW_S)


@pytest.mark.parametrize("secret", ["", " ", "\n"])
def test_nothing_is_verified_without_a_secret(secret: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        WebhookVerifier(secret)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_the_vectors_of_the_corpus(vector: dict[str, Any]) -> None:
    header, body = vector["headers"]["Stripe-Signature"].encode(), vector["body"].encode()
    signature_is_good = vector["expect"] in ("valid when tolerance is off", "signature valid, JSON error")
    known = {"valid when tolerance is off", "signature valid, JSON error", "invalid", "invalid with any tolerance"}
    assert vector["expect"] in known
    assert not ours(header, body, time.time(), vector["secret"]), "every vector is of 1970"
    if vector["expect"] == "invalid with any tolerance":
        assert not ours(header, body, 12345 + TOLERANCE_S + 1, vector["secret"])
    else:
        assert ours(header, body, 12345.0, vector["secret"]) == signature_is_good
    if vector["expect"] == "signature valid, JSON error":
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(body)
