"""`kill -9` of each part at random moments under load: nothing that was answered is lost, nothing happens twice.

FLASHSALE_CHAOS_ROUNDS kills of each part (the full size is 20), FLASHSALE_CHAOS_SEED repeats a run's dice.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Engine
from tests.crowd import Crowd, audit, open_sale
from tests.processes import pids, still_running, tree, wait_until_gone
from tests.wire import Wire, answers_in, ask, get, post_order

ROUNDS = int(os.environ.get("FLASHSALE_CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("FLASHSALE_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
MOMENT_S = 1.5  # the kill falls somewhere within this, after orders flow again
FLOWING = 50  # orders accepted after a restart before the next round
BACK_WITHIN_S = 30
TOLD_WITHIN_S = 4  # half of DRAIN_TIMEOUT_S
STOPPED_WITHIN_S = 20  # the contract's

pytestmark = pytest.mark.chaos

PARTS = {
    "front": ("front 0",),
    "worker": ("worker",),
    "valkey": ("valkey",),
    "postgres": ("postgres",),
    "servers": ("valkey", "postgres"),
    "all": ("front 0", "worker", "valkey", "postgres"),
}


async def ready_again(engine: Engine, killed: dict[str, int]) -> None:
    """Returns when each of these parts runs as another process and /readyz is 200, and the ledger is there."""
    deadline = time.monotonic() + BACK_WITHIN_S
    while any(pids(engine).get(name) in (pid, None) for name, pid in killed.items()):
        assert time.monotonic() < deadline, f"{killed} are not back: {engine.errors.read_text()[-4000:]}"
        await asyncio.sleep(0.02)
    await asyncio.to_thread(engine.wait_until_ready, BACK_WITHIN_S)
    while True:
        (answer,) = await ask(engine.port, get("/readyz"))
        if answer.status == 200 and "the ledger" not in str(answer.json()["warnings"]):
            return
        assert time.monotonic() < deadline, f"the ledger is not back: {engine.errors.read_text()[-4000:]}"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("part", PARTS)
async def test_killed_parts_come_back_and_nothing_is_lost(
    make_engine: Callable[..., Engine], tmp_path: Path, part: str
) -> None:
    print(f"seed {SEED}")
    dice = random.Random(f"{SEED} {part}")
    engine = make_engine().start()
    open_sale(engine, "crowd", tmp_path)
    away_s = []
    async with Crowd(engine, "crowd", SEED) as crowd:
        await crowd.until_accepted(FLOWING)
        for _ in range(ROUNDS):
            await asyncio.sleep(dice.uniform(0, MOMENT_S))
            killed = {name: pids(engine)[name] for name in PARTS[part]}
            began = time.monotonic()
            for pid in killed.values():
                os.kill(pid, signal.SIGKILL)
            await ready_again(engine, killed)
            away_s.append(time.monotonic() - began)
            await crowd.until_accepted(FLOWING)
            await audit(engine)
    await came_through(engine, crowd)
    print(f"{part}: {ROUNDS} kills, ready again after {max(away_s):.1f} s at most; {dict(crowd.statuses())}")
    stopped_clean(engine)


async def test_a_killed_supervisor_leaves_nothing_and_the_next_up_goes_on(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    dice = random.Random(f"{SEED} supervisor")
    engine = make_engine().start()
    open_sale(engine, "crowd", tmp_path)
    async with Crowd(engine, "crowd", SEED) as crowd:
        await crowd.until_accepted(FLOWING)
        for _ in range(ROUNDS):
            await asyncio.sleep(dice.uniform(0, MOMENT_S))
            processes = tree(engine)
            assert engine.process is not None
            engine.process.kill()
            engine.process.wait()
            await asyncio.to_thread(wait_until_gone, processes)
            await asyncio.to_thread(engine.start)
            await crowd.until_accepted(FLOWING)
            await audit(engine)
    await came_through(engine, crowd)
    print(f"supervisor: {ROUNDS} kills; {dict(crowd.statuses())}")
    stopped_clean(engine)


async def test_a_stopping_front_answers_all_that_it_took(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    """Nobody retries here: an order in the ledger that no shopper was told of would be one that a drain left behind."""
    print(f"seed {SEED}")
    dice = random.Random(f"{SEED} drain")
    engine = make_engine(FLASHSALE_PROCESSES="2").start()
    open_sale(engine, "crowd", tmp_path)
    async with Crowd(engine, "crowd", SEED, retries=False) as crowd:
        await crowd.until_accepted(FLOWING)
        for number in range(2 * ROUNDS):
            await asyncio.sleep(dice.uniform(0, MOMENT_S))
            name = f"front {number % 2}"
            stopped = {name: pids(engine)[name]}
            os.kill(stopped[name], signal.SIGTERM)
            await ready_again(engine, stopped)
            await crowd.until_accepted(FLOWING)
    await came_through(engine, crowd)
    print(f"drains: {2 * ROUNDS}; {dict(crowd.statuses())}")
    assert crowd.statuses()[503] < crowd.statuses()[201] / 20  # a front that starts joins the others when it is ready
    stopped_clean(engine)


async def test_a_client_that_never_stops_sending_is_told_to_go(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """Its connection is never idle: a drain that waited for that would end by cutting off orders that it had taken."""
    engine = make_engine().start()
    open_sale(engine, "crowd", tmp_path)
    token = engine.token("shopper", "ann")
    body = b'{"sale": "crowd", "market": "SG", "lines": [{"sku": "PLENTY-0", "quantity": 1}]}'
    stopped = {"front 0": pids(engine)["front 0"]}
    stopped_at = 0.0
    with await Wire.open(engine.port) as wire:
        sent = 0

        async def keep_sending() -> None:
            nonlocal sent
            while await wire.send(post_order(body, token, f"key-{sent}")):
                sent += 1

        sending = asyncio.create_task(keep_sending())
        while await wire.read_some(BACK_WITHIN_S):
            if not stopped_at and wire.received.count(b"HTTP/1.1 201") > FLOWING:
                os.kill(stopped["front 0"], signal.SIGTERM)
                stopped_at = time.monotonic()
        took_s = time.monotonic() - stopped_at
        sending.cancel()
    answers = answers_in(wire.received, ended=True)
    print(f"told to go after {took_s:.2f} s and {len(answers)} answers, {sent} orders sent")
    assert {answer.status for answer in answers} == {201}
    await ready_again(engine, stopped)
    report = await audit(engine)
    assert report["counts"]["orders_valkey"] == len(answers)
    assert answers[-1].headers["connection"] == "close"
    assert took_s < TOLD_WITHIN_S
    stopped_clean(engine)


async def test_up_stops_under_load_within_its_time_and_leaves_no_order_unanswered(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    dice = random.Random(f"{SEED} stop")
    engine = make_engine().start()
    open_sale(engine, "crowd", tmp_path)
    took_s = []
    async with Crowd(engine, "crowd", SEED, retries=False) as crowd:
        for _ in range(ROUNDS):
            await crowd.until_accepted(FLOWING)
            await asyncio.sleep(dice.uniform(0, MOMENT_S))
            processes = tree(engine)
            began = time.monotonic()
            assert await asyncio.to_thread(engine.stop) == 0
            took_s.append(time.monotonic() - began)
            assert still_running(processes) == []
            await asyncio.to_thread(engine.start)
    await came_through(engine, crowd)
    print(f"stops: {ROUNDS}, {max(took_s):.1f} s at most; {dict(crowd.statuses())}")
    assert max(took_s) < STOPPED_WITHIN_S
    stopped_clean(engine)


async def came_through(engine: Engine, crowd: Crowd) -> None:
    assert crowd.faults == []
    assert await crowd.compare_with_ledger() == len(crowd.accepted) > 0
    await audit(engine)


def stopped_clean(engine: Engine) -> None:
    processes = tree(engine)
    assert engine.stop() == 0
    assert still_running(processes) == []
