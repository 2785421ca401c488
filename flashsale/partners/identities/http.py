"""The identity provider over HTTP: POST {url}/v1/checks {"country", "number", "name"} under a bearer key answers
{"result": "verified" | "mismatch"}. Anything else, and no answer in time, is a provider that is away.
"""

from __future__ import annotations

from typing import Literal

import aiohttp
import msgspec

from flashsale.partners.identities.provider import IdentityProviderAway
from flashsale.settings import Settings

ANSWER_MAX_BYTES = 64 * 1024


class _Answer(msgspec.Struct):
    result: Literal["verified", "mismatch"]


_decode = msgspec.json.Decoder(_Answer).decode


class HttpIdentityProvider:
    """One account, by its address and key."""

    def __init__(self, url: str, key: str, *, timeout_s: float) -> None:
        self._url = url.rstrip("/") + "/v1/checks"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def matches(self, country: str, number: str, name: str) -> bool:
        """See IdentityProvider."""
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        asked = {"country": country, "number": number, "name": name}
        try:
            async with self._session.post(self._url, json=asked, allow_redirects=False) as answer:
                body = await answer.content.read(ANSWER_MAX_BYTES)
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            # Its kind alone: a text of the library's might repeat what was sent.
            raise IdentityProviderAway(type(fault).__name__) from None
        if status != 200:
            raise IdentityProviderAway(f"status {status}")
        try:
            return _decode(body).result == "verified"
        except msgspec.DecodeError:
            raise IdentityProviderAway("an answer that makes no sense") from None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def open_account(settings: Settings) -> HttpIdentityProvider | None:
    """The provider that the settings name, its caller's to close; None where there is none."""
    if settings.identities_url is None or settings.identities_api_key is None:
        return None
    key = settings.identities_api_key.get_secret_value()
    return HttpIdentityProvider(settings.identities_url, key, timeout_s=settings.identities_timeout_s)
