"""What an order costs on connections that read a page and place an order in turn: the front's CPU, pages taken off."""

from __future__ import annotations

from dataclasses import dataclass

from bench.bench import Bench
from bench.engine import Engine
from bench.load import CONNECTIONS, page_request, run_wrk
from bench.machine import BenchFault

FIGURES = ("mixed",)
# The lightest request that is lent to aiohttp: a page that asks Valkey costs twenty orders, and the noise of what is
# taken off would be larger than the order that is left.
PAGE = "/livez"
# Each kind of load is sent in so many short turns: the page's cost, four times an order's, is taken off, and must have
# met the same noise.
TURNS = 4


@dataclass
class Spent:
    """Front CPU of one kind of load, and the orders and pages that it served."""

    front_s: float = 0.0
    orders: int = 0
    pages: int = 0


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    turn_s = max(1.0, bench.seconds / TURNS)
    with Engine(bench.new_folder("pages")) as engine:
        bench.load_engine(engine, bench.warm_up_s)
        for _ in range(bench.repeat):
            spent = {kind: Spent() for kind in ("orders", "pages", "alternating")}
            for _ in range(TURNS):
                for kind, sum_of_kind in spent.items():
                    _add_turn(bench, engine, kind, sum_of_kind, turn_s)
            alone, pages, mixed = spent["orders"], spent["pages"], spent["alternating"]
            order_us = alone.front_s / alone.orders * 1e6
            page_us = pages.front_s / pages.pages * 1e6
            mixed_us = (mixed.front_s * 1e6 - mixed.pages * page_us) / mixed.orders
            bench.note("an order", alone_us=round(order_us, 2), page_us=round(page_us, 2), mixed_us=round(mixed_us, 2))
            bench.add("mixed", mixed_us / order_us)


def _add_turn(bench: Bench, engine: Engine, kind: str, spent: Spent, seconds: float) -> None:
    sale = engine.create_sale(bench.new_sale())
    plan = bench.engine_plan(sale, seconds, kind, page=page_request(PAGE))
    engine.catch_up()
    before = engine.cpu()
    seen = run_wrk(engine.port, plan, seconds)
    spent.front_s += engine.cpu().since(before).front
    engine.catch_up()
    orders = engine.orders_in_ledger(sale)
    if seen.refused or seen.broken:
        raise BenchFault(f"{kind}: {seen}")
    pages = max(seen.answers - orders, 0)  # the ledger may have orders whose answers wrk did not wait for
    if kind == "alternating" and abs(pages - orders) > 2 * CONNECTIONS:
        raise BenchFault(f"{pages} pages and {orders} orders do not alternate")
    spent.orders += orders
    spent.pages += pages if kind != "orders" else 0
