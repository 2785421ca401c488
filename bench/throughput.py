"""Orders/s against the ordinary way, and CPU an order against nginx: engine, ordinary way and nginx in turn."""

from __future__ import annotations

from bench.bench import Bench
from bench.engine import Engine
from bench.load import order_body
from bench.yardsticks import Valkey

MEMORY = ("orders-memory",)
FSYNC = ("orders-fsync", "front", "front-every-field", "committed")


def measure_memory(bench: Bench, wanted: frozenset[str]) -> None:
    _measure(bench, wanted, "memory")


def measure_fsync(bench: Bench, wanted: frozenset[str]) -> None:
    _measure(bench, wanted, "fsync")


def _measure(bench: Bench, wanted: frozenset[str], durability: str) -> None:
    """Front and committed are measured under fsync, the default durability."""
    folder = bench.new_folder(durability)
    against_ordinary = f"orders-{durability}" in wanted
    against_nginx = bool(wanted & {"front", "committed"})
    with Engine(folder, durability) as engine, Valkey(folder, durability) as valkey:
        body, full_body = sample_answer(bench, engine, False), sample_answer(bench, engine, True)
        bench.load_engine(engine, bench.warm_up_s)
        for _ in range(bench.repeat):
            measured = bench.load_engine(engine)
            if against_ordinary:
                ordinary = bench.load_ordinary(valkey)
                bench.add(f"orders-{durability}", measured.seen.rate / ordinary.rate)
            if against_nginx:
                floor = bench.load_nginx(body)
                bench.add("front", measured.front_us / floor)
                bench.add("committed", measured.all_us / floor)
            if "front-every-field" in wanted:
                measured = bench.load_engine(engine, every_field=True)
                bench.add("front-every-field", measured.front_us / bench.load_nginx(full_body, every_field=True))


def sample_answer(bench: Bench, engine: Engine, every_field: bool) -> bytes:
    """The body of a real full 201, for nginx to answer with."""
    sale = engine.create_sale(bench.new_sale())
    token = bench.new_tokens(1).read_text().strip()
    sku = "HAIER-FRIDGE-320"
    status, body = engine.order(token, "sample", order_body(sale, sku, every_field))
    if status != 201:
        raise AssertionError(f"the sample order was answered {status}: {body.decode(errors='replace')}")
    return body
