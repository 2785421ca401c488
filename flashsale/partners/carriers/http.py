"""Carriers over HTTP, each request signed (signing.py):

POST {url}/v1/parcels, the parcel → {"waybill"}; under a reference that another parcel has: 409.
POST {url}/v1/parcels/{waybill}/cancellation → 2xx, also where it was cancelled before; 409 once it was picked up.
GET {url}/v1/parcels/{waybill} → {"status", "events"}.

A refusal is 404, 409 or 422 with {"error": {"code", "message"}}. Anything else, and no answer in time, says nothing of
what was done: a carrier that is away.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import aiohttp
import msgspec
import orjson
from msgspec import Meta
from yarl import URL

from flashsale.partners.carriers.carrier import CarrierAway, CarrierRefused, Parcel, ParcelState, TrackingEvent
from flashsale.partners.carriers.signing import Signing, request_text
from flashsale.sale.tracking import Code
from flashsale.settings import Settings

ANSWER_MAX_BYTES = 1024 * 1024  # a thousand events
MESSAGE_MAX = 200  # characters kept of what a refusal says
USER_AGENT = "flashsale-carriers/1"
_REFUSALS = frozenset({404, 409, 422})
_WAYBILL = re.compile(r"[A-Za-z0-9-]{4,40}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class _Booked(msgspec.Struct):
    waybill: str


class _Event(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    code: Code
    at: Annotated[datetime, Meta(tz=True)]
    detail: Annotated[str, Meta(max_length=200)] | None = None
    country: Annotated[str, Meta(pattern="^[A-Z]{2}$")] | None = None


class _State(msgspec.Struct):
    status: str
    events: list[_Event] = []


class _Fault(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Fault = msgspec.field(default_factory=_Fault)


_decode_booked = msgspec.json.Decoder(_Booked).decode
_decode_state = msgspec.json.Decoder(_State).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class HttpCarriers:
    """One account, by its address and key; for whatever carriers it speaks for. See Carriers."""

    def __init__(self, url: str, secret: str, *, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._signing = Signing(secret)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def book(self, parcel: Parcel) -> str:
        wanted = {**parcel._asdict(), "goods": [goods._asdict() for goods in parcel.goods]}
        try:
            waybill = _decode_booked(await self._ask("POST", "/v1/parcels", wanted)).waybill
        except msgspec.DecodeError:
            raise CarrierAway("an answer that makes no sense") from None
        if not _WAYBILL.fullmatch(waybill):
            raise CarrierAway("an answer whose waybill is none")
        return waybill

    async def cancel(self, waybill: str) -> None:
        await self._ask("POST", f"/v1/parcels/{waybill}/cancellation", {})

    async def look(self, waybill: str) -> ParcelState:
        try:
            state = _decode_state(await self._ask("GET", f"/v1/parcels/{waybill}", None))
        except msgspec.DecodeError:
            raise CarrierAway("an answer that makes no sense") from None
        events = [
            TrackingEvent(each.id, waybill, each.code, (each.at - _EPOCH) // _MS, _plain(each.detail), each.country)
            for each in state.events
        ]
        return ParcelState(state.status == "cancelled", events)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, method: str, path: str, wanted: dict[str, Any] | None) -> bytes:
        """The answer's body. Raises CarrierAway, CarrierRefused."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar())
        body = b"" if wanted is None else orjson.dumps(wanted)
        url = URL(self._url + path, encoded=True)
        headers = {"User-Agent": USER_AGENT, **self._signing.headers(request_text(method, url.path, body.decode()))}
        if wanted is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method, url, data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                read = await _up_to(answer, ANSWER_MAX_BYTES)
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            raise CarrierAway(type(fault).__name__) from None
        if status in _REFUSALS:
            raise _refusal(status, read)
        if not 200 <= status < 300:
            raise CarrierAway(f"status {status}")
        return read


async def _up_to(answer: aiohttp.ClientResponse, most: int) -> bytes:
    read = bytearray()
    while chunk := await answer.content.read(most + 1 - len(read)):
        read += chunk
        if len(read) > most:
            raise CarrierAway("an answer that is too long")
    return bytes(read)


def _refusal(status: int, body: bytes) -> CarrierAway | CarrierRefused:
    try:
        fault = _decode_refusal(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        fault = _Fault()
    if not fault.code:  # a 404 of something in between, say: not a carrier's word
        return CarrierAway(f"status {status} without a reason")
    return CarrierRefused((_plain(fault.code) or "")[:MESSAGE_MAX], (_plain(fault.message) or "")[:MESSAGE_MAX])


def _plain(text: str | None) -> str | None:
    # A stranger's text: no NUL for PostgreSQL, no escape sequence for the terminal that shows it.
    return None if text is None else "".join(mark if mark.isprintable() else " " for mark in text)


def open_account(settings: Settings) -> HttpCarriers | None:
    """The carriers that the settings name, their caller's to close; None where there are none."""
    if settings.carriers_url is None or settings.carriers_secret is None:
        return None
    secret = settings.carriers_secret.get_secret_value()
    return HttpCarriers(settings.carriers_url, secret, timeout_s=settings.carriers_timeout_s)
