"""Shoppers' identities, their grants to agents, and what agents read, in the OpenAPI document."""

from flashsale.front.auth import SUBJECT_MAX_CHARACTERS
from flashsale.front.openapi_terms import (
    AFTER,
    LIMIT,
    TEXT,
    TIME,
    Schema,
    array,
    obj,
    page,
    path_parameter,
    problems,
    ref,
    step,
)
from flashsale.sale.documents import COUNTRIES, NUMBER_MAX

_GRANT_ID = path_parameter("id", "The grant's id.")
_AGENT: Schema = {"type": "string", "minLength": 1, "maxLength": SUBJECT_MAX_CHARACTERS}
_GRANT: dict[str, Schema] = {
    "id": TEXT,
    "agent": {**TEXT, "description": "Who may order."},
    "recipient": {**TEXT, "description": "Whom for: the shopper who signed it."},
    "granted_at": TIME,
}
_REVOKED: dict[str, Schema] = {"revoked_at": {**TIME, "description": "Absent: it is in force."}}

SCHEMAS: dict[str, Schema] = {
    "GrantRequest": obj({"agent": _AGENT}, closed=True),
    "Grant": obj(_GRANT, _REVOKED),
    "Grants": obj({"grants": array(ref("Grant"))}, {"next": {**TEXT, "description": "A path."}}),
    "GrantRead": obj(
        {
            **_GRANT,
            "history": {
                **array(obj({"event": {"enum": ["granted", "revoked"]}, "at": TIME})),
                "description": "As the log of movements has it, which may be a moment behind.",
            },
        },
        _REVOKED,
    ),
    "IdentityRequest": obj(
        {
            "country": {"enum": list(COUNTRIES), "description": "Whose document it is."},
            "number": {"type": "string", "minLength": 1, "maxLength": NUMBER_MAX, "description": "Never kept."},
            "name": {"type": "string", "minLength": 1, "maxLength": 100, "description": "As the document has it."},
        },
        closed=True,
    ),
    "Identity": obj(
        {
            "identity": {**TEXT, "description": "To be sent with orders; good for this shopper alone."},
            "country": TEXT,
            "verified_at": TIME,
        },
        {
            "limits": obj(
                {
                    "year": {"type": "integer", "description": "The calendar year there."},
                    "single": {**ref("Money"), "description": "Of one order."},
                    "annual": {**ref("Money"), "description": "Of the year, for the person."},
                    "used": ref("Money"),
                    "left": ref("Money"),
                }
            )
        },
    ),
}

_READ = ("unauthenticated", "forbidden", "overloaded", "outcome-unknown")
_REVOKE: Schema = {
    "delete": {
        "summary": "Revoke the grant: the agent orders no more. What was ordered stays.",
        "security": [{"bearer": []}],
        "parameters": [_GRANT_ID],
        "responses": {"204": {"description": "It is not in force."}, **problems(*_READ, "not-found")},
    }
}

PATHS: dict[str, Schema] = {
    "/v1/shoppers/me/identity": step(
        "Verify whose import limit orders count for.",
        "Identity",
        *("forbidden", "identity-unverified", "too-many-requests"),
        body="IdentityRequest",
        description="The number is asked about and hashed, never kept. The same person has one identity and one yearly "
        "limit, under whatever shopper.",
    ),
    "/v1/shoppers/me/grants": {
        **page(
            "The shopper's grants, newest first, with those that were revoked.",
            "Grants",
            *("malformed", *_READ),
            parameters=(LIMIT, AFTER),
            bearer=True,
        ),
        **step(
            "Let an agent order in the shopper's name.",
            "Grant",
            "forbidden",
            body="GrantRequest",
            created="The grant, in force; the one there was, if there was one.",
            description="Quotas and import limits count for the shopper, whoever orders, and both can read the order.",
        ),
    },
    "/v1/shoppers/me/grants/{id}": {
        **page("A grant and its history.", "GrantRead", *_READ, "not-found", parameters=(_GRANT_ID,), bearer=True),
        **_REVOKE,
    },
    "/v1/agents/me/orders": page(
        "The orders that the agent placed, newest first, whomever for.",
        "Orders",
        *("malformed", *_READ),
        parameters=(LIMIT, AFTER),
        bearer=True,
    ),
}
