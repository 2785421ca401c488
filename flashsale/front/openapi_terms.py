"""What the OpenAPI document is made of: small makers of schemas, parameters, problems and operations."""

from typing import Any

from flashsale.errors import PROBLEM_JSON, PROBLEMS
from flashsale.front.answers import EVENT_STREAM, JSON, LIMIT_DEFAULT, LIMIT_MAX, MESSAGEPACK

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC, milliseconds."}
UNITS: Schema = {"type": "integer", "minimum": 0}
ORDER_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$", "description": "Opaque."}


def obj(required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}
    if closed:
        schema["additionalProperties"] = False
    return schema


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def path_parameter(name: str, description: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema or TEXT}


def query_parameter(name: str, description: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


LIMIT = query_parameter(
    "limit", "Items of a page.", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
)
AFTER = query_parameter(
    "after", "The last item of the page before; `next` carries it.", {"type": "string", "minLength": 1}
)
SALE = path_parameter("sale", "The sale's id.")
ID = path_parameter("id", "The order's id.")
IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "What was asked under a key is done once, however often it is sent. Quoted or bare.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[ -~]+$"},
}


def problems(*names: str) -> dict[str, Schema]:
    """Answers by status: each status once, with the names that it may carry."""
    by_status: dict[int, list[str]] = {}
    for name in names:
        by_status.setdefault(PROBLEMS[name].status, []).append(name)
    return {str(status): _problem(status, by_status[status]) for status in sorted(by_status)}


def _problem(status: int, names: list[str]) -> Schema:
    described: Schema = {
        "description": ", ".join(f"`{name}`" for name in names),
        "content": {PROBLEM_JSON: {"schema": ref("Problem")}},
    }
    headers: Schema = {}
    if any(PROBLEMS[name].retry_after_s for name in names):
        headers["Retry-After"] = {"description": "Whole seconds.", "schema": {"type": "integer"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": TEXT}
    return {**described, "headers": headers} if headers else described


def page(
    summary: str,
    schema: str | None,
    *refusals: str,
    parameters: tuple[Schema, ...] = (),
    media_types: tuple[str, ...] = (JSON, MESSAGEPACK[0]),
    bearer: bool = False,
) -> Schema:
    """A route that is read."""
    content = {each: {"schema": ref(schema) if schema and each != EVENT_STREAM else TEXT} for each in media_types}
    operation: Schema = {
        "summary": summary,
        "security": [{"bearer": []}] if bearer else [],
        "responses": {"200": {"description": "OK", "content": content}, **problems(*refusals)},
    }
    if parameters:
        operation["parameters"] = list(parameters)
    return {"get": operation}


STEP_REFUSALS = (
    *("malformed", "too-large", "unsupported-media-type", "invalid-request"),
    *("unauthenticated", "not-found", "overloaded", "outcome-unknown"),
)
"""What every step with an order may be refused with."""


def step(
    summary: str,
    schema: str,
    *refusals: str,
    body: str,
    parameters: tuple[Schema, ...] = (),
    description: str = "",
    created: str = "",
    body_required: bool = True,
) -> Schema:
    """A route that is posted to, with a bearer token. `created`: what its 201 means; "": it answers 200."""
    if IDEMPOTENCY_KEY in parameters:
        refusals = (*refusals, "idempotency-key-missing")  # a header without a key in it
    answers: Schema = {
        "description": created or "OK",
        "content": {each: {"schema": ref(schema)} for each in (JSON, MESSAGEPACK[0])},
    }
    if created:
        answers["headers"] = {"Location": {"schema": TEXT}}
    operation: Schema = {
        "summary": summary,
        "security": [{"bearer": []}],
        "requestBody": {
            "required": body_required,
            "content": {each: {"schema": ref(body)} for each in (JSON, *MESSAGEPACK)},
        },
        "responses": {"201" if created else "200": answers, **problems(*refusals, *STEP_REFUSALS)},
    }
    if description:
        operation["description"] = description
    if parameters:
        operation["parameters"] = list(parameters)
    return {"post": operation}
