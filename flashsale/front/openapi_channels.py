"""Channels in the OpenAPI document: their orders to the door and back, and where they hear of them."""

from flashsale.front import openapi_orders
from flashsale.front.openapi_terms import (
    AFTER,
    ID,
    IDEMPOTENCY_KEY,
    LIMIT,
    ORDER_ID,
    TEXT,
    TIME,
    UNITS,
    Schema,
    array,
    obj,
    page,
    path_parameter,
    problems,
    query_parameter,
    ref,
    step,
)
from flashsale.partners.channels.marketplace import ORDERS, STOCK
from flashsale.sale.channel_order import ORDERS_MAX
from flashsale.sale.lifecycle import Payment

CHANNEL = path_parameter("channel", "The channel's id.", {"type": "string", "examples": ["lazada-sg"]})
_RETURN_ID = path_parameter("id", "The reverse order's id.")
_READ = ("unauthenticated", "forbidden", "not-found", "overloaded")
_STEP = ("forbidden", "not-packed", "not-shippable")
_BACK = ("forbidden", "not-returnable")

# What a list shows of an order, and what the channel knows it by.
_LISTED: Schema = openapi_orders.SCHEMAS["Orders"]["properties"]["orders"]["items"]
_PACKAGE: dict[str, Schema] = {
    "package": {**TEXT, "description": "The package's id."},
    "tracking": {**TEXT, "description": "FS, twelve digits and a check digit (Luhn)."},
    "lines": array(obj({"sku": TEXT, "quantity": UNITS})),
    "packed_at": TIME,
}
_ENDPOINT: dict[str, Schema] = {
    "channel": TEXT,
    "url": {"type": "string", "format": "uri", "description": "Public https; ports 443 and from 1024."},
    "status": {"enum": ["enabled", "unreachable"], "description": "unreachable: it is tried again at `next_at`."},
    "failures": {**UNITS, "description": "Tries that failed since one was taken."},
    "waiting": {**UNITS, "description": "Changes of orders that it has not taken yet."},
    "created_at": TIME,
}
_HEARS: dict[str, Schema] = {"type": {"enum": [ORDERS, STOCK]}, "channel": TEXT, "timestamp": TIME}

SCHEMAS: dict[str, Schema] = {
    "Package": obj(_PACKAGE),
    "ChannelOrder": {
        **_LISTED,
        "required": [*_LISTED["required"], "reference", "shopper", "payment"],
        "properties": {
            **_LISTED["properties"],
            "reference": {**TEXT, "description": "The channel's own name of the order."},
            "shopper": {**TEXT, "description": "The shopper's id in the channel's own namespace."},
            "payment": {"enum": [payment.value for payment in Payment]},
            "ship_to": {"type": "object", "additionalProperties": TEXT},
            "package": ref("Package"),
        },
    },
    "ChannelOrders": obj({"orders": array(ref("ChannelOrder"))}, {"next": {**TEXT, "description": "A path."}}),
    "ChannelEndpoint": obj(_ENDPOINT, {"next_at": TIME}),
    "NewChannelEndpoint": obj(
        {**_ENDPOINT, "secret": {**TEXT, "description": "Shown this once: it verifies what is sent."}}
    ),
    "ChannelEndpointRequest": obj({"url": _ENDPOINT["url"]}, closed=True),
    "ChannelOrdersMessage": obj(
        {
            **_HEARS,
            "orders": array(
                obj(
                    {
                        "id": ORDER_ID,
                        "reference": TEXT,
                        "sale": TEXT,
                        "number": {**UNITS, "description": "The change's number in the order's history."},
                        "event": TEXT,
                        "status": {**TEXT, "description": "The order's, after it."},
                        "payment": TEXT,
                        "at": TIME,
                    },
                    {"tracking": TEXT},
                )
            ),
        }
    ),
    "ChannelStockMessage": obj(
        {
            **_HEARS,
            "stock": array(
                obj({"sale": TEXT, "sku": TEXT, "sellable": {**UNITS, "description": "Its guarantee and all else."}})
            ),
        }
    ),
}

_ASKED: Schema = openapi_orders.SCHEMAS["OrderRequest"]
SCHEMAS |= {
    "ChannelOrderRequest": {
        **_ASKED,
        "required": [*_ASKED["required"], "reference", "shopper"],
        "properties": {
            **_ASKED["properties"],
            "reference": {**TEXT, "minLength": 1, "maxLength": 64, "description": "The channel's own; also the key."},
            "shopper": {**TEXT, "minLength": 1, "maxLength": 100, "description": "In the channel's own namespace."},
            "collected_by": {"enum": ["channel"], "description": "The channel has the money: paid, never expires."},
        },
    },
    "ChannelOrdersRequest": obj(
        {
            "orders": {
                "type": "array",
                "minItems": 1,
                "maxItems": ORDERS_MAX,
                "items": ref("ChannelOrderRequest"),
            }
        },
        closed=True,
    ),
    "ChannelResults": obj(
        {
            "results": array(
                obj(
                    {"reference": {"type": ["string", "null"]}, "status": {"type": "integer"}},
                    {"order": ref("Order"), "problem": ref("Problem")},
                )
            )
        }
    ),
}

_PLACE_ORDERS = step(
    "Place up to 500 orders of the channel's, each answered on its own.",
    "ChannelResults",
    *("forbidden", "headers-too-large", "too-many-requests", "internal"),
    body="ChannelOrdersRequest",
    parameters=(CHANNEL,),
    description="The results are in the orders' own order, each on disk before the answer. A result's `status` is what "
    "POST /v1/orders would answer; the same reference sent again gets the same order again.",
)

