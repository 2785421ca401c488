"""Hong Kong's next day on a whole engine: a channel's parcels come or don't, an alert is raised, and cleared again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashsale.front.auth import mint
from tests.conftest import Engine
from tests.crowd import audit
from tests.integration.parcels import FILE, NOODLES
from tests.wire import ask, get, post

CHANNEL = "aliexpress"
WITHIN_S = 40  # an alert is raised some seconds after the delivery that it is about
RAISED, CLEARED = "a lane keeps too few of its promises", "a lane keeps its promises again"


def token(engine: Engine, role: str, sub: str) -> str:
    return next(mint((engine.data_dir / "secret").read_bytes().strip(), sub, role, 3600, int(time.time())))


async def ordered(engine: Engine, name: str, count: int) -> list[str]:
    """Orders that the channel has collected, and so paid as they come."""
    orders = [
        {
            "reference": f"{name}-{number}",
            "shopper": "ann",
            "sale": "sale",
            "market": "HK",
            "lines": [{"sku": NOODLES, "quantity": 1}],
            "collected_by": "channel",
        }
        for number in range(count)
    ]
    body = json.dumps({"orders": orders}).encode()
    (answer,) = await ask(
        engine.port, post(f"/v1/channels/{CHANNEL}/orders", body, token(engine, "channel", CHANNEL))
    )  # fmt: skip
    found = answer.json()["results"]
    assert {each["status"] for each in found} == {201}, found
    return [each["order"]["id"] for each in found]


async def ended(engine: Engine, order_ids: list[str], how: str) -> None:
    """The channel packs them, hands them over and says what became of them."""
    channel = token(engine, "channel", CHANNEL)
    for order_id in order_ids:
        for step in ("pack", "ready-to-ship", how):
            path = f"/v1/channels/{CHANNEL}/orders/{order_id}/{step}"
            deadline = time.monotonic() + WITHIN_S
            while True:  # the ledger may not have the order yet
                (answer,) = await ask(engine.port, post(path, b"{}", channel))
                if answer.status in (200, 201):
                    break
                assert time.monotonic() < deadline, answer
                await asyncio.sleep(0.1)


async def warnings_of(engine: Engine) -> list[str]:
    (ready,) = await ask(engine.port, get("/readyz"))
    assert ready.status == 200
    return [line for line in ready.json()["warnings"] if line.startswith("lane ")]


async def until_warned(engine: Engine, warned: bool) -> None:
    deadline = time.monotonic() + WITHIN_S
    while bool(await warnings_of(engine)) != warned:
        assert time.monotonic() < deadline, await warnings_of(engine)
        await asyncio.sleep(0.2)


def shown(engine: Engine) -> dict[str, Any]:
    """What the command says of the one lane and country that there is."""
    (lane,) = json.loads(engine.command("promises", "--json").stdout)["promises"]
    found: dict[str, Any] = lane
    return found


async def test_an_alert_is_raised_shown_and_cleared(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make_engine().start()
    file = tmp_path / "sale.toml"
    file.write_text(FILE)
    engine.command("sale", "create", str(file))
    lost, here, later = [await ordered(engine, name, count) for name, count in (("a", 3), ("b", 17), ("c", 10))]
    await ended(engine, lost, "failed-delivery")
    await ended(engine, here[:-1], "delivered")
    lane = shown(engine)
    assert (lane["lane"], lane["country"], lane["deliveries"], lane["on_time"]) == (
        "tmall-supermarket-hk",
        "HK",
        19,
        16,
    )
    assert not lane["alert"]  # nineteen say nothing yet
    await ended(engine, here[-1:], "delivered")
    await until_warned(engine, True)
    lane = shown(engine)
    assert (lane["deliveries"], lane["share"], lane["alert"]) == (20, 0.85, True)
    assert "ALERT: less than 90% since" in engine.command("promises").stdout
    assert "tmall-supermarket-hk to HK" in (await warnings_of(engine))[0]
    (numbers,) = await ask(engine.port, get("/metrics"))
    assert b'flashsale_lane_promise_alert{country="HK",lane="tmall-supermarket-hk"} 1.0' in numbers.body
    await ended(engine, later, "delivered")  # 27 of 30: not under 90 %
    await until_warned(engine, False)
    assert not shown(engine)["alert"]
    assert (await audit(engine))["ok"]
    assert engine.stop() == 0
    log = engine.errors.read_text()
    assert (log.count(RAISED), log.count(CLEARED)) == (1, 1)
