"""GET /problems and /problems/{name}: what a problem's `type` points at; for people as a page, for programs as JSON.

Both in the reader's language.
"""

from html import escape
from typing import Any

from aiohttp import web

from flashsale.errors import PROBLEMS, Refused
from flashsale.front.answers import JSON, answer, in_language, preferred
from flashsale.front.wording import language
from flashsale.languages import say

HTML = "text/html"


def _entry(name: str, spoken: str) -> dict[str, Any]:
    problem = PROBLEMS[name]
    return {
        "type": f"/problems/{name}",
        "name": name,
        "status": problem.status,
        "title": say(problem.title, spoken),
        "next_step": say(problem.next_step, spoken),
    }


async def problems(request: web.Request) -> web.Response:
    """GET /problems: every name."""
    spoken = language(request)
    return in_language(answer(request, {"problems": [_entry(name, spoken) for name in PROBLEMS]}), spoken)


async def problem_page(request: web.Request) -> web.Response:
    """GET /problems/{name}"""
    name, spoken = request.match_info["name"], language(request)
    if name not in PROBLEMS:
        raise Refused("not-found", "There is no problem of that name; GET /problems lists them.")
    entry = _entry(name, spoken)
    if preferred(request, (JSON, HTML)) == JSON:
        return in_language(answer(request, entry), spoken)
    page = (
        f'<!doctype html><html lang="{spoken}"><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<h1>{escape(entry['title'])}</h1><p><code>{escape(name)}</code> ({entry['status']})</p>"
        f"<p>{escape(entry['next_step'])}</p></html>"
    )
    return in_language(web.Response(text=page, content_type=HTML), spoken)
