"""The payment provider's events on their way to whoever applies them: a stream in Valkey, written by every front.

`EventLog` puts them in, many with one call, and tells of each whether it is kept. The functions read the stream and
cut off what has been applied. An event may be in it twice: the provider sends again what it got no 200 for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis.asyncio

from flashsale.reservation import keys
from flashsale.reservation.movements import parse_entry_id
from flashsale.reservation.scripts import Script

EntryId = tuple[int, int]
"""A stream entry's id: ms of Valkey's clock, and a number within that ms."""

APPEND = Script("append_events")
_TRIM = Script("trim_events")
_BODIES_END = b"w"


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
        Entry(parse_entry_id(entry_id), [body for name, body in fields.items() if name != _BODIES_END])
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
