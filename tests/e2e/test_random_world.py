"""Randomised orders over all markets, channels and lanes: no limit is passed, and none after a rebuild from nothing.

The default is 600 orders. The full size, with its summary:
`FLASHSALE_RANDOM_ORDERS=10000 pytest tests/e2e/test_random_world.py -rP`; FLASHSALE_RANDOM_SEED draws others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import redis

from flashsale import runfile
from flashsale.reservation import commands
from flashsale.sale.catalogue import Catalogue
from tests.conftest import Engine
from tests.crowd import audit
from tests.e2e.random_world import RandomWorld, tight_sale, tightened
from tests.e2e.worlds import change_world, servers
from tests.wire import ask, post

ORDERS = int(os.environ.get("FLASHSALE_RANDOM_ORDERS", "600"))
SEED = int(os.environ.get("FLASHSALE_RANDOM_SEED", "1111"))
WITHIN_S = 60
ANNUAL = 2_600_000  # fen
REFUSALS = {
    "sold-out", "lane-full", "lane-unavailable", "not-sold-here", "import-limit-exceeded", "quota-exceeded",
    "not-granted", "identity-unverified",
}  # fmt: skip
FULL_STOP = ("sold-out", "lane-full", "import-limit-exceeded", "quota-exceeded")


async def until_written(engine: Engine) -> dict[str, Any]:
    """The audit's report, green, with nothing left to be written."""
    deadline = time.monotonic() + WITHIN_S
    while (report := await audit(engine))["counts"]["backlog"]:
        assert time.monotonic() < deadline, report
        await asyncio.sleep(0.2)
    return report


