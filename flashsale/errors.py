"""Every problem that the engine answers with: its published name, status, title and what the reader can do next.

RFC 9457 (`application/problem+json`). The names are stable: `type` is `/problems/<name>`, a page that tells the same.
Relies on orjson alone, so that commands, the domain's edges and the hot path may all import it.
"""

from typing import Any, NamedTuple

import orjson

PROBLEM_JSON = "application/problem+json"
AUTHENTICATE = 'Bearer realm="flashsale"'  # what WWW-Authenticate says beside every 401


RFC_MEMBERS = frozenset({"type", "title", "status", "detail"})


class Problem(NamedTuple):
    """One kind of problem. `retry_after_s` is the default `Retry-After` in whole seconds; 0: the header is not sent."""

    status: int
    title: str
    next_step: str
    retry_after_s: int = 0


PROBLEMS: dict[str, Problem] = {
    "malformed": Problem(
        400,
        "The request is malformed",
        "Mend what `detail` names: the message's syntax, a header, the Idempotency-Key or a query parameter.",
    ),
    "idempotency-key-missing": Problem(
        400,
        "The Idempotency-Key is missing",
        "Send an Idempotency-Key of 1 to 64 printable ASCII characters, the same one each time the same order is sent.",
    ),
    "webhook-signature": Problem(
        400,
        "The webhook's signature is not valid",
        "Sign the body as it is sent, with the endpoint's secret and a timestamp less than 300 s old.",
    ),
    "unauthenticated": Problem(
        401,
        "A valid bearer token is needed",
        "Send `Authorization: Bearer …` with a token that has not expired; `flashsale token shopper ID` prints one.",
    ),
    "forbidden": Problem(403, "This token may not do that", "Use a token of the role that `detail` names."),
    "not-granted": Problem(
        403,
        "The recipient has not let this agent order",
        "Have the recipient sign a grant: POST /v1/shoppers/me/grants with the agent's id.",
    ),
    "sale-not-open": Problem(
        403, "The sale is not open yet", "Send the same order with the same key again after `Retry-After` seconds.", 1
    ),
    "not-found": Problem(404, "There is nothing here", "Check the path; /openapi.json lists every route."),
    "unknown-sale": Problem(404, "There is no such sale", "GET /v1/sales lists the sales."),
    "unknown-sku": Problem(
        404,
        "The sale has no such SKU, or not in this market",
        "GET /v1/sales/{sale}/offers?market=… lists what the sale offers in a market.",
    ),
    "method-not-allowed": Problem(405, "The method is not allowed here", "Use one of the methods in `Allow`."),
    "sold-out": Problem(
        409,
        "Sold out",
        "Order no more than `available` of each line. Where `retry_after` is given, holds may run out: try again then.",
    ),
    "quota-exceeded": Problem(
        409, "Over the shopper's quota", "Order no more than `quota` minus `used` units of the SKU in this sale."
    ),
    "price-changed": Problem(
        409, "The price has changed", "Show the shopper the new `total` and send it as `expected_total`."
    ),
    "sku-suspended": Problem(409, "A SKU is suspended", "Leave the SKU out, or try again later."),
    "not-payable": Problem(
        409,
        "The order can't be paid any more",
        "`order_status` says what became of it. If units are left, order again with a new Idempotency-Key.",
    ),
    "already-paid": Problem(
        409, "The order is paid", "Nothing more is to be paid; GET /v1/orders/{id} shows the order."
    ),
    "not-extendable": Problem(
        409,
        "The hold can't be extended",
        "A hold is extended once, before its last seconds, where the sale allows it. Pay until `reserved_until`.",
    ),
    "not-cancellable": Problem(
        409,
        "The order can't be cancelled",
        "`order_status` says why. What was shipped is returned instead: POST /v1/orders/{id}/returns.",
    ),
    "not-returnable": Problem(
        409,
        "The order can't be returned",
        "Only units that were shipped and not returned yet go back, until `returnable_until` where that is given.",
    ),
    "not-shippable": Problem(
        409, "The order can't be shipped", "Only a paid order ships, and only units that were not cancelled."
    ),
    "refund-exceeds-payment": Problem(
        409, "The refund is more than what is left of the payment", "Ask for at most `refundable`."
    ),
    "payment-disputed": Problem(
        409,
        "The payment is disputed",
        "The shopper's bank decides first: a disputed payment is not refunded meanwhile. The order shows the outcome.",
    ),
    "lane-full": Problem(
        409, "The lane takes no more parcels for that day", "Choose one of `lanes`: they have room on the days given."
    ),
    "import-limit-exceeded": Problem(
        409,
        "Over the import limit of the buyer's identity",
        "Order goods of at most `left`; `limit` is that of one order or of the calendar year.",
    ),
    "already-packed": Problem(409, "The order is packed", "`package` and `tracking` are those of its parcel."),
    "not-packed": Problem(409, "The order is not packed yet", "POST /v1/channels/{channel}/orders/{id}/pack first."),
    "stock-changed": Problem(
        409, "The stock is not what was expected", "Read it again; `stock` is what it is now, and compare with that."
    ),
    "sale-closed": Problem(410, "The sale is closed", "Nothing more is sold in this sale. GET /v1/sales lists others."),
    "too-large": Problem(
        413, "The body is too large", "Send a body of at most 256 KiB; an order has at most 20 lines."
    ),
    "unsupported-media-type": Problem(
        415,
        "The body's media type is not supported",
        "Send application/json or application/msgpack, uncompressed.",
    ),
    "invalid-order": Problem(422, "The order is not valid", "Mend each field named in `fields`."),
    "invalid-request": Problem(422, "The request's body is not valid", "Mend each field named in `fields`."),
    "lane-unavailable": Problem(
        422, "The lane does not carry this order", "Choose one of `lanes`, or leave `lane` out for the default one."
    ),
    "not-sold-here": Problem(
        422,
        "Not sold in this market, channel or season",
        "Leave out the SKUs named, or choose another market: POST /v1/quotes tells beforehand.",
    ),
    "identity-unverified": Problem(
        422,
        "An import needs the buyer's verified identity",
        "POST /v1/shoppers/me/identity, and send the `identity` that it answers with the order.",
    ),
    "method-unavailable": Problem(
        422, "This payment method is not offered here", "Choose one of `methods`: those of the order's market."
    ),
    "idempotency-mismatch": Problem(
        422,
        "The Idempotency-Key was used for another order",
        "Use a new key for a new order; send the first order again to get its answer again.",
    ),
    "too-many-requests": Problem(429, "Too many requests", "Wait `Retry-After` seconds and send the request again.", 1),
    "headers-too-large": Problem(431, "The headers are too large", "Send a head of at most 16 KiB."),
    "internal": Problem(
        500,
        "The engine failed",
        "Send the same request with the same key again; if it fails again, give the support the `request_id`.",
    ),
    "sale-paused": Problem(
        503, "The sale is paused", "Nothing was done. Send the same order with the same key again later.", 5
    ),
    "overloaded": Problem(
        503, "The engine can't take this now", "Nothing was done. Send the same request with the same key again.", 1
    ),
    "provider-away": Problem(
        503,
        "The payment provider does not answer",
        "Nobody is charged twice: send the same request again after `Retry-After` seconds.",
        2,
    ),
    "outcome-unknown": Problem(
        504, "It is not known whether it was done", "Send the same request with the same key again: that tells."
    ),
}


