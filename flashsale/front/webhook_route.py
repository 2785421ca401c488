"""POST /v1/webhooks/payments on the hot path: the payment provider's events, kept as they come.

What the provider signed goes into the stream (reservation/events.py), and it is told 200 once it is there for good;
whatever else it gets, it sends the event again. What an event says is read by whoever applies it, not here: one that
is unknown, of somebody else or a repetition is kept like any other. Its Content-Type is not looked at for the same
reason; a compressed body is refused, since nobody would unpack it.
"""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import cast

import structlog

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.front.connection import Connection
from flashsale.front.framing import SIGNATURE, Head
from flashsale.front.intake import check_coding
from flashsale.front.verdicts import GUARDED, Answers
from flashsale.partners.payments.signature import WebhookVerifier
from flashsale.reservation.events import Event, EventLog

UNSET_RETRY_S = 60  # somebody has to set the secret first

log = structlog.get_logger(__name__)


class WebhookRoute:
    """Takes the payment provider's events and answers each once. Without `verifier` it takes none. Also the event log's
    `EventFront`."""

    path = b"/v1/webhooks/payments"
    log: EventLog | None = None

    def __init__(self, verifier: WebhookVerifier | None, answers: Answers) -> None:
        self._verifier, self._answers = verifier, answers
        self._clock = asyncio.get_running_loop().time
        self._kept = 0  # since the last tick, and refusals by problem and detail
        self._refusals: dict[tuple[str, str], int] = {}
        self.tick(time.time())

    @property
    def pending(self) -> int:
        """Events taken and not yet answered."""
        return self.log.pending if self.log is not None else 0

    def take(self, connection: Connection, head: Head, body: bytes) -> None:
        """One webhook: who sent it is asked first."""
        try:
            event_log = self._check(head, body)
        except Refused as refused:
            self._count(refused)
            connection.refuse(refused)
            return
        event = Event(body)
        event.arrived = self._clock()
        connection.place(event)
        event_log.append(event)

    def _check(self, head: Head, body: bytes) -> EventLog:
        """The log that takes this one. Raises Refused."""
        if self._verifier is None or self.log is None:
            raise Refused(
                "overloaded",
                "Payments are not set up here: FLASHSALE_PAYMENTS_WEBHOOK_SECRET is not set.",
                retry_after=UNSET_RETRY_S,
            )
        signature = head.fields.get(SIGNATURE)
        if signature is None:
            raise Refused("webhook-signature", "There is no Stripe-Signature header.")
        try:
            self._verifier.verify(signature, body, self._now_s)
        except ValueError as fault:
            raise Refused("webhook-signature", f"It is refused because {fault}.") from None
        check_coding(head)
        if self.log.closed is not None:
            raise Refused("overloaded", self.log.closed)
        return self.log

    # --- the event log's EventFront ---

    def kept(self, events: list[Event]) -> None:
        self._kept += len(events)
        for event in events:
            self._deliver(event, self._received)

    def not_kept(self, events: list[Event], detail: str) -> None:
        refused = Refused("overloaded", detail)
        answer = self._answers.problem(refused)
        for event in events:
            self._count(refused)
            self._deliver(event, answer)

    @staticmethod
    def _deliver(event: Event, answer: bytes) -> None:
        client = cast("Connection | None", event.client)
        if client is not None:
            event.client = None
            client.answered(event, answer)

    # --- time ---

    def tick(self, now_s: float) -> None:
        self._now_s = now_s
        date = formatdate(now_s, usegmt=True)
        self._received = (
            f"HTTP/1.1 200 OK\r\nDate: {date}\r\n{GUARDED}Content-Type: application/json\r\nContent-Length: 17\r\n\r\n"
            '{"received":true}'
        ).encode()
        kept, self._kept = self._kept, 0
        if kept:
            metrics.count_webhooks("kept", kept)
        refusals, self._refusals = self._refusals, {}
        for (problem, detail), count in refusals.items():
            metrics.count_webhooks(problem, count)
            log.warning("webhooks refused", problem=problem, detail=detail, count=count)

    def _count(self, refused: Refused) -> None:
        self._refusals[refused.name, refused.detail] = self._refusals.get((refused.name, refused.detail), 0) + 1
