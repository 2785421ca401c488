"""The job queue: what is done one by one, and again until it is done (refunds, outgoing webhooks).

Jobs lie in the ledger (pgqueuer), put there by the transactions that cause them. A job that fails comes again later;
one whose worker died is taken over when its heartbeat is old. So a handler may be called twice for the same payload,
and has to be idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import structlog
from pgqueuer import QueueManager
from pgqueuer.errors import RetryRequested
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from flashsale import metrics
from flashsale.ledger.pool import connect
from flashsale.pipeline.duty import BACKOFF_S, LOST, STATEMENT_S, is_away

log = structlog.get_logger(__name__)

Handler = Callable[[str], Awaitable[None]]
"""Does one job, given its payload. Raises RetryRequested where it is to come again at a time of its choice; whatever
else it raises brings the job back after a pause that doubles."""

POLL_S = 2.0  # a job that nobody was notified of, or that a dead worker held, is found within this
HEARTBEAT_S = 8.0  # a job is taken over when its worker gave no sign for this long
AGAIN_S = (1.0, 300.0)  # first and longest pause before a job that failed comes again


class Jobs:
    """Handles jobs by their names. Any number of workers may; a job is one worker's at a time."""

    def __init__(
        self, database_url: str, handlers: Mapping[str, Handler], *, concurrency: int = 16, poll_s: float = POLL_S
    ) -> None:
        """`handlers` by job name; `concurrency`: jobs of theirs under way at once. Jobs that may be slow for long do
        not keep others waiting in a `Jobs` of their own; those that are often put off for a moment want a short
        `poll_s`, for the queue tells nobody when a job is due again."""
        self._database_url = database_url
        self._handlers = dict(handlers)
        self._poll_s = poll_s
        self._batch = max(1, concurrency // 2)
        self._stopping = asyncio.Event()
        self._manager: QueueManager | None = None

    async def run(self) -> None:
        """Works until stop(); begins again after every loss."""
        pause = BACKOFF_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._work()
            except LOST as fault:
                if not is_away(fault):
                    raise
                log.warning("the job queue waits", jobs=list(self._handlers), reason=f"{type(fault).__name__}: {fault}")
            if time.monotonic() - began > BACKOFF_S[1]:
                pause = BACKOFF_S[0]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, BACKOFF_S[1])

    def stop(self) -> None:
        """Ends run(); jobs under way are put back."""
        self._stopping.set()
        if self._manager is not None:
            self._manager.shutdown.set()

    async def _work(self) -> None:
        connection = await connect(self._database_url, statement_s=STATEMENT_S)
        ending = asyncio.Event()  # the connection is gone, or it is time to stop
        connection.add_termination_listener(lambda _: ending.set())
        manager = QueueManager(Queries.from_asyncpg_connection(connection))
        for name, handler in self._handlers.items():
            # "hold": should a job ever fail for good, it is kept for somebody to look at.
            manager.entrypoint(name, on_failure="hold", accepts_context=False)(_guarded(name, handler, ending))
        self._manager = manager
        watching = asyncio.create_task(self._end(ending, manager))
        try:
            if not self._stopping.is_set():
                await manager.run(
                    dequeue_timeout=timedelta(seconds=self._poll_s),
                    batch_size=self._batch,
                    max_concurrent_tasks=2 * self._batch,
                    heartbeat_timeout=timedelta(seconds=HEARTBEAT_S),
                )
        finally:
            self._manager = None
            watching.cancel()
            connection.terminate()

    async def _end(self, ending: asyncio.Event, manager: QueueManager) -> None:
        """Tells the jobs under way that it is over, and the manager when the connection is gone."""
        others = [asyncio.create_task(event.wait()) for event in (self._stopping, ending)]
        try:
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for other in others:
                other.cancel()
        ending.set()
        manager.shutdown.set()


def _guarded(name: str, handler: Handler, ending: asyncio.Event) -> Callable[[Job], Awaitable[None]]:
    """The handler as the queue calls it: it ends at once when `ending` is set, and no fault loses its job."""

    async def handle(job: Job) -> None:
        payload = (job.payload or b"").decode()
        working = asyncio.ensure_future(handler(payload))
        over = asyncio.create_task(ending.wait())
        try:
            await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        if working.cancelled():
            raise RetryRequested(reason="its worker stops")
        fault = working.exception()
        if fault is None:
            return
        if isinstance(fault, RetryRequested):
            raise fault
        delay_s = min(AGAIN_S[0] * 2 ** min(job.attempts, 16), AGAIN_S[1])
        metrics.JOB_RETRIES.labels(name).inc()
        if isinstance(fault, LOST):
            log.warning(
                "a job waits for a server", job=name, payload=payload, reason=f"{type(fault).__name__}: {fault}"
            )
        else:
            log.error("a job failed and comes again", job=name, payload=payload, again_s=delay_s, exc_info=fault)
        raise RetryRequested(timedelta(seconds=delay_s), f"{type(fault).__name__}: {fault}")

    return handle
