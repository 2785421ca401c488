"""The life of an order in the OpenAPI document: payment, extension, cancellation, shipping, refunds, returns."""

from flashsale.front.bodies import REASON_MAX, URL_MAX
from flashsale.front.openapi_terms import (
    ID,
    IDEMPOTENCY_KEY,
    ORDER_ID,
    TEXT,
    TIME,
    UNITS,
    Schema,
    array,
    obj,
    page,
    path_parameter,
    ref,
    step,
)
from flashsale.sale.lifecycle import Payment
from flashsale.sale.order import LINES_MAX, QUANTITY_MAX
from flashsale.sale.payment import DisputeState, RefundState
from flashsale.sale.payment_methods import METHODS

_READ = ("unauthenticated", "not-found", "overloaded")
_RETURN_ID = path_parameter("id", "The return's id.")
_REASON: Schema = {"type": "string", "maxLength": REASON_MAX}
_GIVEN_REASON: Schema = {**_REASON, "minLength": 1}
_METHOD: Schema = {"enum": list(METHODS)}
_WANTED: dict[str, Schema] = {
    "sku": {"type": "string", "minLength": 1, "maxLength": 64},
    "quantity": {"type": "integer", "minimum": 1, "maximum": QUANTITY_MAX},
}
_SUMMARY: dict[str, Schema] = {
    "status": {"enum": [payment.value for payment in Payment]},
    "amount": {**ref("Money"), "description": "What the order costs, or the provider was asked for."},
}
_CHOSEN: dict[str, Schema] = {
    "method": _METHOD,
    "authorised": {**ref("Money"), "description": "All that was ever authorised."},
    "captured": {**ref("Money"), "description": "What was taken."},
    "refunded": {**ref("Money"), "description": "What went back."},
}
_DISPUTE: dict[str, Schema] = {"dispute": {"enum": [state.value for state in DisputeState]}}


def _lines(items: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": LINES_MAX,
        "description": "One line a SKU.",
        "items": obj(items, optional, closed=True),
    }


SCHEMAS: dict[str, Schema] = {
    "PaymentRequest": obj(
        {"method": {**_METHOD, "description": "One of the market's `methods`."}},
        {
            "return_url": {
                "type": "string",
                "format": "uri",
                "maxLength": URL_MAX,
                "description": "Where the browser goes afterwards: https.",
            }
        },
        closed=True,
    ),
    "Payment": obj(
        {
            "id": ORDER_ID,
            **_SUMMARY,
            **_CHOSEN,
            "provider_id": {"type": ["string", "null"], "description": "The provider's, null until it has answered."},
            "pay_url": {
                "type": ["string", "null"],
                "description": "Where the shopper pays: the wallet, or the provider's page.",
            },
            "methods": {**array(_METHOD), "description": "Those of the order's market."},
        },
        {"failure": {**TEXT, "description": "Why the last attempt was declined."}, **_DISPUTE},
    ),
    "PaymentSummary": obj(_SUMMARY, {**_CHOSEN, **_DISPUTE}),
    "ExtensionRequest": obj({}, closed=True),
    "CancellationRequest": obj({}, {"lines": _lines(_WANTED), "reason": _REASON}, closed=True),
    "ShipmentRequest": obj({}, {"lines": _lines(_WANTED)}, closed=True),
    "DeliveryRequest": obj({"delivered": {"type": "boolean"}}, closed=True),
    "RefundRequest": obj({"amount": ref("Money"), "reason": _GIVEN_REASON}, closed=True),
    "Refund": obj(
        {
            "id": TEXT,
            "status": {"enum": [state.value for state in RefundState]},
            "amount": ref("Money"),
            "cause": {**TEXT, "examples": ["cancellation", "return", "late", "goodwill"]},
            "created_at": TIME,
        },
        {"settled_at": TIME, "failure": TEXT},
    ),
    "Refunds": obj({"refunds": array(ref("Refund"))}),
    "ReturnRequest": obj({"lines": _lines(_WANTED), "reason": _GIVEN_REASON}, closed=True),
    "DecisionRequest": obj({"accept": {"type": "boolean"}}, closed=True),
    "ReceiptRequest": obj(
        {"lines": _lines(_WANTED, {"restock": {"type": "boolean", "default": False}})},
        closed=True,
    ),
    "Return": obj(
        {
            "id": TEXT,
            "order": ORDER_ID,
            "status": {"enum": ["requested", "accepted", "refused", "received"]},
            "reason": TEXT,
            "lines": array(obj({"sku": TEXT, "quantity": UNITS}, {"received": UNITS, "restocked": UNITS})),
            "created_at": TIME,
            "changed_at": TIME,
        }
    ),
    "Returns": obj({"returns": array(ref("Return"))}),
}

