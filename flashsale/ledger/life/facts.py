"""What the provider told, applied in sets: a batch of facts is a handful of statements, whatever its size.

Facts come late, twice and in any order. A payment changes only upwards in rank, so the newest truth wins whatever the
order, and what changed nothing is counted as a duplicate. The common case, a reserved order that is paid in full, is
done for the whole batch at once; everything else is done order by order (`_attend`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flashsale.ledger import history, outbox, payments
from flashsale.ledger.history import HistoryRow
from flashsale.ledger.life.change import CAPTURED, OVER, Change, add_sold, letter_of
from flashsale.ledger.life.restating import Promised, at_payment, restate, said
from flashsale.ledger.life.sweeps import OUTBOX_ORDERS, lapse
from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import Status
from flashsale.sale.payment import (
    RANK,
    REFUND_RANK,
    DisputeFact,
    DisputeState,
    Fact,
    IntentState,
    PaymentFact,
    RefundFact,
    RefundState,
)

# An authorisation is captured this long before the provider would drop it.
CAPTURE_EARLY_MS = 24 * 3600 * 1000
ASK_AGAIN_MS = 60_000  # an intent that is still open is asked again after this, doubling with each try
ASK_AGAIN_MAX_MS = 3600_000


@dataclass(slots=True)
class Applied:
    """How many facts did what. `late`: money for an order that is over, `foreign`: of no payment of ours."""

    paid: int = 0
    late: int = 0
    failed: int = 0
    changed: int = 0
    refunds: int = 0
    disputes: int = 0
    duplicate: int = 0
    foreign: int = 0


async def apply_facts(connection: Connection, facts: Sequence[Fact], now_ms: int) -> Applied:
    """Applies facts of any kind and order. The same facts again change nothing."""
    applied = Applied()
    intents = [fact for fact in facts if isinstance(fact, PaymentFact)]
    await payments.lock_many(connection)
    await connection.execute(_BY_KEY)
    if intents:
        await _apply_intents(connection, intents, now_ms, applied)
    for fact in facts:
        if isinstance(fact, RefundFact):
            await _apply_refund(connection, fact, now_ms, applied)
        elif isinstance(fact, DisputeFact):
            await _apply_dispute(connection, fact, now_ms, applied)
    return applied


def _newest(facts: Iterable[PaymentFact]) -> dict[tuple[str, str], PaymentFact]:
    """The fact of the highest rank of each intent; of equals a decline says more."""
    newest: dict[tuple[str, str], PaymentFact] = {}
    for fact in facts:
        key = (fact.order_id, fact.provider_id)
        known = newest.get(key)
        if known is None or _weight(fact) >= _weight(known):
            newest[key] = fact
    return newest


def _weight(fact: PaymentFact) -> tuple[int, bool]:
    return RANK[fact.state], fact.state is IntentState.FAILED


_UPDATE = """
UPDATE payment AS p SET
    provider_id = f.provider_id, state = f.state, rank = f.rank, method = coalesce(f.method, p.method),
    authorised = greatest(p.authorised, f.authorised), captured = f.captured,
    released = CASE WHEN f.rank = 3 THEN greatest(p.authorised, f.authorised) - f.captured ELSE 0 END,
    capture_before_ms = coalesce(f.capture_before_ms, p.capture_before_ms),
    failure = f.failure, attempt = coalesce(f.attempt, p.attempt), heard_ms = $10, tries = 0,
    declined = CASE WHEN f.state = 'failed' THEN p.declined || coalesce(f.attempt, '') ELSE p.declined END,
    todo = CASE WHEN f.rank >= 2 THEN NULL ELSE p.todo END,
    due_ms = CASE WHEN f.rank = 3 THEN NULL WHEN f.rank = 2 THEN f.capture_before_ms - $11 ELSE p.due_ms END
FROM unnest($1::text[], $2::text[], $3::text[], $4::int2[], $5::text[], $6::int8[], $7::int8[], $8::int8[],
            $9::text[], $12::text[], $13::text[])
     AS f (order_id, provider_id, state, rank, method, authorised, captured, capture_before_ms, failure, attempt,
           currency)
