"""One connection against a model: whatever comes in whatever pieces, each request is answered once, in its turn.

Hypothesis draws the interleavings: pages, quotes, orders, refusals, requests in two parts, a client that reads little
or nothing, one that sends no more. `FLASHSALE_CONNECTIONS=1000` draws so many connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from flashsale import runfile
from tests.conftest import Engine
from tests.wire import PATIENCE_S, Answer, Wire, answers_in, ask, get, post, post_order

CONNECTIONS = int(os.environ.get("FLASHSALE_CONNECTIONS", "40"))
STEPS = 25
DRAINED = 40  # connections with requests under way when their front is told to stop
DRAIN_S = 8  # the default of FLASHSALE_DRAIN_TIMEOUT_S
LARGE = 3  # of them may ask for large pages: more at once than FLASHSALE_UNSENT_MAX_BYTES and some are cut off
GROWTH_BYTES = 16 * 1024 * 1024  # of the front: its heap's own growth, whatever the number of connections was
SEED = 1111
SALE = """
[sale]
id = "model"
name = "Model"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2096-01-01T00:00:00Z
hold_seconds = 900
[[offers]]
sku = "A"
brand = "Haier"
title = { en = "Fridge" }
stock = 1000000000
quota = 0
weight_g = 1000
prices = { SG = "8.99" }
"""
_numbers = itertools.count(1)

Expected = tuple[int, str]
"""An answer as a client tells it from others: its status, and the request's id or the order's quantity."""


class House:
    """An engine with one sale."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.port = engine, engine.port
        self.token = engine.token("shopper", "model")

    @property
    def front(self) -> psutil.Process:
        run = runfile.read(self.engine.data_dir)
        assert run is not None
        return psutil.Process(run["front"][0]["pid"])

    def request(self, kind: str) -> tuple[bytes, Expected]:
        """A request of that kind that no other is like, and its answer."""
        number = next(_numbers)
        name = b"X-Request-Id: n%d" % number
        if kind == "page":
            return get("/v1/sales/model", "", name), (200, f"n{number}")
        if kind == "large page":
            return get("/openapi.json", "", name), (200, f"n{number}")
        if kind == "nothing":
            return get(f"/v1/nothing/{number}", "", name), (404, f"n{number}")
        if kind == "quote":
            body = json.dumps({"sale": "model", "market": "SG", "lines": [{"sku": "A", "quantity": 1}]}).encode()
            return _with(post("/v1/quotes", body), name), (200, f"n{number}")
        if kind == "chunked quote":
            body = json.dumps({"sale": "model", "market": "SG", "lines": [{"sku": "A", "quantity": 1}]}).encode()
            head = post("/v1/quotes", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked\r\n" + name)
            return head + b"5;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:]), (
                200,
                f"n{number}",
            )
        quantity = number % 10_000 + 1
        lines = [{"sku": "A", "quantity": quantity}]
        order = json.dumps({"sale": "model", "lines": lines, "market": "SG"}).encode()
        if kind == "order":
            return post_order(order, self.token, f"m-{number}"), (201, str(quantity))
        if kind == "stranger's order":
            return post_order(order, "no.token.this", f"m-{number}"), (401, "")
        if kind == "stranger's page":
            return _with(post(f"/v1/orders/{number}/cancellation", b" " * 20_000 + b"{}"), name), (401, "")
        raise AssertionError(kind)


KINDS = (
    *("page", "large page", "nothing", "quote", "chunked quote"),
    *("order", "order", "order", "stranger's order", "stranger's page"),
)


SMALL = tuple(kind for kind in KINDS if kind != "large page")


def _with(request: bytes, line: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)


def told(answer: Answer) -> Expected:
    if answer.status == 201:
        return 201, str(answer.json()["lines"][0]["quantity"])
    return answer.status, "" if answer.status == 401 else answer.headers.get("x-request-id", "")


def whole(received: bytes) -> bool:
    """Whether the bytes are answers to their last byte, none of them to a HEAD."""
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: ?([0-9]+)", head, re.IGNORECASE)
        if not end or length is None or len(received) < int(length[1]):
            return False
        received = received[int(length[1]) :]
    return True


