"""100,000 holds that nobody paid go back while others order: how long it takes, and what those others feel of it.

The holds are made with direct calls of reserve.lua, as the front would make them. The workers are halted (SIGSTOP) over
the deadlines, so that all holds are due at once, as after an outage; the time runs from their first step to the last
unit back in Valkey. The orders beside it come at a pace that the engine keeps up with without effort: at its limit the
two cores' time is handed out anew for whatever runs besides, and a percentile would tell of that alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from bench.bench import QUOTA, SKUS, Bench, check
from bench.engine import Engine, write_sale
from bench.load import CONNECTIONS, Seen, run_wrk
from bench.machine import FRONT_CORE, BenchFault, pin, wait_for
from flashsale.reservation import keys
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.scripts import Script
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.order import Line, OrderRequest
from flashsale.sale.priced import Order, PricedSale

FIGURES = ("expiry", "expiry-p99")
HOLDS = 100_000
BATCH = 256
HOLD_S = 60  # the holds are made and the workers halted before the first of them runs out
HOLD_LEAST_S = 12  # of a run of a small size, too: two loads go before the first ends
PAUSE_MS = 60  # of each of the 256 connections between two orders: some 4,000 orders/s
WARM_UP_S = 3.0
LOAD_S = 15.0  # of each load; the holds go back within the second one
WITHIN_S = 300
STOCK = 10**6


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    with Engine(bench.new_folder("expiry"), "fsync") as engine:
        # At this pace the front leaves most of its core idle; PostgreSQL, Valkey and the load share the other one.
        pin(engine.pids("worker"), FRONT_CORE)
        _load(bench, engine, WARM_UP_S)
        for _ in range(bench.repeat):
            _measure_once(bench, engine)


def _measure_once(bench: Bench, engine: Engine) -> None:
    holds, load_s = bench.sized(HOLDS), max(1.0, LOAD_S * bench.size)
    hold_s = max(HOLD_LEAST_S, round(HOLD_S * bench.size))
    file = write_sale(bench.folder, f"holds-{time.time_ns()}", SKUS, STOCK, QUOTA)
    file.write_text(file.read_text().replace("hold_seconds = 900", f"hold_seconds = {hold_s}"))
    sale = engine.create_sale(file)
    began = time.monotonic()
    _hold(engine, sale, holds)
    due = time.monotonic() + hold_s + 1
    made_s = time.monotonic() - began
    engine.catch_up()
    before = _load(bench, engine, load_s)
    workers = engine.pids("worker")
    if time.monotonic() - began > hold_s - 1:
        raise BenchFault(f"the holds ran out before the workers were halted: making them took {made_s:.0f} s")
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: time.monotonic() > due, hold_s + 5, "the holds are past their deadline")
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    cpu = engine.cpu()
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        loading = threads.submit(_load, bench, engine, load_s)
        wait_for(lambda: _available(engine, sale) == STOCK * len(SKUS), WITHIN_S, "every unit is back")
        seconds = time.monotonic() - began
        busy = engine.cpu().since(cpu)
        during = loading.result()
    bench.note(
        "expiry", holds=holds, seconds=round(seconds, 2), holds_s=round(holds / seconds), made_s=round(made_s, 1),
        p99_before_ms=before.p99_ms, p99_during_ms=during.p99_ms, p50_before_ms=before.p50_ms,
        p50_during_ms=during.p50_ms, orders_s=round(during.rate), share_of_the_load=round(min(1, seconds / load_s), 2),
        busy_s={part: round(value, 2) for part, value in asdict(busy).items()},
    )  # fmt: skip
    bench.add("expiry", seconds * 100_000 / holds)
    bench.add("expiry-p99", during.p99_ms / before.p99_ms)


def _load(bench: Bench, engine: Engine, seconds: float) -> Seen:
    """Orders of others at an even pace, on a sale of their own."""
    sale = engine.create_sale(bench.new_sale())
    tokens = bench.new_tokens(int(CONNECTIONS * seconds * 1000 / PAUSE_MS * 1.5) + 2 * CONNECTIONS)
    seen = run_wrk(engine.port, bench.plan(sale, tokens, pause_ms=PAUSE_MS), seconds)
    check(seen, seen.answers)
    return seen


def _available(engine: Engine, sale: str) -> int:
    return sum(map(int, engine.valkey.hvals(keys.stock(0, sale))))  # type: ignore[arg-type]


def _hold(engine: Engine, sale_id: str, holds: int) -> None:
    """Takes so many units, each for a shopper of its own, in batches. Raises BenchFault unless all are accepted."""
    client = engine.valkey
    epoch, version = (int(value) for value in client.hmget(keys.partition(0), "epoch", "version"))  # type: ignore[union-attr]
    catalogue = Catalogue.decode(client.hget(keys.CATALOGUE, str(version)))  # type: ignore[arg-type]
    sale = catalogue.sale(sale_id)
    if sale is None:
        raise BenchFault(f"Valkey does not know sale {sale_id}")
    priced = PricedSale(sale, version)
    script = Script("reserve")
    sha = client.script_load(script.source)
    names = script_keys(0, sale_id)
    for orders in _batches(priced, sale_id, holds):
        answer = client.evalsha(sha, len(names), *names, epoch, version, *arguments(orders))
        if answer[0] != b"A" * len(orders):  # type: ignore[index]
            raise BenchFault(f"a batch was answered {str(answer)[:200]}")


def _batches(priced: PricedSale, sale_id: str, holds: int) -> Iterator[list[Order]]:
    made: list[Order] = []
    for number in range(holds):
        order = Order()
        order.shopper, order.key = f"holder-{number}", "one"
        line = Line(sku=SKUS[number % len(SKUS)], quantity=1)
        order.request = OrderRequest(sale=sale_id, market="SG", lines=[line])
        priced.identify(order)
        priced.price(order)
        made.append(order)
        if len(made) == BATCH or number == holds - 1:
            yield made
            made = []
