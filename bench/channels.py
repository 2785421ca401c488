"""Orders/s of a sales channel that sends many in a request, against single orders of as many connections as usual."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from bench.bench import SKUS, Bench, Measured
from bench.engine import FLASHSALE, SECRET, Engine
from bench.load import write_plan

FIGURES = ("channel-memory", "channel-fsync")
CHANNEL = "lazada-sg"
A_REQUEST = 500
SCRIPT = Path(__file__).with_name("channel.lua")


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    for durability in ("memory", "fsync"):
        if f"channel-{durability}" in wanted:
            _measure(bench, durability)


def _measure(bench: Bench, durability: str) -> None:
    with Engine(bench.new_folder(f"channel-{durability}"), durability) as engine:
        bench.load_engine(engine, bench.warm_up_s)
        _load(bench, engine, bench.warm_up_s)
        for _ in range(bench.repeat):
            single = bench.load_engine(engine)
            many = _load(bench, engine, bench.seconds)
            rate = many.seen.rate * A_REQUEST
            bench.note("a channel", rate=round(rate), single=round(single.seen.rate))
            bench.add(f"channel-{durability}", rate / single.seen.rate)


def _load(bench: Bench, engine: Engine, seconds: float) -> Measured:
    sale = engine.create_sale(bench.new_sale())
    orders = [
        json.dumps({"sale": sale, "market": "SG", "lines": [{"sku": sku, "quantity": 1}]}, separators=(",", ":"))[1:]
        for sku in SKUS
    ]
    token = subprocess.run(
        [str(FLASHSALE), "token", "channel", CHANNEL],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FLASHSALE_SECRET": SECRET},
    ).stdout.strip()
    head = (
        f"POST /v1/channels/{CHANNEL}/orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: "
    )
    plan = write_plan(bench.folder / "channel-plan.lua", head=head, orders=orders, count=A_REQUEST, prefix=sale)
    return bench.measure(engine, sale, plan, seconds, SCRIPT, A_REQUEST)
