"""The load: orders as bytes, a plan for wrk's script, and what wrk saw.

wrk runs with one thread on the core that the server under test has not. Its script only joins prepared strings.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from bench.machine import OTHER_CORE, BenchFault

SCRIPT = Path(__file__).with_name("crowd.lua")
CONNECTIONS = 256
MANY_CONNECTIONS = 8  # of requests that bring hundreds of orders each
KEY = "bench-3f1c9a52-7d5e-4b0a-"  # with a number behind it about as long as a UUID, the usual idempotency key
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Seen:
    """What wrk counted: all answers, those with a status above 399, broken connections and time-outs."""

    answers: int
    refused: int
    broken: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def order_body(sale: str, sku: str, every_field: bool = False) -> bytes:
    """An order of one line; with every field of the contract if asked for."""
    order = {"sale": sale, "lines": [{"sku": sku, "quantity": 1}], "market": "SG"}
    if every_field:
        order |= {
            "channel": "tmall-world",
            "lane": "cainiao-standard",
            "ship_to": {"name": "Tan Wei Ling", "country": "SG"},
            "expected_total": {"amount": 89900, "currency": "SGD"},
        }
    return orjson.dumps(order)


def order_request_parts(sale: str, skus: Sequence[str], every_field: bool = False) -> dict[str, object]:
    """An order's request around its token and its number, for the plan: head, middle, and a tail a SKU."""
    tails = []
    for sku in skus:
        body = order_body(sale, sku, every_field)
        tails.append(f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body.decode()}")
    return {
        "head": "POST /v1/orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nAuthorization: Bearer ",
        "middle": f"\r\nIdempotency-Key: {KEY}",
        "tails": tails,
    }


def page_request(path: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n"


def write_plan(path: Path, **plan: object) -> Path:
    """A plan as Lua; its strings must be ASCII (a JSON string of ASCII is a Lua string as well)."""

    def lua(value: object) -> str:
        if isinstance(value, list):
            return "{" + ",\n".join(lua(item) for item in value) + "}"
        return json.dumps(str(value) if isinstance(value, Path) else value)

    path.write_text("return {" + ",\n".join(f"{name} = {lua(value)}" for name, value in plan.items()) + "}\n")
    return path


def run_wrk(port: int, plan: Path, seconds: float, connections: int = CONNECTIONS, script: Path = SCRIPT) -> Seen:
    """Sends a plan's requests for some seconds. Raises BenchFault when wrk fails, as it does when tokens run out."""
    url = f"http://127.0.0.1:{port}"
    options = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "15s", "--latency", "-s", str(script)]
    done = subprocess.run(
        ["taskset", "-c", str(OTHER_CORE), "wrk", *options, url, "--", str(plan)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchFault(f"wrk: {(done.stderr or done.stdout).strip()[-300:]}")
    return read_wrk(done.stdout)


def read_wrk(text: str) -> Seen:
    """wrk's report as numbers."""
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", text)
    if total is None:
        raise BenchFault(f"wrk said: {text[-300:]}")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    percentiles = {
        share: float(amount) * _UNITS_MS[unit]
        for share, amount, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s|m)", text)
    }
    return Seen(
        answers=int(total[1]),
        refused=int(refused[1]) if refused else 0,
        broken=sum(map(int, errors.groups())) if errors else 0,
        seconds=float(total[2]) * _UNITS_MS[total[3]] / 1000,
        p50_ms=percentiles.get("50", 0.0),
        p99_ms=percentiles.get("99", 0.0),
    )
