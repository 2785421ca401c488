"""Sends the sandbox's events to the engine, signed as Stripe signs them, until they are taken.

https://docs.stripe.com/webhooks#verify-manually: `Stripe-Signature: t=…,v1=…`, an HMAC-SHA256 of "t.body". Like
Stripe it promises neither order nor that an event comes once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import time

import aiohttp
import structlog

from flashsale.partners.payments.sandbox.store import Delivery, Store

CONCURRENCY = 64
CLAIM_MOST = 256
LEASE_MS = 60_000  # longer than all that are claimed at once take, should each try take its longest
TRY_WITHIN_S = 10
RETRY_FIRST_MS, RETRY_MOST_MS = 250, 30_000

# What an endpoint that serves this engine subscribes to; everything else is listed under /v1/events all the same.
ENABLED = frozenset(
    {
        "payment_intent.amount_capturable_updated",
        "payment_intent.canceled",
        "payment_intent.payment_failed",
        "payment_intent.processing",
        "payment_intent.succeeded",
        "checkout.session.completed",
        "checkout.session.expired",
        "refund.created",
        "refund.failed",
        "refund.updated",
        "charge.dispute.closed",
        "charge.dispute.created",
        "charge.dispute.funds_reinstated",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.updated",
    }
)


def signature(secret: str, body: bytes, now_s: int) -> str:
    """The value of Stripe-Signature."""
    digest = hmac.new(secret.encode(), b"%d." % now_s + body, hashlib.sha256).hexdigest()
    return f"t={now_s},v1={digest}"


class Sender:
    """Delivers what the store holds."""

    def __init__(self, store: Store, url: str, secret: str) -> None:
        self._store = store
        self._url = url
        self._secret = secret
        self._mail = asyncio.Event()
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue(CLAIM_MOST)
        self._failing = False

    async def run(self) -> None:
        """Until cancelled."""
        self._store.on_mail = self._mail.set
        connector = aiohttp.TCPConnector(limit=CONCURRENCY)
        timeout = aiohttp.ClientTimeout(total=TRY_WITHIN_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as http,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(CONCURRENCY):
                tasks.create_task(self._deliver(http))
            await self._feed()

    async def _feed(self) -> None:
        while True:
            self._mail.clear()
            room = self._queue.maxsize - self._queue.qsize()
            claimed, next_ms = await self._store.do(
                lambda change, room=room: (change.claim(room, LEASE_MS), change.next_due_ms())  # type: ignore[misc]
            )
            for delivery in claimed:
                await self._queue.put(delivery)
            if claimed and len(claimed) == room:
                continue
            wait_s = None if next_ms is None else max(0.005, next_ms / 1000 - time.time())
            try:
                async with asyncio.timeout(wait_s):
                    await self._mail.wait()
            except TimeoutError:
                pass

    async def _deliver(self, http: aiohttp.ClientSession) -> None:
        while True:
            delivery = await self._queue.get()
            if await self._taken(http, delivery.body):
                await self._store.do(lambda change, number=delivery.number: change.delivered([number]))  # type: ignore[misc]
                continue
            pause_ms = min(RETRY_MOST_MS, RETRY_FIRST_MS * 2 ** min(delivery.tries, 20))
            pause_ms = int(pause_ms * random.uniform(0.5, 1))  # noqa: S311 - so that they do not all come at once
            await self._store.do(
                lambda change, again=(delivery.number, pause_ms): change.deliver_again([again])  # type: ignore[misc]
            )
            # One of those that wait may be due before what the feeder waits for.
            self._mail.set()

    async def _taken(self, http: aiohttp.ClientSession, body: bytes) -> bool:
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(self._secret, body, int(time.time())),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        try:
            async with http.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                taken = 200 <= answer.status < 300
                why = f"status {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            taken, why = False, repr(fault)
        if taken == self._failing:  # one line at each turn, not one a webhook
            self._failing = not taken
            log = structlog.get_logger("flashsale.sandbox")
            if taken:
                log.info("webhooks.taken_again")
            else:
                log.warning("webhooks.not_taken", why=why, next_step="they are sent again until they are")
        return taken
