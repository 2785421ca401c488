"""PaymentIntents: create, confirm, capture, cancel, and what the shopper does on the pay page.

The life of one: https://docs.stripe.com/payments/paymentintents/lifecycle. Each function runs inside one transaction
of the store; it raises ApiError before it writes anything.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from flashsale.partners.payments.sandbox import shapes
from flashsale.partners.payments.sandbox.errors import ApiError, bad_param, missing
from flashsale.partners.payments.sandbox.forms import Params
from flashsale.partners.payments.sandbox.store import Change, Object, new_id
from flashsale.sale.money import EXPONENTS

METHOD_TYPES = ("card", *shapes.WALLETS)
OPEN = ("requires_payment_method", "requires_confirmation", "requires_action")

# Stripe's test methods (https://docs.stripe.com/testing): type, and what a decline says.
_CARD_DECLINED = ("generic_decline", "Your card was declined.")
_DECLINED_AS = "sandbox_declined_as"
TEST_METHODS: dict[str, tuple[str, tuple[str, str] | None]] = {
    "pm_card_visa": ("card", None),
    "pm_card_mastercard": ("card", None),
    "pm_card_visa_chargeDeclined": ("card", _CARD_DECLINED),
    "pm_card_chargeDeclined": ("card", _CARD_DECLINED),
    "pm_card_visa_chargeDeclinedInsufficientFunds": (
        "card",
        ("insufficient_funds", "Your card has insufficient funds."),
    ),
    "pm_alipay": ("alipay", None),
    "pm_grabpay": ("grabpay", None),
}


class Answer(NamedTuple):
    """What a request is answered. A decline is one: it changed something, so it is no ApiError."""

    status: int
    body: Object


def find(change: Change, intent_id: str) -> Object:
    found = change.find(intent_id)
    if found is None or found["object"] != "payment_intent":
        raise missing("payment_intent", intent_id)
    return found


def currency_of(params: Params, name: str = "currency") -> str:
    currency = params.need(name).lower()
    if currency.upper() not in EXPONENTS:
        raise bad_param(name, f"Invalid currency: {currency[:20]}.")
    return currency


def types_of(params: Params) -> list[str]:
    types = params.items("payment_method_types") or ["card"]
    for given in types:
        if given not in METHOD_TYPES:
            raise bad_param(
                "payment_method_types",
                f"The payment method type provided: {str(given)[:40]} is invalid. The sandbox knows card, alipay and"
                " grabpay.",
                "payment_intent_invalid_parameter",
            )
    return list(dict.fromkeys(types))


def options_of(params: Params, types: list[str]) -> dict[str, Any]:
    """payment_method_options: of each type whether it is captured by hand."""
    options: dict[str, Any] = {}
    given = params.inner("payment_method_options").only(*types)
    for method_type in given.tree:
        capture = given.inner(method_type).only("capture_method", "request_three_d_secure").text("capture_method")
        if capture is not None and (capture != "manual" or method_type != "card"):
            param = f"payment_method_options[{method_type}][capture_method]"
            raise bad_param(param, f"{method_type} does not support capture_method {capture[:40]}")
        options[method_type] = {} if capture is None else {"capture_method": capture}
    if "card" in types:
        options.setdefault("card", {})
        options["card"] |= {"installments": None, "network": None, "request_three_d_secure": "automatic"}
    for wallet in shapes.WALLETS:
        if wallet in types:
            options.setdefault(wallet, {})
    return options


def create(change: Change, params: Params, base_url: str) -> Answer:
    params.only(
        "amount", "currency", "payment_method_types", "payment_method", "payment_method_data", "confirm",
        "capture_method", "metadata", "description", "return_url", "payment_method_options", "receipt_email",
        "automatic_payment_methods", "confirmation_method", "off_session", "statement_descriptor",
    )  # fmt: skip
    params.need("amount")
    amount = params.integer("amount", least=1) or 0
    currency = currency_of(params)
    capture_method = params.text("capture_method") or "automatic_async"
    if capture_method not in ("automatic", "automatic_async", "manual"):
        raise bad_param("capture_method", f"Invalid capture_method: {capture_method[:40]}")
    automatic = params.inner("automatic_payment_methods").only("enabled", "allow_redirects").truth("enabled")
    types = list(METHOD_TYPES) if automatic else types_of(params)
    made = shapes.intent(
        change.now_s(),
        amount=amount,
        currency=currency,
        types=types,
        capture_method=capture_method,
        options=options_of(params, types),
        metadata=params.metadata(),
        description=params.text("description"),
    )
    if automatic:
        made["automatic_payment_methods"] = {"allow_redirects": "always", "enabled": True}
    confirming = params.truth("confirm")
    method = _method_of(params, change.now_s())
    if confirming and method is None:
        raise _no_method()
    return_url = params.url("return_url")
    if method is not None:
        _allow(made, method[0], return_url, confirming)
        made["payment_method"] = method[0]["id"]
        made["status"] = "requires_confirmation"
        if not confirming:
            # For a confirmation that names none. How it is declined is the sandbox's own.
            change.insert({**method[0], _DECLINED_AS: method[1]}, link=made["id"])
    change.insert(made)
    change.event("payment_intent.created", made)
    if not confirming or method is None:
        return Answer(200, made)
    return _confirm(change, made, method, return_url, base_url)


def confirm(change: Change, intent_id: str, params: Params, base_url: str) -> Answer:
    params.only("payment_method", "payment_method_data", "return_url", "off_session", "receipt_email", "capture_method")
    found = find(change, intent_id)
    if found["status"] not in OPEN:
        raise unexpected_state(found, "confirm")
    method = _method_of(params, change.now_s()) or _given_before(change, found)
    if method is None:
        raise _no_method()
    # An intent that was confirmed before knows where its shopper came from.
    return_url = params.url("return_url") or _way_back(found)
    _allow(found, method[0], return_url, True)
    return _confirm(change, found, method, return_url, base_url)


def capture(change: Change, intent_id: str, params: Params) -> Answer:
    params.only("amount_to_capture", "final_capture", "metadata", "statement_descriptor")
    found = find(change, intent_id)
    amount = params.integer("amount_to_capture", least=1)
    if found["status"] != "requires_capture":
        raise unexpected_state(found, "capture")
    amount = found["amount_capturable"] if amount is None else amount
    if amount > found["amount_capturable"]:
        raise bad_param(
            "amount_to_capture",
            f"The amount_to_capture ({amount}) is greater than the capturable amount ({found['amount_capturable']}).",
            "amount_too_large",
        )
    taken = change.get(found["latest_charge"])
    taken |= {"captured": True, "amount_captured": amount, "balance_transaction": new_id("txn")}
    taken["amount_refunded"] = taken["amount"] - amount  # the rest is released
    found |= {"amount_received": amount, "amount_capturable": 0, "status": "succeeded"}
    change.update(taken)
    change.update(found)
    change.event("charge.captured", taken)
    change.event("payment_intent.succeeded", found)
    return Answer(200, found)


def cancel(change: Change, intent_id: str, params: Params) -> Answer:
    params.only("cancellation_reason")
    reason = params.text("cancellation_reason")
    if reason not in (None, "duplicate", "fraudulent", "requested_by_customer", "abandoned"):
        raise bad_param("cancellation_reason", f"Invalid cancellation_reason: {reason}")
    found = find(change, intent_id)
    if found["status"] not in (*OPEN, "requires_capture"):
        raise unexpected_state(found, "cancel")
    if any(session["status"] == "open" for session in change.linked("checkout.session", intent_id)):
        raise ApiError(
            400,
            "You cannot cancel the PaymentIntent of a Checkout Session. Expire the Checkout Session instead.",
            kept=True,
            code="payment_intent_unexpected_state",
        )
    close(change, found, reason)
    return Answer(200, found)


def close(change: Change, found: Object, reason: str | None) -> None:
    """Cancelled: what was authorised is released, nobody can pay it any more."""
    authorised = found["status"] == "requires_capture"
    found |= {"status": "canceled", "canceled_at": change.now_s(), "cancellation_reason": reason}
    found |= {"amount_capturable": 0, "next_action": None}
    change.update(found)
    if authorised:
        released = change.get(found["latest_charge"])
        released |= {"refunded": True, "amount_refunded": released["amount"]}
        change.update(released)
        change.event("charge.refunded", released)
    change.event("payment_intent.canceled", found)


def settle(change: Change, found: Object, method: Object, declined: tuple[str, str] | None) -> Answer:
    """The payment is tried: authorised (a card captured by hand), captured, or declined."""
    manual = (
        found["capture_method"] == "manual"
        or (found["payment_method_options"].get(method["type"]) or {}).get("capture_method") == "manual"
    )
    made = shapes.charge(change.now_s(), found, method, captured=not manual, failure=declined)
    change.insert(made, link=found["id"])
    found |= {"latest_charge": made["id"], "next_action": None}
    if declined is not None:
        return _declined(change, found, method, declined, made)
    found |= {"payment_method": method["id"], "last_payment_error": None}
    if manual:
        found |= {"status": "requires_capture", "amount_capturable": found["amount"]}
    else:
        found |= {"status": "succeeded", "amount_received": found["amount"]}
    change.update(found)
    change.event("charge.succeeded", made)
    change.event("payment_intent.amount_capturable_updated" if manual else "payment_intent.succeeded", found)
    for session in change.linked("checkout.session", found["id"]):
        if session["status"] == "open":
            session |= {"status": "complete", "payment_status": "unpaid" if manual else "paid", "url": None}
            change.update(session)
            change.event("checkout.session.completed", session)
    return Answer(200, found)


def decline_redirect(change: Change, found: Object, method: Object) -> None:
    """The shopper refused on the wallet's page: there was no charge."""
    found["next_action"] = None
    _declined(change, found, method, ("payment_method_customer_decline", "The customer declined the payment."), None)


