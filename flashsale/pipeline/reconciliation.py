"""Provider and ledger compared both ways: what either has that the other has not, or has otherwise.

What is on its way differs for a moment and is no difference: whatever looks like one is looked at a second time, a few
seconds later, on both sides, and named only if it still differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from flashsale.ledger import payments, refunds
from flashsale.ledger.payments import PaymentRow
from flashsale.ledger.pool import Connection
from flashsale.ledger.refunds import RefundRow
from flashsale.partners.payments.provider import ForeignRefund, PaymentProvider, ProviderRefused
from flashsale.sale.payment import IntentState, PaymentFact, RefundFact, RefundState

AGAIN_S = 3.0  # the applier is further behind than this only when something is wrong
ROWS = 1000
LOOKS_AT_ONCE = 8
CLOCKS_APART_MS = 60_000  # what was made near the beginning of the time looked at may lie beyond it on the other side

T = TypeVar("T")


class Difference(NamedTuple):
    """`what` differs, in a word; `ledger` and `provider` is what each has of it (None: nothing)."""

    what: str
    order: str | None
    provider_id: str | None
    refund: str | None
    ledger: str | int | None
    provider: str | int | None

    def __str__(self) -> str:
        named = [f"order {self.order}" if self.order else "", f"refund {self.refund}" if self.refund else ""]
        where = ", ".join(part for part in (*named, self.provider_id or "") if part)
        none = "nothing"
        ledger, provider = (none if side is None else side for side in (self.ledger, self.provider))
        return f"{self.what}  {where}: the ledger has {ledger}, the provider {provider}"


@dataclass(slots=True)
class Reconciled:
    """What was compared, and every difference."""

    intents: int = 0
    payments: int = 0
    refunds: int = 0
    differences: list[Difference] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "ok": not self.differences,
            "intents": self.intents,
            "payments": self.payments,
            "refunds": self.refunds,
            "differences": [difference._asdict() for difference in self.differences],
        }


async def reconcile(
    connection: Connection, provider: PaymentProvider, since_ms: int, *, again_s: float = AGAIN_S
) -> Reconciled:
    """Compares everything made since `since_ms`. Raises ProviderAway, and asyncpg's errors where the ledger is lost."""
    found = Reconciled()
    orders, strays = await _suspected_payments(connection, provider, since_ms, found)
    suspects, by_hand = await _suspected_refunds(connection, provider, since_ms, found)
    if orders or strays or suspects or by_hand:
        await asyncio.sleep(again_s)
        found.differences += await _payments_again(connection, provider, orders, strays)
        found.differences += await _refunds_again(connection, provider, suspects, by_hand)
        found.differences.sort(key=lambda each: (each.order or "", each.refund or "", each.what))
    return found


# --- payments ---


async def _suspected_payments(
    connection: Connection, provider: PaymentProvider, since_ms: int, found: Reconciled
) -> tuple[set[str], dict[str, PaymentFact]]:
    """Orders whose payment differs, and intents that the ledger does not have, by their id."""
    orders: set[str] = set()
    strays: dict[str, PaymentFact] = {}
    seen: set[str] = set()
    async for facts in _in_sets(provider.list_intents(since_ms - CLOCKS_APART_MS)):
        found.intents += len(facts)
        rows = await payments.of_orders(connection, [fact.order_id for fact in facts])
        for fact in facts:
            seen.add(fact.provider_id)
            row = rows.get(fact.order_id)
            if row is None or row.provider_id not in (None, "", row.session_id, fact.provider_id):
                strays[fact.provider_id] = fact
            elif _compared(row, fact):
                orders.add(fact.order_id)
    after = ""
    while rows_since := await payments.made_since(connection, since_ms, after, ROWS):
        after = rows_since[-1].order_id
        found.payments += len(rows_since)
        orders.update(row.order_id for row in rows_since if _has_intent(row) and row.provider_id not in seen)
    return orders, strays


def _has_intent(row: PaymentRow) -> bool:
    """Whether the provider must have an intent: while the shopper has not begun to pay, there may be a session only."""
    return bool(row.provider_id) and row.provider_id != row.session_id


def _shown(state: str) -> str:
    # A decline leaves an intent as open as it was.
    return IntentState.OPEN if state == IntentState.FAILED else state


def _compared(row: PaymentRow, fact: PaymentFact) -> list[Difference]:
    pairs: list[tuple[str, str | int | None, str | int | None]] = [("state", _shown(row.state), _shown(fact.state))]
    if fact.currency is not None:
        pairs.append(("currency", row.currency, fact.currency))
    if fact.state in (IntentState.AUTHORISED, IntentState.CAPTURED):
        pairs.append(("authorised", row.authorised, fact.authorised))
    pairs.append(("captured", row.captured, fact.captured))
    if fact.state is IntentState.CAPTURED:
        pairs.append(("released", row.released, fact.authorised - fact.captured))
    return [
        Difference(what, row.order_id, fact.provider_id, None, ledger, told)
        for what, ledger, told in pairs
        if ledger != told
    ]