WHERE p.order_id = f.order_id AND (p.provider_id IS NULL OR p.provider_id = f.provider_id)
  AND (p.former IS NULL OR f.provider_id <> ALL (p.former))
  AND (f.currency IS NULL OR f.currency = p.currency)
  AND (f.rank > p.rank OR (f.rank = 0 AND p.rank = 0 AND f.state = 'failed'
       AND (p.declined IS NULL OR coalesce(f.attempt, '') <> ALL (p.declined))))
RETURNING p.order_id, p.rank, p.authorised, p.captured, p.amount, p.state, p.late, p.provider_id, p.method
"""

# Each order is looked up by its id, whatever the planner believes: after a million new orders it knows nothing of the
# table yet, and would compare all of it with every payment. An order that somebody changes meanwhile goes to _attend.
_BY_KEY = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
_PAID = """
WITH found AS MATERIALIZED (
    SELECT m.payment, o.place FROM unnest($1::text[], $2::text[]) AS m (id, payment)
    CROSS JOIN LATERAL (SELECT ctid AS place FROM orders WHERE orders.id = m.id OFFSET 0) AS o
)
UPDATE orders AS o SET status = 'paid', payment = found.payment, changes = changes + 1
FROM found WHERE o.ctid = found.place AND o.status = 'reserved' AND o.refunded IS NULL
RETURNING o.id, o.sale, o.partition, o.changes, o.skus, o.quantities, o.extended, o.payment,
          o.market, o.catalogue_version, o.lane_number, o.dispatch_day, o.promised_by
