"""What every page may use: one object a front process, made at its start and given to the aiohttp application.

The pages read Valkey through a pool of their own, never through the hot path's connection: a slow page delays no order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import redis.asyncio
from aiohttp import web

from flashsale.front.auth import Verifier
from flashsale.front.catalogues import Catalogues
from flashsale.front.identities import IdentityTokens
from flashsale.ledger.pool import Ledger
from flashsale.partners.identities.provider import IdentityProvider
from flashsale.partners.payments.provider import PaymentProvider
from flashsale.settings import Settings


@dataclass(slots=True)
class FrontContext:
    """`ready_reasons` says why this process takes no orders now, a line each; an empty list: it takes them. `payments`
    and `identities` are None where no provider is set up."""

    settings: Settings
    valkey: "redis.asyncio.Redis"
    ledger: Ledger
    catalogues: Catalogues
    verifier: Verifier
    ready_reasons: Callable[[], list[str]]
    payments: PaymentProvider | None = None
    identities: IdentityProvider | None = None
    identity_tokens: IdentityTokens | None = None


CONTEXT = web.AppKey("context", FrontContext)


def context_of(request: web.Request) -> FrontContext:
    return request.app[CONTEXT]
