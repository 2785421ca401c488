"""/v1/shoppers/me/grants: whom a shopper lets order in the shopper's name. And GET /v1/agents/me/orders.

A grant is in force from the script that writes it on (reservation/lua/set_grant.lua), which journals it: those
movements are the log. Making or ending one holds its row's lock around the script, so that the two can't cross.
"""

import re
import secrets
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from flashsale.errors import Refused
from flashsale.front.answers import answer, bad_parameter, limit, next_path, parameter, rfc3339, who
from flashsale.front.auth import CONTROL, SUBJECT_MAX_CHARACTERS, Claims
from flashsale.front.bodies import read_body
from flashsale.front.context import FrontContext, context_of
from flashsale.front.steps import created, now_ms, transaction
from flashsale.ledger import grants as ledger_grants
from flashsale.ledger.grants import GrantRow
from flashsale.reservation import commands
from flashsale.reservation.scripts import Fenced
from flashsale.sale.decoding import Shape

GRANTS_MAX = 100  # in force for one recipient: nobody has more agents, and a list of them ends
_ID = re.compile(r"grt_[0-9a-f]{21}")


class GrantRequest(Struct, forbid_unknown_fields=True):
    """Who may order from here on."""

    agent: Annotated[str, Meta(min_length=1, max_length=SUBJECT_MAX_CHARACTERS)]


def _nameable(request: GrantRequest, faults: dict[str, str]) -> None:
    if not request.agent.isprintable() and CONTROL.search(request.agent):
        faults["agent"] = "an agent's id holds no control characters"


GRANT = Shape(GrantRequest, _nameable)


async def add_grant(request: web.Request) -> web.Response:
    """POST /v1/shoppers/me/grants: 201, with the grant in force where there is one."""
    recipient = shopper(request).sub
    agent = (await read_body(request, GRANT)).agent
    context = context_of(request)
    now = now_ms()
    async with transaction(context) as connection:
        made = await ledger_grants.add(
            connection, id=f"grt_{now:011x}{secrets.token_hex(5)}", recipient=recipient, agent=agent, now_ms=now
        )
        if await ledger_grants.in_force(connection, recipient) > GRANTS_MAX:
            raise Refused("invalid-request", f"There are {GRANTS_MAX} grants in force: revoke one of them first.")
    # Its row stands before it is in force: whatever happens now, the recipient can read it and revoke it.
    async with transaction(context) as connection:
        grant = await ledger_grants.lock(connection, made.id, recipient)
        if grant is None or grant.revoked_ms is not None:
            raise Refused("overloaded", "The grant was revoked meanwhile.", retry_after=1)
        await _set(context, grant, commands.grant)
    return created(request, shown(grant), f"/v1/shoppers/me/grants/{grant.id}")


async def grants(request: web.Request) -> web.Response:
    """GET /v1/shoppers/me/grants: newest first, with those that were revoked."""
    recipient = shopper(request).sub
    size, after = limit(request), parameter(request, "after")
    if after is not None and not _ID.fullmatch(after):
        raise bad_parameter("after", "is not a grant's id")
    async with transaction(context_of(request)) as connection:
        found = await ledger_grants.of_recipient(connection, recipient, size + 1, after)
    body: dict[str, Any] = {"grants": [shown(each) for each in found[:size]]}
    if len(found) > size:
        body["next"] = next_path(request, found[size - 1].id)
    return answer(request, body)


async def one_grant(request: web.Request) -> web.Response:
    """GET /v1/shoppers/me/grants/{id}: with its history, as the log of movements has it."""
    recipient = shopper(request).sub
    async with transaction(context_of(request)) as connection:
        grant = await ledger_grants.get(connection, _id(request), recipient)
        if grant is None:
            raise _not_found()
        log = await ledger_grants.history(connection, grant.id)
    history = [{"event": "granted" if change.on else "revoked", "at": rfc3339(change.at_ms)} for change in log]
    return answer(request, {**shown(grant), "history": history})


async def revoke_grant(request: web.Request) -> web.Response:
    """DELETE /v1/shoppers/me/grants/{id}: 204, again too."""
    recipient = shopper(request).sub
    context = context_of(request)
    async with transaction(context) as connection:
        grant = await ledger_grants.lock(connection, _id(request), recipient)
        if grant is None:
            raise _not_found()
        await _set(context, grant, commands.revoke)
        await ledger_grants.revoked(connection, grant.id, now_ms())
    return web.Response(status=204)


async def _set(context: FrontContext, grant: GrantRow, script: Any) -> None:
    """Makes or ends the grant in Valkey. Raises Refused("overloaded") while Valkey is being rebuilt."""
    partition = await commands.read_partition(context.valkey)
    try:
        if partition is None:
            raise Fenced
        await script(
            context.valkey,
            partition=0,
            epoch=partition.epoch,
            grant_id=grant.id,
            recipient=grant.recipient,
            agent=grant.agent,
        )
    except Fenced:
        raise Refused("overloaded", "The grants are being rebuilt.", retry_after=1) from None


def shopper(request: web.Request) -> Claims:
    """Who asks, a shopper. Raises Refused: unauthenticated, forbidden."""
    claims = who(request)
    if claims.role != "shopper":
        raise Refused("forbidden", "This page is a shopper's own: use a shopper's token.")
    return claims


def shown(grant: GrantRow) -> dict[str, Any]:
    """A grant as the outside sees it."""
    body = {
        "id": grant.id,
        "agent": grant.agent,
        "recipient": grant.recipient,
        "granted_at": rfc3339(grant.granted_ms),
    }
    return body if grant.revoked_ms is None else {**body, "revoked_at": rfc3339(grant.revoked_ms)}


def _id(request: web.Request) -> str:
    grant_id = request.match_info["id"]
    if not _ID.fullmatch(grant_id):
        raise _not_found()
    return grant_id


def _not_found() -> Refused:
    return Refused("not-found", "There is no such grant of yours.")
