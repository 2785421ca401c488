"""The bytes of every answer to an order: 201s from templates, refusals as problems, in one place.

An accepted order's answer costs two string operations; what does not change between orders is made once. All of it
follows CONTRACT's wording of orders and problems.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import msgpack  # type: ignore[import-untyped]
import orjson

from flashsale.errors import AUTHENTICATE, PROBLEMS, Refused, problem_body
from flashsale.reservation.holds import Hold, is_extended, status_of
from flashsale.sale.lifecycle import Status
from flashsale.sale.priced import Order
from flashsale.sale.quoting import LaneUnavailable, NotSoldHere

MESSAGEPACK_TYPE = b"application/msgpack"
RETRY_AFTER_MAX_S = 3600  # a sale that opens next week, or a hold of a day, is worth a look before that

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LINES = {problem.status: f"{problem.status} {HTTPStatus(problem.status).phrase}" for problem in PROBLEMS.values()}
_OUTCOMES = {
    "A": "accepted",
    "R": "replayed",
    "N": "sale-not-open",
    "C": "sale-closed",
    "P": "sale-paused",
    "V": "not-granted",
    "U": "sku-suspended",
    "L": "lane-unavailable",
    "X": "not-sold-here",
    "T": "price-changed",
    "Q": "quota-exceeded",
    "I": "import-limit-exceeded",
    "S": "sold-out",
    "F": "lane-full",
}
GUARDED = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nServer: flashsale\r\n"
"""On each answer of the hot path, as on every page."""
_SOLD_OUT = problem_body("sold-out")[:-1].decode()


def outcome_counts(outcomes: str) -> dict[str, int]:
    """Orders by outcome, in the names of the metrics."""
    return {_OUTCOMES[letter]: outcomes.count(letter) for letter in set(outcomes)}


def time_text(ms: int) -> str:
    """RFC 3339, UTC, milliseconds."""
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")[:23] + "Z"


class Answers:
    """Writes answers; `tick` keeps the Date header right, once a second."""

    def __init__(self) -> None:
        self.tick()

    def tick(self) -> None:
        """Called about once a second."""
        date = formatdate(usegmt=True)
        self._created = (
            f"HTTP/1.1 201 Created\r\nDate: {date}\r\n{GUARDED}Content-Type: application/json\r\nLocation: /v1/orders/"
        )
        self._packed = f"HTTP/1.1 201 Created\r\nDate: {date}\r\n{GUARDED}Content-Type: application/msgpack\r\n"
        self._sold_out = f"HTTP/1.1 409 Conflict\r\nDate: {date}\r\n{GUARDED}Content-Type: application/problem+json\r\n"
        self._date = date

    def accepted(self, order: Order, until: str) -> bytes:
        """201: the order is reserved until `until` (RFC 3339)."""
        if order.msgpack:
            return self._packed_order(order, "paid" if order.collected else "reserved", until, "")
        body = _accepted(order, until)
        return f"{self._created}{order.id}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    def accepted_among(self, order: Order, until: str) -> bytes | str:
        """The same for one order of many: its JSON alone, or a whole answer in MessagePack."""
        return self.accepted(order, until) if order.msgpack else _accepted(order, until)

    def replayed(self, order: Order, hold: Hold) -> bytes:
        """201 again: what the first answer said, with the present status. `order` is priced at the hold's version."""
        deadline_ms = hold.entry_ms + order.sale.hold_ms
        if is_extended(hold.letter):
            deadline_ms += order.sale.sale.extension_ms
        until, status = time_text(deadline_ms), status_of(hold.letter)
        if order.collected and status is Status.RESERVED:
            status = Status.PAID  # the ledger makes it so as it stores the order
        header = "Idempotent-Replayed: true\r\n"
        if order.msgpack:
            return self._packed_order(order, status.value, until, header)
        body = orjson.dumps(_document(order, status.value, until))
        return f"{self._created}{order.id}\r\n{header}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def _packed_order(self, order: Order, status: str, until: str, header: str) -> bytes:
        body: bytes = msgpack.packb(_document(order, status, until))
        head = f"{self._packed}Location: /v1/orders/{order.id}\r\n{header}Content-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def problem(self, refused: Refused) -> bytes:
        """Any refusal: RFC 9457, with the headers that its status asks for."""
        body = refused.body()
        status = refused.problem.status
        head = (
            f"HTTP/1.1 {_LINES[status]}\r\nDate: {self._date}\r\n{GUARDED}Content-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\n"
        )
        if status == 401:
            head += f"WWW-Authenticate: {AUTHENTICATE}\r\n"
        retry_after_s = refused.retry_after_s()
        if retry_after_s:
            head += f"Retry-After: {retry_after_s}\r\n"
        if "allow" in refused.members:
            head += f"Allow: {refused.members['allow']}\r\n"
        return f"{head}\r\n".encode() + body

    def sold_out(self, order: Order, details: Iterator[Any], now_ms: int) -> bytes:
        """409 `sold-out`: every line's requested and available units, and when to ask again if holds may return."""
        lines = ",".join(
            f'{{"sku":{orjson.dumps(line.sku).decode()},"requested":{line.quantity},"available":{next(details)}}}'
            for line in order.request.lines
        )
        until_ms = next(details)
        if until_ms:
            wait_s = _wait_s(until_ms - now_ms)
            again = f',"retry_after":{wait_s},"holds_until":"{time_text(until_ms)}"'
            head = f"{self._sold_out}Retry-After: {wait_s}\r\n"
        else:
            again, head = "", self._sold_out
        body = f'{_SOLD_OUT},"id":"{order.id}","lines":[{lines}]{again}}}'
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def refused(self, order: Order, outcome: str, details: Iterator[Any], now_ms: int) -> bytes:
        """Any other outcome letter of `reserve.lua`; takes its details from the iterator."""
        lines = order.request.lines
        members: dict[str, Any] = {"id": order.id}
        if outcome == "N":
            members["retry_after"] = _wait_s(order.sale.sale.opens_at_ms - now_ms)
        elif outcome == "U":
            members["sku"] = lines[next(details) - 1].sku
        elif outcome == "T":
            members["total"] = {"amount": order.terms.total, "currency": order.terms.currency}
        elif outcome == "Q":
            line = next(details) - 1
            members |= {"sku": lines[line].sku, "quota": order.quotas[line], "used": next(details)}
        elif outcome == "I":
            members |= _import_limit(order, next(details))
        elif outcome == "L" and isinstance(order.terms.refusal, LaneUnavailable):
            members |= {"lane": order.terms.refusal.lane, "lanes": list(order.terms.refusal.lanes)}
        elif outcome == "X" and isinstance(order.terms.refusal, NotSoldHere):
            members["sku"] = order.terms.refusal.sku
            return self.problem(Refused(_OUTCOMES[outcome], order.terms.refusal.why, **members))
        return self.problem(Refused(_OUTCOMES[outcome], **members))


def _import_limit(order: Order, used: int) -> dict[str, Any]:
    """`limit`, what of the year's is `used` and `left`; `limit` is one order's where that is what was exceeded."""
    crossed = order.terms.crossed
    if crossed is None or crossed.limit is None:
        raise AssertionError(f"order {order.id} counts for no import limit")

    def money(amount: int) -> dict[str, Any]:
        return {"amount": amount, "currency": order.terms.currency}

    limit = crossed.limit.single if crossed.over_limit else crossed.limit.annual
    left = max(0, crossed.limit.annual - used)
    return {"limit": money(limit), "used": money(used), "left": money(left)}


def _wait_s(wait_ms: int) -> int:
    """`Retry-After`: whole seconds, at least one."""
    return min(RETRY_AFTER_MAX_S, max(1, -(-wait_ms // 1000)))


def _accepted(order: Order, until: str) -> str:
    return f'{{"id":"{order.id}{order.terms.json[order.collected]}{until}"}}'


def _document(order: Order, status: str, until: str) -> Any:
    """The order as CONTRACT shows it."""
    return orjson.loads(_accepted(order, until)) | {"status": status}
