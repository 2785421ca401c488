"""The /v1 API over HTTP: keys, parameters, idempotency, lists, errors, and the faults that keep an answer back.

After https://docs.stripe.com/api/{authentication,errors,idempotent_requests,pagination,expanding_objects}.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from flashsale.partners.payments.sandbox import intents, refunds, sessions
from flashsale.partners.payments.sandbox.errors import ApiError, missing
from flashsale.partners.payments.sandbox.forms import Params, parse
from flashsale.partners.payments.sandbox.intents import Answer
from flashsale.partners.payments.sandbox.store import API_VERSION, Change, Object, Store, new_id

KEY_LAPSES_S = 24 * 3600
KEY_MAX = 255
LIST_DEFAULT, LIST_MOST = 10, 100

Work = Callable[[Change, Params], Answer]


class _Kept(NamedTuple):
    """An answer as it goes out."""

    status: int
    body: bytes
    replayed: bool
    delay_ms: int = 0
    hang_ms: int | None = None  # a fault: it is never sent, the connection closes after this


class Api:
    """The routes under /v1 of one sandbox."""

    def __init__(self, store: Store, api_key: str, base_url: str) -> None:
        self._store = store
        self._api_key = api_key.encode()
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        base = self._base_url
        posts: dict[str, Callable[[dict[str, str]], Work]] = {
            "/payment_intents": lambda path: lambda change, params: intents.create(change, params, base),
            "/payment_intents/{id}/confirm": lambda path: (
                lambda change, params: intents.confirm(change, path["id"], params, base)
            ),
            "/payment_intents/{id}/capture": lambda path: (
                lambda change, params: intents.capture(change, path["id"], params)
            ),
            "/payment_intents/{id}/cancel": lambda path: (
                lambda change, params: intents.cancel(change, path["id"], params)
            ),
            "/checkout/sessions": lambda path: lambda change, params: sessions.create(change, params, base),
            "/checkout/sessions/{id}/expire": lambda path: (
                lambda change, params: sessions.expire(change, path["id"], params)
            ),
            "/refunds": lambda path: refunds.create,
        }
        made = [web.post(f"/v1{path}", self._poster(work)) for path, work in posts.items()]
        for path, (kind, param, links) in _READABLE.items():
            made.append(web.get(f"/v1{path}", self._getter(_lister(path, kind, links))))
            made.append(web.get(f"/v1{path}/{{id}}", self._getter(_retriever(kind, param))))
        made.append(web.route("*", "/v1/{rest:.*}", self._unknown))
        return made

    def _poster(self, work_of: Callable[[dict[str, str]], Work]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._answered(request, work_of(dict(request.match_info)), await self._body(request))

        return handle

    def _getter(self, work_of: Callable[[dict[str, str]], Work]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._answered(request, work_of(dict(request.match_info)), None)

        return handle

    async def _body(self, request: web.Request) -> str:
        try:
            return await request.text()
        except web.HTTPRequestEntityTooLarge:
            return "\0too large"
        except (UnicodeDecodeError, LookupError):
            return "\0no text"

    async def _answered(self, request: web.Request, work: Work, body: str | None) -> web.StreamResponse:
        """From the request to what is sent, or to the silence that a fault asks for."""
        key = request.headers.get("Idempotency-Key") if body is not None else None
        try:
            self._authenticate(request)
            if key is not None and len(key) > KEY_MAX:
                raise ApiError(400, f"Idempotency keys may be at most {KEY_MAX} characters long.")
            if body is not None and body.startswith("\0"):
                raise ApiError(413 if body == "\0too large" else 400, f"The body is {body[1:]}.")
            tree = parse(request.query_string if body is None else body)
            kept = await self._store.do(_whole(work, Params(tree), key, f"{request.method} {request.path}"))
        except ApiError as fault:
            kept = _Kept(fault.status, orjson.dumps(fault.body()), replayed=False)
        if kept.hang_ms is not None:
            await asyncio.sleep(kept.hang_ms / 1000)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        if kept.delay_ms:
            await asyncio.sleep(kept.delay_ms / 1000)
        headers = {"Request-Id": new_id("req"), "Stripe-Version": request.headers.get("Stripe-Version", API_VERSION)}
        if key is not None:
            headers["Idempotency-Key"] = key if key.isprintable() else ""
        if kept.replayed:
            headers["Idempotent-Replayed"] = "true"
        return web.Response(body=kept.body, status=kept.status, headers=headers, content_type="application/json")

    def _authenticate(self, request: web.Request) -> None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        elif scheme.lower() != "bearer":
            raise ApiError(
                401, "You did not provide an API key. Provide it in the Authorization header, as a Bearer token."
            )
        if not hmac.compare_digest(given.strip().encode(), self._api_key):
            shown = f"{given[:8]}{'*' * 8}" if len(given) > 12 else "*" * 8
            raise ApiError(401, f"Invalid API Key provided: {shown if shown.isascii() else '*' * 8}")

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        def refuse(change: Change, params: Params) -> Answer:
            raise ApiError(404, f"Unrecognized request URL ({request.method}: {request.path[:200]}).")

        return await self._answered(request, refuse, None)


def _whole(work: Work, params: Params, key: str | None, named: str) -> Callable[[Change], _Kept]:
    """The request's transaction: the kept answer, or the work and its answer, kept."""
    changes = named.startswith("POST")
    request_hash = hashlib.sha256(named.encode() + orjson.dumps(params.tree, option=orjson.OPT_SORT_KEYS)).digest()

    def run(change: Change) -> _Kept:
        change.request_key = key
        if key is not None:
            kept = change.kept_answer(key, change.now_s() - KEY_LAPSES_S)
            if kept is not None and kept[0] != request_hash:
                raise ApiError(
                    400,
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                    f" Try using a key other than '{key[:100]}' if you meant to execute a different request.",
                    type="idempotency_error",
                )
            if kept is not None:
                return _Kept(kept[1], kept[2], replayed=True, **change.faults.at_the_answer(changes))
        try:
            answer = work(change, params)
            body = orjson.dumps(_expanded(change, answer.body, _paths(params)))
        except ApiError as fault:
            if not fault.kept:
                return _Kept(fault.status, orjson.dumps(fault.body()), False, **change.faults.at_the_answer(False))
            answer = Answer(fault.status, fault.body())
            body = orjson.dumps(answer.body)
        if key is not None:
            change.keep_answer(key, request_hash, answer.status, body)
        return _Kept(answer.status, body, replayed=False, **change.faults.at_the_answer(changes))

    return run


