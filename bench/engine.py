"""The engine under test: `flashsale up` in a folder of its own, its processes pinned, its own counters as witnesses.

Everything goes through the engine's outside: its commands, its HTTP, run.json; and, to count what was committed, one
look into its ledger's tables.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg
import redis

from bench.machine import FRONT_CORE, OTHER_CORE, BenchFault, cpu_s, free_port, pin, spawn, stop, wait_for

FLASHSALE = Path(sys.executable).with_name("flashsale")
START_S = 120
CATCH_UP_S = 300
SECRET = "bench-secret-of-no-worth-0123456789abcdef"  # noqa: S105 - of servers that live for minutes
JOURNAL = "{p00}:journal"


@dataclass(frozen=True)
class Cpu:
    """CPU seconds since each process's start, by part."""

    front: float
    worker: float
    valkey: float
    postgres: float

    @property
    def all(self) -> float:
        return self.front + self.worker + self.valkey + self.postgres

    def since(self, before: Cpu) -> Cpu:
        return Cpu(
            self.front - before.front,
            self.worker - before.worker,
            self.valkey - before.valkey,
            self.postgres - before.postgres,
        )

    def micros_an_order(self, orders: int) -> dict[str, float]:
        parts = {"front": self.front, "worker": self.worker, "valkey": self.valkey, "postgres": self.postgres}
        return {part: round(seconds / orders * 1e6, 2) for part, seconds in parts.items()}


class Engine:
    """A running engine on an empty data directory; `with` stops it."""

    def __init__(self, folder: Path, durability: str = "fsync", **settings: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.environment = {
            "FLASHSALE_DATA_DIR": str(self.data),
            "FLASHSALE_PORT": str(self.port),
            "FLASHSALE_DURABILITY": durability,
            "FLASHSALE_SECRET": SECRET,
            "FLASHSALE_LOG_LEVEL": "warning",
            **{f"FLASHSALE_{name.upper()}": value for name, value in settings.items()},
        }
        self.process = spawn([str(FLASHSALE), "up"], OTHER_CORE, folder / "engine.log", **self.environment)
        try:
            wait_for(self._ready, START_S, f"the engine is ready (see {folder / 'engine.log'})")
        except BaseException:
            stop(self.process)
            raise
        self.parts = json.loads((self.data / "run.json").read_text())
        pin(self.pids("front"), FRONT_CORE)
        address = self.parts["valkey"]["address"]
        self.valkey = redis.Redis.from_url(address)
        self.ledger = self.parts["postgres"]["address"]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.valkey.close()
        stop(self.process)

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            tail = (self.folder / "engine.log").read_text(errors="replace")[-500:]
            raise BenchFault(f"flashsale up ended with {self.process.returncode}: {tail}")
        with suppress(OSError):
            return bool(self.get("/readyz")["ready"])
        return False

    # --- commands and pages ---

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(FLASHSALE), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **self.environment},
        )
        if done.returncode != 0:
            raise BenchFault(
                f"flashsale {' '.join(arguments[:3])}: exit {done.returncode}: {done.stderr.strip()[-500:]}"
            )
        return done.stdout

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return json.load(answer)

    def order(self, token: str, key: str, body: bytes) -> tuple[int, bytes]:
        """Places one order outside any measurement: status and body of its answer."""
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key, "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}/v1/orders"
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:  # noqa: S310 - our own address
                return answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read()

    # --- processes ---

    def pids(self, part: str) -> list[int]:
        """The processes of a part of run.json: front, worker, valkey or postgres."""
        entry = self.parts[part]
        return [one["pid"] for one in entry] if isinstance(entry, list) else [entry["pid"]]

    def cpu(self) -> Cpu:
        return Cpu(**{part: sum(map(cpu_s, self.pids(part))) for part in ("front", "worker", "valkey", "postgres")})

    # --- the ledger as witness ---

    def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async def ask() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.ledger)
            try:
                return list(await connection.fetch(query, *arguments))
            finally:
                await connection.close()

        return asyncio.run(ask())

    def mark(self) -> tuple[int, int]:
        """The journal id up to which the ledger has everything."""
        row = self.rows("SELECT mark_ms, mark_seq FROM partition WHERE id = 0")[0]
        return row["mark_ms"], row["mark_seq"]

    def last_entry(self) -> tuple[int, int]:
        last = self.valkey.xinfo_stream(JOURNAL)["last-generated-id"]
        ms, _, seq = (last.decode() if isinstance(last, bytes) else last).partition("-")
        return int(ms), int(seq)

    def catch_up(self) -> None:
        """Returns once everything that the journal has is in the ledger."""
        last = self.last_entry()
        wait_for(lambda: self.mark() >= last, CATCH_UP_S, "the ledger catches up with the journal")

    def orders_in_ledger(self, sale: str) -> int:
        query = "SELECT count(*) FROM orders JOIN sale ON sale.number = orders.sale WHERE sale.id = $1"
        return int(self.rows(query, sale)[0][0])

    def create_sale(self, sale_file: Path) -> str:
        self.command("sale", "create", str(sale_file))
        return sale_file.stem


def write_sale(
    folder: Path, sale: str, skus: Sequence[str], stock: int, quota: int, ships_from: str | None = None
) -> Path:
    """A sale file, open for a day, its id the file's name: `skus` offers of one stock and one quota. With `ships_from`
    it crosses borders: its offers are light enough for the default lane."""
    now = datetime.now(UTC).replace(microsecond=0)
    stamps = [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (now - timedelta(minutes=1), now + timedelta(days=1))]
    text = (
        f'[sale]\nid = "{sale}"\nname = "Bench"\nopens_at = {stamps[0]}\ncloses_at = {stamps[1]}\nhold_seconds = 900\n'
    )
    text += f'ships_from = "{ships_from}"\n' if ships_from else ""
    border = 'hs_code = "8418.10"\norigin = "CN"\n' if ships_from else ""
    for sku in skus:
        text += (
            f'[[offers]]\nsku = "{sku}"\nbrand = "Haier"\ntitle = {{ en = "320 l fridge" }}\n'
            f'stock = {stock}\nquota = {quota}\nweight_g = 6800\nprices = {{ SG = "899.00" }}\n{border}'
        )
    path = folder / f"{sale}.toml"
    path.write_text(text)
    return path


def write_tokens(path: Path, prefix: str, count: int) -> Path:
    """Tokens of shoppers never seen before, one a line, by the engine's own command."""
    with path.open("wb") as file:
        subprocess.run(
            [str(FLASHSALE), "token", "shopper", prefix, "--count", str(count)],
            stdout=file,
            check=True,
            env={**os.environ, "FLASHSALE_SECRET": SECRET},
        )
    return path
