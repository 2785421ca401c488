"""Checkout Sessions: create, expire. Unlike Stripe since 2022-08, a session makes its intent at once: an engine that
copes with a session without one copes with this too, and a wallet's page can be entered directly.
"""

from __future__ import annotations

from flashsale.partners.payments.sandbox import intents, shapes
from flashsale.partners.payments.sandbox.errors import ApiError, bad_param, missing
from flashsale.partners.payments.sandbox.forms import AMOUNT_MAX, Params
from flashsale.partners.payments.sandbox.intents import Answer
from flashsale.partners.payments.sandbox.store import Change, Object

# https://docs.stripe.com/api/checkout/sessions/create: expires_at
LIVES_LEAST_S = 30 * 60
LIVES_MOST_S = 24 * 3600
_SLACK_S = 5  # the caller's clock is not ours
ITEMS_MAX = 100


def find(change: Change, session_id: str) -> Object:
    found = change.find(session_id)
    if found is None or found["object"] != "checkout.session":
        raise missing("checkout.session", session_id, "session")
    return found


def create(change: Change, params: Params, base_url: str) -> Answer:
    params.only(
        "mode", "line_items", "success_url", "cancel_url", "expires_at", "metadata", "payment_intent_data",
        "payment_method_types", "payment_method_options", "client_reference_id", "locale", "customer_email",
        "ui_mode", "submit_type",
    )  # fmt: skip
    if params.need("mode") != "payment":
        raise bad_param("mode", "The sandbox knows the mode payment alone")
    amount, currency = _total(params)
    success_url = params.url("success_url")
    if success_url is None:
        raise bad_param("success_url", "Missing required param: success_url.", "parameter_missing")
    now_s = change.now_s()
    expires_at = params.integer("expires_at") or now_s + LIVES_MOST_S
    if not now_s + LIVES_LEAST_S - _SLACK_S <= expires_at <= now_s + LIVES_MOST_S + _SLACK_S:
        raise bad_param(
            "expires_at", "The `expires_at` timestamp must be at least 30 minutes and at most 24 hours from creation."
        )
    types = intents.types_of(params)
    inner = params.inner("payment_intent_data").only("metadata", "description", "capture_method", "receipt_email")
    capture_method = inner.text("capture_method") or "automatic_async"
    if capture_method not in ("automatic", "automatic_async", "manual"):
        raise bad_param("payment_intent_data[capture_method]", f"Invalid capture_method: {capture_method[:40]}")
    about = shapes.intent(
        now_s,
        amount=amount,
        currency=currency,
        types=types,
        capture_method=capture_method,
        options=intents.options_of(params, types),
        metadata=inner.metadata(),
        description=inner.text("description"),
    )
    given = {
        "cancel_url": params.url("cancel_url"),
        "success_url": success_url,
        "client_reference_id": params.text("client_reference_id"),
        "locale": params.text("locale"),
        "metadata": params.metadata(),
    }
    made = shapes.session(now_s, about, base_url, expires_at=expires_at, given=given)
    change.insert(about)
    change.event("payment_intent.created", about)
    change.insert(made, link=about["id"])
    change.later((expires_at - now_s) * 1000, made["id"])
    return Answer(200, made)


def expire(change: Change, session_id: str, params: Params) -> Answer:
    params.only()
    found = find(change, session_id)
    if found["status"] != "open":
        raise ApiError(
            400,
            f'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status of '
            f"{found['status']}.",
            kept=True,
        )
    close(change, found)
    return Answer(200, found)


def close(change: Change, found: Object) -> None:
    """Expired, by the caller or by the clock: its intent can't be paid any more."""
    found |= {"status": "expired", "url": None}
    change.update(found)
    about = intents.find(change, found["payment_intent"])
    if about["status"] in intents.OPEN:
        intents.close(change, about, "expired")
    change.event("checkout.session.expired", found)


def _total(params: Params) -> tuple[int, str]:
    items = params.items("line_items")
    if not items:
        raise bad_param("line_items", "Missing required param: line_items.", "parameter_missing")
    if len(items) > ITEMS_MAX:
        raise bad_param("line_items", f"At most {ITEMS_MAX} line items")
    amount, currencies = 0, set()
    for item in items:
        if not isinstance(item, dict):
            raise bad_param("line_items", "Invalid object: line_items")
        line = Params(item).only("price_data", "quantity")
        price = line.inner("price_data").only("currency", "unit_amount", "product_data", "tax_behavior")
        price.inner("product_data").only("name", "description", "metadata", "images").need("name")
        price.need("unit_amount")
        currencies.add(intents.currency_of(price))
        amount += (price.integer("unit_amount") or 0) * (line.integer("quantity", least=1, most=10**6) or 1)
    if len(currencies) > 1:
        raise bad_param("line_items", "All line items have the same currency")
    if not 1 <= amount <= AMOUNT_MAX:
        raise bad_param("line_items", "The total is too small or too large", "amount_too_large")
    return amount, currencies.pop()
