"""What a border costs an order: landed cost, a lane's capacity held, a promise; against the same order without any."""

from __future__ import annotations

from bench.bench import Bench
from bench.engine import Engine

FIGURES = ("border", "border-front")


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    with Engine(bench.new_folder("borders")) as engine:
        for ships_from in (None, "CN"):
            bench.load_engine(engine, bench.warm_up_s, ships_from=ships_from)
        for _ in range(bench.repeat):
            bare = bench.load_engine(engine)
            across = bench.load_engine(engine, ships_from="CN")
            if "border" in wanted:
                bench.add("border", across.all_us / bare.all_us)
            if "border-front" in wanted:
                bench.add("border-front", across.front_us / bare.front_us)
