"""/openapi.json: the HTTP interface as OpenAPI 3.1, kept by hand; a test compares it with the route table.

POST /v1/orders is described here too, although the hot path answers it.
"""

from typing import Any

import orjson
from aiohttp import web

from flashsale.errors import PROBLEM_JSON, PROBLEMS
from flashsale.front.answers import EVENT_STREAM, JSON, LIMIT_DEFAULT, LIMIT_MAX, MESSAGEPACK
from flashsale.sale.order import AMOUNT_MAX, LINES_MAX, QUANTITY_MAX, Address

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TIME: Schema = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC, milliseconds."}
_UNITS: Schema = {"type": "integer", "minimum": 0}
_ORDER_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$", "description": "Opaque."}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}
    if closed:
        schema["additionalProperties"] = False
    return schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_ORDER_FIELDS: dict[str, Schema] = {
    "id": _ORDER_ID,
    "sale": _TEXT,
    "status": {
        "enum": ["reserved", "paid", "expired", "cancelled", "shipped", "delivered", "undeliverable", "refunded"],
    },
    "market": _TEXT,
    "channel": _TEXT,
    "lines": _list(_object({"sku": _TEXT, "quantity": _UNITS, "price": _ref("Money")})),
    "total": _ref("Money"),
    "reserved_until": _TIME,
}

_SCHEMAS: dict[str, Schema] = {
    "Money": _object(
        {
            "amount": {"type": "integer", "minimum": 0, "maximum": AMOUNT_MAX, "description": "Minor units, ISO 4217."},
            "currency": {"type": "string", "minLength": 3, "maxLength": 3},
        },
    ),
    "OrderRequest": _object(
        {
            "sale": {"type": "string", "minLength": 1, "maxLength": 64},
            "lines": {
                "type": "array",
                "minItems": 1,
                "maxItems": LINES_MAX,
                "description": "One line a SKU.",
                "items": _object(
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
            "ship_to": _object(
                {"country": {"type": "string", "pattern": "^[A-Z]{2}$"}},
                {
                    name: {"type": ["string", "null"], "maxLength": 200}
                    for name in Address.__struct_fields__
                    if name != "country"
                },
                closed=True,
            ),
            "expected_total": {**_ref("Money"), "description": "Refused as price-changed where the total differs."},
        },
        closed=True,
    ),
    "Order": _object(_ORDER_FIELDS),
    "OrderRead": _object(
        {
            **_ORDER_FIELDS,
            "created_at": _TIME,
            "history": _list(_object({"number": _UNITS, "status": _TEXT, "at": _TIME})),
        },
    ),
    "Orders": _object(
        {"orders": _list(_object({**_ORDER_FIELDS, "created_at": _TIME}))},
        {"next": {**_TEXT, "description": "A path."}},
    ),
    "Sale": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "status": {"enum": ["upcoming", "open", "paused", "closed"]},
            "opens_at": _TIME,
            "closes_at": _TIME,
            "hold_seconds": {"type": "integer", "minimum": 1},
            "markets": _list(_object({"code": _TEXT, "country": _TEXT, "currency": _TEXT, "locale": _TEXT})),
            "offers": {**_UNITS, "description": "How many offers the sale has."},
            "suspended": {**_list(_TEXT), "description": "SKUs taken out of the sale for now."},
            "as_of": _TIME,
        },
    ),
    "Sales": _object({"sales": _list(_ref("Sale"))}, {"next": {**_TEXT, "description": "A path."}}),
    "Offers": _object(
        {
            "offers": _list(
                _object(
                    {
                        "sku": _TEXT,
                        "title": _TEXT,
                        "brand": _TEXT,
                        "quota": {**_UNITS, "description": "Units a shopper in this sale; 0: no limit."},
                        "available": _UNITS,
                        "suspended": {"type": "boolean"},
                    },
                    {
                        "price": {**_ref("Money"), "description": "With ?market."},
                        "prices": {
                            "type": "object",
                            "additionalProperties": _ref("Money"),
                            "description": "By market; without ?market.",
                        },
                    },
                )
            ),
            "as_of": _TIME,
        },
        {"next": {**_TEXT, "description": "A path."}},
    ),
    "Stock": _object(
        {
            "stock": {
                "type": "object",
                "description": "By SKU: supply = available + held + sold.",
                "additionalProperties": _object(
                    {
                        "supply": _UNITS,
                        "available": _UNITS,
                        "held": {**_UNITS, "description": "Taken and not paid."},
                        "sold": {**_UNITS, "description": "Paid and not given back."},
                    }
                ),
            },
            "as_of": _TIME,
        }
    ),
    "OpenApi": {"type": "object"},
    "Live": _object({"live": {"type": "boolean"}}),
    "Ready": _object({"ready": {"type": "boolean"}, "reasons": _list(_TEXT), "warnings": _list(_TEXT)}),
    "ProblemKind": _object({"type": _TEXT, "name": _TEXT, "status": _UNITS, "title": _TEXT, "next_step": _TEXT}),
    "ProblemKinds": _object({"problems": _list(_ref("ProblemKind"))}),
    "Problem": _object(
        {
            "type": {"type": "string", "description": "/problems/ and the problem's stable name."},
            "title": _TEXT,
            "status": {"type": "integer"},
            "detail": _TEXT,
        },
        {
            "id": {**_ORDER_ID, "description": "The order's id, once sale and Idempotency-Key are known."},
            "fields": {"type": ["object", "array"], "description": "invalid-order: each field at fault."},
            "retry_after": {"type": "integer", "description": "Seconds."},
            "request_id": _TEXT,
        },
    ),
}


def _path(name: str, description: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema or _TEXT}


