"""Where a page finds an order: in the journal from the first instant after its 201, then in the ledger.

Valkey first: the hold tells where in the journal the order's record lies until the ledger has it. Then the ledger,
which may be away: what only it holds is 503 then.
"""

import asyncio
from collections.abc import Callable
from datetime import date
from typing import Any

from flashsale.errors import Refused
from flashsale.front.auth import Claims
from flashsale.front.context import FrontContext
from flashsale.ledger import dossier
from flashsale.ledger import orders as ledger_orders
from flashsale.ledger.dossier import Dossier
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import LedgerAway
from flashsale.reservation import commands
from flashsale.reservation.holds import HELD, Hold
from flashsale.sale.catalogue import Sale
from flashsale.sale.identity import parse_order_id
from flashsale.sale.lifecycle import Payment, Status
from flashsale.sale.priced import RECORD_COLUMNS
from flashsale.sale.terms import NULL

LEDGER_WITHIN_S = 2.0  # how long a step waits for its order to come from the journal into the ledger
LEDGER_POLL_S = 0.05


async def find(context: FrontContext, order_id: str, claims: Claims) -> tuple[Dossier, Sale]:
    """The order, if `claims` may read it. Raises Refused: not-found (another's too), overloaded while nobody knows."""
    if parse_order_id(order_id) is None:
        raise not_found()
    order = await _in_journal(context, order_id)
    found = Dossier(order) if order is not None else await _in_ledger(context, order_id)
    if found is None:
        raise _unknown(context)
    _check_owner(found.order, claims)
    return found, await sale_of(context, found.order)


async def find_again(context: FrontContext, order_id: str, claims: Claims) -> tuple[Dossier, Sale]:
    """The order as the ledger has it, for a reader who knows that it has. Raises what `find` raises."""
    found = await _in_ledger(context, order_id)
    if found is None:
        raise _unknown(context)
    _check_owner(found.order, claims)
    return found, await sale_of(context, found.order)


async def find_in_ledger(context: FrontContext, order_id: str, claims: Claims) -> OrderRow:
    """The order that a step is to be taken with: waits until the ledger has it. Raises what `find` raises, and
    overloaded where that takes too long."""
    if parse_order_id(order_id) is None:
        raise not_found()
    until = asyncio.get_running_loop().time() + LEDGER_WITHIN_S
    while True:
        row = await _row(context, order_id)
        if row is None:
            written = await _in_journal(context, order_id)
            if written is None:
                row = await _row(context, order_id)  # it may have gone there between the two looks
                if row is None:
                    raise _unknown(context)
            else:
                _check_owner(written, claims)
        if row is not None:
            _check_owner(row, claims)
            return row
        if asyncio.get_running_loop().time() >= until:
            raise Refused("overloaded", "The order has not reached the ledger yet.", retry_after=1)
        await asyncio.sleep(LEDGER_POLL_S)


def concerns(order: OrderRow, claims: Claims) -> bool:
    """Whether `claims` may see the order: its shopper, the agent who placed it, its channel, any admin. Names of one
    role say nothing in another."""
    match claims.role:
        case "admin":
            return True
        case "shopper":
            return order.shopper == claims.sub
        case "agent":
            return order.agent == claims.sub
        case "channel":
            return order.channel == claims.sub
        case _:
            return False


def recipients_own(claims: Claims) -> Claims:
    """`claims`, unless they are an agent's: who ordered for somebody reads and pays the order, and no more. Raises
    Refused("forbidden")."""
    if claims.role == "agent":
        raise Refused("forbidden", "Cancelling and returning are the recipient's own.")
    return claims


def _check_owner(order: OrderRow, claims: Claims) -> None:
    if not concerns(order, claims):
        raise not_found()


def _unknown(context: FrontContext) -> Refused:
    if context.ready_reasons():  # Valkey may have lost what the ledger has not yet
        return Refused("overloaded", "The orders are being rebuilt.", retry_after=1)
    return not_found()


def not_found() -> Refused:
    return Refused("not-found", "There is no such order of yours.")


def ledger_away() -> Refused:
    return Refused("overloaded", "The ledger does not answer; orders are taken as ever.", retry_after=1)


async def sale_of(context: FrontContext, order: OrderRow) -> Sale:
    """The order's sale, from whatever version: offers never change their index and never leave a sale."""
    sale = context.catalogues.current.by_number(order.sale)
    if sale is None or any(index >= len(sale.offers) for index in order.skus):
        sale = (await context.catalogues.refresh()).by_number(order.sale)
    if sale is None:
        raise Refused("overloaded", "The order's sale is being rebuilt.", retry_after=1)
    return sale


async def _in_journal(context: FrontContext, order_id: str) -> OrderRow | None:
    """The order while its record is still in the journal and nothing has become of it."""
    parts = parse_order_id(order_id)
    if parts is None:
        return None
    sale = context.catalogues.current.by_number(parts.sale)
    if sale is None:
        sale = (await context.catalogues.refresh()).by_number(parts.sale)
        if sale is None:
            return None
    hold = await commands.find_hold(context.valkey, sale.id, order_id)
    if hold is None or hold.letter != HELD or hold.number:
        return None  # what became of it stands in the ledger
    record = await commands.find_record(context.valkey, order_id, hold)
    return None if record is None else _of_record(record, hold, parts.partition)


async def _in_ledger(context: FrontContext, order_id: str) -> Dossier | None:
    try:
        async with context.ledger.connection() as connection:
            return await dossier.read(connection, order_id)
    except LedgerAway:
        raise ledger_away() from None


async def _row(context: FrontContext, order_id: str) -> OrderRow | None:
    try:
        async with context.ledger.connection() as connection:
            return await ledger_orders.find(connection, order_id)
    except LedgerAway:
        raise ledger_away() from None


def _of_record(record: bytes, hold: Hold, partition: int) -> OrderRow:
    """The row that the ledger will make of a journal record. COPY text: only backslashes are escaped in it."""
    text = record.decode().rstrip("\n")
    column = dict(zip(RECORD_COLUMNS, text.split("\t"), strict=True))
    fields: dict[str, Any] = {
        name: None if value == NULL else value.replace("\\\\", "\\") for name, value in column.items()
    }
    for names, read in _READ.items():
        for name in names:
            if fields[name] is not None:
                fields[name] = read(fields[name])
    return OrderRow(
        **fields,
        partition=partition,
        journal_ms=hold.entry_ms,
        journal_seq=hold.entry_seq,
        status=Status.RESERVED.value,
        payment=Payment.NONE.value,
        changes=1,
        extended=False,
        cancelled=None,
        shipped=None,
        returned=None,
        restocked=None,
        refunded=None,
        restated_by=None,
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text[1:-1].split(",")]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("\\x"))


# How COPY text is read, by the columns of each type; all others are text.
_READ: dict[tuple[str, ...], Callable[[str], Any]] = {
    ("skus", "quantities", "prices", "duties", "taxes", "drawn"): _numbers,
    ("sale", "total", "catalogue_version", "hold_ms", "shipping", "due_duty", "due_tax"): int,
    ("lane_number", "dispatch_day", "limit_year", "limit_use"): int,
    ("fingerprint", "identity"): _bytes,
    ("collected", "ddp", "estimated"): "t".__eq__,
    ("promised_by",): date.fromisoformat,
}
