"""What the pages share: answers in JSON or MessagePack, problems, times, who asks, and the parameters of a list."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
from aiohttp import web
from yarl import URL

from flashsale.errors import AUTHENTICATE, PROBLEM_JSON, Refused
from flashsale.front.auth import Claims, bearer
from flashsale.front.context import context_of
from flashsale.languages import ENGLISH, say

LIMIT_DEFAULT = 50  # items of a list's page
LIMIT_MAX = 200
JSON = "application/json"
MESSAGEPACK = ("application/msgpack", "application/vnd.msgpack", "application/x-msgpack")
EVENT_STREAM = "text/event-stream"


def answer(request: web.Request, body: object) -> web.Response:
    """`body` as JSON, or as MessagePack where `Accept` prefers that."""
    media_type = preferred(request, (JSON, *MESSAGEPACK))
    if media_type == JSON:
        return web.Response(body=orjson.dumps(body), content_type=JSON)
    return web.Response(body=msgspec.msgpack.encode(body), content_type=media_type)


def in_language(response: web.Response, language: str) -> web.Response:
    """The answer, which says what language it is in and that another reader gets another."""
    response.headers["Content-Language"] = language
    response.headers["Vary"] = "Accept-Language"
    return response


def problem(refused: Refused, language: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer that a `Refused` stands for, with the headers that its status asks for, in a language of LANGUAGES:
    the title, and what to do next. The detail of this one occurrence is English; what to do next follows it then."""
    document = refused.document()
    if language != ENGLISH:
        document["title"] = say(refused.problem.title, language)
        document["next_step" if refused.detail else "detail"] = say(refused.problem.next_step, language)
    response = web.Response(
        body=orjson.dumps(document), status=refused.problem.status, content_type=PROBLEM_JSON, headers=headers
    )
    in_language(response, language)
    if retry_after_s := refused.retry_after_s():
        response.headers["Retry-After"] = str(retry_after_s)
    if refused.problem.status == 401:
        response.headers["WWW-Authenticate"] = AUTHENTICATE
    return response


def preferred(request: web.Request, offered: Sequence[str]) -> str:
    """The media type of `offered` that `Accept` likes best (RFC 9110, 12.5.1); the first where it says nothing."""
    likings: dict[str, float] = {}
    for value in request.headers.getall("Accept", []):
        for part in value.split(","):
            media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
            likings[media_type] = min((_quality(parameter) for parameter in parameters), default=1.0)
    best, liking = offered[0], 0.0
    for media_type in offered:
        family = media_type.partition("/")[0]
        liked = likings.get(media_type, likings.get(f"{family}/*", likings.get("*/*", 0.0)))
        if liked > liking:
            best, liking = media_type, liked
    return best


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return min(max(float(value), 0.0), 1.0)
    except ValueError:
        return 0.0


def rfc3339(at_ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 in UTC: 2026-11-10T16:15:00.123Z."""
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def money(amount_minor: int, currency: str) -> dict[str, Any]:
    return {"amount": amount_minor, "currency": currency}


def who(request: web.Request) -> Claims:
    """Who asks. Raises Refused("unauthenticated") without exactly one valid bearer token."""
    given = request.headers.getall("Authorization", [])
    if len(given) != 1:
        raise Refused("unauthenticated")
    return context_of(request).verifier.verify(bearer(given[0]), time.time())


def parameter(request: web.Request, name: str) -> str | None:
    """The query parameter `name`, None if absent. Raises Refused("malformed") if it is given twice or empty."""
    values = request.query.getall(name, [])
    if not values:
        return None
    if len(values) > 1 or not values[0]:
        raise bad_parameter(name, "is to be given once, with a value" if len(values) > 1 else "is empty")
    return values[0]


def limit(request: web.Request) -> int:
    """How many items a list's page holds: `?limit`, 1..200, 50 if absent. Raises Refused("malformed")."""
    text = parameter(request, "limit")
    if text is None:
        return LIMIT_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= LIMIT_MAX):
        raise bad_parameter("limit", f"is a number from 1 to {LIMIT_MAX}")
    return int(text)


def bad_parameter(name: str, fault: str) -> Refused:
    return Refused("malformed", f"The query parameter `{name}` {fault}.", parameter=name)


def next_path(request: web.Request, after: str) -> str:
    """The path of the list's next page: this one's known parameters, and `after`."""
    known = ("market", "locale", "limit", "created_after", "created_before", "day")
    kept = {name: request.query[name] for name in known if name in request.query}
    return URL.build(path=request.path, query={**kept, "after": after}).raw_path_qs
