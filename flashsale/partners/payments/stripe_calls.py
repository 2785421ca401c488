"""One call through the `stripe` library: its answer typed, its many errors made two.

https://docs.stripe.com/error-handling: what decides nothing (no connection, a time-out, 5xx, 429, a conflict of two
requests under one key) is ProviderAway, and the same call is to be made again. A wrong or withdrawn key is the same:
nothing was done, and it will be once the key is mended. What Stripe decided against is ProviderRefused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import msgspec
import stripe

from flashsale.partners.payments.provider import ProviderAway, ProviderRefused
from flashsale.partners.payments.stripe_facts import ObjectList, StripeObject, decode_list, decode_object

T = TypeVar("T")
_MESSAGE_MAX = 300
_REFUSALS = (400, 402, 404)


class _NextAction(msgspec.Struct):
    next_action: dict[str, Any] | None = None


_decode_next = msgspec.json.Decoder(_NextAction).decode


async def body_of(call: Awaitable[Any]) -> bytes:
    """The JSON of what a call answers. Raises ProviderAway, ProviderRefused."""
    try:
        answer = await call
    except stripe.StripeError as fault:
        raise failure(fault) from fault
    except (aiohttp.ClientError, TimeoutError, OSError) as fault:
        # The library catches what happens before the answer's head; its body is read outside of that.
        raise ProviderAway(f"Stripe's answer broke off: {fault!r}") from fault
    body = answer.last_response.body
    return body.encode() if isinstance(body, str) else bytes(body)


async def object_of(call: Awaitable[Any]) -> StripeObject:
    """The one object that a call answers."""
    return _decoded(decode_object, await body_of(call))


async def list_of(call: Awaitable[Any]) -> ObjectList:
    """The page that a call answers."""
    return _decoded(decode_list, await body_of(call))


def next_url(body: bytes) -> str | None:
    """Where an intent's next action takes the shopper."""
    action = _decoded(_decode_next, body).next_action or {}
    details = action.get(action.get("type", ""))
    url = details.get("url") if isinstance(details, dict) else None
    return url if isinstance(url, str) else None


def _decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    try:
        return decode(body)
    except msgspec.DecodeError as fault:
        raise ProviderAway(f"Stripe's answer makes no sense: {fault}") from fault


def failure(fault: stripe.StripeError) -> ProviderAway | ProviderRefused:
    """Which of the two an error of the library is."""
    message = (fault.user_message or str(fault) or type(fault).__name__)[:_MESSAGE_MAX]
    if isinstance(fault, (stripe.AuthenticationError, stripe.PermissionError)):
        return ProviderAway(f"Stripe does not accept the API key: {message}")
    if isinstance(fault, stripe.IdempotencyError):
        return ProviderRefused("idempotency_error", message)
    if isinstance(fault, stripe.CardError):
        declined = fault.error.decline_code if fault.error is not None else None
        return ProviderRefused(declined or fault.code or "card_declined", message)
    # Before its class: a 429 may come as an invalid request of old, a 409 as an API error.
    decided = fault.http_status in _REFUSALS and not isinstance(
        fault, (stripe.APIConnectionError, stripe.RateLimitError, stripe.APIError)
    )
    if decided:
        return ProviderRefused(fault.code or "invalid_request_error", message)
    return ProviderAway(f"{type(fault).__name__} {fault.http_status or ''}: {message}")
