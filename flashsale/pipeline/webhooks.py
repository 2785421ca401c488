"""Webhooks out: what happened to orders, told to the endpoints that asked to hear of it.

`WebhookFanout` makes deliveries from the history; `WebhookSender` handles their jobs, one delivery each. Signed after
Standard Webhooks (https://www.standardwebhooks.com): `webhook-id` is the message's and the same in every try, so that
a receiver can drop what it has already; order is not promised, `data.number` tells it. A worker that dies between an
endpoint's answer and the ledger sends again: at least once, never not at all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import structlog
from pgqueuer.errors import RetryRequested
from standardwebhooks import Webhook

from flashsale.ledger import followers, webhook_endpoints, webhooks
from flashsale.ledger.pool import CONNECTION_LOST, Connection, Ledger
from flashsale.ledger.webhooks import Due
from flashsale.partners.outbound import Answer, Forbidden, Outbound, Unanswered, networks
from flashsale.pipeline.duty import Duty
from flashsale.pipeline.jobs import Jobs
from flashsale.settings import Settings

log = structlog.get_logger(__name__)

POLL_S = 0.2  # a change is told within this after its transaction, and those before it, have ended
HISTORY_ROWS = 1000  # changes handed out in one transaction
SWEEP_S = 30.0  # pause between two looks for deliveries without a job, and for old ones
LOST_AFTER_MS = 60_000  # beyond every lease and the queue's own heartbeat
LOST_AT_ONCE = 1000
JITTER = 0.2  # a pause is longer by up to this share, so that what failed together does not come back together
LEASE_SLACK_MS = 5_000  # beside the time-out of a try: for the ledger's part of it
LINE_LONGEST_S = 60.0  # the longest that a delivery waits for a busy endpoint before it asks again
AWAY_RETRY_S = 1.0  # after the ledger was lost
DAY_MS = 86_400_000
ERROR_MAX = 300  # characters in the delivery log
CONCURRENCY = 64  # deliveries under way at once in one worker: sockets, most of them waiting
USER_AGENT = "flashsale-webhooks/1"
GONE = 410  # the endpoint wants nothing any more


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class WebhookFanout(Duty):
    """Hands history to the endpoints, does the replays that were asked for, and keeps the delivery log short."""

    name = "webhook fan-out"
    lock = 0x666C7768

    def __init__(self, database_url: str, *, log_days: int, rows: int = HISTORY_ROWS) -> None:
        super().__init__(database_url)
        self._log_ms = log_days * DAY_MS
        self._rows = rows

    async def work(self, connection: Connection) -> None:
        await followers.mend(connection, self.beat)
        swept = 0.0
        while not self.stopping.is_set():
            self.beat()
            told = await webhooks.tell(connection, rows=self._rows, now_ms=now_ms())
            again = await webhooks.replay(connection, rows=self._rows, now_ms=now_ms())
            if time.monotonic() - swept > SWEEP_S:
                await self._sweep(connection)
                swept = time.monotonic()
            if not (told.more or again.more):
                await self.pause(POLL_S)

    async def _sweep(self, connection: Connection) -> None:
        lost = await webhooks.find_lost(connection, before_ms=now_ms() - LOST_AFTER_MS, limit=LOST_AT_ONCE)
        if lost:
            log.info("deliveries without a job got one again", deliveries=lost)
        await webhooks.prune(connection, before_ms=now_ms() - self._log_ms)


@dataclass(slots=True)
class _Line:
    """The deliveries to one endpoint: how many are under way, how long one takes, when the last in line may come."""

    sending: int = 0
    took_s: float = 0.1
    last: float = 0.0


class WebhookSender:
    """Tries deliveries. `retry_s`: the pauses before further tries; after the last of them a delivery is given up."""

    def __init__(
        self,
        ledger: Ledger,
        outbound: Outbound,
        *,
        retry_s: Sequence[float],
        endpoint_concurrency: int,
        circuit_failures: int,
    ) -> None:
        self._ledger = ledger
        self._outbound = outbound
        self._retry_s = tuple(retry_s)
        self._concurrency = endpoint_concurrency
        self._circuit_failures = circuit_failures
        self._lines: dict[str, _Line] = {}
        self._lease_ms = round(outbound.timeout_s * 1000) + LEASE_SLACK_MS
        self._patience_ms = round(1000 * ((1 + JITTER) * sum(retry_s) + len(self._retry_s) * outbound.timeout_s))

    async def handle(self, delivery_id: str) -> None:
        """One delivery's job. Raises pgqueuer's RetryRequested where the job is to come again."""
        endpoint = delivery_id.partition(".")[0]
        line = self._lines.setdefault(endpoint, _Line())
        if line.sending >= self._concurrency:
            raise _again_in(self._wait_in(line), "its endpoint is busy")
        line.sending += 1
        began = time.monotonic()
        try:
            next_ms = await self._attempt(delivery_id)
        except CONNECTION_LOST as fault:
            raise _again_in(AWAY_RETRY_S, f"{type(fault).__name__}: {fault}") from None
        finally:
            line.sending -= 1
            line.took_s += (time.monotonic() - began - line.took_s) / 8
        if next_ms is not None:
            raise _again_in(max((next_ms - now_ms()) / 1000, 0.05), "a further try")

    def _wait_in(self, line: _Line) -> float:
        """Seconds until a delivery that joins the line may expect its turn."""
        now = time.monotonic()
        line.last = min(max(line.last, now) + line.took_s / self._concurrency, now + LINE_LONGEST_S)
        return max(line.last - now, 0.05)

    async def _attempt(self, delivery_id: str) -> int | None:
        """Tries, if it is time. When the job is to come again, None: never."""
        at_ms = now_ms()
        async with self._ledger.connection() as connection:
            due = await webhooks.due(connection, delivery_id)
            if due is None or due.status != "pending":
                return None
            if due.disabled:
                await _give_up(connection, due, "the endpoint is disabled")
                return None
            if due.next_ms > at_ms:
                return due.next_ms
            if due.tries > len(self._retry_s):
                await _give_up(connection, due, "every try was lost")  # its worker died, or failed, each time
                return None
            probing = due.open_until_ms is not None
            if due.open_until_ms is not None and not await self._may_probe(connection, due, at_ms):
                return await self._wait_for_circuit(connection, due, at_ms)
            if not await webhooks.begin(connection, due, now_ms=at_ms, lease_ms=self._lease_ms):
                return at_ms + 1000  # another worker has it, or a replay began it anew
        outcome: Answer | Forbidden | Unanswered
        try:
            outcome = await self._outbound.post(due.url, *signed(due, at_ms // 1000))
        except (Forbidden, Unanswered) as fault:
            outcome = fault
        async with self._ledger.connection() as connection, connection.transaction():
            return await self._record(connection, due, outcome, probing)

    async def _may_probe(self, connection: Connection, due: Due, at_ms: int) -> bool:
        until_ms = due.open_until_ms or 0
        return until_ms <= at_ms and await webhook_endpoints.probe(
            connection, due.endpoint, until_ms, now_ms=at_ms, lease_ms=self._lease_ms
        )

    async def _wait_for_circuit(self, connection: Connection, due: Due, at_ms: int) -> int | None:
        """No try, none counted; but no longer than the whole schedule."""
        if at_ms > due.queued_ms + self._patience_ms:
            await _give_up(connection, due, "the endpoint was not reachable")
            return None
        until_ms = max(due.open_until_ms or 0, at_ms + 1000)
        next_ms = until_ms + round((until_ms - at_ms) * _chance())
        await webhooks.postpone(connection, due, next_ms)
        return next_ms

    async def _record(
        self, connection: Connection, due: Due, outcome: Answer | Forbidden | Unanswered, probing: bool
    ) -> int | None:
        """Writes down how the try ended."""
        tries = due.tries + 1
        status = outcome.status if isinstance(outcome, Answer) else None
        if status is not None and 200 <= status < 300:
            await webhooks.settle(connection, due.id, "delivered", tries=tries, http_status=status)
            await webhook_endpoints.answered(connection, due.endpoint)
            return None
        error = _error(outcome)
        next_ms: int | None = None
        if status == GONE:
            await webhook_endpoints.disable(connection, due.endpoint)
            log.warning("a webhook endpoint is gone: it is disabled", endpoint=due.endpoint)
        else:
            await webhook_endpoints.failed(
                connection,
                due.endpoint,
                probing=probing,
                failures_max=self._circuit_failures,
                now_ms=now_ms(),
            )
            if tries <= len(self._retry_s):
                next_ms = now_ms() + round(1000 * self._retry_s[tries - 1] * (1 + _chance()))
        if next_ms is None:
            log.warning("a webhook is given up", delivery=due.id, tries=tries, reason=error)
        await webhooks.settle(
            connection,
            due.id,
            "given_up" if next_ms is None else "pending",
            tries=tries,
            http_status=status,
            error=error,
            next_ms=next_ms,
        )
        return next_ms


def jobs_of(database_url: str, sender: WebhookSender) -> Jobs:
    """The sender at the job queue, in `Jobs` of its own: strangers' endpoints may be slow, refunds may not."""
    return Jobs(database_url, {webhooks.ENTRYPOINT: sender.handle}, concurrency=CONCURRENCY, poll_s=POLL_S)


