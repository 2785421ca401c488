"""A channel's whole day with a running engine: it hears what it may sell, sends what it sold, and sees each parcel to
the door, or back. Every call that may be lost is made twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from flashsale.front.auth import mint
from tests.conftest import FLASHSALE, Engine
from tests.crowd import audit
from tests.wire import Answer, ask, get, post

CHANNEL = "lazada-my"
PATH = f"/v1/channels/{CHANNEL}"
STOCK, OWN, ORDERS = 60, 20, 25
WITHIN_S = 20
FILE = f"""
[sale]
id = "day"
name = "A day"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2099-01-01T00:00:00Z
ships_from = "CN"
hold_seconds = 900
[[offers]]
sku = "KETTLE"
brand = "Joyoung"
title = {{ en = "Kettle" }}
stock = {STOCK}
quota = 0
weight_g = 900
hs_code = "851712"
origin = "CN"
prices = {{ SG = "20.50", MY = "60.00" }}
guarantees = {{ lazada-sg = 10, {CHANNEL} = {OWN} }}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that may tell a channel on this machine."""
    directory = tmp_path_factory.mktemp("day")
    running = Engine(directory / "engine", FLASHSALE_WEBHOOK_ALLOW='["127.0.0.0/8"]').start()
    file = directory / "day.toml"
    file.write_text(FILE)
    running.command("sale", "create", str(file))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def market(engine: Engine) -> Iterator[str]:
    """The address of a marketplace of its own process."""
    sandbox = subprocess.Popen(
        [str(FLASHSALE), "sandbox", "channel", "--json"], env=engine.environment, stdout=subprocess.PIPE
    )
    assert sandbox.stdout is not None
    yield str(json.loads(sandbox.stdout.readline())["address"])
    sandbox.terminate()
    sandbox.wait(10)


class Day:
    """What the channel asks of the engine, and what its marketplace shows."""

    def __init__(self, engine: Engine, market: str) -> None:
        self._engine, self._port = engine, engine.port
        self._market_port = int(market.rpartition(":")[2])
        secret = (Path(engine.data_dir) / "secret").read_bytes().strip()
        self.token = next(mint(secret, CHANNEL, "channel", 3600, int(time.time())))

    async def get(self, path: str) -> Answer:
        (answer,) = await ask(self._port, get(path, self.token))
        return answer

    async def post(self, path: str, body: Any = None) -> Answer:
        (answer,) = await ask(self._port, post(path, json.dumps(body or {}).encode(), self.token))
        return answer

    async def step(self, order_id: str, step: str, status: int = 200, body: Any = None) -> Any:
        answer = await self.post(f"{PATH}/orders/{order_id}/{step}", body)
        assert answer.status == status, answer
        return answer.json()

    async def twice(self, order_id: str, step: str) -> Any:
        """A step that changes nothing the second time."""
        first = await self.step(order_id, step)
        assert await self.step(order_id, step) == first
        return first

    async def shown(self, name: str) -> list[dict[str, Any]]:
        """What the marketplace was told: its orders, or its stock."""
        (answer,) = await ask(self._market_port, get(f"/{name}"))
        found: list[dict[str, Any]] = answer.json()[name]
        return found

    async def hears(self, true: Callable[[list[dict[str, Any]]], bool], name: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not true(found := await self.shown(name)):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.1)

    async def hears_stock(self, units: int) -> None:
        """It may sell so many kettles (those of the demo's sale are another matter)."""
        await self.hears(lambda told: [e["sellable"] for e in told if e["sale"] == "day"] == [units], "stock")

    async def subscribe(self, market: str) -> None:
        body = json.dumps({"url": f"{market}/push"}).encode()
        request = (
            f"PUT {PATH}/endpoint HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        (made,) = await ask(self._port, request.encode() + body)
        assert made.status == 200, made
        secret = json.dumps({"secret": made.json()["secret"]}).encode()
        (told,) = await ask(self._market_port, post("/sandbox/secret", secret))
        assert told.status == 200, told

    async def collected(self, numbers: range) -> list[str]:
        """A batch of orders that the marketplace has been paid for; the same batch again is the same orders."""
        orders = [
            {
                "reference": f"day-{number}",
                "shopper": "aminah",
                "sale": "day",
                "market": "MY",
                "lines": [{"sku": "KETTLE", "quantity": 1}],
                "ship_to": {"country": "MY", "name": "Aminah", "street": "1 Jalan Ampang", "city": "Kuala Lumpur",
                            "postcode": "50450"},
                "collected_by": "channel",
            }
            for number in numbers
        ]  # fmt: skip
        found = []
        for _ in range(2):
            answer = await self.post(f"{PATH}/orders", {"orders": orders})
            assert answer.status == 200, answer
            results = answer.json()["results"]
            assert {each["status"] for each in results} == {201}, results[0]
            found.append([each["order"]["id"] for each in results])
        assert found[0] == found[1]
        return found[0]

    async def listed(self, since: str, pages_of: int) -> tuple[list[dict[str, Any]], int]:
        """All orders since then, and over how many pages they came."""
        path, found, pages = f"{PATH}/orders?created_after={quote(since)}&limit={pages_of}", [], 0
        while path:
            answer = await self.get(path)
            assert answer.status == 200, answer
            page = answer.json()
            assert 0 < len(page["orders"]) <= pages_of
            found += page["orders"]
            pages, path = pages + 1, page.get("next", "")
        return found, pages


async def test_a_channel_s_day(engine: Engine, market: str) -> None:
    day = Day(engine, market)
    since = datetime.now(UTC).replace(microsecond=0).isoformat()
    await day.subscribe(market)
    await day.hears_stock(STOCK - 10)  # all but what is Singapore's

    morning = await day.collected(range(ORDERS // 2))
    evening = await day.collected(range(ORDERS // 2, ORDERS))
    ids = morning + evening
    await day.hears_stock(STOCK - 10 - ORDERS)
    await day.hears(
        lambda told: {order["id"] for order in told if order["status"] == "paid"} >= set(ids), "orders"
    )  # fmt: skip

    orders, pages = await day.listed(since, 10)
    assert (pages, sorted(order["id"] for order in orders)) == (3, sorted(ids))  # each once
    assert {order["id"] for order in orders[: len(morning)]} == set(morning)
    sent = orders[len(morning) - 1]["created_at"]
    assert {order["id"] for order in (await day.listed(sent, 10))[0]} == set(evening)
    assert {(order["status"], order["payment"]) for order in orders} == {("paid", "captured")}
    assert {order["id"]: order["reference"] for order in orders} == {
        order_id: f"day-{number}" for number, order_id in enumerate(ids)
    }
    later = await day.get(f"{PATH}/orders?created_after=2099-01-01T00:00:00Z")
    assert later.json()["orders"] == []

    for order_id in ids:
        package = await day.step(order_id, "pack", 201)
        again = await day.step(order_id, "pack", 409)
        assert (again["type"], again["tracking"]) == ("/problems/already-packed", package["tracking"])
    assert (await day.step(ids[0], "delivered", 409))["type"] == "/problems/not-shippable"
    waybills = [await day.get(f"{PATH}/orders/{ids[0]}/waybill") for _ in range(2)]
    for waybill in waybills:
        assert (waybill.status, waybill.headers["content-type"]) == (200, "application/pdf")
        assert waybill.body.startswith(b"%PDF-")

    for order_id in ids:
        assert (await day.twice(order_id, "ready-to-ship"))["status"] == "shipped"
    lost, home = ids[0], ids[1:-1]  # the last is still on its way
    assert (await day.twice(lost, "failed-delivery"))["status"] == "undeliverable"
    for order_id in home:
        assert (await day.twice(order_id, "delivered"))["status"] == "delivered"

    await _sent_back(day, home[0])
    await day.hears_stock(STOCK - 10 - ORDERS + 1)  # what is on the shelf again is sold again
    ends = {lost: "undeliverable", ids[-1]: "shipped"} | dict.fromkeys(home, "delivered")
    await day.hears(
        lambda told: {order["id"]: order["status"] for order in told if order["id"] in ends} == ends, "orders"
    )  # fmt: skip
    orders, _ = await day.listed(since, 10)
    assert {order["id"]: order["status"] for order in orders} == ends
    assert (await audit(engine))["ok"]


async def _sent_back(day: Day, order_id: str) -> None:
    """A reverse order: asked for, accepted, received, and back on the shelf; each is the same the second time."""
    line = {"sku": "KETTLE", "quantity": 1}
    made = await day.step(order_id, "reverse-orders", 201, {"lines": [line], "reason": "leaks"})
    over = await day.step(order_id, "reverse-orders", 409, {"lines": [line], "reason": "leaks"})
    assert over["type"] == "/problems/not-returnable"
    one = f"{PATH}/reverse-orders/{made['id']}"
    for _ in range(2):
        accepted = await day.post(f"{one}/decision", {"accept": True})
        assert (accepted.status, accepted.json()["status"]) == (200, "accepted"), accepted
    for _ in range(2):
        received = await day.post(f"{one}/receipt", {"lines": [{**line, "restock": True}]})
        assert (received.status, received.json()["status"]) == (200, "received"), received
        assert received.json()["lines"] == [{**line, "received": 1, "restocked": 1}]
    listed = (await day.get(f"{PATH}/orders/{order_id}/reverse-orders")).json()["returns"]
    assert listed == [received.json()]
