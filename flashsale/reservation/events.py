"""The payment provider's events on their way to whoever applies them: a stream in Valkey, written by every front.

`EventLog` puts them in by group commit, as batcher.py does with orders, over a link of its own: events never keep an
order waiting. The functions below it read the stream and cut off what has been applied. An event may be in it twice:
the provider sends again what it got no 200 for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import redis.asyncio
import structlog

from flashsale.reservation import keys
from flashsale.reservation.link import (
    CHECK_S,
    LOST_TO_VALKEY,
    POLL_S,
    RECONNECT_S,
    SILENT_S,
    Address,
    Link,
    encode,
    keep,
)
from flashsale.reservation.movements import parse_entry_id
from flashsale.reservation.scripts import Script

CALL_EVENTS = 1000  # in one script call; the script takes 1,900
CALL_BYTES = 512 * 1024  # of bodies in one script call: bounds Valkey's pauses, and what the applier reads at once
QUEUE_BYTES = 16 * 1024 * 1024  # of events that may wait in one front; beyond it they are refused
EVENT_BYTES = 512  # what an event costs beside its body: without it a queue of empty ones had no bound

EntryId = tuple[int, int]
"""A stream entry's id: ms of Valkey's clock, and a number within that ms."""

APPEND = Script("append_events")
_TRIM = Script("trim_events")
_TOTAL = b"w"  # the field of an entry that is no event
_CALL = [b"EVALSHA", APPEND.sha.encode(), b"2", keys.PAYMENT_EVENTS.encode(), keys.PAYMENT_EVENTS_STATE.encode()]

log = structlog.get_logger(__name__)


class Event:
    """One event of the provider, waiting to be kept. `client` waits for its `answer`; the front clears it when it gave
    one. `arrived` by the loop's clock."""

    __slots__ = ("answer", "arrived", "body", "client")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.client: object | None = None
        self.answer: bytes | None = None
        self.arrived = 0.0


class EventFront(Protocol):
    """What the log tells the front, once of each event."""

    def kept(self, events: list[Event]) -> None:
        """They are in the stream, and survive what Valkey's log survives."""

    def not_kept(self, events: list[Event], detail: str) -> None:
        """They are not, or it is not known whether they are: the provider is to send them again."""


class _Call:
    """One script call under way; `events` are those of it that are not answered yet."""

    __slots__ = ("events", "sent_at")

    def __init__(self, events: list[Event], sent_at: float) -> None:
        self.events, self.sent_at = events, sent_at


