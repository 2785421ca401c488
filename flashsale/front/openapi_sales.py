"""The sales in the OpenAPI document: what is offered, and what is left of it."""

from flashsale.front.answers import EVENT_STREAM, JSON, MESSAGEPACK
from flashsale.front.openapi_terms import (
    AFTER,
    LIMIT,
    SALE,
    TEXT,
    TIME,
    UNITS,
    Schema,
    array,
    obj,
    page,
    query_parameter,
    ref,
)

SCHEMAS: dict[str, Schema] = {
    "Sale": obj(
        {
            "id": TEXT,
            "name": TEXT,
            "status": {"enum": ["upcoming", "open", "paused", "closed"]},
            "opens_at": TIME,
            "closes_at": TIME,
            "hold_seconds": {"type": "integer", "minimum": 1},
            "markets": array(obj({"code": TEXT, "country": TEXT, "currency": TEXT, "locale": TEXT})),
            "offers": {**UNITS, "description": "How many offers the sale has."},
            "suspended": {**array(TEXT), "description": "SKUs taken out of the sale for now."},
            "as_of": TIME,
        },
    ),
    "Sales": obj({"sales": array(ref("Sale"))}, {"next": {**TEXT, "description": "A path."}}),
    "Offers": obj(
        {
            "offers": array(
                obj(
                    {
                        "sku": TEXT,
                        "title": TEXT,
                        "brand": TEXT,
                        "quota": {**UNITS, "description": "Units a shopper in this sale; 0: no limit."},
                        "available": UNITS,
                        "suspended": {"type": "boolean"},
                    },
                    {
                        "price": {**ref("Money"), "description": "With ?market."},
                        "price_text": {**TEXT, "description": "As the locale asked for writes it."},
                        "price_texts": {
                            "type": "object",
                            "additionalProperties": TEXT,
                            "description": "`prices` as the locale asked for writes them.",
                        },
                        "available_text": {**TEXT, "description": "As the locale asked for writes it."},
                        "prices": {
                            "type": "object",
                            "additionalProperties": ref("Money"),
                            "description": "By market; without ?market.",
                        },
                    },
                )
            ),
            "as_of": TIME,
        },
        {"next": {**TEXT, "description": "A path."}},
    ),
    "Stock": obj(
        {
            "stock": {
                "type": "object",
                "description": "By SKU: supply = available + held + sold.",
                "additionalProperties": obj(
                    {
                        "supply": UNITS,
                        "available": UNITS,
                        "held": {**UNITS, "description": "Taken and not paid."},
                        "sold": {**UNITS, "description": "Paid and not given back."},
                    }
                ),
            },
            "as_of": TIME,
        }
    ),
}

PATHS: dict[str, Schema] = {
    "/v1/sales": page("The sales.", "Sales", "malformed", "overloaded", parameters=(LIMIT, AFTER)),
    "/v1/sales/{sale}": page("A sale.", "Sale", "unknown-sale", "overloaded", parameters=(SALE,)),
    "/v1/sales/{sale}/offers": page(
        "What a sale offers: in one market, or in all.",
        "Offers",
        *("malformed", "unknown-sale", "overloaded"),
        parameters=(
            SALE,
            query_parameter("market", "ISO 3166-1 alpha-2 country code.", TEXT),
            query_parameter("locale", "BCP 47, such as zh-HK: titles and texts; Accept-Language, else.", TEXT),
            LIMIT,
            AFTER,
        ),
    ),
    "/v1/sales/{sale}/stock": page(
        "Supply, available, held and sold of every SKU, now; as events: now and at every change.",
        "Stock",
        *("unknown-sale", "overloaded", "too-many-requests"),
        parameters=(SALE,),
        media_types=(JSON, MESSAGEPACK[0], EVENT_STREAM),
    ),
}
