"""A crowd of a real evening storms a fresh sale; then the audit says whether a unit or an order was lost.

    .venv/bin/locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8080 --height 2000 --speed 60

Every request has its moment (crowd.py), whether or not earlier ones were answered; a user is a connection that sends
what falls due next. Nine in ten requests are orders; some of them are sent again with the same key and must get the
first answer; the rest are pages. The exit code is 0 only if no answer was wrong, the requests a minute followed the
shape, and the audit is green. Run it from the repository's root: it imports its neighbours as `loadtests`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.event import AsyncResult, Event
from locust import LoadTestShape, User, events, task
from locust.env import Environment

from loadtests import engine
from loadtests.crowd import EVENING, Crowd, read_counts
from loadtests.popularity import Demand
from loadtests.wire import Answer, Broken, Connection

log = logging.getLogger("loadtest")

HOST = "http://127.0.0.1:8080"
PAGES_SHARE = 0.08  # of all requests: offers, stock, the shopper's own order
REPLAY_SHARE = 0.02  # of the orders that were answered: sent again with the same key
ORDERS_A_SHOPPER = (
    4  # a shopper's token serves this many requests on average; some run into their quota, as shoppers do
)
USERS_A_SECOND = 500  # connections opened a second before the crowd moves
FAULTS_SHOWN = 20
BREATH_S = 0.5  # between the last user's start and the first moment

# What an order may be answered without a fault of the engine: sold out and over the quota are a sale's daily bread.
TAKEN = 201
REFUSED = 409
REFUSALS = ("sold-out", "quota-exceeded")


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--counts", default=str(EVENING), help="CSV with a column 'requests', one row a minute")
    parser.add_argument("--height", type=float, default=1000, help="requests/s in the table's highest minute")
    parser.add_argument("--speed", type=float, default=60, help="how many times as fast as the table's clock")
    parser.add_argument(
        "--connections", type=int, default=128, help="connections (Locust users) that share the requests"
    )
    parser.add_argument("--sale-file", default=str(engine.DEMO_SALE), help="the sale to create afresh for this run")
    parser.add_argument("--seed", type=int, default=1998, help="of the draws: shoppers, SKUs, baskets")


class Run:
    """One replay: its schedule, its sale, its shoppers, and what was seen so far."""

    def __init__(self, options: Any) -> None:
        self.crowd = Crowd(read_counts(Path(options.counts)), options.height, options.speed)
        self.arrivals = enumerate(self.crowd.arrivals())
        self.connections = max(1, min(int(options.connections), self.crowd.total))
        self.sent = [0] * len(self.crowd.counts)
        self.faults: list[str] = []
        self.sale_id = f"load-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}"
        with tempfile.TemporaryDirectory() as folder:
            self.skus = engine.fresh_sale(Path(options.sale_file), self.sale_id, Path(folder))
        self.tokens = [
            token.encode() for token in engine.tokens(self.sale_id, self.crowd.total // ORDERS_A_SHOPPER + 1)
        ]
        self.demand = Demand(self.skus, options.seed)
        self.requests = Requests(self.sale_id, options.host or HOST)
        self.began: AsyncResult[float] = AsyncResult()  # time.perf_counter() of the first moment
        self.waiting = self.connections  # users that have not started yet
        self.sending = self.connections  # users that still have moments to serve

    def fault(self, text: str) -> None:
        self.faults.append(text)
        if len(self.faults) <= FAULTS_SHOWN:
            log.error("%s", text)


class Requests:
    """The bytes of requests; built by hand, for a generator must cost less than what it measures."""

    def __init__(self, sale_id: str, host: str) -> None:
        url = urlsplit(host)
        self.address = (url.hostname or "127.0.0.1", url.port or 80)
        self._host = b"Host: %b\r\n" % url.netloc.encode()
        self._sale = sale_id

    def order(self, token: bytes, key: str, lines: list[tuple[str, int]]) -> bytes:
        body = json.dumps(
            {
                "sale": self._sale,
                "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines],
                "market": "SG",
            }
        ).encode()
        return (
            b"POST /v1/orders HTTP/1.1\r\n%bAuthorization: Bearer %b\r\nIdempotency-Key: %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        ) % (self._host, token, key.encode(), len(body), body)

    def page(self, path: str, token: bytes) -> bytes:
        return b"GET %b HTTP/1.1\r\n%bAuthorization: Bearer %b\r\n\r\n" % (path.encode(), self._host, token)


class CrowdShape(LoadTestShape):
    """Opens the connections, holds them until the last moment has passed, then ends the test."""

    def tick(self) -> tuple[int, float] | None:
        if not _runs:
            return None  # prepare() failed and Locust has logged why
        run = current_run()
        if not run.sending:
            return None
        return run.connections, USERS_A_SECOND


class Shopper(User):
    """A connection of the crowd: sends what falls due next, as any shopper, until no moment is left."""

    def on_start(self) -> None:
        run = current_run()
        self.connection = Connection(*run.requests.address)
        run.waiting -= 1
        if not run.waiting:
            run.began.set(time.perf_counter() + BREATH_S)

    def on_stop(self) -> None:
        self.connection.close()

    @task
    def serve_moments(self) -> None:
        run = current_run()
        began = run.began.get()
        for number, moment in run.arrivals:
            wait_s = began + moment - time.perf_counter()
            if wait_s > 0:
                gevent.sleep(wait_s)
            run.sent[run.crowd.minute_of(max(time.perf_counter() - began, 0))] += 1
            try:
                self.serve(run, number)
            except Broken as fault:
                run.fault(f"request {number}: {fault}")
        run.sending -= 1
        Event().wait()  # nothing left to do: Locust ends the users together

    def serve(self, run: Run, number: int) -> None:
        token = run.tokens[number % len(run.tokens)]
        if run.demand.chance(PAGES_SHARE):
            self.read_page(run, number, token)
        else:
            self.place_order(run, number, token)

    def ask(self, name: str, request: bytes, method: str) -> Answer:
        began = time.perf_counter()
        answer = self.connection.ask(request)
        took_ms = (time.perf_counter() - began) * 1000
        if name == "order" and answer.status == REFUSED:
            name = "order refused"
        self.environment.stats.log_request(method, name, took_ms, len(answer.body))
        return answer

    def place_order(self, run: Run, number: int, token: bytes) -> None:
        request = run.requests.order(token, f"key-{number}", run.demand.lines())
        answer = self.ask("order", request, "POST")
        if answer.status == REFUSED:
            problem = json.loads(answer.body)["type"].rsplit("/", 1)[-1]
            if problem not in REFUSALS:
                run.fault(f"order {number}: refused as {problem}")
        elif answer.status != TAKEN:
            run.fault(f"order {number}: {answer.status} {answer.body[:200]!r}")
        elif run.demand.chance(REPLAY_SHARE):
            self.send_again(run, number, request, answer)
        elif run.demand.chance(PAGES_SHARE / 2):
            self.read_own_order(run, number, token, answer)

    def send_again(self, run: Run, number: int, request: bytes, first: Answer) -> None:
        again = self.ask("order again", request, "POST")
        if again.status != TAKEN or json.loads(again.body) != json.loads(first.body):
            run.fault(f"order {number}: sent again, {again.status} {again.body[:300]!r} after {first.body[:300]!r}")
        elif not again.has_header(b"\r\nidempotent-replayed: true\r\n"):
            run.fault(f"order {number}: a replay that does not say so")

    def read_own_order(self, run: Run, number: int, token: bytes, first: Answer) -> None:
        placed = json.loads(first.body)
        seen = self.ask("own order", run.requests.page(f"/v1/orders/{placed['id']}", token), "GET")
        if seen.status != 200 or json.loads(seen.body)["total"] != placed["total"]:
            run.fault(f"order {number}: read back as {seen.status} {seen.body[:200]!r}")

    def read_page(self, run: Run, number: int, token: bytes) -> None:
        name = ("offers?market=SG", "stock")[number % 2]
        answer = self.ask(name, run.requests.page(f"/v1/sales/{run.sale_id}/{name}", token), "GET")
        if answer.status != 200:
            run.fault(f"page {name}: {answer.status} {answer.body[:200]!r}")


_runs: list[Run] = []


def current_run() -> Run:
    """The one replay of this process, made before the shape is first asked."""
    return _runs[0]


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    run = Run(environment.parsed_options)
    _runs[:] = [run]
    log.info(
        "sale %s: %d requests in %.0f s, %.0f/s at the peak, %d connections, %d shoppers",
        run.sale_id,
        run.crowd.total,
        run.crowd.duration_s,
        run.crowd.height,
        run.connections,
        len(run.tokens),
    )


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """The run's verdict: prints it as one JSON line and sets the exit code."""
    if not _runs:
        environment.process_exit_code = 1
        return
    run = current_run()
    deviations = run.crowd.deviations(run.sent)
    for minute, sent, expected in deviations[:FAULTS_SHOWN]:
        log.error(
            "minute %d: sent %d requests, the shape says %.0f: the generator or the engine fell behind",
            minute,
            sent,
            expected,
        )
    verdict = engine.audit()
    for fault in verdict["faults"][:FAULTS_SHOWN]:
        log.error("audit: %s", json.dumps(fault))
    taken = sum(entry.num_requests for name, entry in by_name(environment).items() if name == "order")
    ok = verdict["ok"] and not run.faults and not deviations and sum(run.sent) == run.crowd.total
    print(
        json.dumps(
            {
                "ok": ok,
                "sale": run.sale_id,
                "sent": sum(run.sent),
                "sent_each_minute": run.sent,
                "accepted": taken,
                "wrong_answers": len(run.faults),
                "minutes_off_the_shape": len(deviations),
                "audit": verdict,
            }
        ),
        flush=True,
    )
    environment.process_exit_code = 0 if ok else 1


def by_name(environment: Environment) -> dict[str, Any]:
    return {name: entry for (name, _method), entry in environment.stats.entries.items()}
