"""Payments: one row an order, what was asked of the provider and what it said last.

Who changes both locks the payment before its order; whoever changes many at once holds `lock_many` while doing so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashsale.ledger.pool import Connection

# Transactions that change many payments go one after the other: they would take the rows in different orders.
_MANY_LOCK = 0x666C7061


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A payment. Amounts in minor units of `currency`: authorised = captured + released + still open, captured = kept +
    refunded. `refunding` is under way, `refund_failed` owed by hand. `state` and `rank` as sale/payment.py has them."""

    order_id: str
    sale: int
    method: str
    amount: int
    currency: str
    return_url: str | None
    session_id: str | None
    provider_id: str | None
    pay_url: str | None
    state: str
    rank: int
    authorised: int
    captured: int
    released: int
    refunding: int
    refunded: int
    refund_failed: int
    goodwill: int
    capture_before_ms: int | None
    late: str | None
    dispute: str | None
    disputes: list[str] | None  # that are open
    decided: list[str] | None  # that are over
    failure: str | None
    attempt: str | None
    todo: str | None
    todo_amount: int | None
    due_ms: int | None
    tries: int
    created_ms: int
    heard_ms: int

    @property
    def refundable(self) -> int:
        """What of the captured money has not gone back and is not on its way."""
        return self.captured - self.refunded - self.refunding - self.refund_failed


COLUMNS = ", ".join(PaymentRow.__dataclass_fields__)


async def lock_many(connection: Connection) -> None:
    """Until this transaction ends nobody else changes many payments at once."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _MANY_LOCK)


async def find(connection: Connection, order_id: str) -> PaymentRow | None:
    """The order's payment."""
    row = await connection.fetchrow(f"SELECT {COLUMNS} FROM payment WHERE order_id = $1", order_id)  # noqa: S608
    return None if row is None else PaymentRow(*row)


async def of_orders(connection: Connection, order_ids: Sequence[str]) -> dict[str, PaymentRow]:
    """The payments of these orders, by order id."""
    rows = await connection.fetch(
        f"SELECT {COLUMNS} FROM payment WHERE order_id = ANY ($1::text[])",  # noqa: S608
        list(order_ids),
    )
    return {row[0]: PaymentRow(*row) for row in rows}


async def of_intents(connection: Connection, provider_ids: Sequence[str]) -> dict[str, str]:
    """The orders that are paid with these intents, by the intent's id."""
    rows = await connection.fetch(
        "SELECT provider_id, order_id FROM payment WHERE provider_id = ANY ($1::text[])", list(provider_ids)
    )
    return {row[0]: row[1] for row in rows}


async def made_since(connection: Connection, since_ms: int, after: str, limit: int) -> list[PaymentRow]:
    """Payments that were begun since then, of orders behind `after`, by order id."""
    rows = await connection.fetch(
        f"SELECT {COLUMNS} FROM payment WHERE created_ms >= $1 AND order_id > $2 ORDER BY order_id LIMIT $3",  # noqa: S608
        since_ms,
        after,
        limit,
    )
    return [PaymentRow(*row) for row in rows]


async def lock(connection: Connection, order_id: str) -> PaymentRow | None:
    """The order's payment; nobody else changes it until this transaction ends. Call it before the order is locked."""
    row = await connection.fetchrow(
        f"SELECT {COLUMNS} FROM payment WHERE order_id = $1 FOR UPDATE",  # noqa: S608
        order_id,
    )
    return None if row is None else PaymentRow(*row)


async def insert(
    connection: Connection,
    order_id: str,
    *,
    sale: int,
    method: str,
    amount: int,
    currency: str,
    return_url: str | None,
    now_ms: int,
    ask_ms: int,
) -> None:
    """A new payment, or a new beginning of one that the provider closed unpaid. `ask_ms`: when the provider is to be
    asked if it stays silent."""
    await connection.execute(
        "INSERT INTO payment (order_id, sale, method, amount, currency, return_url, due_ms, created_ms, heard_ms)"
        " VALUES ($1, $2, $3, $4, $5, $6, $8, $7, $7) ON CONFLICT (order_id) DO UPDATE SET method = $3, amount = $4,"
        " return_url = $6,"
        " former = payment.former || array_remove(ARRAY[payment.session_id, payment.provider_id], NULL),"
        " session_id = NULL, provider_id = NULL, pay_url = NULL, state = 'open', rank = 0,"
        " failure = NULL, attempt = NULL, todo = NULL, tries = 0, due_ms = $8, created_ms = $7,"
        " heard_ms = $7"
        " WHERE payment.state = 'closed' AND payment.authorised = 0",
        order_id, sale, method, amount, currency, return_url, now_ms, ask_ms,
    )  # fmt: skip


async def choose(connection: Connection, order_id: str, method: str, return_url: str | None) -> None:
    """Another method, where none succeeded."""
    await connection.execute(
        "UPDATE payment SET method = $2, return_url = coalesce($3, return_url) WHERE order_id = $1 AND rank < 2",
        order_id,
        method,
        return_url,
    )


async def opened(
    connection: Connection, order_id: str, created_ms: int, session_id: str, provider_id: str | None, pay_url: str
) -> None:
    """What the provider answered to the opening that began at `created_ms`."""
    await connection.execute(
        "UPDATE payment SET session_id = $3, provider_id = coalesce(provider_id, $4), pay_url = $5"
        " WHERE order_id = $1 AND created_ms = $2",
        order_id, created_ms, session_id, provider_id, pay_url,
    )  # fmt: skip


async def claim_due(connection: Connection, now_ms: int, limit: int, lease_ms: int) -> list[PaymentRow]:
    """Payments that something is to be asked about now: their `todo`, else how they are. They are this caller's for
    `lease_ms`; what becomes of them is told by `life_facts.apply_facts` or `postpone`."""
    rows = await connection.fetch(
        "UPDATE payment SET due_ms = $1 + $3, tries = tries + 1 WHERE order_id IN"  # noqa: S608
        " (SELECT order_id FROM payment WHERE due_ms <= $1 ORDER BY due_ms LIMIT $2 FOR UPDATE SKIP LOCKED)"
        f" RETURNING {COLUMNS}",
        now_ms, limit, lease_ms,
    )  # fmt: skip
    return [PaymentRow(*row) for row in rows]


async def postpone(connection: Connection, order_ids: Sequence[str], due_ms: Sequence[int]) -> None:
    """The provider was away: ask again at these times."""
    await connection.execute(
        "UPDATE payment AS p SET due_ms = w.due_ms FROM unnest($1::text[], $2::int8[]) AS w (order_id, due_ms)"
        " WHERE p.order_id = w.order_id AND p.due_ms IS NOT NULL",
        list(order_ids),
        list(due_ms),
    )


async def unlease(connection: Connection, now_ms: int) -> None:
    """What is to be asked of the provider is due now, also where somebody who is gone had it under way."""
    await connection.execute("UPDATE payment SET due_ms = $1 WHERE due_ms > $1 AND todo IS NOT NULL", now_ms)
