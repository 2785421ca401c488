"""Stripe's objects as they are when new: every field that Stripe names for them, null where it has nothing to say.

After https://docs.stripe.com/api; tests hold them against the types of the official library.
"""

from __future__ import annotations

import secrets
from typing import Any

from flashsale.partners.payments.sandbox.store import Object, new_id

WALLETS = ("alipay", "grabpay")
AUTHORISATION_S = 7 * 86_400


def intent(
    now_s: int,
    *,
    amount: int,
    currency: str,
    types: list[str],
    capture_method: str,
    options: dict[str, Any],
    metadata: dict[str, str],
    description: str | None,
) -> Object:
    intent_id = new_id("pi")
    return {
        "id": intent_id,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": capture_method,
        "client_secret": f"{intent_id}_secret_{secrets.token_hex(12)}",
        "confirmation_method": "automatic",
        "created": now_s,
        "currency": currency,
        "customer": None,
        "customer_account": None,
        "description": description,
        "excluded_payment_method_types": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": metadata,
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_configuration_details": None,
        "payment_method_options": options,
        "payment_method_types": types,
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "requires_payment_method",
        "transfer_data": None,
        "transfer_group": None,
    }


def payment_method(method_type: str, now_s: int) -> Object:
    """What was paid with; the sandbox keeps none, it shows them in errors."""
    details: dict[str, Any] = {}
    if method_type == "card":
        details = {"brand": "visa", "country": "SG", "exp_month": 12, "exp_year": 2034, "funding": "credit"}
        details |= {"last4": "4242", "fingerprint": "sandbox", "wallet": None, "checks": None, "networks": None}
    return {
        "id": new_id("pm"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {"address": _NO_ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None},
        "created": now_s,
        "customer": None,
        "livemode": False,
        "metadata": {},
        "type": method_type,
        method_type: details,
    }


_NO_ADDRESS = {"city": None, "country": None, "line1": None, "line2": None, "postal_code": None, "state": None}


def charge(now_s: int, about: Object, method: Object, *, captured: bool, failure: tuple[str, str] | None) -> Object:
    """One try to take an intent's money. `failure`: code and message of a decline."""
    method_type = method["type"]
    details: dict[str, Any] = {}
    if method_type == "card":
        details = {"brand": "visa", "country": "SG", "exp_month": 12, "exp_year": 2034, "funding": "credit"}
        details |= {"last4": "4242", "network": "visa", "three_d_secure": None, "wallet": None}
        details["amount_authorized"] = about["amount"] if failure is None else None
        if failure is None and not captured:
            details["capture_before"] = now_s + AUTHORISATION_S
    elif method_type == "alipay":
        details = {"buyer_id": None, "fingerprint": None, "transaction_id": None}
    elif method_type == "grabpay":
        details = {"transaction_id": None}
    return {
        "id": new_id("ch"),
        "object": "charge",
        "amount": about["amount"],
        "amount_captured": about["amount"] if captured and failure is None else 0,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": new_id("txn") if captured and failure is None else None,
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": "FLASHSALE SANDBOX",
        "captured": captured and failure is None,
        "created": now_s,
        "currency": about["currency"],
        "customer": None,
        "description": about["description"],
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None if failure is None else failure[0],
        "failure_message": None if failure is None else failure[1],
        "fraud_details": {},
        "livemode": False,
        "metadata": about["metadata"],
        "on_behalf_of": None,
        "outcome": {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network" if failure is None else "declined_by_network",
            "reason": None if failure is None else failure[0],
            "risk_level": "normal",
            "seller_message": "Payment complete." if failure is None else failure[1],
            "type": "authorized" if failure is None else "issuer_declined",
        },
        "paid": failure is None,
        "payment_intent": about["id"],
        "payment_method": method["id"],
        "payment_method_details": {"type": method_type, method_type: details},
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": None,
        "refunded": False,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "succeeded" if failure is None else "failed",
        "transfer_data": None,
        "transfer_group": None,
    }


def session(now_s: int, about: Object, base_url: str, *, expires_at: int, given: dict[str, Any]) -> Object:
    """A Checkout Session in payment mode. `given`: what the caller said, by the session's own names."""
    session_id = new_id("cs_test")
    return {
        "id": session_id,
        "object": "checkout.session",
        "adaptive_pricing": {"enabled": False},
        "after_expiration": None,
        "allow_promotion_codes": None,
        "amount_subtotal": about["amount"],
        "amount_total": about["amount"],
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": None,
        "cancel_url": given["cancel_url"],
        "client_reference_id": given["client_reference_id"],
        "client_secret": None,
        "collected_information": None,
        "consent": None,
        "consent_collection": None,
        "created": now_s,
        "currency": about["currency"],
        "currency_conversion": None,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": None,
        "customer_account": None,
        "customer_creation": "if_required",
        "customer_details": None,
        "customer_email": None,
        "discounts": [],
        "expires_at": expires_at,
        "invoice": None,
        "invoice_creation": {"enabled": False, "invoice_data": _NO_INVOICE},
        "livemode": False,
        "locale": given["locale"],
        "metadata": given["metadata"],
        "mode": "payment",
        "origin_context": None,
        "payment_intent": about["id"],
        "payment_link": None,
        "payment_method_collection": "if_required",
        "payment_method_configuration_details": None,
        "payment_method_options": {
            name: {option: value for option, value in options.items() if option != "network"}
            for name, options in about["payment_method_options"].items()
        },
        "payment_method_types": about["payment_method_types"],
        "payment_status": "unpaid",
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "saved_payment_method_options": None,
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": None,
        "subscription": None,
        "success_url": given["success_url"],
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{base_url}/c/pay/{session_id}",
        "wallet_options": None,
    }


_NO_INVOICE: dict[str, Any] = {
    "account_tax_ids": None,
    "custom_fields": None,
    "description": None,
    "footer": None,
    "issuer": None,
    "metadata": {},
    "rendering_options": None,
}


def refund(now_s: int, about: Object, charge_id: str, *, amount: int, given: dict[str, Any], settled: bool) -> Object:
    method_type = given["method_type"]
    details: dict[str, Any] = {"reference_status": "pending", "reference_type": "acquirer_reference_number"}
    return {
        "id": new_id("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": new_id("txn"),
        "charge": charge_id,
        "created": now_s,
        "currency": about["currency"],
        "destination_details": {
            "type": method_type,
            method_type: {"type": "refund", **details} if method_type == "card" else {},
        },
        "metadata": given["metadata"],
        "payment_intent": about["id"],
        "reason": given["reason"],
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded" if settled else "pending",
        "transfer_reversal": None,
    }


def dispute(now_s: int, about: Object, charge_id: str, *, amount: int, reason: str) -> Object:
    return {
        "id": new_id("du"),
        "object": "dispute",
        "amount": amount,
        "balance_transactions": [],
        "charge": charge_id,
        "created": now_s,
        "currency": about["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {"enhanced_evidence": {}},
        "evidence_details": {
            "due_by": now_s + AUTHORISATION_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": about["id"],
        "reason": reason,
        "status": "needs_response",
    }
