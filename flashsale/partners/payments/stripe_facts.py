"""What Stripe's objects say, as facts in the house's words: one typed decode of an event's body, or of an API answer.

Relies on nothing of the `stripe` library: its objects cost a hundred times as much to build, and every webhook passes
here. Field names and states: https://docs.stripe.com/api/payment_intents/object, …/checkout/sessions/object,
…/refunds/object, …/disputes/object. Measured: an event of 2–3 kB takes about 5 µs.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from flashsale.partners.payments.provider import FOREIGN, ForeignEvent
from flashsale.partners.payments.stripe_amounts import from_provider
from flashsale.sale.payment import DisputeFact, DisputeState, Fact, IntentState, PaymentFact, RefundFact, RefundState

AMOUNT_MAX = 10**18  # beyond any order; keeps a stranger's number out of PostgreSQL's int8
# A card that its owner confirmed online is held for 7 days (https://docs.stripe.com/payments/place-a-hold-on-a-payment-
# method). Where the charge does not tell its own deadline: counted from the intent's making, which is earlier than
# the authorisation, and less half a day in which a capture may be tried again.
AUTHORISATION_LIVES_S = 7 * 86_400 - 12 * 3600
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")  # ours and Stripe's alike
_TEXT_MAX = 200


class _Method(msgspec.Struct):
    id: str | None = None
    type: str | None = None


class _Error(msgspec.Struct):
    code: str | None = None
    decline_code: str | None = None
    charge: str | None = None
    type: str | None = None
    payment_method: _Method | None = None


class _CardDetails(msgspec.Struct):
    capture_before: int | None = None


class _MethodDetails(msgspec.Struct):
    type: str | None = None
    card: _CardDetails | None = None


class _Charge(msgspec.Struct):
    id: str
    amount: int = 0
    amount_captured: int = 0
    status: str | None = None
    payment_method_details: _MethodDetails | None = None


class StripeObject(msgspec.Struct):
    """The fields that we read of an intent, a session, a refund and a dispute, in one: a single pass decodes all."""

    id: str
    object: str = ""
    status: str | None = None
    created: int = 0
    currency: str | None = None
    metadata: dict[str, str] | None = None
    # an intent
    amount: int | None = None
    amount_capturable: int = 0
    amount_received: int = 0
    latest_charge: str | _Charge | None = None
    last_payment_error: _Error | None = None
    payment_method_types: list[str] | None = None
    # a session
    amount_total: int | None = None
    payment_status: str | None = None
    payment_intent: str | StripeObject | None = None
    url: str | None = None
    # a refund, a dispute
    failure_reason: str | None = None


class _Data(msgspec.Struct):
    object: StripeObject


class _Event(msgspec.Struct):
    id: str
    type: str
    data: _Data
    object: str = ""


class _Head(msgspec.Struct):
    id: str
    type: str
    object: str = ""


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_head = msgspec.json.Decoder(_Head).decode


def facts_of(body: bytes) -> Fact | ForeignEvent | None:
    """The fact that an event's body tells; None for a type of event that says nothing to us, FOREIGN for one about no
    order of ours. Raises ValueError, whose text names what is wrong, for what is no event of Stripe's."""
    try:
        event = _decode_event(body)
    except msgspec.DecodeError as fault:
        head = _head(body, fault)
        if head.type in _READERS:
            raise ValueError(f"{head.type} {head.id[:64]!r}: {fault}") from None
        return None
    if event.object != "event":
        raise ValueError(f"`object` is {event.object[:32]!r}, not 'event'")
    reader = _READERS.get(event.type)
    if reader is None:
        return None
    if _ID.fullmatch(event.id) is None:
        raise ValueError(f"`id` {event.id[:64]!r} is no event's id")
    try:
        return reader(event.data.object, event.type, event.id)
    except ValueError as fault:
        raise ValueError(f"{event.type} {event.id}: {fault}") from None


def _head(body: bytes, fault: msgspec.DecodeError) -> _Head:
    """Of a body that is no event as we know them: whether it is one of another kind. Raises ValueError if not."""
    try:
        head = _decode_head(body)
    except msgspec.DecodeError:
        raise ValueError(f"not an event: {fault}") from None
    if head.object not in ("event", "v2.core.event"):
        raise ValueError(f"`object` is {head.object[:32]!r}, not 'event'")
    return head


def order_of(found: StripeObject) -> str | None:
    """The order that an object of Stripe's is about; None if it is none of ours."""
    order_id = (found.metadata or {}).get("order", "")
    return order_id if _ID.fullmatch(order_id) else None


