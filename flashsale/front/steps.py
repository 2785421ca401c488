"""What every step with an order has in common: who may take it, on which order, and one transaction of the ledger's.

A 503 says that nothing was done. Only a commit without an answer leaves that open, and that is said (504).
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, who
from flashsale.front.auth import Claims
from flashsale.front.context import FrontContext, context_of
from flashsale.front.order_document import whole
from flashsale.front.order_reading import find_in_ledger, ledger_away, sale_of
from flashsale.ledger import dossier
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import ROLLED_BACK, Connection, LedgerAway
from flashsale.sale.catalogue import Sale
from flashsale.sale.order import Line

log = structlog.get_logger(__name__)


def now_ms() -> int:
    return int(time.time() * 1000)


def admin(request: web.Request) -> Claims:
    """Who asks, an admin. Raises Refused: unauthenticated, forbidden."""
    claims = who(request)
    if claims.role != "admin":
        raise Refused("forbidden", "This step is taken with an admin's token.")
    return claims


async def order_of(request: web.Request, claims: Claims) -> tuple[OrderRow, Sale]:
    """The order that a step is asked for, and its sale. Raises what `find_in_ledger` raises."""
    context = context_of(request)
    order = await find_in_ledger(context, request.match_info["id"], claims)
    return order, await sale_of(context, order)


@asynccontextmanager
async def transaction(context: FrontContext) -> AsyncIterator[Connection]:
    """A connection in a transaction, committed at the end of the block. Raises Refused: overloaded where nothing was
    done, outcome-unknown where the commit was not answered."""
    committing = False
    try:
        async with context.ledger.connection() as connection:
            work = connection.transaction()
            await work.start()
            try:
                yield connection
            except BaseException:
                await work.rollback()
                raise
            committing = True
            await work.commit()
    except LedgerAway:
        if committing:
            raise Refused("outcome-unknown", "The ledger was lost while it wrote this: GET the order to see.") from None
        raise ledger_away() from None
    except ROLLED_BACK as crossed:
        log.warning("a step was rolled back for another's sake", reason=repr(crossed))
        raise Refused("overloaded", "Another change of the order came between.", retry_after=1) from None


def by_index(lines: Sequence[Line], sale: Sale) -> list[tuple[int, int]]:
    """(offer index, units) of each line. Raises Refused("invalid-request") for a SKU that the sale has not."""
    faults = {
        f"lines[{number}].sku": "the order has no such SKU"
        for number, line in enumerate(lines)
        if line.sku not in sale.by_sku
    }
    if faults:
        raise Refused("invalid-request", fields=faults)
    return [(sale.by_sku[line.sku].index, line.quantity) for line in lines]


async def as_it_is_now(connection: Connection, order: OrderRow, sale: Sale) -> dict[str, Any]:
    """The order's document, read in the transaction that has just changed it."""
    return whole(await dossier.gather(connection, order), sale, now_ms())


def created(request: web.Request, body: dict[str, Any], location: str) -> web.Response:
    """201: there is something new at `location`."""
    response = answer(request, body)
    response.set_status(201)
    response.headers["Location"] = location
    return response
