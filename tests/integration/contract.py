"""Answers held against the OpenAPI document: as it describes them, and with nothing that it does not."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import jsonschema_rs

from flashsale.front.openapi import OPENAPI

_UNDESCRIBED = {"internal", "method-not-allowed"}  # problems that any route may have


def check(method: str, target: str, status: int, body: Any) -> None:
    """Fails unless the route of `target` is described, and may answer with this status and JSON body."""
    path = _route(target.partition("?")[0])
    if path is None:
        return  # a path that is no route
    operation = OPENAPI["paths"][path].get(method.lower())
    if operation is None:
        return
    name = str(body.get("type", "")).rpartition("/")[2] if status >= 400 else ""
    if name in _UNDESCRIBED:
        return
    response = operation["responses"].get(str(status))
    assert response is not None, f"{method} {path} answers {status} {name}, which is not described"
    if name:
        assert f"`{name}`" in response["description"], f"{method} {path} is refused with {name}, which is not described"
    for media_type, described in response["content"].items():
        if media_type.endswith("json"):
            _validator(described["schema"]["$ref"].rpartition("/")[2]).validate(body)


@cache
def _route(path: str) -> str | None:
    for template in sorted(OPENAPI["paths"], key=lambda each: each.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            return str(template)
    return None


@cache
def _validator(name: str) -> Any:
    schemas = copy.deepcopy(OPENAPI["components"]["schemas"])
    for each, schema in schemas.items():
        if each != "Problem":  # each kind has members of its own
            _close(schema)
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})


def _close(schema: Any) -> None:
    """Nothing but what is described."""
    if isinstance(schema, list):
        for inner in schema:
            _close(inner)
    elif isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for inner in schema.values():
            _close(inner)
