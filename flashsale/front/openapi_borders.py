"""The borders in the OpenAPI document: what an order would cost, which markets there are, which lanes lead there."""

from flashsale.front.answers import JSON, MESSAGEPACK
from flashsale.front.openapi_orders import CROSSING, DATE
from flashsale.front.openapi_terms import (
    TEXT,
    TIME,
    UNITS,
    Schema,
    array,
    obj,
    page,
    problems,
    query_parameter,
    ref,
)

_LINE: Schema = obj(
    {
        "sku": TEXT,
        "quantity": UNITS,
        "price": {**ref("Money"), "description": "Of one unit."},
        "duty": {**ref("Money"), "description": "Of all units, collected by the seller."},
        "tax": {**ref("Money"), "description": "Of all units, collected by the seller."},
    }
)
_PROMISE: Schema = obj({"days": {**UNITS, "description": "Calendar days from the day of the order."}, "by": DATE})
_LIMIT: dict[str, Schema] = {
    "order": {**ref("Money"), "description": "What one order may import."},
    "annual": {**ref("Money"), "description": "What one person may import in the calendar year."},
    "year": UNITS,
}
_SHIPS_FROM = query_parameter("ships_from", "ISO 3166 country code; CN if left out.", {**TEXT, "pattern": "^[A-Z]{2}$"})

SCHEMAS: dict[str, Schema] = {
    "Quote": obj(
        {
            "lines": array(_LINE),
            "total": {**ref("Money"), "description": "Goods, shipping, duty and tax: all that is paid to the seller."},
            **CROSSING,
            "lane": {
                "type": ["string", "null"],
                "description": "By which it is quoted: the one asked for or the default.",
            },
            "lanes": {
                **array(
                    obj(
                        {
                            "lane": TEXT,
                            "carrier": TEXT,
                            "recommended": {"type": "boolean"},
                            "shipping": ref("Money"),
                            "total": {**ref("Money"), "description": "Of the order by this lane."},
                            "promise": _PROMISE,
                        }
                    )
                ),
                "description": "Those that take the order, the default first; none in a sale that crosses no border.",
            },
            "valid_until": {**TIME, "description": "An order that is accepted before this costs as much."},
        },
        {
            "import_limit": obj({**_LIMIT, "counts": {**ref("Money"), "description": "What of it this order takes."}}),
        },
    ),
    "Markets": obj(
        {
            "ships_from": TEXT,
            "markets": array(
                obj(
                    {
                        "code": TEXT,
                        "country": TEXT,
                        "currency": TEXT,
                        "locale": TEXT,
                        "zone": {**TEXT, "description": "IANA."},
                        "rules_until": {
                            "type": ["string", "null"],
                            "format": "date-time",
                            "description": "When a rule changes next; null: none that is known.",
                        },
                    },
                    {"import_limit": obj(_LIMIT)},
                )
            ),
            "as_of": TIME,
        }
    ),
    "Lanes": obj(
        {
            "ships_from": TEXT,
            "market": TEXT,
            "lanes": array(
                obj(
                    {
                        "lane": TEXT,
                        "carrier": TEXT,
                        "recommended": {"type": "boolean"},
                        "capacity": {"type": ["integer", "null"], "description": "Parcels a dispatch day; null: any."},
                        "promise": _PROMISE,
                        "holds_until": {**TIME, "description": "Until when its tariff and promise hold."},
                    }
                )
            ),
            "as_of": TIME,
        }
    ),
}

_QUOTE: Schema = {
    "summary": "What an order would cost, by each lane that takes it; nothing is reserved.",
    "description": "The order's body without a key. A token is not needed.",
    "security": [{}, {"bearer": []}],
    "requestBody": {
        "required": True,
        "content": {media_type: {"schema": ref("OrderRequest")} for media_type in (JSON, *MESSAGEPACK)},
    },
    "responses": {
        "200": {
            "description": "OK",
            "content": {media_type: {"schema": ref("Quote")} for media_type in (JSON, MESSAGEPACK[0])},
        },
        **problems(
            *("malformed", "unauthenticated", "forbidden", "unknown-sale", "unknown-sku", "invalid-order", "too-large"),
            *("unsupported-media-type", "not-sold-here", "lane-unavailable", "overloaded"),
        ),
    },
}

PATHS: dict[str, Schema] = {
    "/v1/quotes": {"post": _QUOTE},
    "/v1/markets": page(
        "The markets whose import rules are known.", "Markets", "malformed", "overloaded", parameters=(_SHIPS_FROM,)
    ),
    "/v1/lanes": page(
        "The lanes to a market, the default first.",
        "Lanes",
        *("malformed", "overloaded"),
        parameters=(
            {**query_parameter("market", "ISO 3166-1 alpha-2 country code.", TEXT), "required": True},
            _SHIPS_FROM,
        ),
    ),
}
