"""A crowd of a real evening storms a fresh sale; then the audit says whether a unit or an order was lost.

    scripts/load --headless --height 2000 --speed 60

Every request has its moment (crowd.py), whether or not earlier ones were answered; a user is a connection that sends
what falls due next. Nine in ten requests are orders; some of them are sent again with the same key and must get the
first answer; the rest are pages. The exit code is 0 only if no answer was wrong, the requests a minute followed the
shape, and the audit is green. Run it from the repository's root: it imports its neighbours as `loadtests`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from argparse import ArgumentParser
from typing import Any

import gevent
from gevent.event import AsyncResult, Event
from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtests import engine
from loadtests.crowd import EVENING
from loadtests.replay import Lead, Plan, Share
from loadtests.wire import Answer, Broken, Connection

log = logging.getLogger("loadtest")

HOST = f"http://127.0.0.1:{os.environ.get('FLASHSALE_PORT', '8080')}"  # where `up` listens on this machine
PAGES_SHARE = 0.08  # of all requests: offers, stock, the shopper's own order
REPLAY_SHARE = 0.02  # of the orders that were answered: sent again with the same key
USERS_A_SECOND = 500  # connections opened a second before the crowd moves
BREATH_S = 1.0  # between "all are ready" and the first moment: the message has to reach every process

# What an order may be answered without a fault of the engine: these are a sale's daily bread.
TAKEN = 201
REFUSED = 409
REFUSALS = ("sold-out", "quota-exceeded", "lane-full")


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--counts", default=str(EVENING), help="CSV with a column 'requests', one row a minute")
    parser.add_argument("--height", type=float, default=1000.0, help="requests/s in the table's highest minute")
    parser.add_argument("--speed", type=float, default=60.0, help="how many times as fast as the table's clock")
    parser.add_argument(
        "--connections", type=int, default=128, help="connections (Locust users) that share the requests"
    )
    parser.add_argument("--sale-file", default=str(engine.DEMO_SALE), help="the sale to create afresh for this run")
    parser.add_argument("--seed", type=int, default=1998, help="of the draws: shoppers, SKUs, baskets")


class Process:
    """What this process is in the run under way: the one that leads it, one that generates, or both."""

    def __init__(self) -> None:
        self.lead: Lead | None = None
        self.failure: str | None = None  # why there is no lead
        self.share: AsyncResult[Share] = AsyncResult()


PROCESS = Process()


# -- leading -----------------------------------------------------------------------------------------------------------


class CrowdShape(LoadTestShape):
    """Opens the connections, holds them until the last moment has passed, then ends the test."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None  # noqa: S101 - Locust sets it before the first tick
        lead = PROCESS.lead
        if lead is None:
            options = self.runner.environment.parsed_options
            return None if PROCESS.failure else (max(int(options.connections), generators(self.runner)), USERS_A_SECOND)
        if isinstance(self.runner, MasterRunner) and generators(self.runner) < lead.processes and not lead.over:
            lead.failure = "a generating process has died"
        return None if lead.over else (lead.plan.connections, USERS_A_SECOND)


def generators(runner: Any) -> int:
    """How many processes generate load."""
    if not isinstance(runner, MasterRunner):
        return 1
    return len(runner.clients.ready + runner.clients.spawning + runner.clients.running)


@events.test_start.add_listener
def plan_run(environment: Environment, **_: object) -> None:
    """The leading process makes the sale and tells every process its share."""
    runner: Any = environment.runner
    if isinstance(runner, WorkerRunner):
        return
    clients = [client.id for client in runner.clients.all] if isinstance(runner, MasterRunner) else [None]
    try:
        plan = Plan.make(environment.parsed_options, environment.host or HOST, len(clients))
    except (engine.CommandFailed, ValueError, OSError) as fault:
        PROCESS.failure = str(fault)
        log.error("the run can't begin: %s", fault)
        environment.process_exit_code = 1
        return
    PROCESS.lead = Lead(plan, len(clients))
    crowd = plan.crowd
    log.info(
        "sale %s: %d requests in %.0f s, %.0f/s at the peak, %d connections, %d processes",
        plan.sale_id,
        crowd.total,
        crowd.duration_s,
        crowd.height,
        plan.connections,
        len(clients),
    )
    for index, client in enumerate(clients):
        runner.send_message("plan", plan.message(index, len(clients)), client)


