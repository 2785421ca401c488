"""One replay of a crowd: what the leading process decides, and the share of it that each generating process sends.

Locust runs on one process or on several (`--processes`). The leading one makes the sale and the plan; each generating
one makes its share of it, says so, and begins at the moment it is told. Plans and reports are plain values, since they
travel as Locust's messages. Relies on loadtests/engine.py for the sale and the tokens.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gevent.event import AsyncResult

from loadtests import engine
from loadtests.crowd import Crowd, read_counts
from loadtests.popularity import Demand
from loadtests.requests import Requests

ORDERS_A_SHOPPER = 4  # a shopper's token serves as many requests on average; some run into their quota, as shoppers do
FAULTS_KEPT = 20  # of a process, as texts; all are counted


@dataclass(frozen=True)
class Plan:
    """What every process has to know: the sale that was made for this run, and the crowd that storms it."""

    sale_id: str
    skus: list[str]
    counts: list[int]
    height: float
    speed: float
    seed: int
    connections: int
    host: str

    @classmethod
    def make(cls, options: Any, host: str, processes: int) -> Plan:
        """Makes the sale on the engine. Raises engine.CommandFailed, ValueError, OSError."""
        counts = read_counts(Path(options.counts))
        crowd = Crowd(counts, float(options.height), float(options.speed))
        if crowd.total < processes:
            raise ValueError(f"{crowd.total} requests are too few for {processes} processes")
        sale_id = f"load-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}"
        with tempfile.TemporaryDirectory() as folder:
            skus = engine.fresh_sale(Path(options.sale_file), sale_id, Path(folder))
        connections = max(processes, min(int(options.connections), crowd.total))
        return cls(sale_id, skus, counts, crowd.height, crowd.speed, int(options.seed), connections, host)

    @property
    def crowd(self) -> Crowd:
        return Crowd(self.counts, self.height, self.speed)

    def message(self, index: int, of: int) -> dict[str, Any]:
        """The plan as one of `of` processes is told it."""
        return {"plan": asdict(self), "index": index, "of": of}


@dataclass
class Share:
    """The moments that one process serves, every `of`th from its `index` on; and what it saw."""

    plan: Plan
    index: int
    of: int
    users: int = 0
    finished: int = 0
    sent: list[int] = field(default_factory=list)
    taken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.crowd = self.plan.crowd
        self.arrivals = islice(enumerate(self.crowd.arrivals()), self.index, None, self.of)
        self.sent = [0] * len(self.crowd.counts)
        shoppers = self.crowd.total // ORDERS_A_SHOPPER + 1
        self.tokens = [token.encode() for token in engine.tokens(self.plan.sale_id, shoppers)]
        self.demand = Demand(self.plan.skus, self.plan.seed + self.index)
        self.requests = Requests(self.plan.sale_id, self.plan.host)
        self.began: AsyncResult[float] = AsyncResult()  # time.perf_counter() of the first moment

    @classmethod
    def of_message(cls, data: dict[str, Any]) -> Share:
        return cls(Plan(**data["plan"]), data["index"], data["of"])

    def begin(self, at: float) -> None:
        """The first moment is at that UNIX time, the same in every process of this machine."""
        self.began.set(time.perf_counter() + at - time.time())

    def fault(self, text: str) -> None:
        """A wrong answer, counted; the first ones are kept as texts."""
        self.wrong += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(text)

    def report(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "sent": self.sent,
            "taken": self.taken,
            "refused": dict(self.refused),
            "wrong": self.wrong,
            "faults": self.faults,
        }


@dataclass
class Lead:
    """What the leading process knows of a run: who has made its share ready, and who has told what it saw."""

    plan: Plan
    processes: int
    spawned: bool = False
    prepared: set[int] = field(default_factory=set)
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    failure: str | None = None

    @property
    def may_begin(self) -> bool:
        return self.spawned and len(self.prepared) == self.processes

    @property
    def over(self) -> bool:
        return self.failure is not None or len(self.reports) == self.processes

    def verdict(self) -> dict[str, Any]:
        """All that was seen, judged together with the audit; `ok` is whether nothing was wrong."""
        reports = list(self.reports.values())
        crowd = self.plan.crowd
        sent = [sum(minute) for minute in zip(*(report["sent"] for report in reports), strict=True)] or [0] * len(
            crowd.counts
        )
        refused: Counter[str] = Counter()
        for report in reports:
            refused.update(report["refused"])
        wrong = sum(report["wrong"] for report in reports)
        deviations = crowd.deviations(sent)
        audit = engine.audit()
        complete = self.failure is None and len(reports) == self.processes and sum(sent) == crowd.total
        return {
            "ok": bool(audit["ok"]) and complete and not wrong and not deviations,
            "sale": self.plan.sale_id,
            "sent": sum(sent),
            "sent_each_minute": sent,
            "accepted": sum(report["taken"] for report in reports),
            "refused": dict(refused),
            "wrong_answers": wrong,
            "faults": [fault for report in reports for fault in report["faults"]][:FAULTS_KEPT],
            "minutes_off_the_shape": len(deviations),
            "deviations": deviations[:FAULTS_KEPT],
            "failure": self.failure or (None if complete else "stopped before the crowd was through"),
            "audit": audit,
        }
