"""What a page says in the reader's language: Accept-Language chooses it, Content-Language names what it became.

The engine's own texts are in LANGUAGES; amounts, numbers and times are written as any locale of the CLDR writes them.
Programs that send no Accept-Language get what they always got.
"""

from datetime import date, datetime
from typing import Any

from aiohttp import web

from flashsale.front.answers import answer, bad_parameter, in_language, parameter
from flashsale.languages import LANGUAGES, say
from flashsale.sale.locales import accepted, asked, known, parse
from flashsale.sale.writing import day_text, money_text, time_text


def language(request: web.Request) -> str:
    """The language of LANGUAGES that the reader likes best."""
    return asked(_header(request), LANGUAGES)


def locales(request: web.Request) -> tuple[str, ...]:
    """What the reader asks for, best liked first: `?locale` alone, else all of Accept-Language; nothing: (). Raises
    Refused("malformed") for a `?locale` that the CLDR doesn't know."""
    given = parameter(request, "locale")
    if given is None:
        return accepted(_header(request))
    if known(given) is None:
        raise bad_parameter("locale", "is no locale of the CLDR, such as zh-HK")
    return (given,)


def writing(wanted: tuple[str, ...]) -> str | None:
    """The locale of `wanted` to write amounts as: the best liked that the CLDR knows, in BCP 47. None: none."""
    return next((str(tag) for text in wanted if known(text) and (tag := parse(text))), None)


def order_answer(request: web.Request, body: dict[str, Any]) -> web.Response:
    """An order's document (`whole`): its next step in the reader's language, and where one is asked for, the total and
    the time and day of the next step as it writes them."""
    name, locale = language(request), writing(accepted(_header(request)))
    step = {**body["next"], "why": say(body["next"]["why"], name)}
    shown = {**body, "next": step}
    if locale is not None:
        shown["total_text"] = money_text(body["total"]["amount"], body["total"]["currency"], locale)
        if "until" in step:
            until_ms = int(datetime.fromisoformat(step["until"]).timestamp() * 1000)
            step["until_text"] = time_text(until_ms, locale)
        if "by" in step:
            step["by_text"] = day_text(date.fromisoformat(step["by"]), locale)
    return in_language(answer(request, shown), name)


def _header(request: web.Request) -> str:
    return ",".join(request.headers.getall("Accept-Language", []))