_SET_ENDPOINT = step(
    "Be told what becomes of orders and what may be sold.",
    "NewChannelEndpoint",
    "forbidden",
    body="ChannelEndpointRequest",
    parameters=(CHANNEL,),
    description="At once all of the stock; from now on each change of an order.",
)
_REMOVE_ENDPOINT: Schema = {
    "delete": {
        "summary": "Be told nothing any more.",
        "security": [{"bearer": []}],
        "parameters": [CHANNEL],
        "responses": {"204": {"description": "What waited is given up."}, **problems(*_READ, "outcome-unknown")},
    }
}
_WAYBILL = page(
    "The parcel's label: 100 x 150 mm, its tracking number as Code 128.",
    None,
    *(*_READ, "not-packed", "outcome-unknown"),
    parameters=(CHANNEL, ID),
    media_types=("application/pdf",),
    bearer=True,
)
_WAYBILL["get"]["responses"]["200"]["content"]["application/pdf"]["schema"] = {"type": "string", "format": "binary"}


def _arrival(summary: str) -> Schema:
    return step(
        summary,
        "ChannelOrder",
        *_STEP,
        body="ExtensionRequest",
        parameters=(CHANNEL, ID),
        body_required=False,
        description="Again, it changes nothing.",
    )


PATHS: dict[str, Schema] = {
    "/v1/channels/{channel}/orders": {
        **_PLACE_ORDERS,
        **page(
            "The channel's orders, oldest first.",
            "ChannelOrders",
            *("malformed", *_READ),
            parameters=(
                CHANNEL,
                query_parameter("created_after", "Made later than this.", TIME),
                query_parameter("created_before", "Made earlier than this.", TIME),
                LIMIT,
                AFTER,
            ),
            bearer=True,
        ),
    },
    "/v1/channels/{channel}/orders/{id}": page(
        "An order of the channel's.",
        "ChannelOrder",
        *(*_READ, "outcome-unknown"),
        parameters=(CHANNEL, ID),
        bearer=True,
    ),
    "/v1/channels/{channel}/orders/{id}/pack": step(
        "Pack units of a paid order; without `lines`, all that is left of it.",
        "Package",
        *("forbidden", "already-packed", "not-shippable"),
        body="ShipmentRequest",
        parameters=(CHANNEL, ID),
        body_required=False,
        created="The parcel, and the number that it travels under.",
        description="Once: what is not in the parcel when it is ready to ship is cancelled.",
    ),
    "/v1/channels/{channel}/orders/{id}/waybill": _WAYBILL,
    "/v1/channels/{channel}/orders/{id}/ready-to-ship": _arrival("The parcel goes out."),
    "/v1/channels/{channel}/orders/{id}/delivered": _arrival("The parcel has arrived."),
    "/v1/channels/{channel}/orders/{id}/failed-delivery": _arrival(
        "The parcel could not be delivered: what was paid goes back, the units come home as a reverse order."
    ),
    "/v1/channels/{channel}/orders/{id}/reverse-orders": {
        **page(
            "The order's reverse orders, oldest first.",
            "Returns",
            *(*_READ, "outcome-unknown"),
            parameters=(CHANNEL, ID),
            bearer=True,
        ),
        **step(
            "Ask to send units back.",
            "Return",
            *(*_BACK, "refund-exceeds-payment", "payment-disputed"),
            body="ReturnRequest",
            parameters=(CHANNEL, ID, IDEMPOTENCY_KEY),
            created="It is to be accepted or refused.",
        ),
    },
    "/v1/channels/{channel}/reverse-orders/{id}": page(
        "A reverse order of the channel's.",
        "Return",
        *(*_READ, "outcome-unknown"),
        parameters=(CHANNEL, _RETURN_ID),
        bearer=True,
    ),
    "/v1/channels/{channel}/reverse-orders/{id}/decision": step(
        "Accept the reverse order, or refuse it.",
        "Return",
        *_BACK,
        body="DecisionRequest",
        parameters=(CHANNEL, _RETURN_ID),
    ),
    "/v1/channels/{channel}/reverse-orders/{id}/receipt": step(
        "What arrived; its price goes back, and units go on the shelf where that is asked.",
        "Return",
        *(*_BACK, "unknown-sale"),
        body="ReceiptRequest",
        parameters=(CHANNEL, _RETURN_ID),
    ),
    "/v1/channels/{channel}/endpoint": {
        "put": _SET_ENDPOINT["post"],
        **page(
            "Where the channel hears, and how that goes.",
            "ChannelEndpoint",
            *(*_READ, "outcome-unknown"),
            parameters=(CHANNEL,),
            bearer=True,
        ),
        **_REMOVE_ENDPOINT,
    },
}

_HEADERS = [
    {"name": name, "in": "header", "required": True, "schema": TEXT}
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
]
WEBHOOKS: dict[str, Schema] = {
    kind: {
        "post": {
            "summary": summary,
            "description": "Signed after Standard Webhooks, at least once. 2xx takes it; what is refused by 4xx comes "
            "again alone, and anything else later, as long as the settings say; redirects are not followed.",
            "security": [],
            "parameters": _HEADERS,
            "requestBody": {"required": True, "content": {"application/json": {"schema": ref(schema)}}},
            "responses": {"2XX": {"description": "Taken."}},
        }
    }
    for kind, summary, schema in (
        (ORDERS, "What became of orders of the channel's, in no promised order.", "ChannelOrdersMessage"),
        (STOCK, "What the channel may sell now of SKUs that changed; a later timestamp stands.", "ChannelStockMessage"),
    )
}
"""OpenAPI 3.1's `webhooks`: what a channel's endpoint hears."""
