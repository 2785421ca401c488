"""GET /problems and /problems/{name}: what a problem's `type` points at; for people as a page, for programs as JSON."""

from html import escape
from typing import Any

from aiohttp import web

from flashsale.errors import PROBLEMS, Refused
from flashsale.front.answers import JSON, answer, preferred

HTML = "text/html"


def _entry(name: str) -> dict[str, Any]:
    problem = PROBLEMS[name]
    return {
        "type": f"/problems/{name}",
        "name": name,
        "status": problem.status,
        "title": problem.title,
        "next_step": problem.next_step,
    }


async def problems(request: web.Request) -> web.Response:
    """GET /problems: every name."""
    return answer(request, {"problems": [_entry(name) for name in PROBLEMS]})


async def problem_page(request: web.Request) -> web.Response:
    """GET /problems/{name}"""
    name = request.match_info["name"]
    if name not in PROBLEMS:
        raise Refused("not-found", "There is no problem of that name; GET /problems lists them.")
    if preferred(request, (JSON, HTML)) == JSON:
        return answer(request, _entry(name))
    problem = PROBLEMS[name]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<h1>{escape(problem.title)}</h1><p><code>{escape(name)}</code>, status {problem.status}</p>"
        f"<p>{escape(problem.next_step)}</p></html>"
    )
    return web.Response(text=page, content_type=HTML)
