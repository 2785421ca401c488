"""One run of the bench: its folder, its length, the samples and raw numbers that it gathered; and its measured loads.

A measured load is checked before it counts: no refusal, no broken connection, and as many orders in the ledger as wrk
saw accepted, give or take those on the wire when wrk stopped.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from bench.engine import SECRET, Cpu, Engine, write_sale, write_tokens
from bench.load import CONNECTIONS, MANY_CONNECTIONS, SCRIPT, Seen, order_request_parts, run_wrk, write_plan
from bench.machine import BenchFault, cpu_s, say
from bench.yardsticks import Nginx, Ordinary, Valkey

SKUS = tuple(f"HAIER-FRIDGE-{number:03d}" for number in range(320, 370))
PLENTY = 10**9
QUOTA = 2
WARM_UP_S = 2.0
TOKENS_A_SECOND = 80_000  # minted for a second of load on the engine; more than one front process can take
ORDINARY_TOKENS_A_SECOND = 10_000


@dataclass(frozen=True)
class Measured:
    """A load on the engine: what wrk saw, orders committed, CPU until wrk ended (front) and until all was committed."""

    seen: Seen
    orders: int
    front_s: float
    cpu: Cpu
    behind_s: float  # from wrk's end until all was committed

    @property
    def front_us(self) -> float:
        """Front CPU of an order in µs."""
        return self.front_s / self.orders * 1e6

    @property
    def all_us(self) -> float:
        """CPU of all processes, from socket to committed row, of an order in µs."""
        return self.cpu.all / self.orders * 1e6


@dataclass
class Bench:
    folder: Path
    seconds: float
    repeat: int
    size: float = 1.0
    """The share of the fixed sizes (orders, holds) that is measured: below 1 the figures mean nothing, but are made."""
    samples: dict[str, list[float]] = field(default_factory=dict)
    raw: list[dict[str, object]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def sized(self, orders: int) -> int:
        """A fixed size as this run has it."""
        return max(1, round(orders * self.size))

    @property
    def warm_up_s(self) -> float:
        """How long a server is warmed up before it is measured."""
        return max(1.0, WARM_UP_S * self.size)

    def add(self, figure: str, value: float) -> None:
        self.samples.setdefault(figure, []).append(value)
        say(f"  {figure}: {value:.3f}")

    def note(self, what: str, **numbers: object) -> None:
        """Keeps the numbers behind a figure for the JSON, and shows them."""
        self.raw.append({"what": what, **numbers})
        say(f"  {what}: {json.dumps(numbers)}")

    # --- sales, tokens, plans: fresh for every load ---

    def new_folder(self, name: str) -> Path:
        folder = self.folder / f"{next(self._numbers)}-{name}"
        folder.mkdir()
        return folder

    def new_sale(self, stock: int = PLENTY, quota: int = QUOTA, ships_from: str | None = None) -> Path:
        return write_sale(self.folder, f"bench-{next(self._numbers)}", SKUS, stock, quota, ships_from)

    def new_tokens(self, tokens: int) -> Path:
        return write_tokens(self.folder / "tokens", f"b{next(self._numbers)}", tokens)

    def plan(
        self, sale: str, tokens: Path | None, kind: str = "orders", every_field: bool = False, **more: object
    ) -> Path:
        parts: dict[str, object] = {"kind": kind, **order_request_parts(sale, SKUS, every_field), **more}
        if tokens is not None:
            parts["tokens"] = tokens
        return write_plan(self.folder / "plan.lua", **parts)

    def engine_plan(self, sale: str, seconds: float, kind: str = "orders", **more: object) -> Path:
        tokens = self.new_tokens(int(TOKENS_A_SECOND * seconds) + CONNECTIONS)
        return self.plan(sale, tokens, kind, **more)

    # --- measured loads ---

    def load_engine(
        self,
        engine: Engine,
        seconds: float | None = None,
        every_field: bool = False,
        ships_from: str | None = None,
    ) -> Measured:
        """Orders on a fresh sale for some seconds, then waits for the ledger."""
        seconds = seconds or self.seconds
        sale = engine.create_sale(self.new_sale(ships_from=ships_from))
        plan = self.engine_plan(sale, seconds, every_field=every_field)
        return self.measure(engine, sale, plan, seconds)

    def measure(
        self, engine: Engine, sale: str, plan: Path, seconds: float, script: Path = SCRIPT, a_request: int = 1
    ) -> Measured:
        """A plan's load on a sale of the engine; each of its requests brings `a_request` orders."""
        engine.catch_up()
        before = engine.cpu()
        seen = run_wrk(engine.port, plan, seconds, CONNECTIONS if a_request == 1 else MANY_CONNECTIONS, script)
        front = engine.cpu().since(before).front
        ended = time.monotonic()
        engine.catch_up()
        behind_s = time.monotonic() - ended
        cpu = engine.cpu().since(before)
        orders = engine.orders_in_ledger(sale)
        check(seen, orders, a_request)
        measured = Measured(seen, orders, front, cpu, behind_s)
        self.note("engine", **asdict(seen), rate=round(seen.rate), orders=orders, us=cpu.micros_an_order(orders))
        return measured

    def load_ordinary(self, valkey: Valkey, seconds: float | None = None) -> Seen:
        """The same orders on the ordinary way, started for them alone."""
        seconds = seconds or self.seconds
        sale_file = self.new_sale()
        tokens = self.new_tokens(int(ORDINARY_TOKENS_A_SECOND * seconds) + CONNECTIONS)
        with Ordinary(self.folder, valkey, sale_file, SECRET) as ordinary:
            before, before_valkey = cpu_s(ordinary.pid), valkey.cpu_s()
            seen = run_wrk(ordinary.port, self.plan(sale_file.stem, tokens), seconds)
            front, inside = cpu_s(ordinary.pid) - before, valkey.cpu_s() - before_valkey
            orders = ordinary.accepted()
            check(seen, orders)
        us = {"front": round(front / orders * 1e6, 2), "valkey": round(inside / orders * 1e6, 2)}
        self.note("ordinary way", **asdict(seen), rate=round(seen.rate), orders=orders, us=us)
        return seen

    def load_nginx(self, body: bytes, every_field: bool = False) -> float:
        """nginx's CPU for the same POST with a 201 of the same size, in µs."""
        tokens = self.new_tokens(10_000)  # nginx does not look at them
        with Nginx(self.folder, body) as nginx:
            plan = self.plan(f"bench-{next(self._numbers)}", tokens, every_field=every_field, again=True)
            run_wrk(nginx.port, plan, 1)
            before = cpu_s(nginx.pid)
            seen = run_wrk(nginx.port, plan, self.seconds)
            micros = (cpu_s(nginx.pid) - before) / seen.answers * 1e6
        if seen.refused or seen.broken:
            raise BenchFault(f"nginx refused {seen.refused} requests, {seen.broken} broke")
        self.note("nginx", **asdict(seen), rate=round(seen.rate), us=round(micros, 2), body_bytes=len(body))
        return micros


def check(seen: Seen, orders: int, a_request: int = 1) -> None:
    """Raises BenchFault unless every answer was an order (or so many as a request brings) that was really taken."""
    if seen.refused or seen.broken:
        raise BenchFault(f"{seen.refused} orders refused, {seen.broken} connections broken: {seen}")
    connections = CONNECTIONS if a_request == 1 else MANY_CONNECTIONS
    if not seen.answers * a_request <= orders <= (seen.answers + connections) * a_request:
        raise BenchFault(f"{seen.answers} orders answered, {orders} kept")
