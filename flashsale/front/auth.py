"""Who is asking: bearer tokens, checked without a database, and printed by `flashsale token`.

A token is a JWT (RFC 7519) signed with HS256 (RFC 7515, 7518), read in one strict way: three segments, canonical
base64url, `alg` HS256 and nothing else, no `crit`. The hot path checks a token that it has never seen in about 2.5 µs.
Relies on hashlib and msgspec.
"""

import re
from base64 import urlsafe_b64encode
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator
from hashlib import sha256
from hmac import compare_digest
from typing import Annotated, Literal

import msgspec
import orjson

from flashsale.errors import Refused

ISSUER = AUDIENCE = "flashsale"
ROLES = ("shopper", "admin", "agent", "channel", "merchant")
TOKEN_MAX_BYTES = 4096  # ours have about 250; what is longer costs hashing and can't be ours
SUBJECT_MAX_CHARACTERS = 128  # it becomes a column of the ledger and of every journal record
LEEWAY_S = 30  # whoever made a token may have a clock that is ahead of ours; an expired one is expired
HEADERS_KEPT = 64  # distinct header segments remembered; only those under a right signature get in

_HEADER = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
_SHA256_BLOCK_BYTES = 64
_FROM_URLSAFE = bytes.maketrans(
    b"-_+/=", b"+/!!!"
)  # the plain alphabet's own +, / and = must not pass: ! is in neither
_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_PADDING = {2: b"==", 3: b"="}  # by length mod 4; 1 is no base64
_LAST = {2: b"AQgw", 3: b"AEIMQUYcgkosw048"}  # last characters whose unused bits are 0: the canonical ones
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Claims(msgspec.Struct, frozen=True, gc=False):
    """Who asks (`sub`, 1..128 characters, no control characters), as what (`role`), until when (`exp`, UNIX s),
    and from when (`nbf`, `iat`)."""

    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=SUBJECT_MAX_CHARACTERS)]
    role: Literal["shopper", "admin", "agent", "channel", "merchant"]
    exp: int | float
    iss: Literal["flashsale"]
    aud: str | list[str]
    nbf: int | float = 0
    iat: int | float = 0


_decode_claims = msgspec.json.Decoder(Claims).decode