def intent_fact(intent: StripeObject, source: str) -> PaymentFact | ForeignEvent:
    """An intent as it is, whatever event or answer it came with: its status alone decides."""
    order_id = order_of(intent)
    if order_id is None:
        return FOREIGN
    currency = _currency(intent)
    amount = _minor("amount", intent.amount, currency)
    charge = intent.latest_charge if isinstance(intent.latest_charge, _Charge) else None
    error = intent.last_payment_error
    authorised = captured = 0
    capture_before_ms = failure = attempt = None
    match intent.status:
        case "requires_payment_method" if error is not None:
            state = IntentState.FAILED
            failure = _text(error.decline_code or error.code or error.type or "declined")
            # A redirect that failed made no charge: then the wallet's method, which is made anew for each try.
            tried = error.payment_method.id if error.payment_method is not None else None
            attempt = _text(error.charge or tried or _charge_id(intent))
        case "requires_payment_method" | "requires_confirmation" | "requires_action":
            state = IntentState.OPEN
        case "processing":
            state = IntentState.PROCESSING
        case "requires_capture":
            state = IntentState.AUTHORISED
            authorised = _minor("amount_capturable", intent.amount_capturable, currency)
            capture_before_ms = _capture_before_s(intent, charge) * 1000
        case "succeeded":
            state = IntentState.CAPTURED
            authorised, captured = amount, _minor("amount_received", intent.amount_received, currency)
        case "canceled":
            state = IntentState.CLOSED
            # An expanded charge that succeeded was the authorisation; without one the ledger knows it already, if any.
            if charge is not None and charge.status == "succeeded":
                authorised = _minor("latest_charge.amount", charge.amount, currency)
        case other:
            raise ValueError(f"`status` of an intent is {other!r}")
    method = _method(intent, charge, state)
    return PaymentFact(
        order_id,
        _id(intent.id),
        state,
        method,
        authorised,
        captured,
        capture_before_ms,
        failure,
        attempt,
        source,
        currency,
    )


def session_fact(session: StripeObject, source: str) -> PaymentFact | ForeignEvent:
    """A Checkout Session. While its intent is not known, the session's own id stands in for it."""
    order_id = order_of(session)
    if order_id is None:
        return FOREIGN
    intent = session.payment_intent
    if isinstance(intent, StripeObject):
        told = intent_fact(intent, source)
        if told is not FOREIGN:
            return told
    intent_id = intent.id if isinstance(intent, StripeObject) else intent
    authorised = captured = 0
    currency = None
    state = IntentState.OPEN
    match session.status:
        case "complete" if session.payment_status == "paid":
            state = IntentState.CAPTURED
            currency = _currency(session)
            authorised = captured = _minor("amount_total", session.amount_total, currency)
        case "complete":
            # Authorised, or a wallet that takes its time: the intent's own events say which.
            state = IntentState.PROCESSING
        case "expired" if intent_id is None:
            state = IntentState.CLOSED
        case "open" | "expired":
            pass
        case other:
            raise ValueError(f"`status` of a session is {other!r}")
    return PaymentFact(
        order_id, _id(intent_id or session.id), state, None, authorised, captured, None, None, None, source, currency
    )


_REFUND_STATES = {
    "pending": RefundState.PENDING,
    "requires_action": RefundState.PENDING,
    "succeeded": RefundState.SUCCEEDED,
    "failed": RefundState.FAILED,
    "canceled": RefundState.FAILED,
}


def refund_fact(refund: StripeObject, source: str) -> RefundFact | ForeignEvent:
    """A refund that we asked for: it carries both ids as metadata. One made by hand has none: foreign."""
    order_id = order_of(refund)
    refund_id = (refund.metadata or {}).get("refund", "")
    if order_id is None or _ID.fullmatch(refund_id) is None:
        return FOREIGN
    state = _REFUND_STATES.get(refund.status or "")
    if state is None:
        raise ValueError(f"`status` of a refund is {refund.status!r}")
    failure = _text(refund.failure_reason or refund.status) if state is RefundState.FAILED else None
    amount = _minor("amount", refund.amount, _currency(refund))
    return RefundFact(order_id, refund_id, _id(refund.id), state, amount, failure, source)


# An inquiry (warning_…) is told like a dispute: a refund meanwhile could pay the shopper twice.
_DISPUTE_STATES = {
    "warning_needs_response": DisputeState.OPEN,
    "warning_under_review": DisputeState.OPEN,
    "warning_closed": DisputeState.WON,
    "needs_response": DisputeState.OPEN,
    "under_review": DisputeState.OPEN,
    "appeal_needs_response": DisputeState.OPEN,
    "appeal_under_review": DisputeState.OPEN,
    "prevented": DisputeState.WON,
    "won": DisputeState.WON,
    "lost": DisputeState.LOST,
}