def _query(name: str, description: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_LIMIT = _query(
    "limit", "Items of a page.", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
)
_AFTER = _query("after", "The last item of the page before; `next` carries it.", {"type": "string", "minLength": 1})
_SALE = _path("sale", "The sale's id.")
_ID = _path("id", "The order's id.")


def _problems(*names: str) -> dict[str, Schema]:
    """Answers by status: each status once, with the names that it may carry."""
    by_status: dict[int, list[str]] = {}
    for name in names:
        by_status.setdefault(PROBLEMS[name].status, []).append(name)
    return {str(status): _problem(status, by_status[status]) for status in sorted(by_status)}


def _problem(status: int, names: list[str]) -> Schema:
    described: Schema = {
        "description": ", ".join(f"`{name}`" for name in names),
        "content": {PROBLEM_JSON: {"schema": _ref("Problem")}},
    }
    headers: Schema = {}
    if any(PROBLEMS[name].retry_after_s for name in names):
        headers["Retry-After"] = {"description": "Whole seconds.", "schema": {"type": "integer"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": _TEXT}
    return {**described, "headers": headers} if headers else described


def _page(
    summary: str,
    schema: str | None,
    *problems: str,
    parameters: tuple[Schema, ...] = (),
    media_types: tuple[str, ...] = (JSON, MESSAGEPACK[0]),
    bearer: bool = False,
) -> Schema:
    content = {each: {"schema": _ref(schema) if schema and each != EVENT_STREAM else _TEXT} for each in media_types}
    operation: Schema = {
        "summary": summary,
        "security": [{"bearer": []}] if bearer else [],
        "responses": {"200": {"description": "OK", "content": content}, **_problems(*problems)},
    }
    if parameters:
        operation["parameters"] = list(parameters)
    return {"get": operation}


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
        "content": {media_type: {"schema": _ref("OrderRequest")} for media_type in (JSON, *MESSAGEPACK)},
    },
    "responses": {
        "201": {
            "description": "The units are reserved until `reserved_until`.",
            "headers": {
                "Location": {"schema": _TEXT},
                "Idempotent-Replayed": {"description": "`true`: answered before.", "schema": _TEXT},
            },
            "content": {media_type: {"schema": _ref("Order")} for media_type in (JSON, *MESSAGEPACK)},
        },
        **_problems(*(name for name in PROBLEMS if name not in ("not-found", "method-not-allowed"))),
    },
}

OPENAPI: Schema = {
    "openapi": "3.1.0",
    "info": {
        "title": "flashsale",
        "version": "1",
        "description": "A flash-sale order-processing engine. Money is in minor units after ISO 4217, times are UTC. "
        "Problems are RFC 9457; their names are stable.",
    },
    "paths": {
        "/v1/orders": {"post": _PLACE_ORDER},
        "/v1/orders/{id}": _page(
            "An order of one's own; an admin's any.",
            "OrderRead",
            *("unauthenticated", "not-found", "overloaded"),
            parameters=(_ID,),
            bearer=True,
        ),
        "/v1/orders/{id}/events": _page(
            "The order's statuses as server-sent events: those after Last-Event-ID, then each new one.",
            None,
            *("unauthenticated", "not-found", "overloaded"),
            parameters=(_ID, {"name": "Last-Event-ID", "in": "header", "schema": _TEXT}),
            media_types=(EVENT_STREAM,),
            bearer=True,
        ),
        "/v1/shoppers/me/orders": _page(
            "One's own orders, newest first.",
            "Orders",
            *("malformed", "unauthenticated", "overloaded"),
            parameters=(_LIMIT, _AFTER),
            bearer=True,
        ),
        "/v1/sales": _page("The sales.", "Sales", "malformed", "overloaded", parameters=(_LIMIT, _AFTER)),
        "/v1/sales/{sale}": _page("A sale.", "Sale", "unknown-sale", "overloaded", parameters=(_SALE,)),
        "/v1/sales/{sale}/offers": _page(
            "What a sale offers: in one market, or in all.",
            "Offers",
            *("malformed", "unknown-sale", "overloaded"),
            parameters=(_SALE, _query("market", "ISO 3166-1 alpha-2 country code.", _TEXT), _LIMIT, _AFTER),
        ),
        "/v1/sales/{sale}/stock": _page(
            "Supply, available, held and sold of every SKU, now; as events: now and at every change.",
            "Stock",
            *("unknown-sale", "overloaded"),
            parameters=(_SALE,),
            media_types=(JSON, MESSAGEPACK[0], EVENT_STREAM),
        ),
        "/livez": _page("Whether the process lives.", "Live"),
        "/readyz": {
            "get": {
                "summary": "Whether orders are taken, and why not.",
                "security": [],
                "responses": {
                    status: {"description": meaning, "content": {JSON: {"schema": _ref("Ready")}}}
                    for status, meaning in (("200", "Orders are taken."), ("503", "Not now: see `reasons`."))
                },
            }
        },
        "/metrics": _page("Metrics in Prometheus's text format.", None, media_types=("text/plain",)),
        "/problems": _page("Every kind of problem.", "ProblemKinds"),
        "/problems/{name}": _page(
            "A kind of problem: what `type` points at.",
            "ProblemKind",
            "not-found",
            parameters=(_path("name", "The problem's name."),),
        ),
        "/openapi.json": _page("This document.", "OpenApi", media_types=(JSON,)),
        "/docs": _page("This document, for people.", None, media_types=("text/html",)),
    },
    "components": {
        "schemas": _SCHEMAS,
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
    },
}

_DOCUMENT = orjson.dumps(OPENAPI, option=orjson.OPT_INDENT_2)


async def document(request: web.Request) -> web.Response:
    """GET /openapi.json"""
    return web.Response(body=_DOCUMENT, content_type=JSON, headers={"Cache-Control": "max-age=60"})
