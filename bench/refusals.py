"""Refusals/s: everything is sold out and the script says so, against the ordinary way's refusals."""

from __future__ import annotations

from bench.bench import ORDINARY_TOKENS_A_SECOND, SKUS, Bench
from bench.engine import SECRET, Engine
from bench.load import CONNECTIONS, Seen, order_body, run_wrk
from bench.machine import BenchFault
from bench.yardsticks import Ordinary, Valkey

FIGURES = ("refusals",)


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    folder = bench.new_folder("refusals")
    with Engine(folder) as engine, Valkey(folder, "fsync") as valkey:
        _refused_by_engine(bench, engine, bench.warm_up_s)
        for _ in range(bench.repeat):
            ours = _refused_by_engine(bench, engine, bench.seconds)
            theirs = _refused_by_ordinary(bench, valkey)
            bench.add("refusals", ours.rate / theirs.rate)


def _refused_by_engine(bench: Bench, engine: Engine, seconds: float) -> Seen:
    sale = engine.create_sale(bench.new_sale(stock=0))
    token = bench.new_tokens(1).read_text().strip()
    status, body = engine.order(token, "probe", order_body(sale, SKUS[0]))
    if status != 409 or b"/sold-out" not in body:
        raise BenchFault(f"a sold-out order was answered {status} {body.decode(errors='replace')}")
    plan = bench.engine_plan(sale, seconds)
    before = engine.cpu()
    seen = run_wrk(engine.port, plan, seconds)
    cpu = engine.cpu().since(before)
    engine.catch_up()
    _check(seen, engine.orders_in_ledger(sale))
    bench.note("engine refuses", rate=round(seen.rate), p99_ms=seen.p99_ms, us=cpu.micros_an_order(seen.answers))
    return seen


def _refused_by_ordinary(bench: Bench, valkey: Valkey) -> Seen:
    sale_file = bench.new_sale(stock=0)
    tokens = bench.new_tokens(int(ORDINARY_TOKENS_A_SECOND * bench.seconds) + CONNECTIONS)
    with Ordinary(bench.folder, valkey, sale_file, SECRET) as ordinary:
        seen = run_wrk(ordinary.port, bench.plan(sale_file.stem, tokens), bench.seconds)
        _check(seen, ordinary.accepted())
    bench.note("ordinary way refuses", rate=round(seen.rate), p99_ms=seen.p99_ms)
    return seen


def _check(seen: Seen, orders: int) -> None:
    if seen.refused != seen.answers or seen.broken or orders:
        raise BenchFault(f"everything is sold out, yet: {seen}, {orders} orders")
