"""The provider's events in a real Valkey: kept before that is told, read whole and in order, trimmed by the byte."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import redis.asyncio

from flashsale.embedded import ValkeyServer
from flashsale.reservation import events as event_stream
from flashsale.reservation import keys, server
from flashsale.reservation.events import CALL_BYTES, CALL_EVENTS, QUEUE_BYTES, Event, EventLog

WITHIN_S = 20  # only a failing test waits this long
MIB = 1024 * 1024


class Door:
    """The log's front in these tests: it takes each event's only answer."""

    def __init__(self) -> None:
        self.log: EventLog
        self._loop = asyncio.get_running_loop()

    def kept(self, events: list[Event]) -> None:
        self._answer(events, "kept")

    def not_kept(self, events: list[Event], detail: str) -> None:
        self._answer(events, detail)

    def _answer(self, events: list[Event], outcome: str) -> None:
        for event in events:
            waiting, event.client = event.client, None
            assert isinstance(waiting, asyncio.Future)
            waiting.set_result(outcome)

    def bring(self, *bodies: bytes) -> list[asyncio.Future[str]]:
        """Appends events as a front does; what is told of each."""
        told = []
        for body in bodies:
            event = Event(body)
            event.client, event.arrived = self._loop.create_future(), self._loop.time()
            told.append(event.client)
            self.log.append(event)
        return told

    async def told(self, *bodies: bytes) -> list[str]:
        async with asyncio.timeout(WITHIN_S):
            return await asyncio.gather(*self.bring(*bodies))

    async def until(self, is_open: bool = True) -> None:
        async with asyncio.timeout(WITHIN_S):
            while (self.log.closed is None) != is_open:  # noqa: ASYNC110 - the log says it to whoever looks
                await asyncio.sleep(0.005)


@asynccontextmanager
async def door(
    valkey: ValkeyServer, backlog_max_bytes: int = 64 * MIB, answer_within_ms: int = 5000
) -> AsyncIterator[Door]:
    """An open log over a client that checks the server as a front does."""
    made = Door()
    async with client_of(valkey) as client:
        made.log = EventLog(
            valkey.url,
            made,
            backlog_max_bytes=backlog_max_bytes,
            answer_within_ms=answer_within_ms,
            check=lambda: server.shortcomings(client, valkey.durability),
        )
        running = asyncio.create_task(made.log.run())
        await made.until(is_open=True)
        yield made
        await server.ended(running)


@asynccontextmanager
async def client_of(valkey: ValkeyServer) -> AsyncIterator[redis.asyncio.Redis]:
    client = server.connect(valkey.url)
    yield client
    await client.aclose()


async def everything(client: redis.asyncio.Redis) -> list[bytes]:
    """Every event in the stream, in its order."""
    found: list[bytes] = []
    after = (0, 0)
    while entries := await event_stream.read_events(client, after, 3):
        found += [body for entry in entries for body in entry.bodies]
        after = entries[-1].id
    return found


async def test_events_of_one_moment_go_in_few_calls_and_stay_in_order(either_valkey: ValkeyServer) -> None:
    bodies = [b"%d" % number for number in range(2 * CALL_EVENTS + 10)]
    async with door(either_valkey) as front, client_of(either_valkey) as client:
        assert set(await front.told(*bodies)) == {"kept"}
        assert await everything(client) == bodies
        assert await client.xlen(keys.PAYMENT_EVENTS) == 3
        assert front.log.pending == 0


async def test_any_bytes_are_an_event_and_large_ones_share_no_call(either_valkey: ValkeyServer) -> None:
    bodies = [b"", bytes(range(256)), b"w", b"x" * CALL_BYTES, b"y" * CALL_BYTES, b"", b"1"]
    async with door(either_valkey) as front, client_of(either_valkey) as client:
        assert set(await front.told(*bodies)) == {"kept"}
        assert await everything(client) == bodies
        assert await client.xlen(keys.PAYMENT_EVENTS) > 2


async def test_what_is_applied_is_trimmed_and_counted_out(either_valkey: ValkeyServer) -> None:
    async with door(either_valkey) as front, client_of(either_valkey) as client:
        assert await event_stream.last_event_id(client) == (0, 0)
        assert await event_stream.read_events(client, (0, 0), 10) == []
        await front.told(b"one", b"two")
        first = await event_stream.last_event_id(client)
        await front.told(b"three")
        last = await event_stream.last_event_id(client)
        assert [entry.bodies for entry in await event_stream.read_events(client, (0, 0), 10)] == [
            [b"one", b"two"],
            [b"three"],
        ]
        assert [entry.id for entry in await event_stream.read_events(client, first, 10)] == [last]
        assert await event_stream.backlog_bytes(client) == 11
        for trimmed in (1, 0):  # again: nothing
            assert await event_stream.trim_events(client, first) == trimmed
            assert await event_stream.backlog_bytes(client) == 5
        assert await event_stream.trim_events(client, last) == 1
        assert await event_stream.trim_events(client, (last[0] + 1, 0)) == 0, "an entry that never was"
        assert await event_stream.backlog_bytes(client) == 0
        assert await event_stream.last_event_id(client) == last, "trimmed or not"
        assert await event_stream.read_events(client, (0, 0), 10, block_ms=10) == []


async def test_an_event_that_arrives_is_read_at_once_by_who_waits(either_valkey: ValkeyServer) -> None:
    async with door(either_valkey) as front, client_of(either_valkey) as client:
        reading = asyncio.create_task(event_stream.read_events(client, (0, 0), 10, block_ms=4000))
        await front.told(b"one")
        assert [entry.bodies for entry in await reading] == [[b"one"]]


async def test_beyond_the_bound_events_are_refused_until_some_are_applied(either_valkey: ValkeyServer) -> None:
    async with door(either_valkey, backlog_max_bytes=1000) as front, client_of(either_valkey) as client:
        assert await front.told(b"x" * 900) == ["kept"]
        assert await front.told(b"x" * 101) == ["Too many events wait to be applied."]
        assert await front.told(b"x" * 100) == ["kept"]
        await front.until(is_open=False)
        await event_stream.trim_events(client, await event_stream.last_event_id(client))
        await front.until(is_open=True)
        assert await front.told(b"x" * 1000) == ["kept"]


async def test_a_forgotten_script_is_loaded_again(either_valkey: ValkeyServer) -> None:
    async with door(either_valkey) as front, client_of(either_valkey) as client:
        for number in range(5):
            await client.script_flush()
            assert await front.told(b"%d" % number, b"again") == ["kept", "kept"]
        assert len(await everything(client)) == 10


async def test_the_queue_is_bounded_in_bytes(valkey_memory: ValkeyServer) -> None:
    async with door(valkey_memory) as front:
        os.kill(valkey_memory.pid, signal.SIGSTOP)
        try:
            told = front.bring(*[b"x" * MIB] * (QUEUE_BYTES // MIB + 8))
            refused = [future for future in told if future.done()]
            assert len(refused) == 9, "the queue holds what its bound says, bodies and all"
            assert refused[0].result() == "Too many events are waiting."
        finally:
            os.kill(valkey_memory.pid, signal.SIGCONT)
        async with asyncio.timeout(WITHIN_S):
            outcomes = await asyncio.gather(*told)
        assert set(outcomes[: -len(refused)]) == {"kept"}


async def test_a_silent_valkey_is_answered_for_in_time(valkey_memory: ValkeyServer) -> None:
    async with door(valkey_memory, answer_within_ms=1500) as front:
        os.kill(valkey_memory.pid, signal.SIGSTOP)
        try:
            under_way = front.bring(b"sent")
            await asyncio.sleep(0)
            waiting = front.bring(b"waits")
            async with asyncio.timeout(4):
                assert await waiting[0] == "The store does not answer."
                assert "not known" in await under_way[0]
        finally:
            os.kill(valkey_memory.pid, signal.SIGCONT)
        await front.until(is_open=True)
        assert await front.told(b"next") == ["kept"]


async def test_a_valkey_that_might_lose_events_gets_none(own_valkey: Callable[..., ValkeyServer]) -> None:
    valkey = own_valkey()
    valkey.start()
    async with door(valkey) as front, client_of(valkey) as client:
        assert await front.told(b"one") == ["kept"]
        await client.config_set("appendfsync", "everysec")
        await front.until(is_open=False)
        await client.config_set("appendfsync", "always")
        await front.until(is_open=True)
        assert await front.told(b"two") == ["kept"]


async def test_a_refusing_valkey_keeps_no_event_and_says_so(own_valkey: Callable[..., ValkeyServer]) -> None:
    valkey = own_valkey(durability="memory")
    valkey.start()
    async with door(valkey) as front, client_of(valkey) as client:
        for rule in ("-xadd", "-hset"):
            await client.execute_command("ACL", "SETUSER", "default", rule)
            assert await front.told(b"denied") == ["The store refuses to write."]
            await client.execute_command("ACL", "SETUSER", "default", "+" + rule[1:])
        assert await everything(client) == []
        assert await front.told(b"one") == ["kept"]


async def test_every_event_told_as_kept_survives_kill_9(own_valkey: Callable[..., ValkeyServer]) -> None:
    valkey = own_valkey()
    valkey.start()
    kept: list[bytes] = []
    async with door(valkey) as front:
        for crash in range(8):
            await front.until(is_open=True)
            stop_at = len(kept) + 200

            async def send(name: str, stop_at: int = stop_at) -> None:
                number = 0
                while len(kept) < stop_at + 400 and front.log.closed is None:
                    number += 1
                    body = f"{name}-{number}".encode()
                    if await front.told(body) == ["kept"]:
                        kept.append(body)

            sending = [asyncio.create_task(send(f"{crash}-{sender}")) for sender in range(20)]
            async with asyncio.timeout(WITHIN_S):
                while len(kept) < stop_at:  # noqa: ASYNC110 - a count, not an event
                    await asyncio.sleep(0.001)
            valkey.kill()
            await asyncio.gather(*sending)
            valkey.start()
        await front.until(is_open=True)
        async with client_of(valkey) as client:
            found = await everything(client)
        assert not set(kept) - set(found), "an event was told as kept and is lost"
        assert len(found) == len(set(found)), "nothing is sent twice"


async def test_events_go_on_while_the_partition_is_not_verified(valkey_memory: ValkeyServer) -> None:
    """A payment is no order: whether the sales' data was verified against the ledger does not matter to it."""
    async with door(valkey_memory) as front, client_of(valkey_memory) as client:
        assert not await client.exists(keys.partition(0))
        assert await front.told(b"one") == ["kept"]