class EventLog:
    """Puts events into the stream. `check` names what is wrong with Valkey: a server that might lose what it has
    answered gets none. Nothing is sent twice: that is the provider's to do."""

    def __init__(
        self,
        url: str,
        front: EventFront,
        *,
        backlog_max_bytes: int,
        answer_within_ms: int,
        check: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._address = Address(url)
        self._front, self._check = front, check
        self._backlog_max_bytes, self._answer_within_s = backlog_max_bytes, answer_within_ms / 1000
        self._begin = [*_CALL, b"%d" % backlog_max_bytes]
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Event] = deque()
        self._waiting_bytes = 0
        self._call: _Call | None = None
        self._scheduled = False
        self._link: Link | None = None
        self._away: str | None = "Valkey is not connected yet."  # None: the link is verified
        self.backlog_bytes = 0
        self.closed: str | None = self._away
        """Why every event is refused at once; None while they are taken."""

    @property
    def pending(self) -> int:
        """Events taken and not yet answered."""
        return len(self._waiting) + (len(self._call.events) if self._call is not None else 0)

    def append(self, event: Event) -> None:
        """Takes an event that has arrived. The front has looked at `closed` first."""
        size = len(event.body) + EVENT_BYTES
        if self._waiting_bytes + size > QUEUE_BYTES:
            self._front.not_kept([event], "Too many events are waiting.")
            return
        self._waiting.append(event)
        self._waiting_bytes += size
        if not self._scheduled and self._call is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)  # after every socket that is readable now has been read

    # --- sending ---

    def _flush(self) -> None:
        self._scheduled = False
        if self._call is not None or not self._waiting or self._away is not None or self._link is None:
            return
        events = self._take()
        self._call = _Call(events, self._loop.time())
        command = encode(self._begin + [event.body for event in events])
        self._link.call(command, partial(self._answered, self._call))

    def _take(self) -> list[Event]:
        """The next call's events, oldest first, at least one."""
        waiting, size = self._waiting, 0
        events: list[Event] = []
        while waiting and len(events) < CALL_EVENTS:
            size += len(waiting[0].body)
            if events and size > CALL_BYTES:
                break
            event = waiting.popleft()
            self._waiting_bytes -= len(event.body) + EVENT_BYTES
            events.append(event)
        return events

    # --- what came back ---

    def _answered(self, call: _Call, answer: Any) -> None:
        self._call = None
        if type(answer) is list:
            self._decided(call, answer)
        elif answer is None:
            self._refuse(call.events, "The store was lost; it is not known whether the event was kept.")
        else:
            self._failed(call, str(answer))
        if self._waiting:
            self._flush()

    def _decided(self, call: _Call, answer: list[Any]) -> None:
        if answer[0] == b"denied":
            log.error("Valkey's ACL denies a command of append_events.lua", command=answer[1].decode())
            self._refuse(call.events, "The store refuses to write.")
            return
        self.backlog_bytes = answer[1]
        if answer[0] == b"ok":
            try:
                self._front.kept(call.events)
            except Exception:  # those behind the one at fault are kept, and are told that it is not known
                log.exception("events could not be answered", events=len(call.events))
                self._refuse([event for event in call.events if event.client is not None], "The answer failed.")
        else:
            self._refuse(call.events, "Too many events wait to be applied.")
        if self.backlog_bytes >= self._backlog_max_bytes:
            self._look()

    def _failed(self, call: _Call, error: str) -> None:
        """Valkey answered with an error: nothing was written."""
        code = error.partition(" ")[0]
        if code == "NOSCRIPT":
            if self._link is not None:
                self._link.call(encode([b"SCRIPT", b"LOAD", APPEND.source]), _ignore)
            self._waiting.extendleft(reversed(call.events))
            self._waiting_bytes += sum(len(event.body) + EVENT_BYTES for event in call.events)
            return
        log.error("Valkey refused events", events=len(call.events), error=error)
        self._refuse(call.events, "The store can't take events now.")
        if code in LOST_TO_VALKEY and self._link is not None:
            self._link.abort()

    def _refuse(self, events: list[Event], detail: str) -> None:
        if events:
            self._front.not_kept(events, detail)

    # --- the link ---

    async def run(self) -> None:
        """Keeps a verified link until cancelled."""
        ticking = self._loop.create_task(self._tick())
        try:
            await keep(self._address, self._attend, self._lost, self._not_connected, self._answer_within_s)
        finally:
            ticking.cancel()

    def _not_connected(self, reason: str) -> None:
        self._away = reason

    def _lost(self, link: Link) -> None:
        if link is self._link:
            self._away = "The store is away."
            self._look()

    async def _attend(self, link: Link) -> None:
        """Verifies the link, then polls what may change; raises when the link is lost or silent."""
        self._link, self._away = link, "Valkey is not verified yet."
        checked_at: float | None = None
        faults: list[str] = []
        while True:
            if checked_at is None or self._away is not None or self._loop.time() - checked_at > CHECK_S:
                faults = await self._faults()
                checked_at = self._loop.time()
            async with asyncio.timeout(self._answer_within_s):
                if self._away is not None and not faults:
                    await link.ask(b"SCRIPT", b"LOAD", APPEND.source)
                names = b"written", b"trimmed"
                written, trimmed = await link.ask(b"HMGET", keys.PAYMENT_EVENTS_STATE.encode(), *names)
            self.backlog_bytes = int(written or 0) - int(trimmed or 0)
            away = "; ".join(faults) or None
            if away is not None and away != self._away:
                log.warning("events are not taken", reasons=faults)
            self._away = away
            self._look()
            self._flush()
            await asyncio.sleep(RECONNECT_S if away else POLL_S)

    async def _faults(self) -> list[str]:
        """What is wrong with Valkey. One that is in use and can't be asked is in use until its link tells otherwise."""
        try:
            async with asyncio.timeout(CHECK_S):
                return await self._check()
        except Exception as error:
            log.warning("Valkey's settings could not be read", error=repr(error))
            return [] if self._away is None else [f"Valkey does not answer: {error}"]

    # --- time ---

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(POLL_S / 2)
            try:
                self._look()
                self._expire(self._loop.time() - self._answer_within_s)
            except Exception:  # without it no event would ever time out again
                log.exception("the event log's clock stumbled")

    def _look(self) -> None:
        """Sets `closed`; events that were never sent do not wait behind a closed door."""
        if self._away is not None:
            self.closed = self._away
        elif self._call is not None and self._loop.time() - self._call.sent_at > SILENT_S:
            self.closed = "The store does not answer."
        elif self.backlog_bytes >= self._backlog_max_bytes:
            self.closed = "Too many events wait to be applied."
        else:
            self.closed = None
            return
        waiting, self._waiting, self._waiting_bytes = list(self._waiting), deque(), 0
        self._refuse(waiting, self.closed)

    def _expire(self, before: float) -> None:
        """Answers what has waited longer than ANSWER_WITHIN_MS."""
        waiting = self._waiting
        late = []
        while waiting and waiting[0].arrived < before:
            late.append(waiting.popleft())
            self._waiting_bytes -= len(late[-1].body) + EVENT_BYTES
        self._refuse(late, "The event waited too long.")
        call = self._call
        if call is not None and call.sent_at < before:
            events, call.events = call.events, []
            self._refuse(events, "The store did not answer in time; it is not known whether the event was kept.")
            if self._link is not None:
                self._link.abort()