_EXPANDABLE = ("latest_charge", "charge", "payment_intent")


def _paths(params: Params) -> list[list[str]]:
    paths = []
    for given in params.items("expand") or []:
        path = given.split(".") if isinstance(given, str) else []
        if not path or path[-1] not in _EXPANDABLE or len(path) > 4:
            raise ApiError(400, f"This property cannot be expanded ({str(given)[:60]}).", param="expand")
        paths.append(path)
    return paths


def _expanded(change: Change, body: Object, paths: list[list[str]]) -> Object:
    """The ids that `expand` names, replaced by their objects."""

    def expand(node: Any, path: list[str]) -> None:
        if isinstance(node, list):
            for item in node:
                expand(item, path)
        elif isinstance(node, dict) and path:
            name, *rest = path
            if isinstance(node.get(name), str) and name in _EXPANDABLE:
                node[name] = change.find(node[name])
            expand(node.get(name), rest)

    for path in paths:
        expand(body, path)
    return body


# path -> (kind, the parameter that errors name, what lists are filtered by)
_READABLE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "/payment_intents": ("payment_intent", "intent", ()),
    "/checkout/sessions": ("checkout.session", "session", ("payment_intent",)),
    "/refunds": ("refund", "refund", ("payment_intent", "charge")),
    "/charges": ("charge", "charge", ("payment_intent",)),
    "/disputes": ("dispute", "dispute", ("payment_intent", "charge")),
    "/events": ("event", "event", ("type",)),
}
_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def _retriever(kind: str, param: str) -> Callable[[dict[str, str]], Work]:
    def of(path: dict[str, str]) -> Work:
        def retrieve(change: Change, params: Params) -> Answer:
            params.only()
            found = change.find(path["id"])
            if found is None or found["object"] != kind:
                raise missing(kind, path["id"], param if kind != "refund" else "id")
            return Answer(200, found)

        return retrieve

    return of


def _lister(url: str, kind: str, links: tuple[str, ...]) -> Callable[[dict[str, str]], Work]:
    def of(path: dict[str, str]) -> Work:
        def listed(change: Change, params: Params) -> Answer:
            params.only("limit", "starting_after", "ending_before", "created", *links)
            limit = params.integer("limit", least=1, most=LIST_MOST) or LIST_DEFAULT
            cursors = {name: params.text(name) for name in ("starting_after", "ending_before")}
            for name, cursor in cursors.items():
                if cursor is not None and change.find(cursor) is None:
                    raise missing(kind, cursor, name)
            data, has_more = change.page(
                kind, limit, link=_link(change, params, links), created=_created(params), **cursors
            )
            return Answer(200, {"object": "list", "data": data, "has_more": has_more, "url": f"/v1{url}"})

        return listed

    return of


def _link(change: Change, params: Params, links: tuple[str, ...]) -> str | None:
    """What a list is filtered by: an intent (or the charge of one), or a type of event."""
    for name in links:
        value = params.text(name)
        if value is None:
            continue
        if name == "charge":
            paid = change.find(value)
            if paid is None or paid["object"] != "charge":
                raise missing("charge", value, "charge")
            return str(paid["payment_intent"])
        return value
    return None


def _created(params: Params) -> list[tuple[str, int]]:
    if isinstance(params.tree.get("created"), str):
        moment = params.integer("created")
        return [] if moment is None else [("=", moment)]
    inner = params.inner("created").only(*_COMPARISONS)
    return [
        (comparison, moment)
        for name, comparison in _COMPARISONS.items()
        if (moment := inner.integer(name, most=2**40)) is not None
    ]
