"""Every metric of the engine, under its name. Any process answers for all: prometheus-client keeps the numbers of each
in files that all of them read (metrics_files.py: joined before this module is imported; emptied by `flashsale up`).

The hot path comes here once a batch, never once an order: writing one number costs about a microsecond.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector

from flashsale import metrics_files

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ORDERS = Counter(
    "flashsale_orders", "Answered orders by outcome: accepted, replayed, or the problem's name.", ["outcome"]
)
BATCH_ORDERS = Histogram(
    "flashsale_batch_orders", "Orders in one script call.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
BATCH_WAIT = Histogram(
    "flashsale_batch_wait_seconds",
    "Time from the arrival of a batch's oldest order to its script call.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
SCRIPT = Histogram(
    "flashsale_script_seconds",
    "Time from a script call to its answer, its share of the fsync included.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
ORDERS_IN_FLIGHT = Gauge("flashsale_orders_in_flight", "Orders read and not yet answered.", multiprocess_mode="livesum")
BATCHES_IN_FLIGHT = Gauge(
    "flashsale_batches_in_flight", "Script calls without an answer yet.", multiprocess_mode="livesum"
)
CONNECTIONS = Gauge("flashsale_connections", "Open client connections.", multiprocess_mode="livesum")
WEBHOOKS = Counter(
    "flashsale_webhooks",
    "The payment provider's webhooks by outcome at the door: kept (to be applied), or the problem's name.",
    ["outcome"],
)
PAGES = Counter("flashsale_pages", "Answered pages: every route but the hot path's.", ["route", "method", "status"])
PAGE = Histogram(
    "flashsale_page_seconds",
    "Time to answer a page.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
STREAMS = Gauge("flashsale_event_streams", "Open server-sent event streams.", multiprocess_mode="livesum")
LEDGER_ROWS = Counter("flashsale_ledger_rows", "Orders committed to the ledger.")
LEDGER_ENTRIES = Counter("flashsale_ledger_entries", "Journal entries committed to the ledger.")
LEDGER_DEAD_LETTERS = Counter("flashsale_ledger_dead_letters", "Orders that the ledger could not store and set aside.")
LEDGER_COMMIT = Histogram(
    "flashsale_ledger_commit_seconds",
    "Time of one transaction of the ledger writer.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
LEDGER_LAG = Gauge(
    "flashsale_ledger_lag_seconds",
    "Age of the newest committed journal entry when it was committed.",
    multiprocess_mode="livemax",
)
EXPIRED = Counter("flashsale_expired", "Orders that nobody paid in time.")
OUTBOX_ORDERS = Counter(
    "flashsale_outbox_orders", "Orders that Valkey was told of, by what it answered (beyond, malformed: a fault).",
    ["outcome"],
)  # fmt: skip
CARRIER_CALLS = Counter(
    "flashsale_carrier_calls",
    "Calls to carriers by what was asked (book, cancel, look) and outcome: answered, away (asked again), refused.",
    ["call", "outcome"],
)
CARRIER_EVENTS = Counter(
    "flashsale_carrier_events",
    "Tracking events that carriers sent, by outcome: applied, duplicate, or the problem's name.",
    ["outcome"],
)
OUTBOX_GIVEN_UP = Counter("flashsale_outbox_given_up", "Outbox rows that Valkey had nothing to do for.")
PAYMENT_EVENTS = Counter(
    "flashsale_payment_events",
    "The payment provider's events that were taken from the stream, by what became of them: applied, duplicate, foreign"
    " (of no order of ours), unknown (a kind that says nothing to us), damaged (set aside).",
    ["outcome"],
)
PAYMENT_EVENT_BATCH = Histogram(
    "flashsale_payment_event_batch_seconds",
    "Time to apply and commit one batch of payment events.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
PAYMENT_EVENT_LAG = Gauge(
    "flashsale_payment_event_lag_seconds",
    "Age of the newest applied payment event when it was committed.",
    multiprocess_mode="livemax",
)
PROVIDER_CALLS = Counter(
    "flashsale_provider_calls",
    "Background calls to the payment provider: close, release, capture, look, open, refund; by outcome: told, away"
    " (asked again later), refused (somebody has to look).",
    ["call", "outcome"],
)
DUTY_FAILURES = Counter("flashsale_duty_failures", "Times a worker's duty failed and was begun anew.", ["duty"])
SET_ASIDE = Counter(
    "flashsale_set_aside", "What no duty could do anything with and was set aside: `flashsale deadletters`.", ["kind"]
)
JOB_RETRIES = Counter("flashsale_job_retries", "Jobs that failed and come again, by their name.", ["job"])

_outcomes: dict[str, Counter] = {}


def observe_batch(size: int, wait_s: float, script_s: float, outcomes: Mapping[str, int]) -> None:
    """One answered script call: its orders, its oldest order's wait and the call's time (s), and orders by outcome."""
    BATCH_ORDERS.observe(size)
    BATCH_WAIT.observe(wait_s)
    SCRIPT.observe(script_s)
    count_outcomes(outcomes)


def count_outcomes(outcomes: Mapping[str, int]) -> None:
    """Orders answered without a script call (refused before it, overloaded, outcome unknown), by outcome."""
    for outcome, count in outcomes.items():
        counter = _outcomes.get(outcome)
        if counter is None:
            counter = _outcomes[outcome] = ORDERS.labels(outcome)
        counter.inc(count)


def count_webhooks(outcome: str, count: int) -> None:
    """Webhooks answered since the last count, of one outcome."""
    WEBHOOKS.labels(outcome).inc(count)


def set_in_flight(orders: int, batches: int) -> None:
    """This process's present numbers; called several times a second."""
    ORDERS_IN_FLIGHT.set(orders)
    BATCHES_IN_FLIGHT.set(batches)


