"""The promise ledger in the OpenAPI document."""

from flashsale.front.openapi_terms import TEXT, TIME, UNITS, Schema, array, obj, page
from flashsale.sale.shipping.promises import LAST

_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}

SCHEMAS: dict[str, Schema] = {
    "LanePromises": obj(
        {
            "last": {**UNITS, "description": "How many of the newest deliveries to a country count at most."},
            "promises": array(
                obj(
                    {
                        "lane": TEXT,
                        "country": {**TEXT, "description": "ISO 3166-1 alpha-2."},
                        "deliveries": {**UNITS, "maximum": LAST, "description": "Those that count."},
                        "on_time": {
                            **UNITS,
                            "description": "Of these those that were there by the day that the shopper was told last, "
                            "in the country's zone. What could not be delivered was not.",
                        },
                        "share": {**_SHARE, "description": "on_time / deliveries, to four places."},
                        "alert": {"type": "boolean", "description": "Too few of them, after the lane's rule."},
                    },
                    {
                        "alert_below": {**_SHARE, "description": "The lane's rule; absent: it has none."},
                        "alert_from": {**UNITS, "description": "With fewer deliveries there is no alert."},
                        "alert_since": {**TIME, "description": "When the alert in force was raised."},
                    },
                )
            ),
        }
    )
}

PATHS: dict[str, Schema] = {
    "/v1/lanes/promises": page(
        "How many of its last promises each lane kept, by country. For admins.",
        "LanePromises",
        *("unauthenticated", "forbidden", "overloaded", "outcome-unknown"),
        bearer=True,
    )
}
