"""Who imports: the token that binds a verified identity to the shopper who may order for it.

The hot path reads it without asking anybody: the identity is in it, and a keyed hash says that the engine bound it to
this shopper. Which identity a document stands for is worked out where it is verified, under a key that never rotates.
"""

from __future__ import annotations

import re
from hashlib import blake2s
from hmac import compare_digest

from flashsale.errors import Refused

IDENTITY_BYTES = 10
MAC_BYTES = 8

_TOKEN = re.compile(r"idn_([0-9a-f]{20})([0-9a-f]{16})")


class IdentityTokens:
    """Makes and reads such tokens under one secret; with another secret the identity has to be bound anew."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake2s(secret, person=b"identity").digest()

    def issue(self, shopper: str, identity: bytes) -> str:
        """The shopper's token for an identity of IDENTITY_BYTES bytes."""
        return f"idn_{identity.hex()}{self._mac(shopper, identity)}"

    def read(self, token: str, shopper: str) -> bytes:
        """The identity in the shopper's token. Raises Refused("identity-unverified") for any other text."""
        match = _TOKEN.fullmatch(token)
        if match is None or not compare_digest(self._mac(shopper, bytes.fromhex(match[1])), match[2]):
            raise Refused("identity-unverified", "This `identity` was not verified for this shopper.")
        return bytes.fromhex(match[1])

    def _mac(self, shopper: str, identity: bytes) -> str:
        return blake2s(identity + shopper.encode(), key=self._key, digest_size=MAC_BYTES).hexdigest()
