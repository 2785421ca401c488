"""POST /v1/shoppers/me/identity: a shopper shows whose import limit the orders count for.

The number is read, normalised, asked about and hashed; nothing keeps or logs it. The same person under two shopper
accounts has the same identity, so one yearly limit. Tries are counted, of a shopper and of a document: else a stolen
list of numbers could be tried against names here, or a number against a list of names.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import structlog
from aiohttp import web
from msgspec import Meta, Struct

from flashsale.errors import Refused
from flashsale.front.answers import answer, money, rfc3339
from flashsale.front.bodies import read_body
from flashsale.front.context import FrontContext, context_of
from flashsale.front.grants import shopper
from flashsale.front.steps import now_ms, transaction
from flashsale.ledger import identities as ledger_identities
from flashsale.ledger.identities import IdentityRow
from flashsale.partners.identities.provider import IdentityProviderAway
from flashsale.reservation import commands
from flashsale.sale.decoding import Shape
from flashsale.sale.documents import COUNTRIES, NUMBER_MAX, identity_of, normalised
from flashsale.sale.market import MARKETS

TRIES_MAX = 5  # questions to the provider for one shopper within TRIES_WITHIN_MS: enough for slips, not for a list
DOCUMENT_TRIES_MAX = 20  # the same for one document, whoever asks; more, since a stranger's tries are its holder's too
OF_A_DOCUMENT = "\x01"
"""Before a document's hash, where tries are counted by the document: no shopper's id holds a control character. Else
whoever has many accounts could try as many names with one number."""
TRIES_WITHIN_MS = 24 * 3_600_000

log = structlog.get_logger(__name__)


class IdentityRequest(Struct, forbid_unknown_fields=True):
    """A personal document's number and its holder's name, as the document has it."""

    country: Annotated[str, Meta(min_length=2, max_length=2)]
    number: Annotated[str, Meta(min_length=1, max_length=NUMBER_MAX)]
    name: Annotated[str, Meta(min_length=1, max_length=100)]

    def __repr__(self) -> str:
        return f"IdentityRequest({self.country!r}, …)"  # whoever prints it prints no number


def _well_written(request: IdentityRequest, faults: dict[str, str]) -> None:
    if request.country not in COUNTRIES:
        faults["country"] = f"documents of these countries are known: {', '.join(COUNTRIES)}"
        return
    try:
        normalised(request.country, request.number)
    except ValueError as fault:
        faults["number"] = str(fault)
    if not request.name.strip() or not request.name.isprintable():
        faults["name"] = "the holder's name in printable characters is wanted"


IDENTITY = Shape(IdentityRequest, _well_written)


async def verify_identity(request: web.Request) -> web.Response:
    """POST /v1/shoppers/me/identity"""
    claims = shopper(request)
    asked = await read_body(request, IDENTITY)
    context = context_of(request)
    number = normalised(asked.country, asked.number)
    async with transaction(context) as connection:
        identity = identity_of(await ledger_identities.key(connection), asked.country, number)
        known = await ledger_identities.find(connection, claims.sub, identity)
    if known is None:
        await _ask(context, (claims.sub, f"{OF_A_DOCUMENT}{identity.hex()}"), asked.country, number, asked.name)
        async with transaction(context) as connection:
            known = await ledger_identities.verified(
                connection, shopper=claims.sub, identity=identity, country=asked.country, now_ms=now_ms()
            )
            assert known is not None  # noqa: S101 - it was written in this transaction
    return answer(request, await _shown(context, known))


async def _ask(context: FrontContext, counted: tuple[str, ...], country: str, number: str, name: str) -> None:
    """Returns if the provider says that number and name are one person's. `counted`: whose try it is. Raises Refused:
    too-many-requests, identity-unverified, overloaded; a question without an answer is no try."""
    if context.identities is None:
        raise Refused("overloaded", "Identities can't be verified here: no identity provider is set up.")
    at_ms = now_ms()
    async with transaction(context) as connection:
        for whose in counted:
            most = DOCUMENT_TRIES_MAX if whose.startswith(OF_A_DOCUMENT) else TRIES_MAX
            wait_ms = await ledger_identities.take_try(
                connection, whose, now_ms=at_ms, within_ms=TRIES_WITHIN_MS, most=most
            )
            if wait_ms:
                break
    if wait_ms:
        raise Refused("too-many-requests", f"{most} tries within a day were made.", retry_after=-(-wait_ms // 1000))
    try:
        matches = await context.identities.matches(country, number, name)
    except IdentityProviderAway as away:
        log.warning("the identity provider is away", reason=str(away))
        async with transaction(context) as connection:
            for whose in counted:
                await ledger_identities.give_back_try(connection, whose, at_ms)
        raise Refused("overloaded", "The identity provider does not answer.", retry_after=2) from None
    if not matches:
        raise Refused("identity-unverified", "The identity provider says that number and name are not one person's.")


async def _shown(context: FrontContext, known: IdentityRow) -> dict[str, Any]:
    if context.identity_tokens is None:
        raise Refused("overloaded", "Identities can't be bound to shoppers here.")
    body: dict[str, Any] = {
        "identity": context.identity_tokens.issue(known.shopper, known.identity),
        "country": known.country,
        "verified_at": rfc3339(known.verified_ms),
    }
    world = context.catalogues.current.world
    regime = world.trade.regime(known.country, "", round(time.time() * 1000))
    if regime is not None and regime.limit is not None:
        limit, currency = regime.limit, MARKETS[known.country].currency
        used = await commands.limit_used(context.valkey, known.identity, limit.year)
        body["limits"] = {
            "year": limit.year,
            "single": money(limit.single, currency),
            "annual": money(limit.annual, currency),
            "used": money(used, currency),
            "left": money(max(0, limit.annual - used), currency),
        }
    return body