def sender_of(settings: Settings, ledger: Ledger) -> WebhookSender:
    """The sender that the settings describe. Raises ValueError for an allow-list of what are no networks."""
    return WebhookSender(
        ledger,
        Outbound(timeout_s=settings.webhook_timeout_s, allow=networks(settings.webhook_allow)),
        retry_s=settings.webhook_retry_s,
        endpoint_concurrency=settings.webhook_endpoint_concurrency,
        circuit_failures=settings.webhook_circuit_failures,
    )


def signed(due: Due, at_s: int) -> tuple[bytes, dict[str, str]]:
    """The message's body, and the headers of a try at UNIX time `at_s`."""
    body = message(due)
    signature = Webhook(due.secret).sign(due.message_id, datetime.fromtimestamp(at_s, UTC), body.decode())
    return body, {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": due.message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": signature,
    }


def message(due: Due) -> bytes:
    """{"type", "timestamp", "data"}: the same bytes in every try, for history does not change."""
    detail: dict[str, Any] = orjson.loads(due.detail or "{}") or {}
    detail.pop("key", None)  # the shopper's Idempotency-Key is nobody else's business
    return orjson.dumps(
        {
            "type": due.event,
            "timestamp": _rfc3339(due.at_ms),
            "data": {
                "id": due.order_id,
                "sale": due.sale,
                "market": due.market,
                "channel": due.channel,
                "number": due.number,
                "event": due.event,
                "status": due.order_status,
                "payment": due.payment,
                "detail": detail,
            },
        }
    )


async def _give_up(connection: Connection, due: Due, reason: str) -> None:
    await webhooks.settle(connection, due.id, "given_up", tries=due.tries, error=reason)


def _error(outcome: Answer | Forbidden | Unanswered) -> str:
    if not isinstance(outcome, Answer):
        return str(outcome)[:ERROR_MAX]
    kind = "a redirect, which is not followed: " if 300 <= outcome.status < 400 else ""
    # A stranger's text: no NUL for PostgreSQL, no escape sequence for the terminal that shows the log.
    text = "".join(character if character.isprintable() else " " for character in outcome.text)
    return f"{kind}{outcome.status} {' '.join(text.split())}".strip()[:ERROR_MAX]


def _again_in(seconds: float, reason: str) -> RetryRequested:
    return RetryRequested(timedelta(seconds=seconds), reason)


def _chance() -> float:
    return random.uniform(0, JITTER)  # noqa: S311  # it spreads load and hides nothing


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
