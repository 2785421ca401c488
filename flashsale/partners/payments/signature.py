"""Whether a webhook was signed by the payment provider: the scheme v1 of Stripe's webhook signatures.

The header is `t=<UNIX time>,v1=<hex>[,v1=<hex>…]`; v1 is HMAC-SHA256 under the endpoint's secret of the time, a dot and
the body as it came. A secret that is being replaced signs beside the new one, so any v1 will do; other schemes (v0 is
that of test events) count for nothing. Pure, and on the hot path.
"""

from __future__ import annotations

import hmac
import re

HEADER_MAX = 4096
"""Bytes of the header: some fifty signatures. Two are sent while a secret is being replaced."""

TOLERANCE_S = 300
"""How far the signature's time may be from ours, in either direction: what is recorded can't be played back later."""

_TIME = re.compile(rb"0|[1-9][0-9]{0,11}")


class WebhookVerifier:
    """Verifies what is signed with one secret. Raises ValueError for an empty one: anybody could sign with that."""

    def __init__(self, secret: str) -> None:
        if not secret.strip():
            raise ValueError("a webhook secret is not empty")
        self._key = secret.encode()

    def verify(self, header: bytes, body: bytes, now_s: float) -> None:
        """Returns if `header` signs `body` at about `now_s` (UNIX time). Raises ValueError, which says why not."""
        if len(header) > HEADER_MAX:
            raise ValueError(f"the signature header has at most {HEADER_MAX} bytes")
        time: bytes | None = None
        signatures = []
        for item in header.split(b","):
            name, _, value = item.partition(b"=")
            if name == b"v1":
                signatures.append(value)
            elif name == b"t":
                if time is not None:
                    raise ValueError("the signature header has its t= twice")
                time = value
        if time is None or _TIME.fullmatch(time) is None:
            raise ValueError("the signature header has no t=, a UNIX time")
        if not signatures:
            raise ValueError("the signature header has no v1=")
        expected = hmac.digest(self._key, b"%b.%b" % (time, body), "sha256").hex().encode()
        if not any(hmac.compare_digest(expected, signature) for signature in signatures):
            raise ValueError("no signature of the header is the body's")
        if abs(now_s - int(time)) > TOLERANCE_S:
            raise ValueError(f"the signature's time is more than {TOLERANCE_S} s off")
