"""Carriers on a whole engine: its own workers book what shoppers paid, and a sandbox beside it carries all of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashsale.front.auth import mint
from tests.conftest import FLASHSALE, Engine, free_port
from tests.crowd import audit
from tests.integration.carrier_house import ACROSS, SECRET
from tests.wire import ask, get, post

CHANNEL = "tmall-world"
WITHIN_S = 60


class Carriers:
    """`flashsale sandbox carriers`, which may be killed."""

    def __init__(self, directory: Path, port: int, engine_port: int) -> None:
        self._directory, self._port, self._engine_port = directory, port, engine_port
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        url = f"http://127.0.0.1:{self._engine_port}/v1/carriers"
        self._process = subprocess.Popen(
            [
                *(str(FLASHSALE), "sandbox", "carriers", "--json", "--auto", "0.3"),
                *("--port", str(self._port), "--data-dir", str(self._directory), "--events-url", url),
            ],
            env={**os.environ, "FLASHSALE_CARRIERS_SECRET": SECRET, "FLASHSALE_LOG_LEVEL": "warning"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline()

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def carriers(tmp_path: Path) -> Iterator[Callable[[int, int], Carriers]]:
    made: list[Carriers] = []

    def make(port: int, engine_port: int) -> Carriers:
        made.append(Carriers(tmp_path / "carriers", port, engine_port))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def token(engine: Engine, role: str, sub: str) -> str:
    return next(mint((engine.data_dir / "secret").read_bytes().strip(), sub, role, 3600, int(time.time())))


async def ordered(engine: Engine, name: str, count: int) -> list[str]:
    """Orders that the channel has collected, and so paid as they come."""
    orders = [
        {
            "reference": f"{name}-{number}",
            "shopper": "ann",
            "sale": "across",
            "market": ("SG", "MY")[number % 2],
            "lines": [{"sku": "KETTLE", "quantity": 1}],
            "collected_by": "channel",
            **({"lane": "sf-international"} if number % 3 == 0 else {}),
        }
        for number in range(count)
    ]
    body = json.dumps({"orders": orders}).encode()
    path = f"/v1/channels/{CHANNEL}/orders"
    (answer,) = await ask(engine.port, post(path, body, token(engine, "channel", CHANNEL)))
    found = answer.json()["results"]
    assert {each["status"] for each in found} == {201}, found
    return [each["order"]["id"] for each in found]


async def tracking(engine: Engine, order_id: str) -> Any:
    (answer,) = await ask(engine.port, get(f"/v1/orders/{order_id}/tracking", token(engine, "admin", "boss")))
    return answer.json()


async def test_what_is_paid_is_carried_to_the_door(
    make_engine: Callable[..., Engine], carriers: Callable[[int, int], Carriers], tmp_path: Path
) -> None:
    port = free_port()
    engine = make_engine(
        FLASHSALE_CARRIERS_URL=f"http://127.0.0.1:{port}",
        FLASHSALE_CARRIERS_SECRET=SECRET,
        FLASHSALE_CARRIERS_SILENT_S="3600",  # nothing is asked: what a killed sandbox had to tell, it tells
    ).start()
    file = tmp_path / "across.toml"
    file.write_text(ACROSS)
    engine.command("sale", "create", str(file))
    early = await ordered(engine, "early", 10)  # nobody is there to carry them yet
    sandbox = carriers(port, engine.port)
    sandbox.start()
    later = await ordered(engine, "later", 20)
    await asyncio.sleep(1)
    sandbox.kill()
    last = await ordered(engine, "last", 10)
    await asyncio.sleep(1)
    sandbox.start()
    deadline, waiting = time.monotonic() + WITHIN_S, [*early, *later, *last]
    seen = {}
    while waiting:
        for order_id in list(waiting):
            found = await tracking(engine, order_id)
            if found.get("status") == "delivered":
                seen[order_id] = found
                waiting.remove(order_id)
        assert time.monotonic() < deadline, (len(waiting), found, engine.errors.read_text()[-4000:])
        await asyncio.sleep(0.2)
    assert len({found["waybill"] for found in seen.values()}) == 40
    assert {found["carrier"] for found in seen.values()} == {"cainiao", "sf-express"}
    for order_id, found in seen.items():
        (answer,) = await ask(engine.port, get(f"/v1/orders/{order_id}", token(engine, "admin", "boss")))
        order = answer.json()
        assert (order["status"], order["tracking"]) == ("delivered", found["waybill"])
        assert [event["code"] for event in found["events"]][:: len(found["events"]) - 1] == ["picked_up", "delivered"]
    (numbers,) = await ask(engine.port, get("/metrics"))
    assert b'flashsale_carrier_calls_total{call="book",outcome="answered"}' in numbers.body
    assert b'flashsale_carrier_events_total{outcome="applied"}' in numbers.body
    assert (await audit(engine))["ok"]
    assert engine.stop() == 0