PATHS: dict[str, Schema] = {
    "/v1/orders/{id}/payment": {
        **page(
            "How the order is paid, and how far that has come.",
            "Payment",
            *(*_READ, "outcome-unknown"),
            parameters=(ID,),
            bearer=True,
        ),
        **step(
            "Pay the order: go on at `pay_url`.",
            "Payment",
            *("method-unavailable", "not-payable", "already-paid", "provider-away", "not-granted"),
            body="PaymentRequest",
            parameters=(ID,),
            created="The shopper pays at `pay_url`.",
            description="One payment an order: again, it is the same one, with the method chosen now if none succeeded."
            " Right after the order's 201 it waits up to 2 s for the ledger.",
        ),
    },
    "/v1/orders/{id}/extension": step(
        "Hold the units longer, once, where the sale allows it.",
        "OrderRead",
        "not-extendable",
        body="ExtensionRequest",
        parameters=(ID,),
        body_required=False,
    ),
    "/v1/orders/{id}/cancellation": step(
        "Cancel units that were not shipped; without `lines`, all of them.",
        "OrderRead",
        *("forbidden", "not-cancellable"),
        body="CancellationRequest",
        parameters=(ID, IDEMPOTENCY_KEY),
        body_required=False,
        description="What was paid for them goes back. A whole order is cancelled once, however often it is sent; send "
        "a part under an Idempotency-Key, or it is cancelled each time.",
    ),
    "/v1/orders/{id}/shipment": step(
        "An admin's: the parcel goes out; without `lines`, with all that is left of the order.",
        "OrderRead",
        *("forbidden", "not-shippable"),
        body="ShipmentRequest",
        parameters=(ID, IDEMPOTENCY_KEY),
        body_required=False,
        description="A card is captured now, once: what is not shipped is cancelled, its part released.",
    ),
    "/v1/orders/{id}/delivery": step(
        "An admin's: the parcel has arrived, or could not be delivered.",
        "OrderRead",
        *("forbidden", "not-shippable"),
        body="DeliveryRequest",
        parameters=(ID,),
    ),
    "/v1/orders/{id}/refunds": {
        **page("The order's refunds, oldest first.", "Refunds", *_READ, parameters=(ID,), bearer=True),
        **step(
            "An admin's: give money back beyond what lines were worth.",
            "OrderRead",
            *("forbidden", "refund-exceeds-payment", "payment-disputed"),
            body="RefundRequest",
            parameters=(ID, IDEMPOTENCY_KEY),
        ),
    },
    "/v1/orders/{id}/returns": {
        **page("The order's returns, oldest first.", "Returns", *_READ, parameters=(ID,), bearer=True),
        **step(
            "Ask to send units back.",
            "Return",
            *("forbidden", "not-returnable", "refund-exceeds-payment", "payment-disputed"),
            body="ReturnRequest",
            parameters=(ID, IDEMPOTENCY_KEY),
            created="The shop decides on it.",
        ),
    },
    "/v1/returns/{id}": page(
        "A return of one's own; an admin's any.",
        "Return",
        *(*_READ, "outcome-unknown"),
        parameters=(_RETURN_ID,),
        bearer=True,
    ),
    "/v1/returns/{id}/decision": step(
        "An admin's: accept the return, or refuse it.",
        "Return",
        *("forbidden", "not-returnable"),
        body="DecisionRequest",
        parameters=(_RETURN_ID,),
    ),
    "/v1/returns/{id}/receipt": step(
        "An admin's: what arrived; its price goes back, and units go on the shelf where that is asked.",
        "Return",
        *("forbidden", "not-returnable", "unknown-sale"),
        body="ReceiptRequest",
        parameters=(_RETURN_ID,),
    ),
}
