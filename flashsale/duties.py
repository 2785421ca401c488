"""The duties of a worker: everything that goes on behind the answers, each by itself, put together here.

Any number of workers may run. Of each duty one worker has it and the others stand by; jobs of the queue are shared.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Protocol

from flashsale.importing import importer
from flashsale.ledger import refunds
from flashsale.ledger.pool import Ledger
from flashsale.partners.carriers.http import open_account as open_carriers
from flashsale.partners.payments.account import open_account
from flashsale.partners.payments.stripe import facts_of
from flashsale.pipeline.carrier_calls import CarrierCalls
from flashsale.pipeline.channel_pushes import pushes_of
from flashsale.pipeline.expiry import Expiry
from flashsale.pipeline.guarantees import Guarantees
from flashsale.pipeline.holds_may_return import HoldsMayReturn
from flashsale.pipeline.imports import Imports
from flashsale.pipeline.jobs import Jobs
from flashsale.pipeline.ledger_writer import LedgerWriter
from flashsale.pipeline.outbox import Outbox
from flashsale.pipeline.payment_events import PaymentEvents
from flashsale.pipeline.promise_alerts import PromiseAlerts
from flashsale.pipeline.provider_calls import ProviderCalls
from flashsale.pipeline.refund_jobs import RefundJobs
from flashsale.pipeline.settlements import Settlements
from flashsale.pipeline.webhooks import WebhookFanout, jobs_of, sender_of
from flashsale.recovery import Guard
from flashsale.settings import Settings

LEDGER_CONNECTIONS = 4  # of the jobs, which take one for a statement or two
LEDGER_TIMEOUT_S = 10.0


class Work(Protocol):
    """What a worker runs side by side: it ends soon after stop()."""

    async def run(self) -> None: ...

    def stop(self) -> None: ...


async def work(settings: Settings, redis_url: str, database_url: str, rebuild: bool, stop: asyncio.Event) -> None:
    """Runs every duty until `stop` is set; a failure of one ends all. `rebuild`: an empty Valkey is rebuilt unasked."""
    async with AsyncExitStack() as held:
        parts: list[Work] = [
            Guard(
                redis_url,
                database_url,
                durability=settings.durability,
                backlog_max_bytes=settings.backlog_max_bytes,
                automatic=rebuild,
            ),
            LedgerWriter(redis_url, database_url, rows=settings.writer_rows),
            Outbox(redis_url, database_url),
            Expiry(redis_url, database_url, sweep_s=settings.sweep_s, grace_s=settings.provider_grace_s),
            HoldsMayReturn(redis_url, database_url),
            Guarantees(redis_url, database_url),
            PaymentEvents(redis_url, database_url, facts_of),
            WebhookFanout(database_url, log_days=settings.webhook_log_days),
            pushes_of(settings, redis_url, database_url),
            Imports(database_url, importer(redis_url)),
            Settlements(database_url),
            PromiseAlerts(database_url),
        ]
        ledger = Ledger(database_url, connections_max=LEDGER_CONNECTIONS, timeout_s=LEDGER_TIMEOUT_S)
        held.push_async_callback(ledger.close)
        provider = open_account(settings)
        if provider is not None:
            held.push_async_callback(provider.aclose)
            calls = ProviderCalls(
                database_url,
                provider,
                concurrency=settings.payments_concurrency,
                timeout_s=settings.payments_timeout_s,
            )
            refund_jobs = Jobs(database_url, {refunds.JOB: RefundJobs(ledger, provider).handle})
            parts += [calls, refund_jobs]
        carriers = open_carriers(settings)
        if carriers is not None:
            held.push_async_callback(carriers.aclose)
            parts.append(
                CarrierCalls(
                    database_url,
                    carriers,
                    silent_s=settings.carriers_silent_s,
                    concurrency=settings.carriers_concurrency,
                    timeout_s=settings.carriers_timeout_s,
                )
            )
        # A queue of their own: an endpoint that hangs keeps no refund waiting.
        parts.append(jobs_of(database_url, sender_of(settings, ledger)))
        async with asyncio.TaskGroup() as tasks:
            for part in parts:
                tasks.create_task(part.run())
            await stop.wait()
            for part in parts:
                part.stop()