@pytest.fixture(scope="module")
def house(impatient_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    file = tmp_path_factory.mktemp("model") / "sale.toml"
    file.write_text(SALE)
    impatient_engine.command("sale", "create", str(file))
    yield House(impatient_engine)
    assert impatient_engine.is_ready()
    logged = impatient_engine.errors.read_text()
    assert "Traceback" not in logged, logged[logged.index("Traceback") :][:4000]


class Client(RuleBasedStateMachine):
    """One connection. Its model: the answers that are to come, in their order."""

    house: House

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.wire = self.runner.run(Wire.open(self.house.port, receive_bytes=8192))
        self.expected: list[Expected] = []
        self.rest = b""  # of a request that was sent in part
        self.unread = 0  # requests sent and not waited for
        self.ends = False  # we send no more

    def send(self, data: bytes) -> None:
        assert self.runner.run(self.wire.send(data)), "the connection was ended"

    def may_send(self) -> bool:
        return not self.ends and not self.rest and self.unread < 40  # more than are read on: the kernel keeps the rest

    @precondition(may_send)
    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8))
    def asks_at_once(self, kinds: list[str]) -> None:
        asked = [self.house.request(kind) for kind in kinds]
        self.expected += [answer for _, answer in asked]
        self.unread += len(asked)
        self.send(b"".join(request for request, _ in asked))

    @precondition(may_send)
    @rule(kind=st.sampled_from(KINDS), cut=st.floats(0.01, 0.99))
    def asks_in_part(self, kind: str, cut: float) -> None:
        request, answer = self.house.request(kind)
        at = max(1, round(len(request) * cut))
        self.rest = request[at:]
        self.expected.append(answer)
        self.unread += 1
        self.send(request[:at])

    @precondition(lambda self: self.rest)
    @rule(kinds=st.lists(st.sampled_from(KINDS), max_size=3))
    def sends_the_rest_and_more(self, kinds: list[str]) -> None:
        rest, self.rest = self.rest, b""
        asked = [self.house.request(kind) for kind in kinds]
        self.expected += [answer for _, answer in asked]
        self.unread += len(asked)
        self.send(rest + b"".join(request for request, _ in asked))

    @rule(most=st.sampled_from((1, 100, 10_000)))
    def reads_what_is_there(self, most: int) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.wire.socket.recv(most)
            assert data or self.ends, "the connection was ended"
            self.wire.received += data
            self.wire.ended = not data

    @precondition(lambda self: not self.rest)
    @rule()
    def reads_all(self) -> None:
        answers = self.runner.run(self.wire.read(len(self.expected)))
        assert [told(answer) for answer in answers] == self.expected
        self.unread = 0

    @precondition(lambda self: not self.ends and not self.rest)
    @rule()
    def sends_no_more(self) -> None:
        self.ends = True
        self.wire.send_no_more()

    def teardown(self) -> None:
        try:
            if not self.ends:
                self.wire.send_no_more()
            answers = self.runner.run(self.wire.read_to_end())
            came = [told(answer) for answer in answers]
            whole = self.expected[:-1] if self.rest else self.expected
            # What came in part gets no answer, but where its sender was told before the rest came that it has no token.
            assert came == whole or (came == self.expected and came[-1][0] == 401), (came, self.expected)
            assert len(answers_in(self.wire.received, ended=True)) == len(came)
        finally:
            self.wire.socket.close()
            self.runner.close()