"""


async def _apply_intents(connection: Connection, facts: Sequence[PaymentFact], now_ms: int, applied: Applied) -> None:
    rows = list(_newest(facts).values())
    columns: list[list[Any]] = [[] for _ in range(11)]
    for fact in rows:
        values = (
            fact.order_id,
            fact.provider_id,
            fact.state.value,
            RANK[fact.state],
            fact.method,
            fact.authorised,
            fact.captured,
            fact.capture_before_ms,
            fact.failure,
            fact.attempt,
            fact.currency,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    changed = await connection.fetch(_UPDATE, *columns[:9], now_ms, CAPTURE_EARLY_MS, *columns[9:])
    intents = {row[0]: row[7] for row in changed}
    told = {fact.order_id: fact for fact in rows if intents.get(fact.order_id) == fact.provider_id}
    others = [fact for fact in rows if told.get(fact.order_id) is not fact]
    ours = await _ours(connection, others)
    await _note_answers(connection, ours, now_ms)
    foreign = {(fact.order_id, fact.provider_id) for fact in others if fact not in ours}
    strange = sum((fact.order_id, fact.provider_id) in foreign for fact in facts)
    applied.foreign += strange
    applied.duplicate += len(facts) - strange - len(changed)

    # order id -> what to show; only what is paid in full for the first time
    full = {
        row[0]: "captured" if row[3] else "authorised"
        for row in changed
        if row[1] >= 2 and row[2] >= row[4] and row[6] is None and row[5] != IntentState.CLOSED
    }
    paid = await connection.fetch(_PAID, list(full), list(full.values()))
    methods = {row[0]: row[8] for row in changed}
    await _note_paid(
        connection, paid, now_ms, {order_id: (methods[order_id], fact.source) for order_id, fact in told.items()}
    )
    applied.paid += len(paid)
    done = {row[0] for row in paid}
    for row in changed:
        if row[0] not in done:
            await _attend(connection, told[row[0]], now_ms, applied)


async def _ours(connection: Connection, facts: Sequence[PaymentFact]) -> set[PaymentFact]:
    """Those of the intent that their order is paid with: of that id, once one is known, and of its currency."""
    if not facts:
        return set()
    rows = await connection.fetch(
        "SELECT order_id, provider_id, currency FROM payment WHERE order_id = ANY ($1::text[])",
        list({fact.order_id for fact in facts}),
    )
    known = {row[0]: (row[1], row[2]) for row in rows}
    return {
        fact
        for fact in facts
        if fact.order_id in known
        and known[fact.order_id][0] in (None, fact.provider_id)
        and fact.currency in (None, known[fact.order_id][1])
    }


async def _note_answers(connection: Connection, facts: Iterable[PaymentFact], now_ms: int) -> None:
    """Polls and calls that told nothing new: when to ask again. The open intent of an order that is over is closed."""
    asked = [fact.order_id for fact in facts if fact.source in ("poll", "call")]
    if asked:
        await connection.execute(
            "UPDATE payment AS p SET heard_ms = $2,"
            " todo = CASE WHEN p.rank < 2 AND o.status = ANY ($5::text[]) THEN 'close' ELSE p.todo END,"
            " due_ms = CASE WHEN p.rank = 3 THEN NULL"
            "  WHEN p.rank = 2 AND p.todo IS NULL THEN greatest(p.capture_before_ms - $6, $2 + $3::int8)"
            "  ELSE $2 + least($3::int8 * (1 << least(p.tries, 10)), $4) END"
            " FROM orders AS o WHERE o.id = p.order_id AND p.order_id = ANY ($1::text[])",
            asked, now_ms, ASK_AGAIN_MS, ASK_AGAIN_MAX_MS, [status.value for status in OVER], CAPTURE_EARLY_MS,
        )  # fmt: skip


async def _note_paid(
    connection: Connection, paid: Sequence[Any], now_ms: int, told: dict[str, tuple[str, str]]
) -> None:
    """History, counters and outbox of orders that were paid in full. `told`: method and source by order."""
    if not paid:
        return
    restated = await restate(connection, [Promised(row[0], *row[8:]) for row in paid], now_ms)
    entries = []
    sold: Counter[tuple[int, int]] = Counter()
    letters: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for order_id, sale, partition, number, skus, quantities, extended, payment, *_, promised_by in paid:
        method, source = told[order_id]
        detail = {"method": method, "source": source}
        if order_id in restated:
            detail |= said(promised_by, restated[order_id])
        entries.append(HistoryRow(order_id, number, now_ms, "order.paid", "paid", payment, detail))
        for sku, units in zip(skus, quantities, strict=True):
            sold[sale, sku] += units
        letters[partition, sale].append({"order": order_id, "letter": letter_of(Status.PAID, extended)})
    await history.add(connection, entries)
    await add_sold(connection, sold)
    for (partition, sale), items in letters.items():
        for first in range(0, len(items), OUTBOX_ORDERS):
            await outbox.add(connection, partition, sale, outbox.STATUS, items[first : first + OUTBOX_ORDERS])


async def _attend(connection: Connection, fact: PaymentFact, now_ms: int, applied: Applied) -> None:
    """An order whose payment changed in any other way."""
    change = await Change.begin(connection, fact.order_id, now_ms)
    payment = change.payment
    assert payment is not None  # noqa: S101  it has just changed
    detail: dict[str, Any] = {"method": payment.method, "source": fact.source}
    if fact.state in (IntentState.OPEN, IntentState.PROCESSING):
        applied.changed += 1
    elif fact.state is IntentState.FAILED:
        applied.failed += 1
        if change.status is Status.RESERVED:
            await change.record("payment.failed", {**detail, "failure": fact.failure})
    elif fact.state is IntentState.CLOSED:
        applied.changed += 1
        if payment.authorised:
            await change.record("payment.released", {**detail, "amount": payment.released})
            if change.status is Status.PAID:
                await lapse(change)
    elif change.status is Status.RESERVED:
        await _pay(change, detail, applied)
    elif change.status is Status.EXPIRED and payment.late is None and payment.authorised >= payment.amount:
        applied.late += 1
        await change.pay(late="asked")
        await change.take_again(await change.record("payment.late", {**detail, "amount": payment.authorised}))
    elif change.status in OVER:
        applied.late += 1
        await change.record("payment.late", {**detail, "amount": payment.authorised})
        await change.settle("late")
    else:
        applied.changed += 1
        if payment.rank == CAPTURED:
            await change.record("payment.captured", {**detail, "amount": payment.captured})
        await change.settle("cancellation")


async def _pay(change: Change, detail: dict[str, Any], applied: Applied) -> None:
    """A reserved order that was cancelled in part, or for which less came than was asked."""
    payment = change.payment
    assert payment is not None  # noqa: S101  the caller has looked
    if payment.authorised < payment.amount:
        # Never paid by a part: what came goes back, and the hold runs on.
        applied.failed += 1
        await change.record("payment.failed", {**detail, "failure": "amount", "amount": payment.authorised})
        if payment.captured:
            await change.pay(goodwill=change.order.total)
            await change.settle("late")
            await change.pay(goodwill=0)
        else:
            await change.pay(todo="release", due_ms=change.now_ms, tries=0)
        return
    applied.paid += 1
    columns, more = await at_payment(change.connection, change.order, change.now_ms)
    await change.record("order.paid", detail | more, Status.PAID, **columns)
    await change.sell(zip(change.order.skus, change.left(), strict=True))
    await change.mirror()
    await change.settle("cancellation")


async def _apply_refund(connection: Connection, fact: RefundFact, now_ms: int, applied: Applied) -> None:
    old = await connection.fetchrow("SELECT order_id, amount FROM refund WHERE id = $1", fact.refund_id)
    if old is None or old[0] != fact.order_id or old[1] != fact.amount:
        applied.foreign += 1
        return
    change = await Change.begin(connection, fact.order_id, now_ms)
    before: str | None = await connection.fetchval(
        "UPDATE refund AS r SET status = $2, rank = $3, provider_id = $4, failure = $5, settled_ms = $6"
        " FROM refund AS old WHERE r.id = $1 AND old.id = r.id AND (r.rank < $3 OR r.provider_id IS NULL)"
        " RETURNING old.status",
        fact.refund_id, fact.state.value, REFUND_RANK[fact.state], fact.provider_id, fact.failure,
        None if fact.state is RefundState.PENDING else now_ms,
    )  # fmt: skip
    if before is None or before == fact.state:
        applied.duplicate += before is None
        return
    payment = change.payment
    assert payment is not None  # noqa: S101  a refund is of a payment
    applied.refunds += 1
    detail = {"refund": fact.refund_id, "amount": fact.amount, "source": fact.source}
    if fact.state is RefundState.SUCCEEDED:
        await change.pay(refunding=payment.refunding - fact.amount, refunded=payment.refunded + fact.amount)
        await change.record("refund.succeeded", detail)
    elif fact.state is RefundState.FAILED:
        was = "refunded" if before == RefundState.SUCCEEDED else "refunding"
        columns = {was: getattr(payment, was) - fact.amount}
        await change.pay(**columns, refund_failed=payment.refund_failed + fact.amount)
        await change.record("refund.failed", {**detail, "failure": fact.failure})


async def _apply_dispute(connection: Connection, fact: DisputeFact, now_ms: int, applied: Applied) -> None:
    order_id = await connection.fetchval("SELECT order_id FROM payment WHERE provider_id = $1", fact.provider_id)
    if order_id is None:
        applied.foreign += 1
        return
    change = await Change.begin(connection, order_id, now_ms)
    payment = change.payment
    assert payment is not None  # noqa: S101  found above
    opens = fact.state is DisputeState.OPEN
    disputes, decided = payment.disputes or [], payment.decided or []
    if fact.dispute_id in decided or (opens and fact.dispute_id in disputes):
        applied.duplicate += 1
        return
    applied.disputes += 1
    disputes = [other for other in disputes if other != fact.dispute_id]
    if opens:
        disputes = [*disputes, fact.dispute_id]
    else:
        decided = [*decided, fact.dispute_id]
    shown = DisputeState.OPEN if disputes else fact.state
    await change.pay(dispute=shown.value, disputes=disputes, decided=decided)
    event = "dispute.opened" if opens else "dispute.closed"
    detail = {"dispute": fact.dispute_id, "amount": fact.amount, "state": fact.state.value, "source": fact.source}
    await change.record(event, detail)
    await change.settle("dispute")
