"""Stripe's adapter: the provider's interface spoken through the official `stripe` library.

The library's own retries are off: whoever calls decides when to ask again. Every change carries an Idempotency-Key made
of our own ids, so asking again changes nothing. Stripe forgets a key after 24 h
(https://docs.stripe.com/api/idempotent_requests); what was first asked for longer ago is looked for by its metadata.

One order is one Checkout Session (https://docs.stripe.com/api/checkout/sessions) that offers all of the order's
methods: a card is captured by hand, a wallet at once. A session's intent can't be cancelled by itself: while the
session is open it is expired instead. Both are the same when done twice, and a key would keep a refusal for a day:
they have none of ours. What is refused elsewhere is looked at before it is told.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import stripe
from stripe import AIOHTTPClient

from flashsale.partners.payments.provider import (
    ForeignEvent,
    ForeignRefund,
    Opened,
    Payable,
    ProviderAway,
    ProviderRefused,
)
from flashsale.partners.payments.stripe_amounts import to_provider
from flashsale.partners.payments.stripe_calls import body_of, list_of, next_url, object_of
from flashsale.partners.payments.stripe_facts import (
    StripeObject,
    facts_of,
    intent_fact,
    order_of,
    refund_fact,
    session_fact,
)
from flashsale.sale.payment import Fact, IntentState, PaymentFact, RefundFact
from flashsale.sale.payment_methods import METHODS

__all__ = ["StripeProvider", "facts_of"]

API_VERSION = "2026-10-28.endive"  # the one that the fields of stripe_facts.py were read from
KEY_TRUSTED_S = 23 * 3600  # keys lapse after 24 h; an hour is the clocks' and the network's
# A session lives 30 minutes at least and 24 hours at most from when Stripe is asked: it outlives the hold by so much
# that it may be opened in the hold's last second. Whoever lets the hold expire closes it.
SESSION_AFTER_S = 35 * 60
SESSION_MOST_S = 23 * 3600
CLOCKS_APART_S = 300
LOOKED_THROUGH_MOST = 200  # pages of 100 sessions in the look for one; beyond it the order waits for a person
PAGE = 100
_OPEN = ("requires_payment_method", "requires_confirmation", "requires_action")
_RELEASABLE = ("requires_capture", *_OPEN)
_SESSION_EXPANDED = ["payment_intent.latest_charge"]


class StripeProvider:
    """One account at Stripe. Make it in the loop that uses it."""

    name = "stripe"

    def __init__(self, api_key: str, url: str | None = None, *, timeout_s: float = 10, return_url: str) -> None:
        """url: another address than Stripe's own. timeout_s: of one call. return_url: where shoppers go after they
        paid, if the order names no place."""
        self._http = AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=timeout_s))
        base: Any = {} if url is None else {"api": url.rstrip("/")}
        self._client = stripe.StripeClient(
            api_key,
            base_addresses=base,
            stripe_version=API_VERSION,
            max_network_retries=0,
            http_client=self._http,
        )
        self._v1 = self._client.v1
        self._return_url = return_url

    async def open(self, payable: Payable, created_ms: int) -> Opened:
        created_s = created_ms // 1000
        # A payment that was closed unpaid and begins anew has another time: the first one's session is over.
        key = f"open-{payable.order_id}-{created_ms}"
        if _lapsed(created_ms):
            found = await self._session_of(payable.order_id, created_s)
            if found is not None:
                return _opened(found)
        try:
            session = await object_of(
                self._v1.checkout.sessions.create_async(self._asked(payable, created_s), {"idempotency_key": key})
            )
        except ProviderRefused as fault:
            if fault.code != "idempotency_error":
                raise
            # Asked for before, in other words (the hold was extended since, say): what was made then is meant.
            found = await self._session_of(payable.order_id, created_s)
            if found is None:
                raise ProviderAway(f"order {payable.order_id}: Stripe knows the key and shows no session") from fault
            session = found
        return _opened(session)

    def _asked(self, payable: Payable, created_s: int) -> Any:
        """The session's parameters. They follow from the order alone, for a key is good for the same ones only."""
        metadata = {"order": payable.order_id}
        back = payable.return_url or self._return_url
        asked_s = int(time.time()) if _lapsed(created_s * 1000) else created_s
        expires_s = min(payable.expires_ms // 1000 + SESSION_AFTER_S, asked_s + SESSION_MOST_S)
        try:
            amount = to_provider(payable.amount, payable.currency)
        except ValueError as fault:
            raise ProviderRefused("amount_not_representable", str(fault)) from None
        price = {
            "currency": payable.currency.lower(),
            "unit_amount": amount,
            "product_data": {"name": payable.description[:250]},
        }
        return {
            "mode": "payment",
            "line_items": [{"price_data": price, "quantity": 1}],
            "payment_method_types": list(payable.methods),
            "payment_method_options": {
                name: {"capture_method": "manual"} for name in payable.methods if METHODS[name].capture == "manual"
            },
            "payment_intent_data": {"metadata": metadata, "description": payable.description[:500]},
            "metadata": metadata,
            "client_reference_id": payable.order_id,
            "success_url": back,
            "cancel_url": back,
            "expires_at": expires_s,
        }

    async def _session_of(self, order_id: str, created_s: int) -> StripeObject | None:
        """The order's session, looked for among those made since it was asked for first."""
        params: dict[str, Any] = {"limit": PAGE, "created": {"gte": created_s - CLOCKS_APART_S}}
        for _ in range(LOOKED_THROUGH_MOST):
            page = await list_of(self._v1.checkout.sessions.list_async(params))  # type: ignore[arg-type]
            for session in page.data:
                if order_of(session) == order_id:
                    return session
            if not page.has_more or not page.data:
                return None
            params["starting_after"] = page.data[-1].id
        raise ProviderAway(f"order {order_id}: more sessions than can be looked through since {created_s}")

    async def wallet(self, opened: Opened, method: str, return_url: str, key: str) -> str:
        if opened.provider_id is None:
            return opened.pay_url
        try:
            body = await body_of(
                self._v1.payment_intents.confirm_async(
                    opened.provider_id,
                    {"payment_method_data": {"type": method}, "return_url": return_url},
                    {"idempotency_key": key},
                )
            )
        except ProviderRefused:
            # Stripe may let only the session's own page confirm its intent; that offers the same method.
            if (await self._intent(opened.provider_id)).status not in _OPEN:
                raise
            return opened.pay_url
        return next_url(body) or opened.pay_url

    async def capture(self, order_id: str, provider_id: str, amount: int) -> PaymentFact:
        before = await self._intent(provider_id)
        if before.status != "requires_capture":
            return _payment(before, order_id, "call")
        asked = _to_provider(amount, before)
        # The intent is captured once whatever the keys; the amount is part of it, lest a changed one be taken for a
        # fault of the parameters.
        params: Any = {"amount_to_capture": asked, "expand": ["latest_charge"]}
        options: Any = {"idempotency_key": f"capture-{order_id}-{asked}"}
        try:
            captured = await object_of(self._v1.payment_intents.capture_async(provider_id, params, options))
        except ProviderRefused:
            fact = _payment(await self._intent(provider_id), order_id, "call")
            if fact.state not in (IntentState.CAPTURED, IntentState.CLOSED):
                raise
            return fact
        return _payment(captured, order_id, "call")

    async def close(self, order_id: str, session_id: str, provider_id: str | None) -> PaymentFact:
        session = await self._session(session_id)
        if session.status == "open":
            try:
                session = await object_of(
                    self._v1.checkout.sessions.expire_async(session_id, {"expand": _SESSION_EXPANDED})
                )
            except ProviderRefused:
                # Paid or expired meanwhile?
                session = await self._session(session_id)
                if session.status == "open":
                    raise
        intent_id = _intent_id(session) or provider_id
        if intent_id is None:
            return _payment(session, order_id, "call")
        intent = await self._intent(intent_id)
        if intent.status in _OPEN:
            # The session is over, its intent not: it is cancelled by itself.
            return await self._cancel(order_id, intent_id, _OPEN)
        return _payment(intent, order_id, "call")

    async def release(self, order_id: str, provider_id: str) -> PaymentFact:
        intent = await self._intent(provider_id)
        if intent.status not in _RELEASABLE:
            return _payment(intent, order_id, "call")
        return await self._cancel(order_id, provider_id, _RELEASABLE)

    async def _cancel(self, order_id: str, provider_id: str, states: tuple[str, ...]) -> PaymentFact:
        """Cancel an intent that was in one of these states; if it is in another by now, that is what is told."""
        params: Any = {"cancellation_reason": "abandoned", "expand": ["latest_charge"]}
        try:
            intent = await object_of(self._v1.payment_intents.cancel_async(provider_id, params))
        except ProviderRefused:
            intent = await self._intent(provider_id)
            if intent.status in states:
                raise
        return _payment(intent, order_id, "call")

    async def look(self, order_id: str, session_id: str, provider_id: str | None) -> PaymentFact:
        if provider_id is None or provider_id == session_id:
            session = await self._session(session_id)
            return _payment(session, order_id, "poll")
        return _payment(await self._intent(provider_id), order_id, "poll")

    async def refund(self, refund_id: str, order_id: str, provider_id: str, amount: int, created_ms: int) -> RefundFact:
        if _lapsed(created_ms):
            found = await self._refund_of(refund_id, provider_id)
            if found is not None:
                return found
        intent = await self._intent(provider_id)
        params: Any = {
            "payment_intent": provider_id,
            "amount": _to_provider(amount, intent),
            "metadata": {"order": order_id, "refund": refund_id},
        }
        try:
            made = await object_of(self._v1.refunds.create_async(params, {"idempotency_key": f"refund-{refund_id}"}))
        except ProviderRefused:
            # Refused because it was done already, by a try whose key is gone? Then it is there.
            found = await self._refund_of(refund_id, provider_id)
            if found is None:
                raise
            return found
        return _refund(made, refund_id)

    async def look_refund(self, refund_id: str, provider_id: str) -> RefundFact | None:
        return await self._refund_of(refund_id, provider_id)

    async def _refund_of(self, refund_id: str, provider_id: str) -> RefundFact | None:
        params: dict[str, Any] = {"payment_intent": provider_id, "limit": PAGE}
        while True:
            page = await list_of(self._v1.refunds.list_async(params))  # type: ignore[arg-type]
            for found in page.data:
                fact = _fact(found, "call")
                if isinstance(fact, RefundFact) and fact.refund_id == refund_id:
                    return fact
            if not page.has_more or not page.data:
                return None
            params["starting_after"] = page.data[-1].id

    async def list_intents(self, since_ms: int) -> AsyncIterator[PaymentFact]:
        params: dict[str, Any] = {
            "limit": PAGE,
            "created": {"gte": since_ms // 1000},
            "expand": ["data.latest_charge"],
        }
        while True:
            page = await list_of(self._v1.payment_intents.list_async(params))  # type: ignore[arg-type]
            for found in page.data:
                fact = _fact(found, "poll")
                if isinstance(fact, PaymentFact):
                    yield fact
            if not page.has_more or not page.data:
                return
            params["starting_after"] = page.data[-1].id

    async def list_refunds(self, since_ms: int) -> AsyncIterator[RefundFact | ForeignRefund]:
        params: dict[str, Any] = {"limit": PAGE, "created": {"gte": since_ms // 1000}}
        while True:
            page = await list_of(self._v1.refunds.list_async(params))  # type: ignore[arg-type]
            for found in page.data:
                fact = _fact(found, "poll")
                intent_id = _intent_id(found)
                if isinstance(fact, RefundFact):
                    yield fact
                elif intent_id is not None:
                    yield ForeignRefund(found.id, intent_id, found.status in ("failed", "canceled"))
            if not page.has_more or not page.data:
                return
            params["starting_after"] = page.data[-1].id

    async def aclose(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def _intent(self, provider_id: str) -> StripeObject:
        return await object_of(self._v1.payment_intents.retrieve_async(provider_id, {"expand": ["latest_charge"]}))

    async def _session(self, session_id: str) -> StripeObject:
        return await object_of(self._v1.checkout.sessions.retrieve_async(session_id, {"expand": _SESSION_EXPANDED}))


def _lapsed(created_ms: int) -> bool:
    """Whether a key of that age may be forgotten."""
    return time.time() - created_ms / 1000 > KEY_TRUSTED_S


def _opened(session: StripeObject) -> Opened:
    # A session that is over has no page any more: its intent tells what became of it.
    return Opened(session.id, _intent_id(session), session.url or "")


def _intent_id(found: StripeObject) -> str | None:
    """The intent of a session or a refund."""
    intent = found.payment_intent
    return intent.id if isinstance(intent, StripeObject) else intent


def _to_provider(amount: int, intent: StripeObject) -> int:
    try:
        return to_provider(amount, (intent.currency or "").upper())
    except ValueError as fault:
        raise ProviderRefused("amount_not_representable", str(fault)) from None


def _fact(found: StripeObject, source: str) -> Fact | ForeignEvent:
    """What an object says, whichever it is."""
    read = {"payment_intent": intent_fact, "refund": refund_fact}.get(found.object, session_fact)
    try:
        return read(found, source)
    except ValueError as fault:
        raise ProviderAway(f"Stripe's {found.object} {found.id} makes no sense: {fault}") from fault


def _payment(found: StripeObject, order_id: str, source: str) -> PaymentFact:
    fact = _fact(found, source)
    if not isinstance(fact, PaymentFact) or fact.order_id != order_id:
        raise ProviderRefused("foreign", f"Stripe's {found.object} {found.id} is not of order {order_id}")
    return fact


def _refund(found: StripeObject, refund_id: str) -> RefundFact:
    fact = _fact(found, "call")
    if not isinstance(fact, RefundFact) or fact.refund_id != refund_id:
        raise ProviderRefused("foreign", f"Stripe's {found.object} {found.id} is not refund {refund_id}")
    return fact
