"""Merchants' catalogues, products and settlement, in the OpenAPI document."""

from flashsale.front.openapi_terms import (
    AFTER,
    LIMIT,
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

_ID = path_parameter("id", "The merchant's id.")
_IMPORT = path_parameter("import", "The import's id.")
_COUNT: Schema = {"type": "integer"}
_COUNTS = dict.fromkeys(("rows", "created", "updated", "unchanged", "offers", "faults", "warnings"), _COUNT)
_NEXT: dict[str, Schema] = {"next": {**TEXT, "description": "A path."}}
_STATUSES = ("uploading", "queued", "applied", "checked", "faulty", "failed")


def _query(name: str, description: str, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "description": description, "schema": TEXT}


SCHEMAS: dict[str, Schema] = {
    "CatalogueImport": obj(
        {
            "id": TEXT,
            "status": {
                "enum": list(_STATUSES),
                "description": "checked: a dry run without a fault; faulty: nothing was changed.",
            },
            "market": TEXT,
            "dry_run": {"type": "boolean"},
            "parts": _COUNT,
            "created_at": TIME,
        },
        {"sale": TEXT, "at": TIME, "finished_at": TIME, "error": TEXT, "findings": TEXT, **_COUNTS},
    ),
    "CatalogueImports": obj({"imports": array(ref("CatalogueImport"))}, _NEXT),
    "Product": obj(
        {
            "sku": TEXT,
            "handle": TEXT,
            "options": array(obj({"name": TEXT, "value": TEXT})),
            "title": {"type": "object", "additionalProperties": TEXT, "description": "Language -> text."},
            "prices": {"type": "object", "additionalProperties": ref("Money"), "description": "Market -> price."},
            "updated_at": TIME,
        },
        {
            **dict.fromkeys(("vendor", "hs_code", "origin", "barcode"), TEXT),
            **dict.fromkeys(("stock", "quota", "weight_g"), _COUNT),
        },
    ),
    "Products": obj({"products": array(ref("Product"))}, _NEXT),
    "StockRequest": obj({"to": UNITS, "expect": UNITS}, closed=True),
    "ProductStock": obj({"sku": TEXT, "stock": UNITS}),
    "Settlement": obj(
        {
            "merchant": TEXT,
            "day": {"type": "string", "format": "date"},
            "complete": {"type": "boolean", "description": "The day is over: it won't change any more."},
            "totals": array(
                obj(
                    {
                        "currency": TEXT,
                        **dict.fromkeys(("orders", "units_sold", "units_returned"), _COUNT),
                        **{name: ref("Money") for name in ("sales", "refunds", "net")},
                    }
                )
            ),
            "entries": array(
                obj({"order": TEXT, "number": _COUNT, "amount": ref("Money"), "units": _COUNT, "at": TIME})
            ),
        },
        _NEXT,
    ),
}

_READ = ("unauthenticated", "forbidden", "not-found", "overloaded", "outcome-unknown")
_CSV: Schema = {"required": True, "content": {"text/csv": {"schema": TEXT}}}
_TAKEN = (*_READ, "too-large", "unsupported-media-type")

PATHS: dict[str, Schema] = {
    "/v1/merchants/{id}/imports": {
        **page(
            "The merchant's imports, newest first.",
            "CatalogueImports",
            *("malformed", *_READ),
            parameters=(_ID, LIMIT, AFTER),
            bearer=True,
        ),
        "post": {
            "summary": "Import a product catalogue (CSV), or send the first of its parts.",
            "security": [{"bearer": []}],
            "parameters": [
                _ID,
                _query("market", "Whose currency the prices are in.", required=True),
                _query("sale", "The products become offers of this sale as well."),
                _query("dry_run", "true: say what would be, change nothing."),
                _query("at", "Not before this time, the merchant's own zone: 2026-11-11T00:00."),
                _query("decimal_mark", "Of the file's numbers: . or ,"),
                _query("parts", "In how many parts the file comes; 1 if absent."),
            ],
            "requestBody": _CSV,
            "responses": {
                "202": {
                    "description": "It waits.",
                    "headers": {"Location": {"schema": TEXT}},
                    "content": {"application/json": {"schema": ref("CatalogueImport")}},
                },
                **problems(*_TAKEN, "malformed", "too-many-requests"),
            },
        },
    },
    "/v1/merchants/{id}/imports/{import}": page(
        "What became of an import.", "CatalogueImport", *_READ, parameters=(_ID, _IMPORT), bearer=True
    ),
    "/v1/merchants/{id}/imports/{import}/parts/{number}": {
        "put": {
            "summary": "A part of the file; behind the last one the import is queued.",
            "security": [{"bearer": []}],
            "parameters": [_ID, _IMPORT, path_parameter("number", "From 1.")],
            "requestBody": _CSV,
            "responses": {
                "200": {
                    "description": "OK",
                    "content": {"application/json": {"schema": ref("CatalogueImport")}},
                },
                **problems(*_TAKEN),
            },
        }
    },
    "/v1/merchants/{id}/imports/{import}/findings": page(
        "Faults and warnings as JSON lines, each with row and column; the first 100,000.",
        None,
        *_READ,
        parameters=(_ID, _IMPORT),
        media_types=("application/jsonl",),
        bearer=True,
    ),
    "/v1/merchants/{id}/products": page(
        "The merchant's products, by SKU.",
        "Products",
        *("malformed", *_READ),
        parameters=(_ID, LIMIT, AFTER),
        bearer=True,
    ),
    "/v1/merchants/{id}/products/{sku}/stock": step(
        "Set a product's stock, if it is what it is believed to be.",
        "ProductStock",
        *("forbidden", "stock-changed"),
        body="StockRequest",
        parameters=(_ID, path_parameter("sku", "The product's SKU.")),
    ),
    "/v1/merchants/{id}/settlement": page(
        "What a day brought the merchant, by currency, and each booking. Days are those of Beijing.",
        "Settlement",
        *("malformed", *_READ),
        parameters=(_ID, _query("day", "Such as 2026-11-11.", required=True), LIMIT, AFTER),
        bearer=True,
    ),
}
