"""What Stripe has no API for: faults on request, refunds that fail late, disputes, and a clock that jumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from flashsale.partners.payments.sandbox import refunds
from flashsale.partners.payments.sandbox.errors import ApiError
from flashsale.partners.payments.sandbox.faults import Faults
from flashsale.partners.payments.sandbox.forms import AMOUNT_MAX
from flashsale.partners.payments.sandbox.store import Change, Store

ADVANCE_MAX_S = 400 * 86_400


class Controls:
    """The JSON routes under /sandbox/ of one sandbox."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/sandbox/health", self._health),
            web.get("/sandbox/faults", self._faults),
            web.post("/sandbox/faults", self._set_faults),
            web.post("/sandbox/clock", self._clock),
            web.post("/sandbox/refunds/{id}/fail", self._fail_refund),
            web.post("/sandbox/intents/{id}/dispute", self._dispute),
            web.post("/sandbox/disputes/{id}/close", self._close_dispute),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        """GET /sandbox/health: 200 once it serves; how many webhooks wait."""
        waiting = await self._store.do(lambda change: change.count("delivery"))
        return web.json_response({"ok": True, "webhooks_waiting": waiting})

    async def _faults(self, request: web.Request) -> web.Response:
        return web.json_response(await self._store.do(lambda change: change.faults.as_json()))

    async def _set_faults(self, request: web.Request) -> web.Response:
        """POST /sandbox/faults: all of them at once; what is not named stops."""
        given = await _json(request)
        try:
            faults = Faults.of(given)
        except ValueError as fault:
            return _refused(400, str(fault))
        await self._store.do(lambda change: change.set_faults(faults))
        return web.json_response(faults.as_json())

    async def _clock(self, request: web.Request) -> web.Response:
        """POST /sandbox/clock {"advance_s": n}: keys lapse and sessions expire by it; signatures keep the real time."""
        given = await _json(request)
        advance_s = given.get("advance_s") if isinstance(given, dict) else None
        if not isinstance(advance_s, int) or isinstance(advance_s, bool) or not 0 <= advance_s <= ADVANCE_MAX_S:
            return _refused(400, f"advance_s is an integer from 0 to {ADVANCE_MAX_S}")

        def advance(change: Change) -> int:
            change.advance(advance_s * 1000)
            return change.now_s()

        return web.json_response({"now": await self._store.do(advance)})

    async def _fail_refund(self, request: web.Request) -> web.Response:
        refund_id = request.match_info["id"]
        return await self._done(lambda change: refunds.fail(change, refund_id))

    async def _dispute(self, request: web.Request) -> web.Response:
        """POST /sandbox/intents/{id}/dispute {"amount"?, "reason"?}"""
        given = await _json(request)
        given = given if isinstance(given, dict) else {}
        amount, reason = given.get("amount"), given.get("reason", "general")
        if amount is not None and (not isinstance(amount, int) or not 0 < amount <= AMOUNT_MAX):
            return _refused(400, "amount is an integer above 0")
        if not isinstance(reason, str):
            return _refused(400, "reason is text")
        intent_id = request.match_info["id"]
        return await self._done(lambda change: refunds.open_dispute(change, intent_id, amount, reason[:100]))

    async def _close_dispute(self, request: web.Request) -> web.Response:
        """POST /sandbox/disputes/{id}/close {"status": "won"|"lost"}"""
        given = await _json(request)
        status = given.get("status") if isinstance(given, dict) else None
        if status not in ("won", "lost"):
            return _refused(400, 'status is "won" or "lost"')
        dispute_id = request.match_info["id"]
        return await self._done(lambda change: refunds.close_dispute(change, dispute_id, status))

    async def _done(self, work: Callable[[Change], Any]) -> web.Response:
        try:
            return web.json_response(await self._store.do(work))
        except ApiError as fault:
            return web.json_response(fault.body(), status=fault.status)


async def _json(request: web.Request) -> Any:
    """The body; an empty one is an empty object, None is no JSON."""
    try:
        body = await request.read()
        return orjson.loads(body) if body else {}
    except (orjson.JSONDecodeError, web.HTTPRequestEntityTooLarge):
        return None


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"type": "invalid_request_error", "message": message}}, status=status)
