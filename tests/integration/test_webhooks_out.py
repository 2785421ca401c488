"""Endpoints hear of what happened: signed, at least once, by a schedule, each at its own pace."""

from __future__ import annotations

import asyncio
import random
import sys

import asyncpg
import pytest

from flashsale.ledger import followers, webhook_endpoints, webhooks
from flashsale.pipeline.webhooks import now_ms
from tests.corpora import FULL
from tests.integration.receiver import ORDER, Newsroom, Receiver

KILLS = 100 if FULL else 6
GONE = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 Broken\r\nContent-Length: 6\r\n\r\nbroken"


async def test_an_endpoint_hears_what_it_asked_for_and_nothing_else(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver() as paid, Receiver() as every:
        await house.endpoint(paid.url, "order.paid", id="ep1")
        await house.endpoint(every.url, "*", id="ep2")
        await house.happens("order.paid", "payment.captured", "order.secret", detail={"key": "k-1", "amount": 5})
        async with house.worker():
            await house.settled(3)
        assert sorted(got.message["type"] for got in every.got) == ["order.paid", "payment.captured"]
        [got] = paid.got
        message = got.message
        assert got.id == f"msg_{ORDER.format(1)}_2"
        assert message["data"] == {
            "id": ORDER.format(1),
            "sale": "double11",
            "market": "SG",
            "channel": "web",
            "number": 2,
            "event": "order.paid",
            "status": "paid",
            "payment": "captured",
            "detail": {"amount": 5},
        }


async def test_a_change_that_commits_late_is_told_too(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver() as receiver:
        await house.endpoint(receiver.url)
        late = await asyncpg.connect(ledger)
        transaction = late.transaction()
        await transaction.start()
        await house.happens("order.paid", connection=late)
        await house.happens("order.shipped")
        async with house.worker():
            await asyncio.sleep(0.5)
            assert receiver.got == [], "nothing is told before an earlier transaction has ended"
            await transaction.commit()
            await house.settled(2)
        assert sorted(got.message["type"] for got in receiver.got) == ["order.paid", "order.shipped"]
        await late.close()


async def test_failed_tries_are_repeated_under_the_same_id_and_given_up_after_the_last(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver(BROKEN) as receiver:
        await house.endpoint(receiver.url)
        await house.happens("order.paid")
        async with house.worker(retry_s=(0.05, 0.1, 0.1)):
            [line] = await house.settled(1)
        assert (line.status, line.tries, line.http_status, line.error) == ("given_up", 4, 500, "500 broken")
        assert len(receiver.got) == 4
        assert len({(got.id, got.body) for got in receiver.got}) == 1


async def test_a_second_try_that_is_taken_ends_it(ledger: str) -> None:
    async def second(receiver: Receiver, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BROKEN if len(receiver.got) == 1 else receiver.answer)

    async with Newsroom(ledger) as house, Receiver(behaviour=second) as receiver:
        await house.endpoint(receiver.url)
        await house.happens("order.paid")
        async with house.worker():
            [line] = await house.settled(1)
        assert (line.status, line.tries, line.http_status, line.error) == ("delivered", 2, 200, None)


async def test_an_endpoint_that_is_gone_is_disabled_and_hears_no_more(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver(GONE) as receiver:
        await house.endpoint(receiver.url)
        await house.happens("order.paid")
        async with house.worker():
            [line] = await house.settled(1)
            assert (line.status, line.http_status) == ("given_up", 410)
            await house.happens("order.shipped")
            await asyncio.sleep(0.5)
        assert len(await house.log()) == 1
        endpoint = await webhook_endpoints.get(house.connection, "ep1")
        assert endpoint is not None
        assert endpoint.disabled


async def test_an_unreachable_endpoint_is_left_alone_and_heard_again_when_it_is_back(
    ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_endpoints, "OPEN_FIRST_MS", 300)
    async with Newsroom(ledger) as house, Receiver(BROKEN) as receiver:
        await house.endpoint(receiver.url)
        await house.happens(*["order.paid"] * 30)
        async with house.worker(retry_s=(0.05,) * 200, circuit_failures=5, each=2):
            await house.until(lambda: len(receiver.got) >= 5)
            await asyncio.sleep(1.0)
            # Five failures open it, one more may have been under way; then one probe after 0.3 s and one after 0.6 s.
            assert 6 <= len(receiver.got) <= 8
            receiver.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
            log = await house.settled(30)
        assert {line.status for line in log} == {"delivered"}
        endpoint = await webhook_endpoints.get(house.connection, "ep1")
        assert endpoint is not None
        assert (endpoint.failures, endpoint.open_until_ms) == (0, None)


async def test_a_delivery_does_not_wait_for_an_open_circuit_longer_than_its_schedule(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver() as receiver:
        await house.endpoint(receiver.url)
        await house.connection.execute("UPDATE webhook_endpoint SET open_until_ms = $1", now_ms() + 600)
        await house.connection.execute("UPDATE webhook_endpoint SET failures = 3")
        await house.happens("order.paid")
        async with house.worker(retry_s=(2,)):
            [line] = await house.settled(1)
            assert line.status == "delivered", "its turn came when the circuit's time was over"
            await house.connection.execute("UPDATE webhook_endpoint SET open_until_ms = $1", now_ms() + 600_000)
            await house.connection.execute("UPDATE webhook_delivery SET status = 'pending', queued_ms = 0, next_ms = 0")
            async with asyncio.timeout(10):  # the queue clears away the first job a little after its end
                while not await webhooks.find_lost(house.connection, before_ms=1, limit=10):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            [line] = await house.settled(1)
        assert (line.status, line.error) == ("given_up", "the endpoint was not reachable")


async def test_a_slow_endpoint_holds_up_no_other(ledger: str) -> None:
    async def slow(receiver: Receiver, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with Newsroom(ledger) as house, Receiver(behaviour=slow) as stuck, Receiver() as quick:
        await house.endpoint(stuck.url, id="ep1")
        await house.endpoint(quick.url, id="ep2")
        await house.happens(*["order.paid"] * 100)
        async with house.worker(timeout_s=20, retry_s=()):
            # Sooner than any is given up: the next would open a connection before the first is closed.
            await house.until(lambda: len(quick.got) == 100, within_s=8)
            assert stuck.open_most <= 4


async def test_a_replay_sends_again_what_happened_since_under_the_same_ids(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver() as receiver, Receiver(BROKEN) as late:
        await house.endpoint(receiver.url)
        await house.happens("order.paid", at_ms=1000)
        await house.happens("order.shipped", at_ms=2000)
        await house.happens("order.delivered", at_ms=3000)
        async with house.worker():
            await house.settled(3)
            first = {got.id: got.body for got in receiver.got}
            receiver.got.clear()
            await house.endpoint(late.url, "order.delivered", id="ep2")
            await webhooks.ask_replay(house.connection, "ep1", 2000)
            await webhooks.ask_replay(house.connection, "ep2", 0)
            await house.until(lambda: len(receiver.got) == 2 and len(late.got) > 0)
            await house.settled(4)
        assert {got.id: got.body for got in receiver.got} == {
            id: body for id, body in first.items() if b"order.paid" not in body
        }
        assert {got.message["type"] for got in late.got} == {"order.delivered"}, "what it missed comes too"
        assert await house.connection.fetchval("SELECT count(*) FROM webhook_replay") == 0


async def test_a_replay_of_what_waits_for_its_next_try_tries_at_once(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver(BROKEN) as receiver:
        await house.endpoint(receiver.url)
        await house.happens("order.paid")
        async with house.worker(retry_s=(3600,)):
            await house.until(lambda: len(receiver.got) == 1)
            await asyncio.sleep(0.3)  # that the failure is written down
            receiver.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
            await webhooks.ask_replay(house.connection, "ep1", 0)
            [line] = await house.settled(1)
        assert (line.status, line.tries) == ("delivered", 1)


async def test_a_replay_in_small_steps_misses_nothing(ledger: str) -> None:
    async with Newsroom(ledger) as house:
        await house.endpoint("http://127.0.0.1:9/")
        for _ in range(20):
            await house.happens("order.paid", "order.shipped", "payment.captured")
        while (await webhooks.tell(house.connection, rows=4, now_ms=5)).more:
            pass
        assert len(await house.log(limit=1000)) == 60
        await house.connection.execute("DELETE FROM webhook_delivery")
        await webhooks.ask_replay(house.connection, "ep1", 0)
        steps = 1
        while (await webhooks.replay(house.connection, rows=4, now_ms=6)).more:
            steps += 1
        assert len(await house.log(limit=1000)) == 60
        assert steps >= 10, "two transactions a step"


async def test_without_an_endpoint_only_the_mark_moves(ledger: str) -> None:
    async with Newsroom(ledger) as house:
        await house.happens("order.paid")
        await webhooks.tell(house.connection, rows=10, now_ms=1)
        await house.endpoint("http://127.0.0.1:9/")
        told = await webhooks.tell(house.connection, rows=10, now_ms=1)
        assert (told.deliveries, await house.log()) == (0, [])


async def test_a_job_that_the_queue_dropped_comes_back(ledger: str) -> None:
    async with Newsroom(ledger) as house, Receiver() as receiver:
        await house.endpoint(receiver.url)
        await house.happens("order.paid")
        await webhooks.tell(house.connection, rows=10, now_ms=1)
        await house.connection.execute("DELETE FROM pgqueuer")
        assert await webhooks.find_lost(house.connection, before_ms=2, limit=10) == 1
        assert await webhooks.find_lost(house.connection, before_ms=2, limit=10) == 0
        async with house.worker():
            await house.settled(1)
        assert len(receiver.got) == 1


async def test_a_mark_from_another_server_is_taken_back(ledger: str) -> None:
    async with Newsroom(ledger) as house:
        assert not await followers.mend(house.connection, lambda: None)
        await house.connection.execute("UPDATE webhook_mark SET tx = '999999999999'")
        assert await followers.mend(house.connection, lambda: None)


async def test_old_settled_deliveries_are_deleted_and_pending_ones_kept(ledger: str) -> None:
    async with Newsroom(ledger) as house:
        await house.endpoint("http://127.0.0.1:9/")
        await house.happens("order.paid", "order.shipped")
        await webhooks.tell(house.connection, rows=10, now_ms=1)
        await house.connection.execute("UPDATE webhook_delivery SET status = 'delivered' WHERE number = 2")
        assert await webhooks.prune(house.connection, before_ms=2) == 1
        assert [line.number for line in await house.log()] == [3]


async def test_a_killed_worker_loses_nothing_and_repeats_only_under_the_same_id(ledger: str) -> None:
    """Killed at random moments, and right after the endpoint's answer: when that is not in the ledger yet."""
    worker: list[asyncio.subprocess.Process] = []

    async def kills(receiver: Receiver, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(receiver.answer)
        await writer.drain()
        if random.random() < 0.02 and worker and worker[-1].returncode is None:
            worker[-1].kill()

    async with Newsroom(ledger) as house, Receiver(behaviour=kills) as first, Receiver() as second:
        await house.endpoint(first.url, id="ep1")
        await house.endpoint(second.url, "order.paid", id="ep2")
        for _ in range(KILLS):
            worker.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.integration.telling", ledger),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
            )
            for _ in range(5):
                await house.happens(*["order.paid", "order.shipped"] * 2)
                await asyncio.sleep(random.uniform(0.05, 0.5))
            if worker[-1].returncode is None:
                worker[-1].kill()
            await worker[-1].wait()
        count = KILLS * 20
        async with house.worker():
            log = await house.settled(count + count // 2, within_s=60)
        assert {line.status for line in log} == {"delivered"}
        for receiver, expected in ((first, count), (second, count // 2)):
            assert len({got.id for got in receiver.got}) == expected
            assert len({(got.id, got.body) for got in receiver.got}) == expected
        print(f"{KILLS} kills, {count} changes, {len(first.got) - count} sent again")
