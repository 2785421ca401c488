"""Far more shoppers than units, all at once, over four front processes: every unit is sold once, and none twice.

`FLASHSALE_FULL=1` (or `FLASHSALE_SHOPPERS=50000 FLASHSALE_UNITS=1000`) is the full size; the default is small.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import corpora
from tests.conftest import Engine
from tests.crowd import audit
from tests.wire import Wire, ask, get, post_order

SHOPPERS = int(os.environ.get("FLASHSALE_SHOPPERS", "50000" if corpora.FULL else "2000"))
UNITS = int(os.environ.get("FLASHSALE_UNITS", "1000" if corpora.FULL else "50"))
CONNECTIONS = min(SHOPPERS, 2000)  # each brings the orders of several shoppers, pipelined
TRIES = 10  # a shopper who is told 503 or 504 sends the same key again
ROUNDS = 20  # of two shoppers crossing
FRONTS = 4

SALE = """
[sale]
id = "{sale}"
name = "Crowd"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2099-01-01T00:00:00Z
hold_seconds = 900
"""
OFFER = """
[[offers]]
sku = "{sku}"
brand = "Haier"
title = {{ en = "fridge" }}
stock = {stock}
quota = 1
weight_g = 900
prices = {{ SG = "899.00" }}
"""


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("crowd") / "engine", FLASHSALE_PROCESSES=str(FRONTS)).start()
    yield engine
    engine.stop()


def make_sale(engine: Engine, directory: Path, sale: str, stock: dict[str, int]) -> None:
    file = directory / f"{sale}.toml"
    file.write_text(SALE.format(sale=sale) + "".join(OFFER.format(sku=sku, stock=n) for sku, n in stock.items()))
    engine.command("sale", "create", str(file))


def order(sale: str, token: str, key: str, *skus: str) -> bytes:
    lines = [{"sku": sku, "quantity": 1} for sku in skus]
    return post_order(json.dumps({"sale": sale, "lines": lines, "market": "SG"}).encode(), token, key)


async def stock_of(engine: Engine, sale: str) -> dict[str, Any]:
    (answer,) = await ask(engine.port, get(f"/v1/sales/{sale}/stock"))
    return dict(answer.json()["stock"])


def holds(engine: Engine, sale: str) -> int:
    """Orders that Valkey keeps of the sale."""
    address = json.loads((engine.data_dir / "run.json").read_text())["valkey"]["address"]
    with redis.Redis.from_url(address) as client:
        return int(client.hlen(f"{{p00}}:{sale}:holds"))


@pytest.mark.load
async def test_never_one_unit_more_than_there_is(fronts: Engine, tmp_path: Path) -> None:
    make_sale(fronts, tmp_path, "rush", {"FRIDGE": UNITS})
    tokens = fronts.command("token", "shopper", "rush", "--count", str(SHOPPERS)).stdout.split()
    requests = [order("rush", token, "k", "FRIDGE") for token in tokens]
    wires = await asyncio.gather(*(Wire.open(fronts.port) for _ in range(CONNECTIONS)))
    verdicts: Counter[str] = Counter()
    unsure: Counter[str] = Counter()
    accepted: set[str] = set()
    go = asyncio.Event()

    async def shop(number: int, wire: Wire) -> None:
        mine = requests[number::CONNECTIONS]
        await go.wait()
        for _ in range(TRIES):
            wire.received = b""
            await wire.send(b"".join(mine))
            answers = await wire.read(len(mine))
            assert len(answers) == len(mine)
            again = []
            for request, answer in zip(mine, answers, strict=True):
                if answer.status in (503, 504):
                    unsure[answer.problem] += 1
                    again.append(request)
                    continue
                verdicts[answer.problem or "accepted"] += 1
                if answer.status == 201:
                    accepted.add(answer.json()["id"])
                else:
                    assert answer.json()["lines"] == [{"sku": "FRIDGE", "requested": 1, "available": 0}]
            if not again:
                return
            mine = again
            await asyncio.sleep(1)  # Retry-After
        raise AssertionError(f"no verdict in {TRIES} tries")

    crowd = [asyncio.create_task(shop(number, wire)) for number, wire in enumerate(wires)]
    await asyncio.sleep(0)
    began = time.monotonic()
    go.set()
    await asyncio.gather(*crowd)
    took_s = time.monotonic() - began
    for wire in wires:
        wire.socket.close()
    print(f"{SHOPPERS} shoppers, {UNITS} units, {took_s:.1f} s: {dict(verdicts)}; sent again after {dict(unsure)}")
    assert verdicts == {"accepted": UNITS, "sold-out": SHOPPERS - UNITS}
    assert len(accepted) == UNITS == holds(fronts, "rush")
    assert await stock_of(fronts, "rush") == {"FRIDGE": {"supply": UNITS, "available": 0, "held": UNITS, "sold": 0}}
    counts = (await audit(fronts))["counts"]
    assert counts["orders_valkey"] == UNITS


async def test_two_orders_that_cross_at_the_last_units_have_one_winner(fronts: Engine, tmp_path: Path) -> None:
    """One unit of each: A and B against B and A, at once, on many connections. The loser takes neither."""
    skus = [f"{letter}{number}" for number in range(ROUNDS) for letter in "AB"]
    make_sale(fronts, tmp_path, "cross", dict.fromkeys(skus, 1))
    tokens = fronts.command("token", "shopper", "cross", "--count", "4").stdout.split()
    for number in range(ROUNDS):
        a, b = f"A{number}", f"B{number}"
        pairs = [(a, b), (b, a), (a, b), (b, a)]
        sent = [order("cross", token, f"k{number}", *pair) for token, pair in zip(tokens, pairs, strict=True)]
        if number % 2:
            answers = [answer for (answer,) in await asyncio.gather(*(ask(fronts.port, one) for one in sent))]
        else:
            answers = await ask(fronts.port, *sent)
        assert sorted(answer.status for answer in answers) == [201, 409, 409, 409]
        for answer in answers:
            if answer.status == 409:
                assert {line["available"] for line in answer.json()["lines"]} == {0}
    assert {(s["available"], s["held"]) for s in (await stock_of(fronts, "cross")).values()} == {(0, 1)}
    assert holds(fronts, "cross") == ROUNDS
    await audit(fronts)


async def test_a_line_that_is_short_leaves_the_others_untouched(fronts: Engine, tmp_path: Path) -> None:
    make_sale(fronts, tmp_path, "whole", {"ONE": 1, "MANY": 100})
    tokens = fronts.command("token", "shopper", "whole", "--count", "30").stdout.split()
    sent = [
        order("whole", token, "k", *(("ONE", "MANY") if n % 2 else ("MANY", "ONE"))) for n, token in enumerate(tokens)
    ]
    answers = [answer for (answer,) in await asyncio.gather(*(ask(fronts.port, one) for one in sent))]
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 29}
    stock = await stock_of(fronts, "whole")
    assert (stock["ONE"]["available"], stock["MANY"]["available"]) == (0, 99)
    assert holds(fronts, "whole") == 1
    await audit(fronts)
