"""`kill -9` of workers and of the payment provider while orders are paid, refunded and expire: no double charge, no
payment lost, no unit given back twice.

FLASHSALE_PAYMENT_KILLS kills of workers and sandbox together (the full size is 200, in ten minutes);
FLASHSALE_CHAOS_SEED repeats a run's dice.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.conftest import Engine
from tests.crowd import audit
from tests.payers import SETTINGS, Lived, Payers, open_sale
from tests.payers_judged import connect, counted, judge, quiet, retried
from tests.processes import pids

KILLS = int(os.environ.get("FLASHSALE_PAYMENT_KILLS", "6"))
SEED = int(os.environ.get("FLASHSALE_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
MOMENT_S = 2.0  # the kill falls somewhere within this, after orders flow again
FLOWING = 3  # answers to steps after a restart before the next kill
BACK_WITHIN_S = 30.0
FROZEN_S = 2.0  # longer than the provider's grace: holds expire without it, and their payers come late
AUDIT_EVERY = 25
SANDBOX = "payments sandbox"
PARTS = {
    "worker": (("worker",), 9),
    "sandbox": ((SANDBOX,), 6),
    "frozen sandbox": ((SANDBOX,), 1),
    "worker and sandbox": (("worker", SANDBOX), 2),
    "front": (("front 0",), 1),
    "valkey": (("valkey",), 1),
    "postgres": (("postgres",), 1),
    "all": (("worker", SANDBOX, "front 0", "valkey", "postgres"), 1),
}
COUNTED = ("worker", SANDBOX)
FAULTS = {"decline": 0.05, "delay_ms": 20, "charge_then_timeout": 0.05, "repeat": 0.2, "reorder": 0.2, "lose": 0.1}

pytestmark = pytest.mark.chaos

HELD = 10  # holds that expire while Valkey takes no change
PAUSED_MS = 60_000


def running(engine: Engine) -> dict[str, int]:
    """Every part's pid by its name, the sandbox's too."""
    sandbox = json.loads((engine.data_dir / "run.json").read_text())["payments_sandbox"]
    return pids(engine) | {SANDBOX: sandbox["pid"]}


async def until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {within_s} s"
        await asyncio.sleep(0.02)


async def kill(engine: Engine, names: tuple[str, ...]) -> dict[str, int]:
    """kill -9 of these parts; their pids."""
    killed = {name: running(engine)[name] for name in names}
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)
    return killed


async def back(engine: Engine, killed: dict[str, int]) -> None:
    """Returns when each runs as another process and the engine is ready."""

    def others() -> bool:
        now = running(engine)
        return all(now.get(name) not in (pid, None) for name, pid in killed.items())

    await until(others, BACK_WITHIN_S, f"{killed} are not back")
    await asyncio.to_thread(engine.wait_until_ready, BACK_WITHIN_S)


async def agree(engine: Engine) -> dict[str, Any]:
    """What `flashsale payments reconcile --json` says; there must be no difference."""
    done = await asyncio.to_thread(engine.command, "payments", "reconcile", "--json", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


async def ended_well(engine: Engine, payers: Payers) -> None:
    """Nothing is left to do, and every order is as it must be, whoever is asked."""
    await payers.faults_at_sandbox()
    await quiet(engine, payers)
    faults = await judge(engine, payers)
    print(f"audit {(await audit(engine))['counts']}\nreconcile {await agree(engine)}")
    assert faults == [], "\n".join(faults[:10]) + f"\n{len(faults)} faults"
    print(f"{await retried(payers, 300)} retries")
    assert payers.faults == [], "\n".join(payers.faults[:10])


async def test_killed_workers_and_providers_charge_nobody_twice_and_lose_nothing(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    dice = random.Random(f"{SEED} payments")
    engine = make_engine(**SETTINGS).start()
    open_sale(engine, "payers", tmp_path)
    killed: Counter[str] = Counter()
    began = time.monotonic()
    async with Payers(engine, "payers", SEED) as payers:
        await payers.faults_at_sandbox(seed=SEED, **FAULTS)
        names, weights = list(PARTS), [weight for _, weight in PARTS.values()]
        while (count := sum(killed[name] for name in COUNTED)) < KILLS:
            steps = payers.counts["steps"]
            await until(lambda steps=steps: payers.counts["steps"] >= steps + FLOWING, BACK_WITHIN_S, "no step taken")
            await asyncio.sleep(dice.uniform(0, MOMENT_S))
            name = dice.choices(names, weights)[0]
            if name == "frozen sandbox":
                os.kill(running(engine)[SANDBOX], signal.SIGSTOP)
                await asyncio.sleep(FROZEN_S)
            gone = await kill(engine, PARTS[name][0])
            killed.update(gone.keys())
            await back(engine, gone)
            if (count + 1) % AUDIT_EVERY == 0:
                await audit(engine)
    took_s = time.monotonic() - began
    try:
        await ended_well(engine, payers)
    finally:
        print(f"{took_s:.0f} s, kills {dict(killed)}, {await counted(engine, 'payers')}, {dict(payers.counts)}")
        await payers.aclose()
    assert engine.stop() == 0


@pytest.mark.parametrize("also", [(), ("valkey",), ("postgres",)], ids=["alone", "with Valkey", "with PostgreSQL"])
async def test_a_worker_killed_between_the_expiry_and_the_release_brings_the_units_back_once(
    make_engine: Callable[..., Engine], tmp_path: Path, also: tuple[str, ...]
) -> None:
    """Valkey answers reads and keeps changes waiting: the holds expire in the ledger, their units can't go back."""
    engine = make_engine(**SETTINGS).start()
    open_sale(engine, "night", tmp_path, hold_s=3)
    valkey = redis.asyncio.from_url(json.loads((engine.data_dir / "run.json").read_text())["valkey"]["address"])
    payers = Payers(engine, "night", SEED, lives=0)
    async with payers:
        orders = [order for order in [await placed(payers) for _ in range(3 * HELD)] if order is not None][:HELD]
        for order in orders[::2]:
            await payers.begin(order, "card")
        ledger = await connect(engine)
        await known(ledger, len(payers.orders))
        await valkey.execute_command("CLIENT", "PAUSE", PAUSED_MS, "WRITE")
        await expired(ledger, len(payers.orders))
        waiting = await ledger.fetchval("SELECT count(*) FROM outbox WHERE kind = 'release'")
        moved = await ledger.fetchval("SELECT count(*) FROM movement WHERE kind = 'release'")
        await ledger.close()
        assert (waiting > 0, moved) == (True, 0)
        gone = await kill(engine, ("worker", *also))
        if "valkey" not in also:
            await valkey.execute_command("CLIENT", "UNPAUSE")
        await valkey.aclose()
        await back(engine, gone)
    try:
        await ended_well(engine, payers)
        ledger = await connect(engine)
        once = await ledger.fetch("SELECT order_id, count(*) = count(DISTINCT sku) FROM movement"
                                  " WHERE kind = 'release' GROUP BY 1")  # fmt: skip
        await ledger.close()
        assert {row[0]: row[1] for row in once} == {order.id: True for order in payers.orders}
    finally:
        await payers.aclose()
    assert engine.stop() == 0


async def placed(payers: Payers) -> Lived | None:
    """An order of the crowd's; None where it was sold out."""
    order = payers.new_order()
    status, told = await payers.order(order)
    if status != 201:
        return None
    order.id, order.reserved_until = told["id"], told["reserved_until"]
    payers.orders.append(order)
    return order


async def known(ledger: Any, orders: int) -> None:
    """Returns when the ledger has so many orders."""
    async with asyncio.timeout(BACK_WITHIN_S):
        while await ledger.fetchval("SELECT count(*) FROM orders") < orders:  # noqa: ASYNC110  another process's state
            await asyncio.sleep(0.02)


async def expired(ledger: Any, orders: int) -> None:
    """Returns when so many orders have expired."""
    async with asyncio.timeout(BACK_WITHIN_S):
        while await ledger.fetchval("SELECT count(*) FROM orders WHERE status = 'expired'") < orders:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
