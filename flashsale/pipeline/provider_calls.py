"""What the ledger wants of the payment provider: close, release, capture; and how silent intents are.

Payments that are due are claimed in sets, asked about with bounded concurrency, and what was answered is applied in
sets, as facts like any event's. A call whose outcome is unknown is made again, for its key moves money once; one that
was under way when its worker died is due again as soon as the next worker takes the duty up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, replace

import structlog

from flashsale import metrics
from flashsale.ledger import life, orders, payments, refunds
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.payments import PaymentRow
from flashsale.ledger.pool import Connection, LedgerAway
from flashsale.partners.payments.provider import Opened, Payable, PaymentProvider, ProviderAway, ProviderRefused
from flashsale.pipeline.careful import apply_carefully
from flashsale.pipeline.duty import Duty
from flashsale.sale.payment import RANK, IntentState, PaymentFact

log = structlog.get_logger(__name__)

POLL_S = 0.1  # pause between two looks for payments that are due
AHEAD = 2  # claimed payments, in multiples of the calls under way: the next ones wait when a call ends
CALL_REQUESTS = 6  # at most so many requests of the adapter's make up one call
AGAIN_MS = (1_000, 60_000)  # first and longest pause before a call with unknown outcome is made again
BRAKE_S = (0.2, 5.0)  # and before anything more is asked of a provider that answered none of a set
REFUND_SWEEP_S = 30.0  # pause between two looks for refunds that have no job
REFUND_LOST_MS = 60_000  # a refund is older than this then
REFUNDS_AT_ONCE = 500


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Answer:
    """What became of one payment's call: a fact, or none where the provider was away. `opened`: a session that was not
    known before."""

    payment: PaymentRow
    fact: PaymentFact | None = None
    opened: Opened | None = None


class ProviderCalls(Duty):
    """Asks the provider for what is due. The provider is its caller's to close."""

    name = "provider calls"
    lock = 0x666C7063

    def __init__(
        self, database_url: str, provider: PaymentProvider, *, concurrency: int = 16, timeout_s: float = 10
    ) -> None:
        """`timeout_s`: the provider's, of one request."""
        super().__init__(database_url)
        self._provider = provider
        self._concurrency = concurrency
        self._lease_ms = round(1000 * timeout_s) * CALL_REQUESTS * (AHEAD + 1)
        self._brake_s = 0.0
        self._ask_after = 0.0  # by the monotonic clock: the brake's end

    async def work(self, connection: Connection) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await payments.unlease(connection, now_ms())
        waiting: deque[tuple[PaymentRow, OrderRow | None]] = deque()
        calls: set[asyncio.Task[Answer]] = set()
        swept = 0.0
        try:
            while not self.stopping.is_set():
                self.beat()
                if lost.is_set():
                    raise LedgerAway("PostgreSQL closed the connection")
                if time.monotonic() - swept > REFUND_SWEEP_S:
                    await self._see_to_refunds(connection)
                    swept = time.monotonic()
                room = AHEAD * self._concurrency - len(waiting) - len(calls)
                if room > 0 and len(waiting) < self._concurrency and time.monotonic() >= self._ask_after:
                    waiting += await self._claim(connection, room)
                while waiting and len(calls) < self._concurrency:
                    calls.add(asyncio.create_task(self._ask(*waiting.popleft())))
                if not calls:
                    await self.pause(POLL_S)
                    continue
                done = await self._some(calls)
                calls -= done
                if done:
                    await self._store(connection, [call.result() for call in done])
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _some(self, calls: set[asyncio.Task[Answer]]) -> set[asyncio.Task[Answer]]:
        """Calls that have ended; none of them when it is time to stop or to look for more."""
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            done, _ = await asyncio.wait({*calls, stopping}, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        return calls & done

    async def _claim(self, connection: Connection, limit: int) -> list[tuple[PaymentRow, OrderRow | None]]:
        """Payments to ask about now, with their orders where the session is yet to be opened."""
        async with connection.transaction():
            claimed = await payments.claim_due(connection, now_ms(), limit, self._lease_ms)
            ending = [row for row in claimed if row.rank == RANK[IntentState.AUTHORISED] and row.todo is None]
            if ending:  # the provider would drop these authorisations soon: captured, shipped or not
                await payments.lock_many(connection)
            due = [await life.capture_before_deadline(connection, row.order_id, now_ms()) for row in ending]
            captured = {row.order_id for row in due if row is not None}  # due now: they come with the next claim
            rows = [row for row in claimed if row.order_id not in captured]
            return [(row, None if row.session_id else await orders.find(connection, row.order_id)) for row in rows]

    # --- one call ---

    async def _ask(self, payment: PaymentRow, order: OrderRow | None) -> Answer:
        """One payment's call. Raises nothing but a cancellation."""
        name = "open" if payment.session_id is None else payment.todo or "look"
        answer = Answer(payment)
        outcome = "told"
        try:
            if payment.session_id is None:
                answer.opened = await self._open(payment, order)
                opened = answer.opened
                provider_id = payment.provider_id or opened.provider_id
                payment = replace(payment, session_id=opened.session_id, provider_id=provider_id)
                name = payment.todo or "look"
            answer.fact = await self._call(payment)
        except ProviderAway as away:
            outcome = "away"
            log.info("the payment provider is asked again later", order=payment.order_id, call=name, reason=str(away))
        except ProviderRefused as refused:
            outcome = "refused"
            log.error(
                "the payment provider refuses what the ledger wants: look at the order",
                order=payment.order_id, provider_id=payment.provider_id, call=name, code=refused.code,
                reason=refused.message,
            )  # fmt: skip
            answer.fact = await self._look_after(payment)
        except Exception:  # a fault of ours: it must not end the other calls
            outcome = "away"
            log.exception("a call to the payment provider failed", order=payment.order_id, call=name)
        metrics.PROVIDER_CALLS.labels(name, outcome).inc()
        return answer

    async def _open(self, payment: PaymentRow, order: OrderRow | None) -> Opened:
        """The session of an order whose front died, or was cut off, before it noted one: the same key finds or makes
        it, so that it can be closed or looked at for certain."""
        if order is None:
            raise ProviderAway("the order is not in the ledger yet")
        payable = Payable.of_order(
            payment.order_id,
            order.market,
            payment.amount,
            payment.currency,
            payment.return_url,
            order.journal_ms + order.hold_ms,
        )
        return await self._provider.open(payable, payment.created_ms)

    async def _call(self, payment: PaymentRow) -> PaymentFact:
        order_id, session_id, provider_id = payment.order_id, payment.session_id or "", payment.provider_id
        if payment.todo == "close":
            return await self._provider.close(order_id, session_id, provider_id)
        if payment.todo == "release" and provider_id is not None:
            return await self._provider.release(order_id, provider_id)
        if payment.todo == "capture" and provider_id is not None:
            return await self._provider.capture(order_id, provider_id, payment.todo_amount or 0)
        return await self._provider.look(order_id, session_id, provider_id)

    async def _look_after(self, payment: PaymentRow) -> PaymentFact | None:
        """How the intent is after a refusal, which may tell why."""
        if payment.session_id is None:
            # The provider makes no object for it, now or ever: nobody can pay it.
            return PaymentFact(payment.order_id, "", IntentState.CLOSED, None, 0, 0, None, None, None, "call")
        try:
            return await self._provider.look(payment.order_id, payment.session_id, payment.provider_id)
        except (ProviderAway, ProviderRefused):
            return None

    # --- what came back ---

    async def _store(self, connection: Connection, answers: list[Answer]) -> None:
        """Applies what was answered; what was not is due again."""
        told = [answer for answer in answers if answer.fact is not None]
        at_ms = now_ms()
        async with connection.transaction():
            for answer in answers:
                if answer.opened is not None:
                    opened, row = answer.opened, answer.payment
                    await payments.opened(connection, row.order_id, row.created_ms, *opened)
            facts = [answer.fact for answer in told if answer.fact is not None]
            applied, unfit = await apply_carefully(connection, facts, at_ms)
            for place, error in unfit:
                log.error(
                    "the payment provider's answer could not be applied", order=facts[place].order_id, error=error
                )
            again = [answer.payment for answer in answers if answer.fact is None]
            again += [told[place].payment for place, _ in unfit]
            await payments.postpone(connection, [row.order_id for row in again], [at_ms + pause(row) for row in again])
        if applied.foreign:
            log.error("the payment provider told of intents that are not the ledger's", intents=applied.foreign)
        self._brake(bool(told))

    def _brake(self, answered: bool) -> None:
        """A provider that is away is asked less and less, whatever is due."""
        self._brake_s = 0.0 if answered else min(max(2 * self._brake_s, BRAKE_S[0]), BRAKE_S[1])
        self._ask_after = time.monotonic() + self._brake_s

    async def _see_to_refunds(self, connection: Connection) -> None:
        lost = await refunds.without_job(connection, now_ms() - REFUND_LOST_MS, REFUNDS_AT_ONCE)
        for refund_id in lost:
            await refunds.enqueue(connection, refund_id)
        if lost:
            log.warning("refunds without a job got one again", refunds=len(lost))


def pause(payment: PaymentRow) -> int:
    """Milliseconds until a call with unknown outcome is made again; longer with each try."""
    first, longest = AGAIN_MS
    return int(min(first * 2 ** min(max(payment.tries - 1, 0), 16), longest))