def dispute_fact(dispute: StripeObject, source: str) -> DisputeFact | ForeignEvent:
    """A dispute. It carries no metadata of ours: its intent tells whose it is."""
    intent = dispute.payment_intent
    intent_id = intent.id if isinstance(intent, StripeObject) else intent
    if intent_id is None:
        return FOREIGN
    state = _DISPUTE_STATES.get(dispute.status or "")
    if state is None:
        raise ValueError(f"`status` of a dispute is {dispute.status!r}")
    amount = _minor("amount", dispute.amount, _currency(dispute))
    return DisputeFact(_id(intent_id), _id(dispute.id), state, amount, source)


def _currency(found: StripeObject) -> str:
    if found.currency is None:
        raise ValueError("`currency` is missing")
    return found.currency.upper()


def _minor(field: str, amount: int | None, currency: str) -> int:
    if amount is None or not 0 <= amount <= AMOUNT_MAX:
        raise ValueError(f"`{field}` is {amount!r}, no amount")
    return from_provider(amount, currency)


def _id(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise ValueError(f"`id` {text[:64]!r} is no id of Stripe's")
    return text


def _text(text: str | None) -> str | None:
    """A word of Stripe's, fit for a column: PostgreSQL takes no NUL and nobody wants a novel."""
    return None if text is None else text.replace("\0", "")[:_TEXT_MAX]


def _charge_id(intent: StripeObject) -> str | None:
    charge = intent.latest_charge
    return charge.id if isinstance(charge, _Charge) else charge


def _capture_before_s(intent: StripeObject, charge: _Charge | None) -> int:
    details = charge.payment_method_details if charge is not None else None
    told = details.card.capture_before if details is not None and details.card is not None else None
    return told if told is not None else intent.created + AUTHORISATION_LIVES_S


def _method(intent: StripeObject, charge: _Charge | None, state: IntentState) -> str | None:
    if charge is not None and charge.payment_method_details is not None:
        return _text(charge.payment_method_details.type)
    if state is IntentState.AUTHORISED:
        return "card"  # the one method that is authorised apart from its capture
    error = intent.last_payment_error
    if state is IntentState.FAILED and error is not None and error.payment_method is not None:
        return _text(error.payment_method.type)
    types = intent.payment_method_types
    return _text(types[0]) if types is not None and len(types) == 1 else None


def _intent_event(found: StripeObject, event_type: str, source: str) -> PaymentFact | ForeignEvent:
    # A decline leaves the intent open, and a later event of the intent repeats its last error: only the decline's
    # own event tells of it, else one decline is told many times.
    if event_type != "payment_intent.payment_failed":
        found.last_payment_error = None
    return intent_fact(found, source)


def _session_event(found: StripeObject, event_type: str, source: str) -> PaymentFact | ForeignEvent:
    return session_fact(found, source)


def _refund_event(found: StripeObject, event_type: str, source: str) -> RefundFact | ForeignEvent:
    return refund_fact(found, source)


def _dispute_event(found: StripeObject, event_type: str, source: str) -> DisputeFact | ForeignEvent:
    return dispute_fact(found, source)


_Reader = Callable[[StripeObject, str, str], Fact | ForeignEvent]

_KINDS: dict[str, tuple[_Reader, str]] = {
    "payment_intent": (
        _intent_event,
        "created requires_action processing amount_capturable_updated succeeded payment_failed canceled",
    ),
    "checkout.session": (_session_event, "completed expired async_payment_succeeded async_payment_failed"),
    "refund": (_refund_event, "created updated failed"),
    "charge.refund": (_refund_event, "updated"),
    "charge.dispute": (_dispute_event, "created updated closed funds_withdrawn funds_reinstated"),
}
_READERS: dict[str, _Reader] = {
    f"{kind}.{word}": reader for kind, (reader, words) in _KINDS.items() for word in words.split()
}

EVENT_TYPES: frozenset[str] = frozenset(_READERS)
"""What the account's webhook endpoint has to subscribe to; anything more is answered and counted, no more."""

decode_object = msgspec.json.Decoder(StripeObject).decode
"""One object of an API answer."""


class ObjectList(msgspec.Struct):
    """A page of a list."""

    data: list[StripeObject]
    has_more: bool = False


decode_list = msgspec.json.Decoder(ObjectList).decode
