"""Refunds at the provider: one job each, repeated until the provider has said what became of it.

The refund's id is the provider's key for it, so that a repetition moves no money twice. A refund that the provider has
taken and not settled is looked at, less and less often, unless an event tells first.
"""

from __future__ import annotations

import time
from datetime import timedelta

import structlog
from pgqueuer.errors import RetryRequested

from flashsale import metrics
from flashsale.ledger import life, payments, refunds
from flashsale.ledger.payments import PaymentRow
from flashsale.ledger.pool import Ledger
from flashsale.ledger.refunds import RefundRow
from flashsale.partners.payments.provider import PaymentProvider, ProviderAway, ProviderRefused
from flashsale.sale.payment import RefundFact, RefundState

log = structlog.get_logger(__name__)

WATCH_S = (5.0, 3600.0)  # shortest and longest pause between two looks at a pending refund: a quarter of its age
AWAY_S = (1.0, 60.0)  # and before a provider that was away is asked again: a tenth of its age


class RefundJobs:
    """Handles the jobs named refunds.JOB. Ledger and provider are the caller's to close."""

    def __init__(self, ledger: Ledger, provider: PaymentProvider) -> None:
        self._ledger = ledger
        self._provider = provider

    async def handle(self, refund_id: str) -> None:
        """One refund's job. Raises RetryRequested where it is to come again."""
        async with self._ledger.connection() as connection:
            refund = await refunds.get(connection, refund_id)
            payment = None if refund is None else await payments.find(connection, refund.order_id)
        if refund is None or payment is None or not payment.provider_id:
            log.error("a job names a refund that can't be made", refund=refund_id)
            return
        if refund.status != RefundState.PENDING:
            return
        age_s = max(0.0, time.time() - refund.created_ms / 1000)
        try:
            fact = await self._ask(refund, payment, payment.provider_id)
            metrics.PROVIDER_CALLS.labels("refund", "told").inc()
        except ProviderAway as away:
            metrics.PROVIDER_CALLS.labels("refund", "away").inc()
            raise _again(age_s / 10, AWAY_S, str(away)) from None
        except ProviderRefused as refused:
            metrics.PROVIDER_CALLS.labels("refund", "refused").inc()
            log.error(
                "the payment provider refuses a refund: the shopper is owed the money",
                order=refund.order_id, refund=refund_id, amount=refund.amount, code=refused.code,
                reason=refused.message,
            )  # fmt: skip
            fact = RefundFact(refund.order_id, refund_id, "", RefundState.FAILED, refund.amount, refused.code, "call")
        async with self._ledger.connection() as connection, connection.transaction():
            applied = await life.apply_facts(connection, [fact], time.time_ns() // 1_000_000)
        if applied.foreign:
            log.error("the payment provider told of another refund than was asked for", refund=refund_id, told=fact)
        if fact.state is RefundState.PENDING:
            raise _again(age_s / 4, WATCH_S, "the refund is pending at the provider")

    async def _ask(self, refund: RefundRow, payment: PaymentRow, provider_id: str) -> RefundFact:
        if refund.provider_id is not None:
            # A key answers what it answered first: how the refund is now, only a look tells.
            found = await self._provider.look_refund(refund.id, provider_id)
            if found is not None:
                return found
        return await self._provider.refund(refund.id, refund.order_id, provider_id, refund.amount, refund.created_ms)


def _again(seconds: float, bounds: tuple[float, float], reason: str) -> RetryRequested:
    return RetryRequested(timedelta(seconds=min(max(seconds, bounds[0]), bounds[1])), reason)