def _ignore(answer: Any) -> None:
    """Takes the answer of a call whose failure the next call shows."""


class Entry(NamedTuple):
    """One entry of the stream: the events of one call, each as it came."""

    id: EntryId
    bodies: list[bytes]


async def read_events(
    client: redis.asyncio.Redis, after: EntryId, count: int, block_ms: int | None = None
) -> list[Entry]:
    """At most `count` entries (of up to 1,900 events each) behind `after`, oldest first; waits up to `block_ms` for the
    first one. What has been applied is trimmed, so (0, 0) reads all that may not have been."""
    stream = {keys.PAYMENT_EVENTS: f"{after[0]}-{after[1]}"}
    answer: Any = await client.xread(stream, count=count, block=block_ms)  # type: ignore[arg-type]
    if not answer:
        return []
    found = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
    return [
        Entry(parse_entry_id(entry_id), [body for name, body in fields.items() if name != _TOTAL])
        for entry_id, fields in found
    ]


async def trim_events(client: redis.asyncio.Redis, upto: EntryId) -> int:
    """Cuts off everything up to and with the entry `upto`, which has been applied; how many entries went."""
    names = [keys.PAYMENT_EVENTS, keys.PAYMENT_EVENTS_STATE]
    answer = await _TRIM.run(client, names, [f"{upto[0]}-{upto[1]}", f"{upto[0]}-{upto[1] + 1}"])
    if answer[0] == b"denied":
        raise PermissionError(f"Valkey's ACL denies {answer[1].decode()}")
    return int(answer[1]) if answer[0] == b"ok" else 0


async def last_event_id(client: redis.asyncio.Redis) -> EntryId:
    """The newest entry ever, trimmed or not; (0, 0) before the first. Asked after Valkey's clock, it is at or behind
    every event that had arrived by then: who has applied up to it has applied those."""
    last = await client.hget(keys.PAYMENT_EVENTS_STATE, "last")
    return (0, 0) if last is None else parse_entry_id(last)


async def backlog_bytes(client: redis.asyncio.Redis) -> int:
    """Bytes of events that wait to be applied."""
    written, trimmed = await client.hmget(keys.PAYMENT_EVENTS_STATE, ["written", "trimmed"])
    return int(written or 0) - int(trimmed or 0)
