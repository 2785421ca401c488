"""A crowd of shoppers for the tests that break the engine under load: it orders, remembers every answer, and judges.

Each order has a key of its own, sent over raw keep-alive connections. A shopper who gets no final answer (connection
lost, 503, 504) sends the same key again, and now and then after a final one too: every 201 of a key must be the same.
What the crowd remembers is then compared with the ledger, row by row.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg

from tests.conftest import Engine
from tests.wire import Answer, answers_in, post_order

CLIENTS = 16
ORDERS_A_S = int(os.environ.get("FLASHSALE_CROWD_ORDERS_A_S", "300"))
SHOPPERS = 500
PLENTY, SCARCE = 8, 60  # SKUs that never run out; units of the one that does
HANGS_AFTER_S = 8.0  # ANSWER_WITHIN_MS is 5 s unless a test sets it: what takes longer than this hangs
RETRY_PAUSE_S = 0.05
CONVERGE_WITHIN_S = 60.0
LEDGER_WITHIN_S = 60.0
AGAIN = 0.03  # of the orders with a final answer are sent once more

_OFFER = """
[[offers]]
sku = "{sku}"
brand = "Haier"
title = {{ en = "kettle" }}
stock = {stock}
quota = 0
weight_g = 900
prices = {{ SG = "{price}", JP = "{yen}" }}
"""


def open_sale(engine: Engine, sale: str, directory: Path) -> None:
    """Creates a sale that is open, has PLENTY SKUs in plenty and one of SCARCE units."""
    text = (
        f'[sale]\nid = "{sale}"\nname = "Crowd"\nhold_seconds = 900\n'
        "opens_at = 2020-01-01T00:00:00Z\ncloses_at = 2099-01-01T00:00:00Z\n"
    )
    text += "".join(
        _OFFER.format(sku=f"PLENTY-{n}", stock=10**8, price=f"{n + 1}.50", yen=n + 100) for n in range(PLENTY)
    )
    text += _OFFER.format(sku="SCARCE", stock=SCARCE, price="899.00", yen=90000)
    file = directory / f"{sale}.toml"
    file.write_text(text)
    engine.command("sale", "create", str(file))


@dataclass(slots=True)
class Placed:
    """One order as its shopper knows it. `statuses`: every answer in turn, 0 for none."""

    key: str
    shopper: int
    body: bytes
    statuses: list[int] = field(default_factory=list)
    first: dict[str, Any] | None = None  # the first 201's body

    @property
    def settled(self) -> bool:
        return self.first is not None or (bool(self.statuses) and self.statuses[-1] == 409)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: when (time.monotonic), how long until its answer, and which; status 0 for a lost connection."""

    at: float
    took_s: float
    status: int
    problem: str