def test_whatever_a_connection_brings_each_request_is_answered_once_and_in_its_turn(house: House) -> None:
    Client.house = house
    asyncio.run(_warm(house))
    front = house.front
    before = front.memory_info().rss
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Client,
        settings=settings(
            max_examples=CONNECTIONS,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=CONNECTIONS <= 40,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
    grown = front.memory_info().rss - before
    print(f"{CONNECTIONS} connections, RSS {grown / 2**20:+.1f} MiB")
    assert grown <= GROWTH_BYTES


async def _warm(house: House) -> None:
    for _ in range(5):
        await ask(house.port, *(house.request(kind)[0] for kind in KINDS))


async def test_a_front_that_is_told_to_stop_answers_in_turn_or_closes(house: House) -> None:
    draw = random.Random(SEED)
    front = house.front
    with ExitStack() as stack:
        wires = [stack.enter_context(await Wire.open(house.port)) for _ in range(DRAINED)]
        for wire in wires:  # so that the front has it, and not the kernel's queue
            await wire.send(get("/livez"))
            await wire.read(1)
            wire.received = b""
        plans: list[list[Expected]] = []
        reading = [asyncio.create_task(wire.read_to_end()) for wire in wires]  # who reads nothing may be cut off
        for number, wire in enumerate(wires):
            kinds = KINDS if number < LARGE else SMALL
            asked = [house.request(draw.choice(kinds)) for _ in range(draw.randint(1, 30))]
            plans.append([answer for _, answer in asked])
            await wire.send(b"".join(request for request, _ in asked))
        front.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        read = await asyncio.gather(*reading)
        took_s = time.monotonic() - told_at
        for wire, plan, answers in zip(wires, plans, read, strict=True):
            came = [told(answer) for answer in answers]
            assert came == plan[: len(came)]
            assert whole(wire.received), "an answer that has begun is there to its end"
            assert not [True for answer in answers[:-1] if answer.headers.get("connection") == "close"], answers
    assert any(read)
    assert took_s < DRAIN_S, "nobody waited until the drain's time was over"
    await asyncio.to_thread(front.wait, 30)
    await asyncio.to_thread(house.engine.wait_until_ready)


@pytest.mark.parametrize("path", ["/v1/quotes", "/v1/carriers/nobody/events", "/v1/webhooks/payments"])
async def test_who_needs_no_token_may_send_the_body_after_its_head(house: House, path: str) -> None:
    """As most client libraries do. Asking for leave first makes sure that the front has seen the head alone."""
    body = b'{"sale": "model", "market": "SG", "lines": [{"sku": "A", "quantity": 1}]}'
    with await Wire.open(house.port) as wire:
        await wire.send(_with(post(path, body), b"Expect: 100-continue").removesuffix(body))
        while not wire.received.startswith(b"HTTP/1.1 100 "):
            assert await wire.read_some(PATIENCE_S), wire.received
        await wire.send(body)
        (answer,) = await wire.read(1)
        assert answer.status != 401, answer
        assert path != "/v1/quotes" or answer.status == 200, answer


ODD_TARGETS = (
    *(
        "//",
        "//x",
        "//[",
        "/[",
        "/]",
        "/v1/sales/[::1",
        "/%",
        "/%zz",
        "/%00",
        "/%ff",
        "/..",
        "/../../etc",
        "/?",
        "/??=&=&",
    ),
    *("/v1/sales/%2e%2e", "/v1//sales", "/v1/sales/%5B", "/:80", "//:99999/", "//x:y/", "/@", "//a@b:c", "/;", "/\\"),
    *("http://[::1/", "http://x:99999/livez", "http://x:y/livez", "http://[/livez", "http://a@b/livez", "HTTP://x//"),
    *("/" + "a/" * 4000, "/?" + "a=b&" * 3000),
)
ODD_LINES = (
    *(b"Host: [", b"Host: :", b"Host: x:99999", b"Host: x:y", b"Host:"),
    *(
        b"Accept: " + b"," * 9000,
        b"Accept-Language: ;q=;;",
        b"Content-Type: ;;",
        b'Content-Type: a/b; c="',
        b"Upgrade: h2c",
    ),
    *(b"Connection: upgrade", b"Connection: ,,", b"Expect: 100-continue", b"Expect: x", b"Origin: [", b"Cookie: =;=;"),
    *(
        b"Authorization: " + b"x" * 9000,
        b'If-None-Match: "',
        b"Last-Event-ID: " + b"9" * 5000,
        b"X-Request-Id: " + b"y" * 9000,
    ),
)


async def test_whatever_a_head_says_the_answer_is_ours(house: House) -> None:
    """Never one of aiohttp's own: those name it, are plain text and say nothing of what to do."""
    draw = random.Random(SEED)
    targets = [*ODD_TARGETS, *("/" + "".join(chr(draw.randint(33, 126)) for _ in range(9)) for _ in range(200))]
    requests = [
        f"{method} {target} HTTP/1.{minor}\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        for target in targets
        for method, minor in (("GET", 1), ("POST", 0))
    ]
    for line in ODD_LINES:
        host = b"" if line.startswith(b"Host") else b"Host: x\r\n"
        requests += (
            b"%b HTTP/1.1\r\n%b%b\r\n\r\n" % (first, host, line) for first in (b"GET /livez", b"POST /v1/quotes")
        )
    requests.append(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"Accept: a/b\r\n" * 99 + b"\r\n")
    requests.append(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"Accept: a/b\r\n" * 100 + b"\r\n")
    for request in requests:
        (answer,) = await ask(house.port, request)
        assert answer.headers.get("server") == "flashsale", (request[:200], answer)
        assert answer.status < 500, (request[:200], answer)
        assert answer.status < 400 or answer.headers["content-type"] == "application/problem+json", (
            request[:200],
            answer,
        )