class Verifier:
    """Checks tokens against one secret (its bytes as they are, underived; not empty)."""

    __slots__ = ("_headers", "_inner", "_outer")

    def __init__(self, secret: bytes) -> None:
        if not secret:
            raise ValueError("the secret is empty")
        # HMAC (RFC 2104) from two prepared SHA-256 states takes half the time of hmac.digest, which prepares them anew.
        key = sha256(secret).digest() if len(secret) > _SHA256_BLOCK_BYTES else secret
        key = key.ljust(_SHA256_BLOCK_BYTES, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in key))
        self._headers: set[bytes] = set()

    def sign(self, signed: bytes) -> bytes:
        """The signature segment of `signed` (header and payload segments), base64url."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(signed)
        outer.update(inner.digest())
        return b2a_base64(outer.digest(), newline=False).translate(_TO_URLSAFE, b"=")

    def payload(self, token: bytes) -> bytes:
        """The signed bytes inside `token`; raises Refused("unauthenticated") unless header and signature are right."""
        if len(token) > TOKEN_MAX_BYTES:
            raise Refused("unauthenticated", "The token is too long.")
        signed, _, signature = token.rpartition(b".")
        # Compared as text: a signature that is not canonical base64url differs.
        if not compare_digest(self.sign(signed), signature):
            raise Refused("unauthenticated", "The token's signature is not right.")
        header, _, payload = signed.partition(b".")
        if header not in self._headers:
            self._learn(header)
        return _decode_segment(payload)

    def verify(self, token: bytes, now_s: float) -> Claims:
        """What `token` claims at `now_s` (UNIX time, s); raises Refused("unauthenticated") if anything is not right."""
        payload = self.payload(token)
        try:
            claims = _decode_claims(payload)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise Refused("unauthenticated", "The token's claims are not those of a flashsale token.") from None
        if claims.exp <= now_s:
            raise Refused("unauthenticated", "The token has expired.")
        if claims.nbf > now_s + LEEWAY_S or claims.iat > now_s + LEEWAY_S:
            raise Refused("unauthenticated", "The token is not valid yet.")
        audience = claims.aud
        if audience != AUDIENCE and (isinstance(audience, str) or AUDIENCE not in audience):
            raise Refused("unauthenticated", "The token is for another audience.")
        sub = claims.sub
        if not sub.isprintable() and CONTROL.search(sub):
            raise Refused("unauthenticated", "The token's subject holds a control character.")
        return claims

    def _learn(self, header: bytes) -> None:
        """Accepts a header segment: a JSON object, `alg` HS256, no extension that would change what was signed."""
        try:
            fields = orjson.loads(_decode_segment(header))
        except (orjson.JSONDecodeError, RecursionError):
            fields = None
        if not isinstance(fields, dict) or fields.get("alg") != "HS256" or "crit" in fields or "b64" in fields:
            raise Refused("unauthenticated", "The token's header is not that of an HS256 token.")
        if len(self._headers) < HEADERS_KEPT:
            self._headers.add(header)


def _decode_segment(segment: bytes) -> bytes:
    """A segment's bytes; raises Refused unless it is canonical base64url without padding (RFC 7515, section 2)."""
    text = segment.translate(_FROM_URLSAFE)
    remainder = len(segment) & 3
    if remainder:
        if remainder == 1 or segment[-1] not in _LAST[remainder]:
            raise Refused("unauthenticated", "The token is not canonical base64url.")
        text += _PADDING[remainder]
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError:
        raise Refused("unauthenticated", "The token is not three segments of base64url.") from None


def bearer(authorization: str | bytes) -> bytes:
    """The token of one `Authorization` value (RFC 6750; the scheme in any case); raises Refused("unauthenticated")."""
    value = authorization.encode("utf-8", "surrogateescape") if isinstance(authorization, str) else authorization
    scheme, _, token = value.partition(b" ")
    token = token.strip(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise Refused("unauthenticated", "Send `Authorization: Bearer` and one token.")
    return token


def mint(secret: bytes, sub: str, role: str, ttl_s: int, now_s: int, count: int | None = None) -> Iterator[str]:
    """Tokens valid from now for `ttl_s` seconds: one for `sub`, or with `count` one each for `sub-1` … `sub-count`.

    Raises ValueError, before the first token, for a subject, role or lifetime that `Verifier` would refuse.
    """
    longest = sub if count is None else f"{sub}-{count}"
    if not sub or len(longest) > SUBJECT_MAX_CHARACTERS:
        raise ValueError(f"a subject has 1 to {SUBJECT_MAX_CHARACTERS} characters")
    if CONTROL.search(sub) or any("\ud800" <= character <= "\udfff" for character in sub):
        raise ValueError("a subject holds no control characters, and valid UTF-8")
    if role not in ROLES:
        raise ValueError(f"a role is one of {', '.join(ROLES)}")
    if ttl_s < 1 or (count is not None and count < 1):
        raise ValueError("a lifetime and a count are at least 1")
    return _minted(Verifier(secret), orjson.dumps(sub)[:-1], role, now_s, now_s + ttl_s, count)


def _minted(signer: Verifier, sub: bytes, role: str, iat: int, exp: int, count: int | None) -> Iterator[str]:
    rest = f'","role":"{role}","iss":"{ISSUER}","aud":"{AUDIENCE}","iat":{iat},"exp":{exp}}}'.encode()
    for suffix in [b""] if count is None else (b"-%d" % number for number in range(1, count + 1)):
        signed = _HEADER + b"." + urlsafe_b64encode(b'{"sub":' + sub + suffix + rest).rstrip(b"=")
        yield (signed + b"." + signer.sign(signed)).decode("ascii")