def set_connections(connections: int) -> None:
    """This process's present number; called several times a second."""
    CONNECTIONS.set(connections)


def observe_page(route: str, method: str, status: int, seconds: float) -> None:
    """One answered page. `route` is the route's pattern, never the path: a metric has few labels."""
    PAGES.labels(route, method, str(status)).inc()
    PAGE.labels(route).observe(seconds)


def observe_ledger(rows: int, entries: int, commit_s: float, lag_s: float) -> None:
    """One committed transaction of the ledger writer."""
    LEDGER_ROWS.inc(rows)
    LEDGER_ENTRIES.inc(entries)
    LEDGER_COMMIT.observe(commit_s)
    LEDGER_LAG.set(lag_s)


def observe_payment_events(outcomes: Mapping[str, int], seconds: float, lag_s: float) -> None:
    """One committed batch of the provider's events: how many came to what, the transaction's time, the newest's age."""
    for outcome, count in outcomes.items():
        PAYMENT_EVENTS.labels(outcome).inc(count)
    PAYMENT_EVENT_BATCH.observe(seconds)
    PAYMENT_EVENT_LAG.set(lag_s)


class Backlog(Collector):
    """The journal's backlog as Valkey has it at the moment of asking: right while every worker is dead, too."""

    def __init__(self, entries: int | None, size_bytes: int, age_s: float) -> None:
        """`entries` None: Valkey did not answer."""
        self.entries, self.size_bytes, self.age_s = entries, size_bytes, age_s

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("flashsale_valkey_up", "1: Valkey answered.", value=float(self.entries is not None))
        if self.entries is None:
            return
        yield GaugeMetricFamily("flashsale_backlog_entries", "Journal entries not yet trimmed.", value=self.entries)
        yield GaugeMetricFamily("flashsale_backlog_bytes", "Journal bytes not yet trimmed.", value=self.size_bytes)
        yield GaugeMetricFamily("flashsale_backlog_age_seconds", "Age of the oldest entry.", value=self.age_s)


class Promises(Collector):
    """The share of each lane's last promises that were kept, as the ledger has it at the moment of asking."""

    def __init__(self, lanes: Iterable[tuple[str, str, float, bool]]) -> None:
        """`lanes`: lane, country, share from 0 to 1, whether that is too small after the lane's rule."""
        self.lanes = tuple(lanes)

    def collect(self) -> Iterator[Metric]:
        share = GaugeMetricFamily(
            "flashsale_lane_on_time_ratio",
            "Share of a lane's last 200 deliveries to a country that came by the day that the shopper was told.",
            labels=("lane", "country"),
        )
        alert = GaugeMetricFamily(
            "flashsale_lane_promise_alert", "1: a lane keeps too few of its promises.", labels=("lane", "country")
        )
        for lane, country, ratio, alerts in self.lanes:
            share.add_metric((lane, country), ratio)
            alert.add_metric((lane, country), float(alerts))
        yield share
        yield alert


def exposition(*collectors: Collector) -> bytes:
    """All processes' metrics and those of `collectors`, in Prometheus's text format. Reads files: use a thread."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    if directory is None:
        return generate_latest(REGISTRY) + generate_latest(registry)
    metrics_files.forget_the_dead(Path(directory))
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
