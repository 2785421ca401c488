"""/docs: the OpenAPI document as one page for people. Rendered once; no scripts, nothing from elsewhere."""

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from typing import Any

import orjson
from aiohttp import web

from flashsale.errors import PROBLEMS
from flashsale.front.openapi import OPENAPI

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.9em}"
    "pre{overflow-x:auto;border:1px solid #8884;border-radius:.3rem;padding:.7rem}"
    "details{border-top:1px solid #8884;padding:.5rem 0}summary{cursor:pointer}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0}"
    ":root{color-scheme:light dark}"
)
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"


def _rendered() -> Iterator[str]:
    info = OPENAPI["info"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width"><title>flashsale: the HTTP interface</title>'
    yield f"<style>{_STYLE}</style></head><body><h1>flashsale</h1><p>{escape(info['description'])}</p>"
    yield '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>.</p><h2>Routes</h2>'
    for path, methods in OPENAPI["paths"].items():
        for method, operation in methods.items():
            yield from _operation(method, path, operation)
    yield "<h2>Events that are sent to webhook endpoints</h2>"
    for name, methods in OPENAPI["webhooks"].items():
        for method, operation in methods.items():
            yield from _operation(method, name, operation)
    yield "<h2>Problems</h2><table><tr><th>status<th>name<th>what to do</tr>"
    for name, problem in PROBLEMS.items():
        yield f'<tr><td>{problem.status}<td><a href="/problems/{name}"><code>{name}</code></a>'
        yield f"<td>{escape(problem.next_step)}</tr>"
    yield "</table><h2>Schemas</h2>"
    for name, schema in OPENAPI["components"]["schemas"].items():
        yield f'<details id="{name}"><summary><code>{name}</code></summary>{_json(schema)}</details>'
    yield "</body></html>"


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<details><summary><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</summary>"
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    if operation["security"]:
        yield "<p>Needs a bearer token.</p>"
    for parameter in operation.get("parameters", ()):
        yield f"<p><code>{escape(parameter['name'])}</code> ({parameter['in']}): "
        yield f"{escape(parameter.get('description', ''))}</p>"
    if "requestBody" in operation:
        yield f"<h3>Body</h3>{_content(operation['requestBody']['content'])}"
    for status, response in operation["responses"].items():
        yield f"<h3>{status}</h3><p>{escape(response['description'])}</p>{_content(response.get('content', {}))}"
    yield "</details>"


def _content(content: dict[str, Any]) -> str:
    shown = []
    for media_type, body in content.items():
        reference = body["schema"].get("$ref", "").rpartition("/")[2]
        link = f': <a href="#{reference}">{reference}</a>' if reference else ""
        shown.append(f"<p><code>{escape(media_type)}</code>{link}</p>")
    return "".join(shown)


def _json(document: dict[str, Any]) -> str:
    return f"<pre>{escape(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())}</pre>"


_PAGE = "".join(_rendered()).encode()


async def page(request: web.Request) -> web.Response:
    """GET /docs"""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "max-age=60"}
    return web.Response(body=_PAGE, content_type="text/html", charset="utf-8", headers=headers)
