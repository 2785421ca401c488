"""/openapi.json: the HTTP interface as OpenAPI 3.1, kept by hand; a test compares it with the route table.

The resources are described each in a module of its own. What the hot path answers itself is described too.
"""

import orjson
from aiohttp import web

from flashsale.front import (
    openapi_borders,
    openapi_carriers,
    openapi_channels,
    openapi_life,
    openapi_merchants,
    openapi_orders,
    openapi_people,
    openapi_promises,
    openapi_sales,
    openapi_webhooks,
)
from flashsale.front.answers import JSON
from flashsale.front.openapi_terms import (
    ORDER_ID,
    TEXT,
    UNITS,
    Schema,
    array,
    obj,
    page,
    path_parameter,
    ref,
)

_HOUSE_SCHEMAS: dict[str, Schema] = {
    "OpenApi": {"type": "object"},
    "Live": obj({"live": {"type": "boolean"}}),
    "Ready": obj({"ready": {"type": "boolean"}, "reasons": array(TEXT), "warnings": array(TEXT)}),
    "ProblemKind": obj({"type": TEXT, "name": TEXT, "status": UNITS, "title": TEXT, "next_step": TEXT}),
    "ProblemKinds": obj({"problems": array(ref("ProblemKind"))}),
    "Problem": obj(
        {
            "type": {"type": "string", "description": "/problems/ and the problem's stable name."},
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
        },
        {
            "id": {**ORDER_ID, "description": "The order's id, once sale and Idempotency-Key are known."},
            "fields": {"type": ["object", "array"], "description": "invalid-order: each field at fault."},
            "retry_after": {"type": "integer", "description": "Seconds."},
            "request_id": TEXT,
            "next_step": {
                **TEXT,
                "description": "What to do next, where another language than `detail`'s was asked for.",
            },
        },
    ),
}

_HOUSE_PATHS: dict[str, Schema] = {
    "/livez": page("Whether the process lives.", "Live"),
    "/readyz": {
        "get": {
            "summary": "Whether orders are taken, and why not.",
            "security": [],
            "responses": {
                status: {"description": meaning, "content": {JSON: {"schema": ref("Ready")}}}
                for status, meaning in (("200", "Orders are taken."), ("503", "Not now: see `reasons`."))
            },
        }
    },
    "/metrics": page("Metrics in Prometheus's text format.", None, media_types=("text/plain",)),
    "/problems": page("Every kind of problem.", "ProblemKinds"),
    "/problems/{name}": page(
        "A kind of problem: what `type` points at.",
        "ProblemKind",
        "not-found",
        parameters=(path_parameter("name", "The problem's name."),),
    ),
    "/openapi.json": page("This document.", "OpenApi", media_types=(JSON,)),
    "/docs": page("This document, for people.", None, media_types=("text/html",)),
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
        **openapi_orders.PATHS,
        **openapi_life.PATHS,
        **openapi_merchants.PATHS,
        **openapi_sales.PATHS,
        **openapi_borders.PATHS,
        **openapi_promises.PATHS,
        **openapi_people.PATHS,
        **openapi_webhooks.PATHS,
        **openapi_channels.PATHS,
        **openapi_carriers.PATHS,
        **_HOUSE_PATHS,
    },
    "webhooks": {**openapi_webhooks.WEBHOOKS, **openapi_channels.WEBHOOKS},
    "components": {
        "schemas": {
            **openapi_orders.SCHEMAS,
            **openapi_life.SCHEMAS,
            **openapi_merchants.SCHEMAS,
            **openapi_sales.SCHEMAS,
            **openapi_borders.SCHEMAS,
            **openapi_promises.SCHEMAS,
            **openapi_people.SCHEMAS,
            **openapi_webhooks.SCHEMAS,
            **openapi_channels.SCHEMAS,
            **openapi_carriers.SCHEMAS,
            **_HOUSE_SCHEMAS,
        },
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
    },
}

_DOCUMENT = orjson.dumps(OPENAPI, option=orjson.OPT_INDENT_2)


async def document(request: web.Request) -> web.Response:
    """GET /openapi.json"""
    return web.Response(body=_DOCUMENT, content_type=JSON, headers={"Cache-Control": "max-age=60"})
