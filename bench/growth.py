"""What grows with the sale: CPU an order after 10⁶ orders against after 10⁴, and bytes an order in Valkey."""

from __future__ import annotations

from bench.bench import Bench
from bench.engine import Engine

GROWTH = ("growth",)
MEMORY = ("memory",)
FEW = 10_000
MANY = 1_000_000
FILL_S = 8.0  # length of one load while the engine is filled: bounds the tokens that lie in a file at once
MEMORY_ORDERS = 200_000


def measure_growth(bench: Bench, wanted: frozenset[str]) -> None:
    """Each repeat begins with an empty engine; a window runs from one quiet moment to the next, all committed."""
    for _ in range(bench.repeat):
        with Engine(bench.new_folder("growth")) as engine:
            total = bench.load_engine(engine, bench.warm_up_s).orders
            while total < bench.sized(FEW):
                total += bench.load_engine(engine, 1).orders
            early = bench.load_engine(engine)
            total += early.orders
            while total < bench.sized(MANY):
                total += bench.load_engine(engine, max(1.0, FILL_S * bench.size)).orders
            late = bench.load_engine(engine)
            bench.note("growth", orders=total, early_us=round(early.all_us, 2), late_us=round(late.all_us, 2))
            bench.add("growth", late.all_us / early.all_us)


def measure_memory(bench: Bench, wanted: frozenset[str]) -> None:
    """used_memory after ≥ 200,000 orders on one engine, less before, both with the ledger caught up."""
    for _ in range(bench.repeat):
        with Engine(bench.new_folder("memory")) as engine:
            bench.load_engine(engine, 1)
            before, orders = _used_memory(engine), 0
            while orders < bench.sized(MEMORY_ORDERS):
                orders += bench.load_engine(engine).orders
            after = _used_memory(engine)
            bench.note("Valkey's memory", orders=orders, before_bytes=before, after_bytes=after)
            bench.add("memory", (after - before) / orders)


def _used_memory(engine: Engine) -> int:
    engine.catch_up()
    return int(engine.valkey.info("memory")["used_memory"])