async def valkey_loses_all(engine: Engine) -> None:
    """Valkey is killed with its files gone, and comes back empty; returns when the engine is ready again."""
    running = runfile.read(engine.data_dir)
    assert running is not None
    async with servers(engine) as (valkey, _):
        life = (await valkey.info("server"))["run_id"]
    shutil.rmtree(engine.data_dir / "valkey" / "appendonlydir")
    os.kill(running["valkey"]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + WITHIN_S
    while True:
        assert time.monotonic() < deadline, engine.errors.read_text()[-4000:]
        with contextlib.suppress(redis.RedisError, OSError):
            async with servers(engine) as (valkey, _):
                if (await valkey.info("server"))["run_id"] != life:
                    break
        await asyncio.sleep(0.05)
    await asyncio.to_thread(engine.wait_until_ready)


async def cancel_and_pay(world: RandomWorld) -> Counter[str]:
    """Some of the accepted orders are cancelled, some paid at the sandbox."""
    done: Counter[str] = Counter()
    single = [each for each in world.accepted if not each.channel and not each.agent]
    async with aiohttp.ClientSession() as http:
        for placed in world.dice.sample(single, min(len(single), 60)):
            assert placed.first is not None
            who, path = world.token("shopper", placed.shopper), f"/v1/orders/{placed.first['id']}"
            if world.dice.random() < 0.5:
                (answer,) = await ask(world.engine.port, post(f"{path}/cancellation", b"{}", who))
                done[f"cancellation {answer.status}"] += 1
                continue
            (answer,) = await ask(world.engine.port, post(f"{path}/payment", b'{"method":"card"}', who))
            done[f"payment {answer.status} {answer.problem}".strip()] += 1
            if answer.status == 201:
                form = {"method": "card", "action": "pay"}
                async with http.post(answer.json()["pay_url"], data=form, allow_redirects=False) as paid:
                    done[f"paid {paid.status}"] += 1
    return done


async def judge_limits(engine: Engine, world: RandomWorld) -> None:
    """Arithmetic of the test's own over the ledger's rows: units, parcels and imports within their limits."""
    async with servers(engine) as (valkey, ledger):
        catalogue = await commands.load_catalogue(valkey)
        assert catalogue is not None
        rows = await ledger.fetch("SELECT * FROM orders")
    assert {row["id"] for row in rows} == {each.first["id"] for each in world.accepted if each.first}
    assert len(rows) == len(world.accepted)
    units: Counter[tuple[int, int]] = Counter()
    parcels: Counter[tuple[int, int]] = Counter()
    imports: Counter[tuple[bytes, int]] = Counter()
    owned: Counter[tuple[int, int, str]] = Counter()
    bought: Counter[tuple[int, int, str]] = Counter()
    for row in rows:
        if row["status"] in ("cancelled", "expired"):
            continue
        for place, (sku, quantity) in enumerate(zip(row["skus"], row["quantities"], strict=True)):
            units[row["sale"], sku] += quantity
            bought[row["sale"], sku, row["shopper"]] += quantity
            if row["drawn"] and row["drawn"][place]:
                owned[row["sale"], sku, row["channel"]] += row["drawn"][place]
        parcels[row["lane_number"], row["dispatch_day"]] += 1
        if row["identity"] is not None:
            imports[row["identity"], row["limit_year"]] += row["limit_use"]
        parts = row["shipping"] + sum(row["duties"]) + sum(row["taxes"])
        priced = sum(price * count for price, count in zip(row["prices"], row["quantities"], strict=True))
        assert row["total"] == parts + priced
    for (number, sku), count in units.items():
        assert count <= _sale(catalogue, number).offers[sku].stock
    for (number, sku, channel), count in owned.items():
        assert count <= dict(_sale(catalogue, number).offers[sku].guarantees)[channel]
    for (number, sku, _), count in bought.items():
        assert count <= (_sale(catalogue, number).offers[sku].quota or count)
    capacity = {lane.number: lane.capacity for lane in catalogue.world.lanes.lanes}
    assert all(count <= capacity[lane] for (lane, _), count in parcels.items()), parcels
    assert all(used <= ANNUAL for used in imports.values()), imports
    assert owned
    assert imports


def _said(report: dict[str, Any]) -> str:
    counts = {name: count for name, count in report["counts"].items() if isinstance(count, int)}
    return json.dumps({"ok": report["ok"], "faults": report["faults"], **counts})


def _sale(catalogue: Catalogue, number: int) -> Any:
    sale = catalogue.by_number(number)
    assert sale is not None
    return sale


async def test_no_limit_is_passed_by_orders_of_every_kind(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    began = time.monotonic()
    engine = make_engine().start()
    file = tmp_path / "tight.toml"
    file.write_text(tight_sale(ORDERS))
    engine.command("sale", "create", str(file))
    await change_world(engine, lambda world: tightened(world, ORDERS))
    async with servers(engine) as (valkey, _):
        catalogue = await commands.load_catalogue(valkey)
    assert catalogue is not None
    print(f"seed {SEED}, {ORDERS} orders")
    world = RandomWorld(engine, catalogue, SEED, ORDERS)
    await world.run()
    sent_s = time.monotonic() - began
    counts = world.counts()
    for name, each in counts.items():
        print(f"{name}: {dict(sorted(each.items()))}")
    assert world.faults == [], "\n".join(world.faults)
    assert counts["market"].keys() == set(world.markets)
    assert counts["channel"].keys() == {each.id for each in world.world.channels}
    assert counts["batched by"].keys() == {each.id for each in world.world.channels}
    assert counts["lane"].keys() == {each.id for each in world.world.lanes.lanes}
    assert counts["agent"]
    assert counts["refused"].keys() >= REFUSALS
    await until_written(engine)
    print("afterwards:", dict(await cancel_and_pay(world)))
    report = await until_written(engine)
    print("audit:", _said(report))
    await judge_limits(engine, world)

    await valkey_loses_all(engine)
    recovered = await asyncio.to_thread(engine.command, "recover", "--force", "--json")
    print("recover:", recovered.stdout.strip())
    outcome = json.loads(recovered.stdout)
    assert (outcome["ok"], outcome["rebuilt"], outcome["orders"]) == (True, True, len(world.accepted))
    assert outcome["epoch"] > 2, "the first rebuild, from nothing, was the engine's own"
    await asyncio.to_thread(engine.wait_until_ready)
    print("audit after recover:", _said(await until_written(engine)))
    sample = world.dice.sample(world.accepted, min(len(world.accepted), 200))
    for placed in sample:  # the first answer again, which `send` compares
        await world.send([placed])
        assert placed.statuses[-1] == 201, placed
    assert world.faults == [], "\n".join(world.faults)
    still = Counter[str]()
    for kind in FULL_STOP:  # cancelled orders made room for some; then it is full again
        for placed in [each for each in world.placed if each.first is None and each.problem == kind][-30:]:
            await world.send([placed])
            still[placed.problem if placed.first is None else "accepted"] += 1
    print(f"refused before, and now: {dict(still)}")
    assert still.keys() >= set(FULL_STOP)
    await until_written(engine)
    await judge_limits(engine, world)
    print(f"{len(sample)} replays; {sent_s:.1f} s until all were sent, {time.monotonic() - began:.1f} s in all")
    assert engine.stop() == 0