async def _payments_again(
    connection: Connection, provider: PaymentProvider, orders: set[str], strays: dict[str, PaymentFact]
) -> list[Difference]:
    rows = await payments.of_orders(connection, [*orders, *(fact.order_id for fact in strays.values())])
    differences: list[Difference] = []

    async def look(row: PaymentRow) -> list[Difference]:
        try:
            fact = await provider.look(row.order_id, row.session_id or "", row.provider_id)
        except ProviderRefused:
            return [Difference("unknown to the provider", row.order_id, row.provider_id, None, row.state, None)]
        return _compared(row, fact)

    for found in await _at_most(LOOKS_AT_ONCE, [look(rows[order_id]) for order_id in orders if order_id in rows]):
        differences += found
    for provider_id, fact in strays.items():
        row = rows.get(fact.order_id)
        if row is None:
            differences.append(Difference("unknown to the ledger", fact.order_id, provider_id, None, None, fact.state))
        elif row.provider_id == provider_id:
            differences += _compared(row, fact)
        elif fact.state is not IntentState.CLOSED:  # one that nobody can pay any more is none the worse for being there
            differences.append(
                Difference("another intent", fact.order_id, provider_id, None, row.provider_id, fact.state)
            )
    return differences


# --- refunds ---


async def _suspected_refunds(
    connection: Connection, provider: PaymentProvider, since_ms: int, found: Reconciled
) -> tuple[dict[str, RefundFact | None], list[ForeignRefund]]:
    """Refunds that differ, by our id, with what the provider has of them; and those that were made by hand."""
    suspects: dict[str, RefundFact | None] = {}
    by_hand: list[ForeignRefund] = []
    seen: set[str] = set()
    async for facts in _in_sets(provider.list_refunds(since_ms - CLOCKS_APART_MS)):
        found.refunds += len(facts)
        ours = [fact for fact in facts if isinstance(fact, RefundFact)]
        by_hand += [fact for fact in facts if isinstance(fact, ForeignRefund) and not fact.failed]
        rows = await refunds.of_ids(connection, [fact.refund_id for fact in ours])
        for fact in ours:
            seen.add(fact.refund_id)
            if _refund_compared(rows.get(fact.refund_id), fact, fact.refund_id):
                suspects[fact.refund_id] = fact
    after = ""
    while rows_since := await refunds.made_since(connection, since_ms, after, ROWS):
        after = rows_since[-1].id
        # One that was never taken (it waits, or was refused) has no id of the provider's.
        suspects.update((row.id, None) for row in rows_since if row.id not in seen and row.provider_id)
    return suspects, by_hand


def _refund_compared(row: RefundRow | None, fact: RefundFact | None, refund_id: str) -> list[Difference]:
    if row is None:
        if fact is None:
            return []
        return [Difference("unknown to the ledger", fact.order_id, fact.provider_id, refund_id, None, fact.state)]
    if fact is None:
        if not row.provider_id:
            return []
        return [Difference("unknown to the provider", row.order_id, row.provider_id, refund_id, row.status, None)]
    pairs: list[tuple[str, str | int, str | int]] = [
        ("order", row.order_id, fact.order_id),
        ("amount", row.amount, fact.amount),
        ("state", row.status, fact.state),
    ]
    return [
        Difference(what, row.order_id, fact.provider_id, refund_id, ledger, told)
        for what, ledger, told in pairs
        if ledger != told
    ]


async def _refunds_again(
    connection: Connection,
    provider: PaymentProvider,
    suspects: dict[str, RefundFact | None],
    by_hand: Sequence[ForeignRefund],
) -> list[Difference]:
    rows = await refunds.of_ids(connection, list(suspects))
    orders = [row.order_id for row in rows.values()] + [fact.order_id for fact in suspects.values() if fact is not None]
    intents = await payments.of_orders(connection, orders)
    differences: list[Difference] = []

    async def look(refund_id: str, listed: RefundFact | None) -> list[Difference]:
        row = rows.get(refund_id)
        order_id = row.order_id if row is not None else listed.order_id if listed is not None else ""
        payment = intents.get(order_id)
        fact = listed
        if payment is not None and payment.provider_id:
            try:
                fact = await provider.look_refund(refund_id, payment.provider_id) or listed
            except ProviderRefused:
                fact = listed
        return _refund_compared(row, fact, refund_id)

    for found in await _at_most(LOOKS_AT_ONCE, [look(*suspect) for suspect in suspects.items()]):
        differences += found
    owners = await payments.of_intents(connection, [refund.intent_id for refund in by_hand])
    differences += [
        Difference("refunded by hand", owners[each.intent_id], each.provider_id, None, None, RefundState.SUCCEEDED)
        for each in by_hand
        if each.intent_id in owners
    ]
    return differences


async def _in_sets(items: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    """The same items, many at once."""
    gathered: list[T] = []
    async for item in items:
        gathered.append(item)
        if len(gathered) == ROWS:
            yield gathered
            gathered = []
    if gathered:
        yield gathered


async def _at_most(count: int, calls: Sequence[Any]) -> list[Any]:
    """What the calls answer, of which so many are under way at once."""
    turns = asyncio.Semaphore(count)

    async def one(call: Any) -> Any:
        async with turns:
            return await call

    return await asyncio.gather(*(one(call) for call in calls))
