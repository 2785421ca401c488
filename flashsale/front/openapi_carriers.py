"""What carriers tell, and where a parcel is, in the OpenAPI document."""

from flashsale.front.answers import JSON, MESSAGEPACK
from flashsale.front.openapi_terms import (
    ID,
    ORDER_ID,
    TEXT,
    TIME,
    Schema,
    array,
    obj,
    page,
    path_parameter,
    problems,
    ref,
)
from flashsale.sale.tracking import Code, ParcelStatus

_CODE: Schema = {"enum": list(Code)}
_EVENT_ID: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
_MORE: dict[str, Schema] = {
    "detail": {"type": "string", "maxLength": 200, "description": "For people."},
    "country": {"type": "string", "pattern": "^[A-Z]{2}$", "description": "Where: ISO 3166."},
}

SCHEMAS: dict[str, Schema] = {
    "CarrierEvent": obj(
        {
            "id": {**_EVENT_ID, "description": "The carrier's own: told again, it changes nothing."},
            "waybill": {"type": "string", "minLength": 1, "maxLength": 40},
            "code": {**_CODE, "description": "failed: not delivered, and it will not be; returned: it came home."},
            "at": {**TIME, "description": "When it happened: RFC 3339, with its zone."},
        },
        _MORE,
        closed=True,
    ),
    "CarrierEventReceived": obj({"received": {"const": True}}),
    "Tracking": obj(
        {
            "order": ORDER_ID,
            "events": {
                **array(obj({"id": _EVENT_ID, "code": _CODE, "at": TIME}, _MORE)),
                "description": "By the times that the carrier gave.",
            },
        },
        {
            "status": {"enum": list(ParcelStatus), "description": "Absent: no carrier was asked to carry it."},
            "carrier": TEXT,
            "error": {**TEXT, "description": "For admins: why it is refused, or what does not fit its order."},
            "waybill": {**TEXT, "description": "The number that it travels under."},
        },
    ),
}

_HEADERS = [
    {"name": name, "in": "header", "required": True, "description": description, "schema": TEXT}
    for name, description in (
        ("webhook-id", "The message's id."),
        ("webhook-timestamp", "UNIX seconds; more than 300 s off is refused."),
        ("webhook-signature", "`v1,` and base64 of HMAC-SHA-256 over `id.timestamp.body`: Standard Webhooks."),
    )
]
_TELL: Schema = {
    "post": {
        "summary": "Tell what happened to a parcel: for carriers.",
        "security": [],
        "description": "At least once, in any order: an event that was told before changes nothing, and one that comes "
        "late does not move a parcel back. The first that says that the parcel moved ships the order.",
        "parameters": [path_parameter("carrier", "The carrier's id, as the lanes have it."), *_HEADERS],
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": ref("CarrierEvent")}},
        },
        "responses": {
            "200": {
                "description": "The ledger has it.",
                "content": {each: {"schema": ref("CarrierEventReceived")} for each in (JSON, MESSAGEPACK[0])},
            },
            **problems(
                *("malformed", "webhook-signature", "not-found", "too-large", "unsupported-media-type"),
                *("invalid-request", "overloaded", "outcome-unknown"),
            ),
        },
    }
}

PATHS: dict[str, Schema] = {
    "/v1/carriers/{carrier}/events": _TELL,
    "/v1/orders/{id}/tracking": page(
        "Where the order's parcel is.",
        "Tracking",
        *("unauthenticated", "not-found", "overloaded", "outcome-unknown"),
        parameters=(ID,),
        bearer=True,
    ),
}
