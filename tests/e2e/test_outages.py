"""A server is away under load, silent or dead: what can go on goes on, the rest says so at once, and all comes back.

FLASHSALE_OUTAGE_S is how long a server stays away (the full size is 30), FLASHSALE_CHAOS_SEED repeats a run's dice.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.reservation import keys
from tests.conftest import Engine
from tests.crowd import Crowd, open_sale
from tests.e2e.test_chaos import FLOWING, SEED, came_through, stopped_clean
from tests.processes import pids
from tests.wire import Answer, ask, get

OUTAGE_S = float(os.environ.get("FLASHSALE_OUTAGE_S", "3"))
ANSWER_WITHIN_S = 1.5
SLACK_S = 1.0  # this machine has other things to do
PAGE_WITHIN_S = 2.5  # LEDGER_TIMEOUT_S is one second
BACKLOG_BYTES = 30_000
BATCHES_BYTES = 30_000  # what the batches under way may add when the bound is reached

pytestmark = pytest.mark.chaos


@contextmanager
def silent(pid: int) -> Iterator[None]:
    """The process and its children stand still, as on a machine that hangs: connections stay, nothing answers."""
    server = psutil.Process(pid)
    frozen = [server]
    server.suspend()  # first: it starts no more children
    frozen += server.children(recursive=True)
    try:
        for process in frozen[1:]:
            process.suspend()
        yield
    finally:
        for process in frozen:
            if process.is_running():
                process.resume()


@contextmanager
def dead(server: PostgresServer | ValkeyServer) -> Iterator[None]:
    """The server is killed, and started again at the end."""
    server.kill()
    try:
        yield
    finally:
        server.start()


async def ask_page(engine: Engine, path: str, token: str = "") -> tuple[Answer, float]:
    """The answer to a GET, and the seconds that it took."""
    began = time.monotonic()
    (answer,) = await ask(engine.port, get(path, token))
    return answer, time.monotonic() - began


@pytest.mark.parametrize("how", [silent, dead])
async def test_without_postgres_orders_go_on_and_the_ledger_catches_up(
    make_engine: Callable[..., Engine],
    own_postgres: Callable[..., PostgresServer],
    tmp_path: Path,
    how: Callable[..., Iterator[None]],
) -> None:
    ledger = own_postgres()
    ledger.start()
    engine = make_engine(FLASHSALE_DATABASE_URL=ledger.url).start()
    open_sale(engine, "crowd", tmp_path)
    admin = engine.token("admin")
    async with Crowd(engine, "crowd", SEED) as crowd:
        await crowd.until_accepted(FLOWING)
        began = time.monotonic()
        await asyncio.sleep(OUTAGE_S)  # the p99 to compare with
        old = crowd.accepted[0].first
        assert old is not None
        before_s = crowd.slowest_s(0.99, began)
        with how(ledger.pid if how is silent else ledger):
            away = time.monotonic()
            await crowd.until_accepted(FLOWING)
            new = crowd.accepted[-1].first
            assert new is not None
            answer, took_s = await ask_page(engine, "/readyz")
            assert (answer.status, took_s < PAGE_WITHIN_S) == (200, True), (answer, took_s)
            assert "ledger" in str(answer.json()["warnings"])
            answer, took_s = await ask_page(engine, f"/v1/orders/{new['id']}", admin)
            assert (answer.status, took_s < PAGE_WITHIN_S) == (200, True), (answer, took_s)
            for _ in range(8):  # more than there are connections to the ledger
                answer, took_s = await ask_page(engine, f"/v1/orders/{old['id']}", admin)
                assert (answer.status, took_s < PAGE_WITHIN_S) == (503, True), (answer, took_s)
            await asyncio.sleep(OUTAGE_S - (time.monotonic() - away))
            over = time.monotonic()
        during_s = crowd.slowest_s(0.99, away, over)
        await crowd.until_accepted(FLOWING)
    assert crowd.statuses().keys() <= {201, 409}
    print(f"p99 {before_s * 1000:.1f} ms before, {during_s * 1000:.1f} ms during: ratio {during_s / before_s:.2f}")
    assert during_s < SLACK_S
    await came_through(engine, crowd)
    answer, took_s = await ask_page(engine, f"/v1/orders/{old['id']}", admin)
    assert answer.status == 200
    stopped_clean(engine)


async def test_beyond_the_backlogs_bound_orders_are_refused_before_any_work(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(FLASHSALE_BACKLOG_MAX_BYTES=str(BACKLOG_BYTES)).start()
    open_sale(engine, "crowd", tmp_path)
    running = json.loads((engine.data_dir / "run.json").read_text())

    def journal_bytes() -> tuple[int, int]:
        with redis.Redis.from_url(running["valkey"]["address"]) as client:
            written, trimmed = client.hmget(keys.partition(0), "written", "trimmed")
            return int(written or 0), int(trimmed or 0)

    async with Crowd(engine, "crowd", SEED) as crowd:
        await crowd.until_accepted(FLOWING)
        with silent(pids(engine)["postgres"]):
            began = time.monotonic()
            await crowd.until(lambda: crowd.statuses(began)[503] > 0)
            refused = time.monotonic()
            before = journal_bytes()
            await crowd.until(lambda: crowd.statuses(refused)[503] > 200)
            assert journal_bytes() == before
            assert crowd.statuses(refused).keys() == {503}
            assert before[0] - before[1] < BACKLOG_BYTES + BATCHES_BYTES
            answer, took_s = await ask_page(engine, "/readyz")
            assert (answer.status, took_s < PAGE_WITHIN_S) == (503, True), (answer, took_s)
            assert "backlog" in str(answer.json()["reasons"])
        await crowd.until_accepted(FLOWING)
        await asyncio.to_thread(engine.wait_until_ready)
    assert crowd.statuses().keys() <= {201, 409, 503}
    await came_through(engine, crowd)
    stopped_clean(engine)


@pytest.mark.parametrize("how", [silent, dead])
async def test_without_valkey_orders_are_told_so_in_time_and_taken_again(
    make_engine: Callable[..., Engine],
    own_valkey: Callable[..., ValkeyServer],
    tmp_path: Path,
    how: Callable[..., Iterator[None]],
) -> None:
    store = own_valkey()
    store.start()
    environment = {"FLASHSALE_REDIS_URL": store.url, "FLASHSALE_ANSWER_WITHIN_MS": str(int(ANSWER_WITHIN_S * 1000))}
    engine = make_engine(**environment).start()
    open_sale(engine, "crowd", tmp_path)
    async with Crowd(engine, "crowd", SEED, hangs_after_s=ANSWER_WITHIN_S + SLACK_S) as crowd:
        await crowd.until_accepted(FLOWING)
        with how(store.pid if how is silent else store):
            away = time.monotonic()
            await crowd.until(lambda: crowd.statuses(away)[503] > FLOWING)
            at_once = time.monotonic()
            answer, _ = await ask_page(engine, "/readyz")
            assert (answer.status, answer.headers["retry-after"].isdigit()) == (503, True)
            page = asyncio.create_task(ask_page(engine, "/v1/sales/crowd/stock"))
            await asyncio.sleep(max(OUTAGE_S, ANSWER_WITHIN_S + SLACK_S) - (time.monotonic() - away))
            over = time.monotonic()
        await crowd.until_accepted(FLOWING)
        back_s = time.monotonic() - over
        await asyncio.to_thread(engine.wait_until_ready)
        answer, took_s = await page
        assert answer.status in (200, 503)
    statuses, slowest_s = crowd.statuses(away, over), crowd.slowest_s(1, at_once, over - SLACK_S)
    print(f"{how.__name__}: {dict(statuses)}, page {took_s:.1f} s, once told {slowest_s:.2f} s, back in {back_s:.2f} s")
    assert crowd.statuses().keys() <= {201, 409, 503, 504}
    assert set(crowd.problems()) <= {"", "sold-out", "overloaded", "outcome-unknown"}
    if how is silent:
        assert crowd.statuses()[504] > 0  # what was under way: nobody knows
    assert slowest_s < SLACK_S
    await came_through(engine, crowd)
    stopped_clean(engine)
