"""The orders in the OpenAPI document: placing one, reading one, following one."""

from flashsale.front.answers import EVENT_STREAM, JSON, MESSAGEPACK
from flashsale.front.openapi_terms import (
    AFTER,
    ID,
    LIMIT,
    ORDER_ID,
    TEXT,
    TIME,
    UNITS,
    Schema,
    array,
    obj,
    page,
    problems,
    ref,
)
from flashsale.front.order_document import FIRST_EVENT
from flashsale.sale.lifecycle import Status
from flashsale.sale.next_step import Do
from flashsale.sale.order import AMOUNT_MAX, LINES_MAX, QUANTITY_MAX, Address
from flashsale.sale.published import EVENTS

_STATUS: Schema = {"enum": [status.value for status in Status]}
_LINE: dict[str, Schema] = {"sku": TEXT, "quantity": UNITS, "price": ref("Money")}
_BECAME: dict[str, Schema] = {
    "cancelled": UNITS,
    "shipped": UNITS,
    "returned": UNITS,
    "refunded": {**UNITS, "description": "Units whose price went back, or is not taken."},
}

DATE: Schema = {"type": "string", "format": "date"}
_TAXED: dict[str, Schema] = {
    "duty": {**ref("Money"), "description": "Of all units of the line, a part of the total; across a border."},
    "tax": {**ref("Money"), "description": "Of all units of the line, a part of the total; across a border."},
}
CROSSING: dict[str, Schema] = {
    "shipping": {**ref("Money"), "description": "A part of the total."},
    "duty": {**ref("Money"), "description": "What the seller collects: a part of the total."},
    "tax": {**ref("Money"), "description": "What the seller collects: a part of the total."},
    "due_on_delivery": {
        **obj({"duty": ref("Money"), "tax": ref("Money")}),
        "description": "What is collected at the border, estimated; not in the total.",
    },
    "terms": {"enum": ["DDP", "DAP"], "description": "DDP: nothing is due on delivery that was not paid; DAP: it is."},
    "estimated": {"type": "boolean", "description": "A rule took part that no authority's own page was seen for."},
}
"""What an order or a quote says of its border; zero amounts where the sale crosses none."""

_ORDER_FIELDS: dict[str, Schema] = {
    "id": ORDER_ID,
    "sale": TEXT,
    "status": _STATUS,
    "market": TEXT,
    "channel": TEXT,
    "lines": array(obj(_LINE)),
    "total": ref("Money"),
    "lane": {"type": ["string", "null"], "description": "Carrier and route."},
    **CROSSING,
    "promised_by": {"type": ["string", "null"], "format": "date", "description": "In the market's own time."},
    "reserved_until": TIME,
}
_LISTED_FIELDS: dict[str, Schema] = {
    **_ORDER_FIELDS,
    "lines": array(obj(_LINE, {**_TAXED, **_BECAME})),
    "created_at": TIME,
}
_SAID_OF_SOME: dict[str, Schema] = {
    "restated_by": {**DATE, "description": "The promise as restated at the payment; `promised_by` stays."},
    "agent": {**TEXT, "description": "Who ordered for the shopper."},
}

_REFUSALS = (
    *("malformed", "idempotency-key-missing", "unauthenticated", "forbidden", "sale-not-open", "unknown-sale"),
    *("unknown-sku", "sold-out", "quota-exceeded", "price-changed", "sku-suspended", "sale-closed", "too-large"),
    *("unsupported-media-type", "invalid-order", "idempotency-mismatch", "too-many-requests", "headers-too-large"),
    *("internal", "sale-paused", "overloaded", "outcome-unknown"),
    *("lane-unavailable", "lane-full", "not-sold-here", "import-limit-exceeded", "identity-unverified", "not-granted"),
)

_PLACE_ORDER: Schema = {
    "summary": "Place an order: all lines or none.",
    "description": "On disk before the answer. The same key sent again gets the same answer again, with "
    "`Idempotent-Replayed: true`.",
    "security": [{"bearer": []}],
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": True,
            "description": "Quoted or bare; the same key each time the same order is sent.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[ -~]+$"},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {media_type: {"schema": ref("OrderRequest")} for media_type in (JSON, *MESSAGEPACK)},
    },
    "responses": {
        "201": {
            "description": "The units are reserved until `reserved_until`.",
            "headers": {
                "Location": {"schema": TEXT},
                "Idempotent-Replayed": {"description": "`true`: answered before.", "schema": TEXT},
            },
            "content": {media_type: {"schema": ref("Order")} for media_type in (JSON, *MESSAGEPACK)},
        },
        **problems(*_REFUSALS),
    },
}