@events.spawning_complete.add_listener
def all_spawned(user_count: int, **_: object) -> None:
    if PROCESS.lead is not None and user_count:
        PROCESS.lead.spawned = True
        begin_when_ready()


def begin_when_ready() -> None:
    lead = PROCESS.lead
    if lead is not None and lead.may_begin and RUNNER:
        RUNNER[0].send_message("begin", {"at": time.time() + BREATH_S})


def on_prepared(environment: Environment, msg: Any, **_: object) -> None:
    if PROCESS.lead is None:
        return
    if msg.data["failure"] is not None:
        PROCESS.lead.failure = msg.data["failure"]
        return
    PROCESS.lead.prepared.add(msg.data["index"])
    begin_when_ready()


def on_report(environment: Environment, msg: Any, **_: object) -> None:
    if PROCESS.lead is not None:
        PROCESS.lead.reports[msg.data["index"]] = msg.data


@events.test_stop.add_listener
def judge(environment: Environment, **_: object) -> None:
    """The run's verdict: prints it as one JSON line and sets the exit code."""
    if isinstance(environment.runner, WorkerRunner):
        return
    lead = PROCESS.lead
    PROCESS.lead, PROCESS.failure = None, None  # the web page may start another
    if lead is None:
        environment.process_exit_code = 1
        return
    verdict = lead.verdict()
    for fault in verdict["faults"]:
        log.error("%s", fault)
    for minute, sent, expected in verdict.pop("deviations"):
        log.error(
            "minute %d: sent %d requests, the shape says %.0f: the generator or the engine fell behind",
            minute,
            sent,
            expected,
        )
    for fault in verdict["audit"]["faults"]:
        log.error("audit: %s", json.dumps(fault))
    if verdict["failure"]:
        log.error("the run is not whole: %s", verdict["failure"])
    print(json.dumps(verdict), flush=True)
    environment.process_exit_code = 0 if verdict["ok"] else 1


# -- generating --------------------------------------------------------------------------------------------------------


def on_plan(environment: Environment, msg: Any, **_: object) -> None:
    """Makes this process's share, beside Locust's own messages: minting a crowd's tokens takes seconds."""
    PROCESS.share = AsyncResult()
    gevent.spawn(make_share, environment.runner, msg.data, PROCESS.share)


def make_share(runner: Any, data: dict[str, Any], made: AsyncResult[Share]) -> None:
    try:
        share = Share.of_message(data)
    except Exception as fault:  # whatever it is, the leading process must hear of it, or all would wait for ever
        log.exception("this process can't make its share")
        runner.send_message("prepared", {"index": data["index"], "failure": f"a generating process: {fault}"})
        return
    made.set(share)
    runner.send_message("prepared", {"index": data["index"], "failure": None})


def on_begin(environment: Environment, msg: Any, **_: object) -> None:
    PROCESS.share.get().begin(msg.data["at"])


RUNNER: list[Any] = []


@events.init.add_listener
def listen(environment: Environment, runner: Any, **_: object) -> None:
    RUNNER[:] = [runner]
    if not isinstance(runner, WorkerRunner):
        runner.register_message("prepared", on_prepared)
        runner.register_message("report", on_report)
    if not isinstance(runner, MasterRunner):
        runner.register_message("plan", on_plan)
        runner.register_message("begin", on_begin)