class Crowd:
    """Use as `async with`: it orders from entry to exit; the exit waits until every order has its final answer."""

    def __init__(
        self,
        engine: Engine,
        sale: str,
        seed: int,
        *,
        orders_a_s: int = ORDERS_A_S,
        clients: int = CLIENTS,
        retries: bool = True,
        hangs_after_s: float = HANGS_AFTER_S,
    ) -> None:
        """retries=False: each key is sent once, whatever comes of it."""
        self.engine, self.sale = engine, sale
        self.orders: list[Placed] = []
        self.sent: list[Sent] = []
        self.faults: list[str] = []
        self._retries, self._hangs_after_s = retries, hangs_after_s
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._interval_s, self._clients = 1 / orders_a_s, clients
        self._tokens = engine.command("token", "shopper", "crowd", "--count", str(SHOPPERS)).stdout.split()
        self._turn_at = 0.0
        self._leaving = False
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Crowd:
        self._turn_at = time.monotonic()
        self._running = [asyncio.create_task(self._shop()) for _ in range(self._clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        if error is not None:
            for task in self._running:
                task.cancel()
        _, late = await asyncio.wait(self._running, timeout=CONVERGE_WITHIN_S)
        for task in late:
            task.cancel()
        ends = await asyncio.gather(*self._running, return_exceptions=True)
        self.faults += [repr(end) for end in ends if isinstance(end, Exception)]
        if late:
            self.faults.append(f"{len(late)} shoppers got no final answer within {CONVERGE_WITHIN_S:.0f} s")

    # --- what it remembers ---

    @property
    def accepted(self) -> list[Placed]:
        return [order for order in self.orders if order.first is not None]

    def statuses(self, since: float = 0.0, until: float = float("inf")) -> Counter[int]:
        """How often each status came to requests sent in that time (of time.monotonic)."""
        return Counter(sent.status for sent in self.sent if since <= sent.at < until)

    def slowest_s(self, share: float, since: float, until: float = float("inf")) -> float:
        """The quantile (0.99: the p99) of the seconds to an answer, over requests sent in that time."""
        took = sorted(sent.took_s for sent in self.sent if since <= sent.at < until and sent.status)
        return took[min(len(took) - 1, int(len(took) * share))] if took else float("nan")

    def problems(self) -> Counter[str]:
        """How often each problem was told; "" for what is none."""
        return Counter(sent.problem for sent in self.sent)

    async def until(self, condition: Callable[[], bool], within_s: float = 30.0) -> None:
        """Returns when the condition holds."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s} s; {self.statuses()}; {self.faults[:5]}"
            for task in self._running:
                if task.done():
                    task.result()  # a shopper who gave up says why
            await asyncio.sleep(0.01)

    async def until_accepted(self, more: int, within_s: float = 30.0) -> None:
        """Returns when that many requests more, sent from now on, were answered 201."""
        now = time.monotonic()
        await self.until(lambda: self.statuses(now)[201] >= more, within_s)

    # --- how it orders ---

    async def _shop(self) -> None:
        connection = _Connection(self.engine.port)
        try:
            while not self._leaving:
                self._turn_at = max(self._turn_at + self._interval_s, time.monotonic() - 1.0)
                await asyncio.sleep(self._turn_at - time.monotonic())
                await self._place(connection, self._new_order())
        finally:
            connection.close()

    def _new_order(self) -> Placed:
        draw = self._random
        skus = [f"PLENTY-{n}" for n in draw.sample(range(PLENTY), draw.choice((1, 1, 1, 2, 3)))]
        if draw.random() < 0.05:
            skus.append("SCARCE")
        lines = [{"sku": sku, "quantity": draw.randint(1, 3)} for sku in skus]
        body = json.dumps({"sale": self.sale, "lines": lines, "market": draw.choice(("SG", "JP"))}).encode()
        order = Placed(f"key-{next(self._numbers)}", draw.randrange(SHOPPERS), body)
        self.orders.append(order)
        return order

    async def _place(self, connection: _Connection, order: Placed) -> None:
        await self._send(connection, order)
        while self._retries and not order.settled:
            await asyncio.sleep(RETRY_PAUSE_S)
            await self._send(connection, order)
        if self._retries and self._random.random() < AGAIN:
            await self._send(connection, order)

    async def _send(self, connection: _Connection, order: Placed) -> None:
        key = f'"{order.key}"' if len(order.statuses) % 2 else order.key  # quoted or bare, the same key
        request = post_order(order.body, self._tokens[order.shopper], key)
        began = time.monotonic()
        answer: Answer | None = None
        try:
            async with asyncio.timeout(self._hangs_after_s):
                answer = await connection.ask(request)
        except TimeoutError:
            self._fault(order, f"no answer within {self._hangs_after_s} s")
            connection.close()
        except ValueError as fault:
            self._fault(order, f"no HTTP: {fault}")
            connection.close()
        status = 0 if answer is None else answer.status
        problem = "" if answer is None else answer.problem
        order.statuses.append(status)
        self.sent.append(Sent(began, time.monotonic() - began, status, problem))
        if answer is not None:
            self._judge(order, answer)

    def _judge(self, order: Placed, answer: Answer) -> None:
        if answer.status == 201:
            body = answer.json()
            lasting = {name: body[name] for name in ("id", "lines", "total", "market", "reserved_until", "status")}
            if order.first is None:
                order.first = lasting
                asked = [(line["sku"], line["quantity"]) for line in json.loads(order.body)["lines"]]
                if [(line["sku"], line["quantity"]) for line in body["lines"]] != asked:
                    self._fault(order, f"asked for {asked}, got {body['lines']}")
            elif order.first != lasting:
                self._fault(order, f"first {order.first}, then {lasting}")
        elif answer.status == 409 and answer.problem == "sold-out":
            if order.first is not None:
                self._fault(order, "sold out after a 201")
        elif answer.status == 503 and answer.problem == "overloaded":
            if not answer.headers.get("retry-after", "").isdigit():
                self._fault(order, "503 without Retry-After")
        elif answer.status != 504 or answer.problem != "outcome-unknown":
            self._fault(order, f"{answer.status} {answer.body[:300]!r}")

    def _fault(self, order: Placed, what: str) -> None:
        self.faults.append(f"{order.key} {order.statuses[-5:]}: {what}")

    # --- what the ledger says ---

    async def compare_with_ledger(self) -> int:
        """Every order answered 201 is there exactly once, under its shopper and key, and no other; how many they are.

        An order that was taken and never answered is a fault too: with retries every shopper asked until told, and
        without, nobody was to be left without an answer.
        """
        rows = await self._ledger_rows(len({order.first["id"] for order in self.accepted if order.first}))
        times = Counter(row["id"] for row in rows)
        assert [order for order, count in times.items() if count > 1] == []
        known = {row["id"]: (row["shopper"], row["idempotency_key"]) for row in rows}
        told = {order.first["id"]: (f"crowd-{order.shopper + 1}", order.key) for order in self.accepted if order.first}
        assert {order: who for order, who in told.items() if known.get(order) != who} == {}, "answered 201, not there"
        assert {order: who for order, who in known.items() if order not in told} == {}, "there, never answered 201"
        return len(rows)

    async def _ledger_rows(self, wanted: int) -> list[asyncpg.Record]:
        """The sale's rows as soon as there are `wanted` of them, or when waiting is over."""
        running = json.loads((self.engine.data_dir / "run.json").read_text())
        deadline = time.monotonic() + LEDGER_WITHIN_S
        of_sale = "FROM orders WHERE sale = (SELECT number FROM sale WHERE id = $1)"
        connection = await asyncpg.connect(running["postgres"]["address"])
        try:
            while await connection.fetchval(f"SELECT count(*) {of_sale}", self.sale) < wanted:
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.05)
            return list(await connection.fetch(f"SELECT id, shopper, idempotency_key {of_sale}", self.sale))
        finally:
            await connection.close()


class _Connection:
    """One keep-alive connection, made anew when it was lost; one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answer | None:
        """The answer; None if the connection could not be made, or was lost before a whole answer."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(request)
            received = b""
            while not (answers := answers_in(received, ended=False)):
                data = await reader.read(64 * 1024)
                if not data:
                    self.close()
                    return None
                received += data
        except OSError:
            self.close()
            return None
        if answers[0].headers.get("connection", "").lower() == "close":
            self.close()
        return answers[0]

    def close(self) -> None:
        if self._streams is not None:
            with contextlib.suppress(OSError):
                self._streams[1].transport.abort()
            self._streams = None


async def audit(engine: Engine) -> dict[str, Any]:
    """What `flashsale audit --json` says; it must be green."""
    done = await asyncio.to_thread(engine.command, "audit", "--json", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))
