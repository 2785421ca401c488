"""Refunds and disputes: money that goes back because we say so, and because the shopper's bank does."""

from __future__ import annotations

from typing import Any

from flashsale.partners.payments.sandbox import intents, shapes
from flashsale.partners.payments.sandbox.errors import ApiError, bad_param, missing
from flashsale.partners.payments.sandbox.forms import Params
from flashsale.partners.payments.sandbox.intents import Answer
from flashsale.partners.payments.sandbox.store import Change, Object, new_id

WALLET_SETTLES_MS = 1000  # Stripe's wallets take up to five minutes
FAILURE = "expired_or_canceled_card"


def create(change: Change, params: Params) -> Answer:
    params.only("payment_intent", "charge", "amount", "metadata", "reason")
    about, paid = _paid(change, params)
    reason = params.text("reason")
    if reason not in (None, "duplicate", "fraudulent", "requested_by_customer"):
        raise bad_param("reason", f"Invalid reason: {reason}")
    amount = params.integer("amount", least=1)
    left = paid["amount"] - paid["amount_refunded"]
    if paid["disputed"]:
        raise ApiError(
            400,
            f"Charge {paid['id']} has been charged back; cannot issue a refund.",
            kept=True,
            code="charge_disputed",
        )
    if left == 0:
        raise ApiError(
            400, f"Charge {paid['id']} has already been refunded.", kept=True, code="charge_already_refunded"
        )
    if amount is not None and amount > left:
        raise ApiError(
            400,
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})",
            kept=True,
            param="amount",
        )
    method_type = paid["payment_method_details"]["type"]
    given: dict[str, Any] = {"metadata": params.metadata(), "reason": reason, "method_type": method_type}
    settled = method_type == "card"
    made = shapes.refund(
        change.now_s(), about, paid["id"], amount=left if amount is None else amount, given=given, settled=settled
    )
    paid["amount_refunded"] += made["amount"]
    paid["refunded"] = paid["amount_refunded"] == paid["amount"]
    change.insert(made, link=about["id"])
    change.update(paid)
    change.event("refund.created", made)
    change.event("charge.refunded", paid)
    if not settled:
        change.later(WALLET_SETTLES_MS, made["id"])
    return Answer(200, made)


def _paid(change: Change, params: Params) -> tuple[Object, Object]:
    """The intent and its charge that a refund is of."""
    intent_id, charge_id = params.text("payment_intent"), params.text("charge")
    if charge_id is not None:
        paid = change.find(charge_id)
        if paid is None or paid["object"] != "charge":
            raise missing("charge", charge_id, "charge")
        intent_id = paid["payment_intent"]
    if intent_id is None:
        raise ApiError(
            400, "One of the following params should be provided for this request: payment_intent or charge."
        )
    about = change.find(intent_id)
    if about is None or about["object"] != "payment_intent":
        raise missing("payment_intent", intent_id, "payment_intent")
    if about["status"] != "succeeded":
        raise ApiError(
            400,
            f"This PaymentIntent ({intent_id}) does not have a successful charge to refund.",
            kept=True,
            param="payment_intent",
        )
    return about, change.get(about["latest_charge"])


def settle(change: Change, refund: Object) -> None:
    """A wallet's refund has arrived."""
    if refund["status"] == "pending":
        refund["status"] = "succeeded"
        change.update(refund)
        change.event("refund.updated", refund)
        change.event("charge.refund.updated", refund)


def fail(change: Change, refund_id: str) -> Object:
    """The bank sends a refund back, as may happen weeks after it succeeded: the money is ours again."""
    found = change.find(refund_id)
    if found is None or found["object"] != "refund":
        raise missing("refund", refund_id, "refund")
    if found["status"] == "failed":
        return found
    paid = change.get(found["charge"])
    paid["amount_refunded"] -= found["amount"]
    paid["refunded"] = False
    found |= {"status": "failed", "failure_reason": FAILURE, "failure_balance_transaction": new_id("txn")}
    change.update(paid)
    change.update(found)
    change.event("refund.failed", found)
    change.event("refund.updated", found)
    change.event("charge.refund.updated", found)
    return found


def open_dispute(change: Change, intent_id: str, amount: int | None, reason: str) -> Object:
    """The shopper goes to the bank: the money is withdrawn until it is decided."""
    about = intents.find(change, intent_id)
    if about["status"] != "succeeded":
        raise intents.unexpected_state(about, "capture")
    paid = change.get(about["latest_charge"])
    if paid["disputed"]:
        raise ApiError(400, f"Charge {paid['id']} is disputed already.")
    made = shapes.dispute(
        change.now_s(), about, paid["id"], amount=about["amount_received"] if amount is None else amount, reason=reason
    )
    paid["disputed"] = True
    change.insert(made, link=intent_id)
    change.update(paid)
    change.event("charge.dispute.created", made)
    change.event("charge.dispute.funds_withdrawn", made)
    return made


def close_dispute(change: Change, dispute_id: str, status: str) -> Object:
    """The bank has decided: `won` (the money comes back) or `lost`."""
    found = change.find(dispute_id)
    if found is None or found["object"] != "dispute":
        raise missing("dispute", dispute_id, "dispute")
    if found["status"] in ("won", "lost"):
        return found
    found["status"] = status
    change.update(found)
    if status == "won":
        paid = change.get(found["charge"])
        paid["disputed"] = False
        change.update(paid)
        change.event("charge.dispute.funds_reinstated", found)
    change.event("charge.dispute.closed", found)
    return found