class Shopper(User):
    """A connection of the crowd: sends what falls due next, as any shopper, until no moment is left."""

    host = HOST

    def on_start(self) -> None:
        self.share = PROCESS.share.get()
        self.share.users += 1
        self.connection = Connection(*self.share.requests.address)

    def on_stop(self) -> None:
        self.connection.close()

    @task
    def serve_moments(self) -> None:
        share = self.share
        began = share.began.get()
        for number, moment in share.arrivals:
            wait_s = began + moment - time.perf_counter()
            if wait_s > 0:
                gevent.sleep(wait_s)
            share.sent[share.crowd.minute_of(max(time.perf_counter() - began, 0))] += 1
            self.serve(number)
        share.finished += 1
        if share.finished == share.users:
            self.environment.runner.send_message("report", share.report())
        Event().wait()  # nothing left to do: Locust ends the users together

    def serve(self, number: int) -> None:
        token = self.share.tokens[number % len(self.share.tokens)]
        try:
            if self.share.demand.chance(PAGES_SHARE):
                self.read_page(number, token)
            else:
                self.place_order(number, token)
        except Broken:
            pass  # ask() has counted it

    def ask(self, name: str, request: bytes, method: str, number: int) -> Answer:
        """The answer to a request. Raises Broken, which is counted as a wrong answer."""
        began = time.perf_counter()
        try:
            answer = self.connection.ask(request)
        except Broken as fault:
            self.environment.stats.log_request(method, name, (time.perf_counter() - began) * 1000, 0)
            self.wrong(method, name, f"request {number}: {fault}")
            raise
        took_ms = (time.perf_counter() - began) * 1000
        self.environment.stats.log_request(method, name, took_ms, len(answer.body))
        return answer

    def wrong(self, method: str, name: str, text: str) -> None:
        """One wrong answer: a failure in Locust's tables, and one in the verdict."""
        self.environment.stats.log_error(method, name, text.partition(":")[2].strip()[:200])
        self.share.fault(text)

    def place_order(self, number: int, token: bytes) -> None:
        share = self.share
        request = share.requests.order(token, f"key-{number}", share.demand.lines())
        answer = self.ask("order", request, "POST", number)
        if answer.status == REFUSED:
            problem = json.loads(answer.body)["type"].rsplit("/", 1)[-1]
            share.refused[problem] += 1
            if problem not in REFUSALS:
                self.wrong("POST", "order", f"order {number}: refused as {problem}")
        elif answer.status != TAKEN:
            self.wrong("POST", "order", f"order {number}: {answer.status} {answer.body[:200]!r}")
        else:
            share.taken += 1
            if share.demand.chance(REPLAY_SHARE):
                self.send_again(number, request, answer)
            elif share.demand.chance(PAGES_SHARE / 2):
                self.read_own_order(number, token, answer)

    def send_again(self, number: int, request: bytes, first: Answer) -> None:
        again = self.ask("order again", request, "POST", number)
        if again.status != TAKEN or json.loads(again.body) != json.loads(first.body):
            text = f"order {number}: sent again, {again.status} {again.body[:300]!r} after {first.body[:300]!r}"
            self.wrong("POST", "order again", text)
        elif not again.has_header(b"\r\nidempotent-replayed: true\r\n"):
            self.wrong("POST", "order again", f"order {number}: a replay that does not say so")

    def read_own_order(self, number: int, token: bytes, first: Answer) -> None:
        placed = json.loads(first.body)
        seen = self.ask("own order", self.share.requests.page(f"/v1/orders/{placed['id']}", token), "GET", number)
        if seen.status != 200 or json.loads(seen.body)["total"] != placed["total"]:
            self.wrong("GET", "own order", f"order {number}: read back as {seen.status} {seen.body[:200]!r}")

    def read_page(self, number: int, token: bytes) -> None:
        name = ("offers?market=SG", "stock")[number % 2]
        path = f"/v1/sales/{self.share.plan.sale_id}/{name}"
        answer = self.ask(name, self.share.requests.page(path, token), "GET", number)
        if answer.status != 200:
            self.wrong("GET", name, f"page {number}: {answer.status} {answer.body[:200]!r}")
