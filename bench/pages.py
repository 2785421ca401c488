"""What an order costs on connections that read a page and place an order in turn: the front's CPU, pages taken off."""

from __future__ import annotations

from bench.bench import WARM_UP_S, Bench
from bench.engine import Engine
from bench.load import page_request, run_wrk
from bench.machine import BenchFault

FIGURES = ("mixed",)


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    with Engine(bench.new_folder("pages")) as engine:
        bench.load_engine(engine, WARM_UP_S)
        for _ in range(bench.repeat):
            order_us = bench.load_engine(engine).front_us
            page_us = _front_us(bench, engine, "pages")[0]
            front_us, pages_an_order = _front_us(bench, engine, "alternating")
            mixed_us = front_us - pages_an_order * page_us
            bench.note("an order", alone_us=round(order_us, 2), page_us=round(page_us, 2), mixed_us=round(mixed_us, 2))
            bench.add("mixed", mixed_us / order_us)


def _front_us(bench: Bench, engine: Engine, kind: str) -> tuple[float, float]:
    """Front CPU in µs of one page, or of one order with its pages; and pages an order."""
    sale = engine.create_sale(bench.new_sale())
    plan = bench.engine_plan(sale, bench.seconds, kind, page=page_request(f"/v1/sales/{sale}"))
    engine.catch_up()
    before = engine.cpu()
    seen = run_wrk(engine.port, plan, bench.seconds)
    front = engine.cpu().since(before).front
    engine.catch_up()
    orders = engine.orders_in_ledger(sale)
    if seen.refused or seen.broken:
        raise BenchFault(f"{kind}: {seen}")
    bench.note(f"engine, {kind}", rate=round(seen.rate), answers=seen.answers, orders=orders)
    if kind == "pages":
        return front / seen.answers * 1e6, 0.0
    pages = seen.answers - orders
    if not 0.95 < pages / orders < 1.05:
        raise BenchFault(f"{pages} pages and {orders} orders do not alternate")
    return front / orders * 1e6, pages / orders
