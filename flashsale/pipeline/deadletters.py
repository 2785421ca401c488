"""Everything that was set aside because nothing could be done with it, under one kind of id; and the way back.

`order:N` is a journal line that PostgreSQL refused, `event:N` a provider's event that was not understood or not stored
(both lie whole in the ledger), `settlement:ORDER`, `expiry:ORDER`, `outbox:N` and `import:im-N` name things that made
their duty fail.
To retry is to do it again in the normal way, in one transaction with its taking back: what fails again stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from flashsale.ledger import damaged_events, dead_letters, imports, orders, set_aside, settlement
from flashsale.ledger.pool import Connection
from flashsale.partners.payments.provider import ForeignEvent
from flashsale.pipeline.careful import apply_carefully
from flashsale.pipeline.journal_rows import Line, copy_text_of_lines
from flashsale.sale.payment import Fact

ORDER, EVENT = "order", "event"
KINDS = (ORDER, EVENT, set_aside.SETTLEMENT, set_aside.OUTBOX, set_aside.IMPORT, set_aside.EXPIRY)

FactsOf = Callable[[bytes], Fact | ForeignEvent | None]


class NotSetAside(Exception):
    """There is no such thing, or it can't be done again; one line."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One such thing. `content`: what it holds, whole, where it lies here; None where the id says where it lies."""

    id: str
    error: str
    at: str
    content: str | None


async def newest(connection: Connection, limit: int) -> list[Letter]:
    """Those set aside last, newest first."""
    found = [
        *[_of_order(number, letter, at) for number, letter, at in await dead_letters.newest(connection, limit)],
        *[_of_event(number, event, at) for number, event, at in await damaged_events.numbered(connection, limit)],
        *[_of_thing(thing) for thing in await set_aside.newest(connection, limit)],
    ]
    return sorted(found, key=lambda letter: letter.at, reverse=True)[:limit]


async def get(connection: Connection, id: str) -> Letter:
    """The one of that id. Raises NotSetAside."""
    kind, own = _parsed(id)
    if kind == ORDER:
        letter = await dead_letters.get(connection, int(own))
        found = None if letter is None else _of_order(int(own), *letter)
    elif kind == EVENT:
        event = await damaged_events.get(connection, int(own))
        found = None if event is None else _of_event(int(own), *event)
    else:
        thing = await set_aside.get(connection, kind, own)
        found = None if thing is None else _of_thing(thing)
    if found is None:
        raise NotSetAside(f"nothing is set aside as {id}; `flashsale deadletters list` shows what is")
    return found


async def retry(connection: Connection, id: str, facts_of: FactsOf) -> str:
    """Does it again; what became of it. Raises NotSetAside, and whatever makes it fail again: it stays then."""
    await get(connection, id)
    kind, own = _parsed(id)
    now_ms = time.time_ns() // 1_000_000
    async with connection.transaction():
        if kind == ORDER:
            return await _store_order(connection, int(own))
        if kind == EVENT:
            return await _apply_event(connection, int(own), facts_of, now_ms)
        if kind == set_aside.SETTLEMENT:
            await settlement.book_again(connection, own, now_ms)
            return "booked"
        if kind == set_aside.IMPORT and not await imports.again(connection, int(own.removeprefix("im-"))):
            raise NotSetAside(f"{id}: its file is gone; it has to be sent again")
        await set_aside.take_back(connection, kind, own)
        return "queued: its duty takes it up again"


async def _store_order(connection: Connection, number: int) -> str:
    taken = await dead_letters.take(connection, number)
    assert taken is not None  # noqa: S101  it was there a statement ago, and is locked now
    line = Line(taken.journal_ms, taken.journal_seq, taken.line, taken.record)
    await orders.copy(connection, copy_text_of_lines(taken.partition, [line]))
    return "stored"


async def _apply_event(connection: Connection, number: int, facts_of: FactsOf, now_ms: int) -> str:
    event = await damaged_events.take(connection, number)
    assert event is not None  # noqa: S101
    fact = facts_of(event.body)
    if not isinstance(fact, Fact):
        return "understood, and of no payment of ours"
    _, unfit = await apply_carefully(connection, [fact], now_ms)
    if unfit:
        raise NotSetAside(f"event:{number} fails again: {unfit[0].error}")
    return "applied"


def _parsed(id: str) -> tuple[str, str]:
    kind, _, own = id.partition(":")
    numbered = kind in (ORDER, EVENT, set_aside.OUTBOX)
    if kind not in KINDS or not own or (numbered and not own.isdecimal()):
        raise NotSetAside(f"{id!r} is no id of `flashsale deadletters list`: KIND:ID, KIND one of {', '.join(KINDS)}")
    return kind, own


def _of_order(number: int, letter: dead_letters.DeadLetter, at: datetime) -> Letter:
    return Letter(f"{ORDER}:{number}", letter.error, _when(at), letter.record.decode(errors="replace"))


def _of_event(number: int, event: damaged_events.DamagedEvent, at: datetime) -> Letter:
    return Letter(f"{EVENT}:{number}", event.error, _when(at), event.body.decode(errors="replace"))


def _of_thing(thing: set_aside.SetAside) -> Letter:
    at = datetime.fromtimestamp(thing.at_ms / 1000, UTC)
    return Letter(f"{thing.kind}:{thing.id}", thing.error, _when(at), None)


def _when(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