class Refused(Exception):
    """Ends a request with a problem. `members` are the problem's further members, in the contract's names."""

    def __init__(self, name: str, detail: str = "", **members: Any) -> None:
        super().__init__(name, detail)
        if taken := members.keys() & RFC_MEMBERS:
            raise ValueError(f"{sorted(taken)} are the problem's own members (RFC 9457)")
        self.name = name
        self.detail = detail
        self.members = members

    @property
    def problem(self) -> Problem:
        return PROBLEMS[self.name]

    def document(self) -> dict[str, Any]:
        return problem_document(self.name, self.detail, **self.members)

    def body(self) -> bytes:
        return problem_body(self.name, self.detail, **self.members)

    def retry_after_s(self) -> int:
        """`Retry-After` in whole seconds; 0: not to be sent."""
        given = self.members.get("retry_after")
        return given if isinstance(given, int) else self.problem.retry_after_s


def problem_body(name: str, detail: str = "", **members: Any) -> bytes:
    """The RFC 9457 body of problem `name`, JSON. `detail` is for people; `members` follow the five of the RFC."""
    return orjson.dumps(problem_document(name, detail, **members))


def problem_document(name: str, detail: str = "", **members: Any) -> dict[str, Any]:
    """What `problem_body` encodes, in English."""
    problem = PROBLEMS[name]
    return {
        "type": f"/problems/{name}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail or problem.next_step,
        **members,
    }
