"""From a framed `POST /v1/orders` to an order that the batcher can decide, in CONTRACT's order of checks.

syntax and size (framing.py) -> identity -> body -> sale known -> SKUs and market known; the rest is `reserve.lua`'s.
Nothing here waits or asks a server.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from flashsale.errors import Refused
from flashsale.front.auth import CONTROL, Claims, Verifier
from flashsale.front.framing import ACCEPT, AUTHORIZATION, CODING, KEY, TYPE, Head
from flashsale.front.identities import IdentityTokens
from flashsale.sale.channel_order import ChannelOrder
from flashsale.sale.channels import SHOPPER_DIVIDER
from flashsale.sale.decoding import InvalidBody, MalformedBody
from flashsale.sale.order import from_json, from_msgpack
from flashsale.sale.priced import IdentityMissing, Order, PricedSale, UnknownMarket, UnknownSku

KEY_MAX = 64

_BARE_KEY = re.compile(rb"[!#-~][ -~]{0,63}")
_QUOTED_KEY = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_ESCAPE = re.compile(rb'\\(["\\])')
_JSON, _MSGPACK = False, True
_TYPES = {
    b"application/json": _JSON,
    b"application/msgpack": _MSGPACK,
    b"application/vnd.msgpack": _MSGPACK,
    b"application/x-msgpack": _MSGPACK,
}


def idempotency_key(value: bytes | None) -> str:
    """The key in the header's value: quoted (a structured field's string) or bare, the same key either way."""
    if not value:
        raise Refused("idempotency-key-missing")
    if value[0] == 0x22:
        match = _QUOTED_KEY.fullmatch(value)
        key = _ESCAPE.sub(rb"\1", match[1]) if match else b""
    else:
        key = value if _BARE_KEY.fullmatch(value) else b""
    if not 1 <= len(key) <= KEY_MAX:
        raise Refused("malformed", "The Idempotency-Key is 1 to 64 printable ASCII characters, bare or in quotes.")
    return key.decode("ascii")


def media_type(head: Head) -> bool:
    """Whether the body is MessagePack (else JSON). Raises Refused("unsupported-media-type")."""
    value = head.fields.get(TYPE, b"application/json")
    packed = _TYPES.get(value)
    if packed is None:
        packed = _TYPES.get(value.partition(b";")[0].strip(b" \t").lower())
        if packed is None:
            raise Refused("unsupported-media-type", "An order is application/json or application/msgpack.")
    check_coding(head)
    return packed


def check_coding(head: Head) -> None:
    """Raises Refused("unsupported-media-type") for a body that would have to be unpacked first."""
    if head.fields.get(CODING, b"identity").lower() not in (b"identity", b""):
        raise Refused("unsupported-media-type", "A compressed body is not taken.")


def answers_packed(accept: bytes, packed: bool) -> bool:
    """Whether the answer is MessagePack: in kind, unless `Accept` names only the other one."""
    named = {part.partition(b";")[0].strip(b" \t").lower() for part in accept.split(b",")}
    json = b"application/json" in named
    if any(_TYPES.get(name) is _MSGPACK for name in named) != json:
        return not json
    return packed


def recipient(name: str) -> str:
    """Whom an agent orders for. Raises Refused where no token could name them."""
    if not name.isprintable() and CONTROL.search(name):
        raise Refused("invalid-order", fields={"for": "a shopper's id holds no control characters"})
    return name


class Unknown(Refused):
    """A refusal that a newer catalogue might take back: the sale, a SKU or a market is not in the one at hand."""


class Intake:
    """Makes orders. Set from outside: `sales`, those of the catalogue version in force. `clock`: the UNIX time, s, that
    a token's times are compared with."""

    def __init__(self, verifier: Verifier, identities: IdentityTokens, clock: Callable[[], float] = time.time) -> None:
        self._verify = verifier.verify
        self._identities = identities
        self.sales: dict[str, PricedSale] = {}
        self._clock = clock

    def read(self, head: Head, body: bytes) -> Order:
        """A new order from any head. Raises Refused."""
        fields = head.fields
        key = idempotency_key(fields.get(KEY))
        packed = media_type(head)
        authorization = fields.get(AUTHORIZATION)
        if authorization is None or authorization[:7].lower() != b"bearer ":
            raise Refused("unauthenticated", "Send `Authorization: Bearer` and one token.")
        order = self.order(authorization[7:].strip(b" "), key, packed, body)
        accept = fields.get(ACCEPT)
        if accept is not None and accept != b"*/*":
            order.msgpack = answers_packed(accept, packed)
        return order

    def order(self, token: bytes, key: str, packed: bool, body: bytes) -> Order:
        """A new order: identified, its body decoded, not yet priced. Raises Refused."""
        claims = self._verify(token, self._clock())
        if claims.role not in ("shopper", "agent"):
            raise Refused("forbidden", "Orders are placed with a shopper's token, or an agent's.")
        order = Order()
        try:
            order.request = from_msgpack(body) if packed else from_json(body)
        except MalformedBody as fault:
            raise Refused("malformed", f"The body can't be decoded: {fault}") from None
        except InvalidBody as fault:
            raise Refused("invalid-order", fields=fault.fields) from None
        request = order.request
        order.key, order.shopper, order.msgpack, order.answer = key, claims.sub, packed, None
        if claims.role == "agent" or request.recipient is not None:
            if claims.role != "agent":
                raise Refused("invalid-order", fields={"for": "only an agent's order says whom it is for"})
            if request.recipient is None:
                raise Refused("invalid-order", fields={"for": "an agent's order says whom it is for"})
            order.shopper, order.agent = recipient(request.recipient), claims.sub
        if request.channel is not None and self._is_marketplace(request.sale, request.channel):
            # Else any shopper could order what is guaranteed to a marketplace, and which only that one packs.
            raise Refused("invalid-order", fields={"channel": "a marketplace brings its orders itself"})
        if request.identity is not None:
            order.identity = self._identities.read(request.identity, order.shopper)
        return order

    def _is_marketplace(self, sale_id: str, channel_id: str) -> bool:
        sale = self.sales.get(sale_id)
        channel = None if sale is None else sale.world.channel(channel_id)
        return channel is not None and channel.kind == "marketplace"

    def claims(self, token: bytes) -> Claims:
        """Who asks. Raises Refused("unauthenticated")."""
        return self._verify(token, self._clock())

    def knows_channel(self, channel: str) -> bool:
        """Whether the catalogue in force has such a channel."""
        sale = next(iter(self.sales.values()), None)
        return sale is not None and sale.world.channel(channel) is not None

    def channel_order(self, request: ChannelOrder, channel: str, packed: bool) -> Order:
        """A new order of a channel, not yet priced. Raises Refused."""
        order = Order()
        order.request, order.key, order.msgpack, order.answer = request, request.reference, packed, None
        order.shopper = f"{channel}{SHOPPER_DIVIDER}{request.shopper}"
        order.collected = request.collected_by is not None
        if request.identity is not None:
            order.identity = self._identities.read(request.identity, order.shopper)
        return order

    def price(self, order: Order) -> None:
        """Gives the order its id and prices at the version in force. Raises Unknown, with the id once it is known."""
        request = order.request
        sale = self.sales.get(request.sale)
        if sale is None:
            raise Unknown("unknown-sale", sale=request.sale)
        sale.identify(order)
        try:
            sale.price(order)
        except UnknownMarket:
            raise Unknown(
                "invalid-order", id=order.id, fields={"market": f"the sale sells nothing in {request.market!r}"}
            ) from None
        except UnknownSku as fault:
            raise Unknown("unknown-sku", id=order.id, sku=fault.args[0]) from None
        except IdentityMissing:
            raise Refused("identity-unverified", id=order.id) from None
