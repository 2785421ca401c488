"""What a shopper sees at the sandbox: the hosted pay page of a session, and the page of a wallet. Pay, or decline.

In the language that the browser asks for, with amounts as it writes them; the list of intents, for developers, in
English alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import TypeVar
from urllib.parse import urlencode

from aiohttp import web

from flashsale.languages import ENGLISH, LANGUAGES, say
from flashsale.partners.payments.sandbox import intents, sessions, shapes
from flashsale.partners.payments.sandbox.errors import ApiError
from flashsale.partners.payments.sandbox.store import Change, Object, Store
from flashsale.sale.locales import asked
from flashsale.sale.money import format_amount
from flashsale.sale.writing import money_text

T = TypeVar("T")
INTENTS_SHOWN = 100
_WALLET_NAMES = {"alipay": "Alipay", "grabpay": "GrabPay"}
_STYLE = (
    "body{font:1rem/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "button{font:inherit;padding:.4rem 1rem;margin:.2rem .4rem .2rem 0}"
    "td,th{text-align:left;padding:.1rem 1rem .1rem 0}"
)


class Pages:
    """The HTML routes of one sandbox."""

    def __init__(self, store: Store, prefix: str) -> None:
        """`prefix`: of the paths under which shoppers reach the pages; "" where they come here themselves."""
        self._store, self._prefix = store, prefix

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self._home),
            web.get("/sandbox/", self._list),
            web.get("/c/pay/{id}", self._session),
            web.post("/c/pay/{id}", self._pay_session),
            web.get("/r/{id}", self._wallet),
            web.post("/r/{id}", self._pay_wallet),
        ]

    async def _home(self, request: web.Request) -> web.Response:
        raise web.HTTPSeeOther("/sandbox/")

    async def _list(self, request: web.Request) -> web.Response:
        """GET /sandbox/: the newest intents, for people, each with the way to its pay page."""

        def read(change: Change) -> list[tuple[Object, str]]:
            newest, _ = change.page("payment_intent", INTENTS_SHOWN)
            return [(about, _pay_path(change, about)) for about in newest]

        found = await self._store.do(read)
        rows = "".join(
            f"<tr><td><code>{escape(about['id'])}</code><td>{escape(about['metadata'].get('order', ''))}"
            f"<td>{escape(_amount(about))}<td>{escape(about['status'])}"
            + (f'<td><a href="{escape(path)}">pay</a>' if path else "<td>")
            for about, path in found
        )
        head = "<tr><th>intent<th>order<th>amount<th>status<th>"
        return _page("Payments sandbox", f"<p>The newest {len(found)} intents.</p><table>{head}{rows}</table>")

    async def _session(self, request: web.Request) -> web.Response:
        session, about = await self._of_session(request.match_info["id"], _language(request))
        return self._session_page(session, about, declined=False, language=_language(request))

    async def _of_session(self, session_id: str, language: str) -> tuple[Object, Object]:
        def read(change: Change) -> tuple[Object, Object]:
            session = sessions.find(change, session_id)
            return session, intents.find(change, session["payment_intent"])

        return await self._found(read, language)

    async def _found(self, work: Callable[[Change], T], language: str) -> T:
        try:
            return await self._store.do(work)
        except ApiError as fault:
            title = say("Not found", language) if fault.status == 404 else say("Not possible", language)
            page = _page(title, f"<p>{escape(str(fault))}</p>", language=language)
            page.set_status(fault.status)
            raise _Ended(page) from None

    async def _pay_session(self, request: web.Request) -> web.Response:
        form = await _form(request)
        method_type, decline = form.get("method", "card"), form.get("action") == "decline"
        session_id = request.match_info["id"]

        def pay(change: Change) -> tuple[Object, Object, bool]:
            session = sessions.find(change, session_id)
            about = intents.find(change, session["payment_intent"])
            if session["status"] != "open" or about["status"] not in intents.OPEN:
                return session, about, False
            if method_type not in about["payment_method_types"]:
                raise ApiError(400, "This payment is not offered with that method.")
            _try(change, about, method_type, decline)
            return sessions.find(change, session_id), about, True

        session, about, _ = await self._found(pay, _language(request))
        if session["status"] == "complete":
            return _redirect(session["success_url"].replace("{CHECKOUT_SESSION_ID}", session["id"]))
        return self._session_page(session, about, declined=True, language=_language(request))

    async def _wallet(self, request: web.Request) -> web.Response:
        language = _language(request)
        about = await self._found(lambda change: intents.find(change, request.match_info["id"]), language)
        wallet = request.query.get("method", "")
        if about["status"] != "requires_action" or wallet not in shapes.WALLETS:
            return _paid_page(about, language)
        target = about["next_action"][about["next_action"]["type"]]["return_url"]
        name = _WALLET_NAMES[wallet]
        pay = say("Pay with {name}", language).format(name=name)
        forms = _form_of(f"{self._prefix}/r/{about['id']}", wallet, "pay", pay)
        forms += _form_of(f"{self._prefix}/r/{about['id']}", wallet, "decline", say("Decline", language))
        return _page(name, f"{_what_is_paid(about, language)}{forms}", target, language)

    async def _pay_wallet(self, request: web.Request) -> web.Response:
        form = await _form(request)
        decline = form.get("action") == "decline"
        intent_id = request.match_info["id"]

        def pay(change: Change) -> tuple[Object, str | None]:
            about = intents.find(change, intent_id)
            if about["status"] != "requires_action":
                return about, None
            action = about["next_action"]
            wallet = "alipay" if action["type"].startswith("alipay") else "grabpay"
            _try(change, about, wallet, decline)
            return about, action[action["type"]]["return_url"]

        language = _language(request)
        about, target = await self._found(pay, language)
        if target is None:
            return _paid_page(about, language)
        outcome = "succeeded" if about["status"] == "succeeded" else "failed"
        added = urlencode({"payment_intent": about["id"], "redirect_status": outcome})
        path, _, fragment = target.partition("#")
        return _redirect(f"{path}{'&' if '?' in path else '?'}{added}{'#' if fragment else ''}{fragment}")

    def _session_page(self, session: Object, about: Object, *, declined: bool, language: str) -> web.Response:
        body = _what_is_paid(about, language)
        if session["status"] != "open":
            body += f"<p>{escape(_state(about, language))}</p>"
        else:
            if declined:
                note = say("The payment was declined. Try again.", language)
                body += f'<p role="alert">{escape(note)}</p>'
            for method_type in about["payment_method_types"]:
                name, path = _method_name(method_type, language), f"{self._prefix}/c/pay/{session['id']}"
                body += _form_of(path, method_type, "pay", say("Pay with {name}", language).format(name=name))
                body += _form_of(path, method_type, "decline", say("{name}: decline", language).format(name=name))
        return _page(say("Checkout", language), body, session["success_url"], language)


class _Ended(web.HTTPException):
    """A page instead of the one asked for."""

    status_code = 400

    def __init__(self, page: web.Response) -> None:
        super().__init__(text=page.text, content_type="text/html", headers=dict(page.headers))
        self.set_status(page.status)


def _try(change: Change, about: Object, method_type: str, decline: bool) -> None:
    """What the shopper chose, or what the faults make of it."""
    method = shapes.payment_method(method_type, change.now_s())
    declined = decline or change.faults.declines()
    if declined and method_type in shapes.WALLETS:
        intents.decline_redirect(change, about, method)
    else:
        intents.settle(change, about, method, ("generic_decline", "Your card was declined.") if declined else None)


def _pay_path(change: Change, about: Object) -> str:
    """Where an intent is paid on a page of ours; empty where it is not."""
    if about["status"] == "requires_action":
        action = about["next_action"]
        return "/r/" + str(action[action["type"]]["url"]).partition("/r/")[2]
    if about["status"] not in intents.OPEN:
        return ""
    still_open = [found["id"] for found in change.linked("checkout.session", about["id"]) if found["status"] == "open"]
    return f"/c/pay/{still_open[0]}" if still_open else ""


async def _form(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in (await request.post()).items() if isinstance(value, str)}


def _language(request: web.Request) -> str:
    return asked(request.headers.get("Accept-Language"), LANGUAGES)


def _amount(about: Object) -> str:
    currency = about["currency"].upper()
    return f"{format_amount(about['amount'], currency)} {currency}"


def _what_is_paid(about: Object, language: str) -> str:
    """The order and the amount; with the currency's code, since a dollar sign is many countries'."""
    currency = about["currency"].upper()
    amount = money_text(about["amount"], currency, language)
    if currency not in amount:
        amount += f" ({currency})"
    return f"<p>{escape(about['description'] or '')}</p><h2>{escape(amount)}</h2>"


def _state(about: Object, language: str) -> str:
    match about["status"]:
        case "succeeded" | "requires_capture":
            return say("It is paid.", language)
        case "canceled":
            return say("It can't be paid any more.", language)
        case _:
            return say("Go back to the shop to pay.", language)


def _method_name(method_type: str, language: str) -> str:
    """A wallet goes by its own name everywhere."""
    return _WALLET_NAMES.get(method_type) or say("Card", language)


def _form_of(path: str, method_type: str, action: str, label: str) -> str:
    return (
        f'<form method="post" action="{escape(path)}"><input type="hidden" name="method" value="{escape(method_type)}">'
        f'<button name="action" value="{escape(action)}">{escape(label)}</button></form>'
    )


def _paid_page(about: Object, language: str) -> web.Response:
    """Of a payment with which there is nothing to do here."""
    body = f"{_what_is_paid(about, language)}<p>{escape(_state(about, language))}</p>"
    return _page(say("Payment", language), body, language=language)


def _page(title: str, body: str, leads_to: str | None = None, language: str = ENGLISH) -> web.Response:
    """`leads_to`: where a form of the page redirects; browsers hold a redirect against the policy too."""
    target = re.match(r"https?://[A-Za-z0-9.:\[\]-]+", leads_to or "")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none';"
        f" form-action 'self'{' ' + target[0] if target else ''}"
    )
    note = say("This is a sandbox: no money moves.", language)
    return web.Response(
        text=f'<!doctype html><html lang="{language}"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1>{body}<p><small>{escape(note)}</small></p></html>",
        content_type="text/html",
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Content-Language": language,
            "Vary": "Accept-Language",
        },
    )


def _redirect(url: str) -> web.Response:
    return web.Response(status=303, headers={"Location": url, "Cache-Control": "no-store"})