def _declined(
    change: Change, found: Object, method: Object, declined: tuple[str, str], charge: Object | None
) -> Answer:
    error: dict[str, Any] = {
        "code": "card_declined" if charge is not None else declined[0],
        "doc_url": "https://stripe.com/docs/error-codes/card-declined",
        "message": declined[1],
        "payment_method": method,
        "type": "card_error" if charge is not None else "invalid_request_error",
    }
    if charge is not None:
        error |= {"charge": charge["id"], "decline_code": declined[0]}
    found |= {"status": "requires_payment_method", "payment_method": None, "last_payment_error": error}
    change.update(found)
    if charge is not None:
        change.event("charge.failed", charge)
    change.event("payment_intent.payment_failed", found)
    return Answer(402, {"error": {**error, "payment_intent": found}})


def _confirm(
    change: Change, found: Object, method: tuple[Object, tuple[str, str] | None], return_url: str | None, base_url: str
) -> Answer:
    given, declined = method
    if given["type"] not in shapes.WALLETS:
        if declined is None and change.faults.declines():
            declined = _CARD_DECLINED
        return settle(change, found, given, declined)
    url = f"{base_url}/r/{found['id']}?method={given['type']}"
    if given["type"] == "alipay":
        redirect = {"native_data": None, "native_url": None, "return_url": return_url, "url": url}
        action = {"type": "alipay_handle_redirect", "alipay_handle_redirect": redirect}
    else:
        action = {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": url}}
    found |= {"status": "requires_action", "payment_method": given["id"], "next_action": action}
    change.update(found)
    change.event("payment_intent.requires_action", found)
    return Answer(200, found)


def _given_before(change: Change, found: Object) -> tuple[Object, tuple[str, str] | None] | None:
    """The method that an intent was created with, and how it is declined."""
    kept = change.find(found["payment_method"]) if found["payment_method"] is not None else None
    if kept is None:
        return None
    declined = kept.pop(_DECLINED_AS)
    return kept, None if declined is None else (declined[0], declined[1])


def _no_method() -> ApiError:
    return bad_param(
        "payment_method",
        "You cannot confirm this PaymentIntent because it's missing a payment method.",
        "payment_intent_unexpected_state",
    )


def _method_of(params: Params, now_s: int) -> tuple[Object, tuple[str, str] | None] | None:
    """The payment method that a request names, and how it is declined; None where it names none."""
    name = params.text("payment_method")
    given = params.inner("payment_method_data").only("type", "billing_details", "alipay", "grabpay", "metadata")
    method_type = given.text("type")
    if name is not None:
        if name not in TEST_METHODS:
            raise missing("PaymentMethod", name, "payment_method")
        method_type, declined = TEST_METHODS[name]
        return shapes.payment_method(method_type, now_s), declined
    if method_type is None:
        return None
    if method_type not in shapes.WALLETS:
        raise bad_param("payment_method_data[type]", f"Invalid type: {method_type[:40]}; use a test payment method")
    return shapes.payment_method(method_type, now_s), None


def _way_back(found: Object) -> str | None:
    """The return_url of the redirect that waits, if there is one."""
    action = found.get("next_action")
    return None if action is None else cast("str | None", action[action["type"]].get("return_url"))


def _allow(about: Object, method: Object, return_url: str | None, confirming: bool) -> None:
    method_type = method["type"]
    if method_type not in about["payment_method_types"]:
        raise bad_param(
            "payment_method",
            f"The PaymentMethod provided ({method_type}) is not allowed for this PaymentIntent. It takes "
            f"{', '.join(about['payment_method_types'])}.",
            "payment_intent_incompatible_payment_method",
        )
    if method_type in shapes.WALLETS and about["capture_method"] == "manual":
        raise bad_param("capture_method", f"{method_type} does not support manual capture")
    if method_type in shapes.WALLETS and confirming and return_url is None:
        raise bad_param("return_url", f"A return_url is needed to confirm with {method_type}.", "parameter_missing")


_DOING = {"confirm": "confirmed", "capture": "captured", "cancel": "canceled"}


def unexpected_state(found: Object, verb: str) -> ApiError:
    return ApiError(
        400,
        f"This PaymentIntent could not be {_DOING[verb]} because it has a status of {found['status']}.",
        kept=True,
        code="payment_intent_unexpected_state",
        payment_intent=found,
    )