SCHEMAS: dict[str, Schema] = {
    "Money": obj(
        {
            "amount": {"type": "integer", "minimum": 0, "maximum": AMOUNT_MAX, "description": "Minor units, ISO 4217."},
            "currency": {"type": "string", "minLength": 3, "maxLength": 3},
        },
    ),
    "OrderRequest": obj(
        {
            "sale": {"type": "string", "minLength": 1, "maxLength": 64},
            "lines": {
                "type": "array",
                "minItems": 1,
                "maxItems": LINES_MAX,
                "description": "One line a SKU.",
                "items": obj(
                    {
                        "sku": {"type": "string", "minLength": 1, "maxLength": 64},
                        "quantity": {"type": "integer", "minimum": 1, "maximum": QUANTITY_MAX},
                    },
                    closed=True,
                ),
            },
            "market": {"type": "string", "description": "ISO 3166-1 alpha-2 country code.", "examples": ["SG"]},
        },
        {
            "channel": {"type": "string", "minLength": 1, "maxLength": 64, "description": "Where the order came from."},
            "lane": {"type": "string", "minLength": 1, "maxLength": 64, "description": "Carrier and route."},
            "ship_to": obj(
                {"country": {"type": "string", "pattern": "^[A-Z]{2}$"}},
                {
                    name: {"type": ["string", "null"], "maxLength": 200}
                    for name in Address.__struct_fields__
                    if name != "country"
                },
                closed=True,
            ),
            "expected_total": {**ref("Money"), "description": "Refused as price-changed where the total differs."},
            "for": {
                "type": "string",
                "minLength": 1,
                "maxLength": 128,
                "description": "With an agent's token: the shopper whose order it is.",
            },
            "identity": {
                "type": "string",
                "minLength": 1,
                "maxLength": 64,
                "description": "The verified identity whose import limit the order counts for.",
            },
        },
        closed=True,
    ),
    "Order": obj(_ORDER_FIELDS),
    "OrderRead": obj(
        {
            **_LISTED_FIELDS,
            "payment": ref("PaymentSummary"),
            "next": ref("NextStep"),
            "history": array(ref("HistoryEntry")),
        },
        {
            **_SAID_OF_SOME,
            "total_text": {**TEXT, "description": "`total` as the locale of Accept-Language writes it."},
            "tracking": {**TEXT, "description": "What its parcel travels under: GET /v1/orders/{id}/tracking."},
            "refunds": array(ref("Refund")),
            "returns": array(ref("Return")),
        },
    ),
    "NextStep": obj(
        {
            "do": {"enum": [do.value for do in Do], "description": "What the shopper does next."},
            "why": {**TEXT, "description": "A sentence for people."},
        },
        {
            "href": {**TEXT, "description": "Where."},
            "until": {**TIME, "description": "Until when."},
            "until_text": {**TEXT, "description": "`until` as the locale of Accept-Language writes it."},
            "by": {
                **DATE,
                "description": "By which day a parcel that is waited for comes: as the shopper was told last.",
            },
            "by_text": {**TEXT, "description": "`by` as the locale of Accept-Language writes it."},
        },
    ),
    "HistoryEntry": obj(
        {
            "number": {**UNITS, "minimum": 1, "description": "Without a gap; the id of the server-sent event."},
            "status": {**_STATUS, "description": "The order's, after it."},
            "at": TIME,
            "event": {**TEXT, "description": "Its published name.", "examples": [FIRST_EVENT, *EVENTS]},
        },
        {"detail": {"type": "object"}},
    ),
    "Orders": obj(
        {"orders": array(obj(_LISTED_FIELDS, _SAID_OF_SOME))},
        {"next": {**TEXT, "description": "A path."}},
    ),
}

PATHS: dict[str, Schema] = {
    "/v1/orders": {"post": _PLACE_ORDER},
    "/v1/orders/{id}": page(
        "An order of one's own; an admin's any.",
        "OrderRead",
        *("unauthenticated", "not-found", "overloaded"),
        parameters=(ID,),
        bearer=True,
    ),
    "/v1/orders/{id}/events": page(
        "The order's statuses as server-sent events: those after Last-Event-ID, then each new one.",
        None,
        *("unauthenticated", "not-found", "overloaded", "too-many-requests"),
        parameters=(ID, {"name": "Last-Event-ID", "in": "header", "schema": TEXT}),
        media_types=(EVENT_STREAM,),
        bearer=True,
    ),
    "/v1/shoppers/me/orders": page(
        "One's own orders, newest first.",
        "Orders",
        *("malformed", "unauthenticated", "forbidden", "overloaded"),
        parameters=(LIMIT, AFTER),
        bearer=True,
    ),
}
