"""A channel as the house talks to it: told what becomes of its orders and what it may sell.

`HttpMarketplace` posts JSON to the channel's endpoint, signed after Standard Webhooks
(https://www.standardwebhooks.com), through the client that reaches no address inside the house. A marketplace with an
API of its own gets another class with the same two methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import orjson
from standardwebhooks import Webhook

from flashsale.partners.outbound import Answer, Forbidden, Outbound, Unanswered

ORDERS, STOCK = "channel.orders", "channel.stock"
USER_AGENT = "flashsale-channels/1"
ERROR_MAX = 300  # characters kept of an answer that is none
_BUSY = frozenset({408, 425, 429})  # these say nothing of what was sent


class Endpoint(NamedTuple):
    """Where a channel hears, and the key that signs what it hears (`whsec_…`)."""

    channel: str
    url: str
    secret: str


class OrderChange(NamedTuple):
    """A change of one order: the `number`th entry of its history, `status` and `payment` after it."""

    order: str
    reference: str  # the channel's own name of the order
    sale: str
    number: int
    event: str
    status: str
    payment: str
    at_ms: int
    tracking: str | None


class Sellable(NamedTuple):
    """Units that the channel's orders would find now."""

    sale: str
    sku: str
    units: int


class Outcome(NamedTuple):
    """How telling ended. `taken`: all of it. `refused`: the channel does not want what was said; else it did not
    answer, or can't just now. `error` says why, for people."""

    taken: bool
    refused: bool = False
    error: str = ""


class Marketplace(Protocol):
    """What a channel can be told. Neither method raises for what the other side does."""

    async def tell_orders(self, endpoint: Endpoint, changes: Sequence[OrderChange], now_ms: int) -> Outcome:
        """Changes of orders: at least once, in no promised order (`number` tells it)."""
        ...

    async def tell_stock(self, endpoint: Endpoint, stock: Sequence[Sellable], as_of_ms: int) -> Outcome:
        """What may be sold as of Valkey's time; a later one stands for an earlier one of the same SKU."""
        ...


class HttpMarketplace:
    """Tells by HTTP."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    async def tell_orders(self, endpoint: Endpoint, changes: Sequence[OrderChange], now_ms: int) -> Outcome:
        orders = [
            {
                "id": change.order,
                "reference": change.reference,
                "sale": change.sale,
                "number": change.number,
                "event": change.event,
                "status": change.status,
                "payment": change.payment,
                "at": _rfc3339(change.at_ms),
                **({} if change.tracking is None else {"tracking": change.tracking}),
            }
            for change in changes
        ]
        return await self._post(endpoint, ORDERS, {"orders": orders}, now_ms)

    async def tell_stock(self, endpoint: Endpoint, stock: Sequence[Sellable], as_of_ms: int) -> Outcome:
        levels = [{"sale": level.sale, "sku": level.sku, "sellable": level.units} for level in stock]
        return await self._post(endpoint, STOCK, {"stock": levels}, as_of_ms)

    async def _post(self, endpoint: Endpoint, kind: str, told: dict[str, Any], at_ms: int) -> Outcome:
        body = orjson.dumps({"type": kind, "channel": endpoint.channel, "timestamp": _rfc3339(at_ms), **told})
        now = datetime.now(UTC)
        # The same in every try of the same words, so that a receiver can drop what it has had.
        digest = hashlib.blake2b(body if kind == STOCK else orjson.dumps(told), digest_size=12).hexdigest()
        message_id = f"msg_{endpoint.channel}_{digest}"
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(endpoint.secret).sign(message_id, now, body.decode()),
        }
        try:
            answer = await self._outbound.post(endpoint.url, body, headers)
        except (Forbidden, Unanswered) as fault:
            return Outcome(False, error=str(fault)[:ERROR_MAX])
        if 200 <= answer.status < 300:
            return Outcome(True)
        return Outcome(False, 400 <= answer.status < 500 and answer.status not in _BUSY, _error(answer))


def _error(answer: Answer) -> str:
    # A stranger's text: no NUL for PostgreSQL, no escape sequence for the terminal that shows it.
    text = "".join(character if character.isprintable() else " " for character in answer.text)
    return f"{answer.status} {' '.join(text.split())}".strip()[:ERROR_MAX]


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
