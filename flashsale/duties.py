"""The duties of a worker: everything that goes on behind the answers, each by itself, put together here.

Any number of workers may run. Of each duty one worker has it and the others stand by; jobs of the queue are shared. A
duty that fails is begun anew alone (pipeline/care.py); the worker tells Valkey that it lives and which of them fail.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from flashsale import life_sign, worker_health
from flashsale.front.management import open_port
from flashsale.importing import importer
from flashsale.ledger import refunds
from flashsale.ledger.pool import Ledger
from flashsale.partners.carriers.http import open_account as open_carriers
from flashsale.partners.payments.account import open_account
from flashsale.partners.payments.stripe import facts_of
from flashsale.pipeline.care import Care, Work
from flashsale.pipeline.carrier_calls import CarrierCalls
from flashsale.pipeline.channel_pushes import pushes_of
from flashsale.pipeline.expiry import Expiry
from flashsale.pipeline.guarantees import Guarantees
from flashsale.pipeline.holds_may_return import HoldsMayReturn
from flashsale.pipeline.imports import Imports
from flashsale.pipeline.jobs import Jobs
from flashsale.pipeline.ledger_writer import LedgerWriter
from flashsale.pipeline.log_rewriting import LogRewriting
from flashsale.pipeline.outbox import Outbox
from flashsale.pipeline.payment_events import PaymentEvents
from flashsale.pipeline.promise_alerts import PromiseAlerts
from flashsale.pipeline.provider_calls import ProviderCalls
from flashsale.pipeline.refund_jobs import RefundJobs
from flashsale.pipeline.settlements import Settlements
from flashsale.pipeline.webhooks import WebhookFanout, jobs_of, sender_of
from flashsale.recovery import SET_ASIDE, Guard
from flashsale.reservation import server, workers
from flashsale.settings import Settings

LEDGER_CONNECTIONS = 4  # of the jobs, which take one for a statement or two
LEDGER_TIMEOUT_S = 10.0

log = structlog.get_logger(__name__)


async def work(settings: Settings, redis_url: str, database_url: str, rebuild: bool, stop: asyncio.Event) -> list[str]:
    """Runs every duty until `stop` is set, and for the drain's time after it. `rebuild`: an empty Valkey is rebuilt
    unasked. Returns the duties that had to be cut short."""
    async with AsyncExitStack() as held:
        ledger = Ledger(database_url, connections_max=LEDGER_CONNECTIONS, timeout_s=LEDGER_TIMEOUT_S)
        held.push_async_callback(ledger.close)
        signs = server.connect(redis_url, connections=1)
        held.push_async_callback(signs.aclose)
        care = Care(duties_of(settings, redis_url, database_url, rebuild, ledger, held))
        name = f"{socket.gethostname()}-{os.getpid()}"
        if settings.management_port is not None:
            held.push_async_callback((await open_port(worker_health.application(care.failing), settings)).cleanup)
        showing = asyncio.create_task(life_sign.show(care.alive))
        telling = asyncio.create_task(
            workers.keep_giving(signs, name, care.failing, stop, lambda: _asked_by_guard(care))
        )
        running = asyncio.create_task(care.run(settings.drain_timeout_s))
        await stop.wait()
        care.stop()
        late = await running
        showing.cancel()
        await asyncio.wait({telling}, timeout=workers.SIGN_S)
        await server.ended(telling)
        return late


def _asked_by_guard(care: Care) -> str:
    """Why this worker does not accept Valkey, and what helps."""
    guard = care.work_of("guard")
    return "; ".join(guard.reasons) if isinstance(guard, Guard) else ""


def duties_of(
    settings: Settings, redis_url: str, database_url: str, rebuild: bool, ledger: Ledger, held: AsyncExitStack
) -> dict[str, Callable[[], Work]]:
    """How each duty is made, by its name. What they share is closed with `held`."""
    duties: dict[str, Callable[[], Work]] = {
        "guard": lambda: Guard(
            redis_url,
            database_url,
            durability=settings.durability,
            backlog_max_bytes=settings.backlog_max_bytes,
            automatic=rebuild,
            set_aside=settings.data_dir / SET_ASIDE,
        ),
        LedgerWriter.name: lambda: LedgerWriter(redis_url, database_url, rows=settings.writer_rows),
        Outbox.name: lambda: Outbox(redis_url, database_url),
        Expiry.name: lambda: Expiry(
            redis_url, database_url, sweep_s=settings.sweep_s, grace_s=settings.provider_grace_s
        ),
        HoldsMayReturn.name: lambda: HoldsMayReturn(redis_url, database_url),
        Guarantees.name: lambda: Guarantees(redis_url, database_url),
        PaymentEvents.name: lambda: PaymentEvents(redis_url, database_url, facts_of),
        WebhookFanout.name: lambda: WebhookFanout(database_url, log_days=settings.webhook_log_days),
        "channel pushes": lambda: pushes_of(settings, redis_url, database_url),
        Imports.name: lambda: Imports(database_url, importer(redis_url)),
        Settlements.name: lambda: Settlements(database_url),
        LogRewriting.name: lambda: LogRewriting(redis_url, database_url, grown_max_bytes=settings.log_replay_max_bytes),
        PromiseAlerts.name: lambda: PromiseAlerts(database_url),
        # A queue of their own: an endpoint that hangs keeps no refund waiting.
        "webhook jobs": lambda: jobs_of(database_url, sender_of(settings, ledger)),
    }
    provider = open_account(settings)
    if provider is not None:
        held.push_async_callback(provider.aclose)
        duties[ProviderCalls.name] = lambda: ProviderCalls(
            database_url,
            provider,
            concurrency=settings.payments_concurrency,
            timeout_s=settings.payments_timeout_s,
        )
        duties["refund jobs"] = lambda: Jobs(database_url, {refunds.JOB: RefundJobs(ledger, provider).handle})
    carriers = open_carriers(settings)
    if carriers is not None:
        held.push_async_callback(carriers.aclose)
        duties[CarrierCalls.name] = lambda: CarrierCalls(
            database_url,
            carriers,
            silent_s=settings.carriers_silent_s,
            concurrency=settings.carriers_concurrency,
            timeout_s=settings.carriers_timeout_s,
        )
    return duties
