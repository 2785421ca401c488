"""Webhooks in the OpenAPI document: those out, with their routes and every event as it is sent, and the one in."""

from flashsale.front.answers import JSON
from flashsale.front.openapi_terms import (
    AFTER,
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
    ref,
    step,
)
from flashsale.sale.published import EVENTS, EVERY

_ENDPOINT_ID = path_parameter("id", "The endpoint's id.")
_EVENTS: Schema = {**array({"enum": [EVERY, *EVENTS]}), "minItems": 1}
_ENDPOINT: dict[str, Schema] = {
    "id": TEXT,
    "url": {"type": "string", "format": "uri", "description": "Public https; ports 443 and from 1024."},
    "events": _EVENTS,
    "status": {
        "enum": ["enabled", "unreachable", "disabled"],
        "description": "unreachable: it failed too often in a row and is left alone for a while; deliveries wait.",
    },
    "failures": {**UNITS, "description": "Tries that failed since one was taken."},
    "created_at": TIME,
}
_MAYBE_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}

SCHEMAS: dict[str, Schema] = {
    "WebhookEndpoint": obj(_ENDPOINT),
    "NewWebhookEndpoint": obj(
        {**_ENDPOINT, "secret": {**TEXT, "description": "Shown this once: it verifies what is sent."}}
    ),
    "WebhookEndpoints": obj({"endpoints": array(ref("WebhookEndpoint"))}, {"next": {**TEXT, "description": "A path."}}),
    "WebhookEndpointRequest": obj({"url": _ENDPOINT["url"], "events": _EVENTS}, closed=True),
    "WebhookDeliveries": obj(
        {
            "deliveries": array(
                obj(
                    {
                        "id": TEXT,
                        "endpoint": TEXT,
                        "message": {**TEXT, "description": "webhook-id: the same in every try and replay."},
                        "event": TEXT,
                        "order": ORDER_ID,
                        "number": UNITS,
                        "status": {"enum": ["pending", "delivered", "given_up"]},
                        "tries": UNITS,
                        "http_status": {"type": ["integer", "null"]},
                        "error": {"type": ["string", "null"]},
                        "created_at": TIME,
                        "tried_at": _MAYBE_TIME,
                        "next_at": _MAYBE_TIME,
                    }
                )
            )
        }
    ),
    "WebhookReplayRequest": obj({"since": TIME}, closed=True),
    "WebhookReplay": obj({"endpoint": TEXT, "since": TIME}),
    "WebhookMessage": obj(
        {
            "type": {"enum": list(EVENTS)},
            "timestamp": {**TIME, "description": "When it happened."},
            "data": obj(
                {
                    "id": ORDER_ID,
                    "sale": TEXT,
                    "market": TEXT,
                    "channel": TEXT,
                    "number": {**UNITS, "description": "The change's number in the order's history, without gaps."},
                    "event": {"enum": list(EVENTS)},
                    "status": {**TEXT, "description": "The order's, after it."},
                    "payment": {**TEXT, "description": "What became of the money, after it."},
                    "detail": {"type": "object"},
                }
            ),
        }
    ),
}

_ADD = step(
    "Subscribe an endpoint to events.",
    "NewWebhookEndpoint",
    *("forbidden", "overloaded"),
    body="WebhookEndpointRequest",
    description="For admins. What happens from now on is sent there; what happened before: replay.",
    created="The endpoint, and once its secret.",
)
_LIST = page(
    "The endpoints, oldest first.",
    "WebhookEndpoints",
    *("malformed", "unauthenticated", "forbidden", "overloaded"),
    parameters=(LIMIT, AFTER),
    bearer=True,
)
_REFUSALS = ("unauthenticated", "forbidden", "not-found", "overloaded")
_ONE = page("An endpoint.", "WebhookEndpoint", *_REFUSALS, parameters=(_ENDPOINT_ID,), bearer=True)
_DISABLE: Schema = {
    "delete": {
        "summary": "Send nothing there any more; its delivery log stays.",
        "security": [{"bearer": []}],
        "parameters": [_ENDPOINT_ID],
        "responses": {"204": {"description": "It is disabled."}, **problems(*_REFUSALS)},
    }
}
_REPLAY = step(
    "Send everything again that happened since.",
    "WebhookReplay",
    *("forbidden", "not-found", "overloaded"),
    body="WebhookReplayRequest",
    description="Under the same webhook-id as before; what the endpoint missed, while it was unreachable or before it "
    "was made, comes too.",
    parameters=(_ENDPOINT_ID,),
)
_REPLAY["post"]["responses"]["202"] = _REPLAY["post"]["responses"].pop("200")

_RECEIVE: Schema = {
    "post": {
        "summary": "Tell what became of a payment: for the payment provider.",
        "security": [],
        "description": "200 as soon as the event is kept; what it says is applied afterwards. Anything else: send it "
        "again. A repetition, and an event that is unknown or of somebody else, is 200 and changes nothing.",
        "parameters": [
            {
                "name": "Stripe-Signature",
                "in": "header",
                "required": True,
                "description": "t=<UNIX time>,v1=<hex HMAC-SHA256 of time, a dot and body>; v1 may be repeated.",
                "schema": TEXT,
            }
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object"}}}},
        "responses": {
            "200": {
                "description": "The event is kept.",
                "content": {JSON: {"schema": obj({"received": {"const": True}})}},
            },
            **problems("malformed", "webhook-signature", "too-large", "unsupported-media-type", "overloaded"),
        },
    }
}

PATHS: dict[str, Schema] = {
    "/v1/webhooks/payments": _RECEIVE,
    "/v1/webhooks/endpoints": {**_ADD, **_LIST},
    "/v1/webhooks/endpoints/{id}": {**_ONE, **_DISABLE},
    "/v1/webhooks/endpoints/{id}/deliveries": page(
        "The newest deliveries and what became of them.",
        "WebhookDeliveries",
        *("malformed", *_REFUSALS),
        parameters=(_ENDPOINT_ID, LIMIT),
        bearer=True,
    ),
    "/v1/webhooks/endpoints/{id}/replay": _REPLAY,
}

_HEADERS = [
    {"name": name, "in": "header", "required": True, "description": description, "schema": TEXT}
    for name, description in (
        ("webhook-id", "The message's id: one that you have had already is to be dropped, with a 2xx."),
        ("webhook-timestamp", "UNIX seconds of this try; refuse what is more than 300 s off."),
        ("webhook-signature", "`v1,` and base64 of HMAC-SHA-256 over `id.timestamp.body`: Standard Webhooks."),
    )
]
WEBHOOKS: dict[str, Schema] = {
    name: {
        "post": {
            "summary": meaning,
            "description": "At least once, in no promised order (`data.number` tells it). 2xx takes it, 410 disables "
            "the endpoint, anything else is tried again by the schedule of the settings; redirects are not followed.",
            "security": [],
            "parameters": _HEADERS,
            "requestBody": {"required": True, "content": {JSON: {"schema": ref("WebhookMessage")}}},
            "responses": {"2XX": {"description": "Taken."}},
        }
    }
    for name, meaning in EVENTS.items()
}
"""OpenAPI 3.1's `webhooks`: every published event."""
