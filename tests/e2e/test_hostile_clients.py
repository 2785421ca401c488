"""Clients that are slow, silent, greedy, rude or many: they cost little, they end, and others are served meanwhile.

Small by default; `FLASHSALE_FULL=1` opens 10,000 idle connections and 1,000 that pipeline without ever reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from flashsale import runfile
from tests import corpora
from tests.conftest import Engine
from tests.e2e.conftest import DROP_S, IDLE_TIMEOUT_S, READ_TIMEOUT_S, WRITE_TIMEOUT_S
from tests.wire import Answer, Wire, ask, get, post_order

IDLE = 10_000 if corpora.FULL else 500
UNREAD = 1_000 if corpora.FULL else 100
BYTES_A_CONNECTION = 64 * 1024
CI_SLACK_BYTES = 8 * 1024 * 1024  # what a process's heap may grow by for reasons of its own: it hides among thousands
SLACK_S = 3  # time-outs are looked at several times a second, and the machine is busy
ANSWER_WITHIN_S = 15 if corpora.FULL else 3  # for others, who wait in turn while thousands have asked at once
SOURCES = [f"127.0.0.{last}" for last in range(2, 8)]  # an address has some 28,000 ports
SEED = 1111
SALE = """
[sale]
id = "hostile"
name = "For the rude"
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


class House:
    """The engine and what can be seen of its front process from outside."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.port = engine, engine.port
        self.token = engine.token("shopper", "rude")
        run = runfile.read(engine.data_dir)
        assert run is not None
        self.front = psutil.Process(run["front"][0]["pid"])

    def memory_bytes(self) -> int:
        return int(self.front.memory_info().rss)

    def connections(self) -> int:
        """Those that shoppers hold open."""
        listening = {("127.0.0.1", self.port)}
        return sum(1 for one in self.front.net_connections("tcp") if one.laddr in listening and one.raddr)

    async def has_connections(self, at_most: int, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while (open_now := self.connections()) > at_most:
            assert time.monotonic() < deadline, f"{open_now} connections after {within_s} s"
            await asyncio.sleep(0.05)

    def order(self, key: str, quantity: int = 1, **fields: str) -> bytes:
        order = {"sale": "hostile", "lines": [{"sku": "A", "quantity": quantity}], "market": "SG", **fields}
        return post_order(json.dumps(order).encode(), self.token, key)

    async def serves_others(self, name: str) -> None:
        """Orders and a page, one after the other, each answered soon."""
        for number in range(20):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                order, page = await ask(
                    self.port, self.order(f"{name}-{number}"), get("/v1/sales/hostile/offers?market=SG")
                )
            assert (order.status, page.status) == (201, 200), (order, page)


@pytest.fixture(scope="module")
def house(impatient_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The engine with a sale of our own; afterwards the same front process is there, and nothing of ours in it."""
    file = tmp_path_factory.mktemp("hostile") / "sale.toml"
    file.write_text(SALE)
    impatient_engine.command("sale", "create", str(file))
    house = House(impatient_engine)
    yield house
    asyncio.run(house.has_connections(0, READ_TIMEOUT_S + SLACK_S))
    assert house.front.is_running()
    assert impatient_engine.is_ready()
    logged = impatient_engine.errors.read_text()
    assert "Traceback" not in logged, logged[logged.index("Traceback") :][:4000]


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process, the client of thousands, may open as many files as the machine lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= IDLE + 1000, f"{IDLE} connections need `ulimit -Hn` of {IDLE + 1000}, it is {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def opened(stack: ExitStack, house: House, count: int, receive_bytes: int = 0) -> list[Wire]:
    """So many connections, from several loopback addresses."""
    wires: list[Wire] = []
    while len(wires) < count:
        some = range(len(wires), min(count, len(wires) + 200))
        opening = (Wire.open(house.port, SOURCES[number % len(SOURCES)], receive_bytes) for number in some)
        wires += [stack.enter_context(wire) for wire in await asyncio.gather(*opening)]
    return wires


def assert_cheap(before: int, after: int, connections: int) -> None:
    grown = after - before
    print(f"{connections} connections: {grown / connections / 1024:.1f} KiB each")
    assert grown <= connections * BYTES_A_CONNECTION + (0 if corpora.FULL else CI_SLACK_BYTES), f"{grown} bytes"


# --- many ---


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
async def test_idle_connections_cost_little_and_are_closed_in_the_end(house: House) -> None:
    await house.serves_others("before-idle")
    with ExitStack() as stack:
        before = house.memory_bytes()
        silent = await opened(stack, house, IDLE // 2)
        once = await opened(stack, house, IDLE - IDLE // 2)  # a page, then silence: they have cost a handler too
        for start in range(0, len(once), 100):
            some = once[start : start + 100]
            await asyncio.gather(*(wire.send(get("/livez")) for wire in some))
            answers = await asyncio.gather(*(wire.read(1) for wire in some))
            assert {answer.status for (answer,) in answers} == {200}
        last = time.monotonic()
        assert house.connections() >= IDLE
        await house.serves_others("idle")
        assert_cheap(before, house.memory_bytes(), IDLE)
        await house.has_connections(0, IDLE_TIMEOUT_S + SLACK_S)
        assert time.monotonic() - last >= IDLE_TIMEOUT_S - 2 * SLACK_S, "closed too soon"
        for wire in (silent[0], silent[-1], once[0], once[-1]):
            await wire.read_to_end()


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("asks", ["orders", "pages", "both"])
async def test_clients_that_pipeline_and_never_read_cost_little_and_are_cut_off(house: House, asks: str) -> None:
    await house.serves_others(f"before-{asks}")
    page = get("/v1/sales/double11/offers?market=SG")
    with ExitStack() as stack:
        before = house.memory_bytes()
        wires = await opened(stack, house, UNREAD, receive_bytes=4096)
        for number, wire in enumerate(wires):
            orders = b"".join(house.order(f"{asks}-{number}-{count}") for count in range(50))
            asked = {"orders": orders, "pages": page * 50, "both": orders.replace(b"}POST", b"}" + page + b"POST")}[
                asks
            ]
            _stuff(wire, asked)
        peak = house.memory_bytes()
        stuffed = time.monotonic()
        await house.serves_others(f"unread-{asks}")
        while time.monotonic() - stuffed < 2:  # they go on
            for number, wire in enumerate(wires):
                _stuff(wire, page if asks == "pages" else house.order(f"{asks}-{number}-more"))
            peak = max(peak, house.memory_bytes())
            await asyncio.sleep(0.1)
        assert_cheap(before, peak, UNREAD)
        if asks == "both":
            await house.has_connections(0, WRITE_TIMEOUT_S + IDLE_TIMEOUT_S + SLACK_S)


def _stuff(wire: Wire, data: bytes) -> None:
    """Sends as much of *data*, over and over, as the connection takes without waiting; 2 MB at most."""
    with contextlib.suppress(OSError):
        for _ in range(2_000_000 // len(data)):
            if wire.socket.send(data) < len(data):
                return


@pytest.mark.slow
async def test_connections_are_bounded_by_the_setting_not_by_the_shell(make_engine: Callable[..., Engine]) -> None:
    bound, soft = 300, 200
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    engine = make_engine(FLASHSALE_CONNECTIONS_MAX=str(bound))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    try:
        engine.spawn()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    engine.wait_for_line(f"ready {engine.url}")
    with ExitStack() as stack:
        wires = [stack.enter_context(await Wire.open(engine.port)) for _ in range(bound)]
        for wire in wires:
            await wire.send(get("/livez"))
            (answer,) = await wire.read(1)
            assert answer.status == 200
        with await Wire.open(engine.port) as beyond:
            assert await beyond.read_to_end() == []
        wires[0].send_no_more()
        await wires[0].read_to_end()
        (answer,) = await ask(engine.port, get("/livez"))
        assert answer.status == 200
    assert engine.stop() == 0


# --- slow ---


@pytest.mark.slow
async def test_a_request_that_trickles_in_is_not_waited_for(house: House) -> None:
    order = house.order("slow")
    head, _, body = order.partition(b"\r\n\r\n")
    chunked = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked") + b"\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    began = [b"", order[:1], order[:60], head + b"\r\n\r\n", order[:-20], chunked, chunked + chunks[:20]]
    rests = [order, order[1:], order[60:], body, order[-20:], chunks, chunks[20:]]

    async def trickle(sent: bytes, rest: bytes) -> float:
        with await Wire.open(house.port) as wire:
            await wire.send(sent)
            since = time.monotonic()
            for byte in rest:
                await wire.send(bytes([byte]))
                await wire.read_some(0.6)
                if wire.ended:
                    break
            assert wire.received == b"", "an unfinished request was answered"
            return time.monotonic() - since

    took = await asyncio.gather(*(trickle(sent, rest) for sent, rest in zip(began, rests, strict=True)))
    assert min(took) > READ_TIMEOUT_S - 1, took
    assert max(took) < READ_TIMEOUT_S + SLACK_S, took
    await house.serves_others("trickled")


# --- greedy ---


def _long_orders(house: House, size: int) -> dict[str, bytes]:
    body = b" " * size
    order = post_order(b"", house.token, "long").replace(b"Content-Length: 0", b"Content-Length: %d" % size)
    chunked = order.replace(b"Content-Length: %d" % size, b"Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    return {
        "sized": order + body,
        "chunked": chunked + chunk * -(-size // 0x10000) + b"0\r\n\r\n",
        "one chunk": chunked + b"%x\r\n" % size + body + b"\r\n0\r\n\r\n",
        "page": order.replace(b"/v1/orders", b"/v1/sales") + body,
    }


@pytest.mark.parametrize("form", ["sized", "chunked", "one chunk", "page"])
@pytest.mark.parametrize("size", [300_000, 5_000_000, 10_000_000])
async def test_a_body_too_large_is_refused_and_the_refusal_can_be_read(house: House, form: str, size: int) -> None:
    with await Wire.open(house.port) as wire:
        await wire.send(_long_orders(house, size)[form])
        (answer,) = await wire.read_to_end(DROP_S + SLACK_S)
    assert (answer.status, answer.problem) == (413, "too-large")
    assert answer.headers["connection"] == "close"


async def test_a_body_of_the_largest_size_is_read(house: House) -> None:
    (answer,) = await ask(
        house.port, post_order(house.order("x").partition(b"\r\n\r\n")[2].ljust(256 * 1024), house.token, "largest")
    )
    assert answer.status == 201


def _long_heads(house: House) -> dict[str, bytes]:
    start = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
    return {
        "one line": start + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        "many lines": start + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n",
        "some lines": start + b"".join(b"X-%d: y\r\n" % number for number in range(150)) + b"\r\n",
        "target": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "name": start + b"X" * 100_000 + b": y\r\n\r\n",
    }


@pytest.mark.parametrize("form", ["one line", "many lines", "some lines", "target", "name"])
async def test_a_head_too_large_is_refused_and_the_refusal_can_be_read(house: House, form: str) -> None:
    with await Wire.open(house.port) as wire:
        await wire.send(_long_heads(house)[form])
        (answer,) = await wire.read_to_end(DROP_S + SLACK_S)
    assert (answer.status, answer.problem) == (431, "headers-too-large")


async def test_a_refused_client_that_never_stops_sending_is_dropped(house: House) -> None:
    with await Wire.open(house.port) as wire:
        began = time.monotonic()
        going = await wire.send(_long_orders(house, 300_000)["sized"])
        while going:
            assert time.monotonic() - began < DROP_S + SLACK_S, "it is still read from"
            going = await wire.send(b"x" * 1000)
            await asyncio.sleep(0.01)
        assert [answer.status for answer in await wire.read_to_end()] == [413]


# --- rude ---


async def test_two_hundred_orders_in_one_write_are_answered_in_their_order(house: House) -> None:
    answers = await ask(house.port, *(house.order(f"pipe-{number}", number + 1) for number in range(200)))
    assert [answer.json()["lines"][0]["quantity"] for answer in answers] == list(range(1, 201))


async def test_pipelined_orders_pages_and_faults_are_answered_in_their_order(house: House) -> None:
    asked = []
    for number in range(60):
        asked += [house.order(f"mix-{number}"), get("/livez"), house.order(""), get("/v1/orders/none"), get("/no/such")]
    asked.append(b"rubbish\r\n\r\n")
    answers = await ask(house.port, *asked)
    assert [answer.status for answer in answers] == [201, 200, 400, 401, 404] * 60 + [400]


async def test_a_half_closed_connection_gets_its_answers(house: House) -> None:
    for count in (1, 3, 100):
        asked = [house.order(f"half-{count}-{number}") for number in range(count)]
        for last, status in ((b"", []), (get("/livez"), [200]), (house.order("cut")[:-1], [])):
            with await Wire.open(house.port) as wire:
                await wire.send(b"".join(asked) + last)
                wire.send_no_more()
                answers = await wire.read_to_end()
            assert [answer.status for answer in answers] == [201] * count + status


async def test_clients_that_break_off_anywhere_leave_nothing_behind(house: House) -> None:
    draw = random.Random(SEED)
    requests = [
        house.order("abort"),
        get("/v1/sales/double11/offers?market=SG"),
        get("/v1/sales/double11/stock", "", b"Accept: text/event-stream"),
        _long_orders(house, 300_000)["sized"],
    ]
    before = house.memory_bytes()
    for _ in range(20):
        with ExitStack() as stack:
            for wire in await opened(stack, house, 20):
                request = draw.choice(requests) * draw.choice((1, 1, 40))
                with contextlib.suppress(OSError):
                    wire.socket.send(request[: draw.choice((len(request), draw.randrange(len(request))))])
                if draw.random() < 0.7:  # a reset; else an ordinary end
                    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if draw.random() < 0.5:
                    await asyncio.sleep(0)
    await house.has_connections(0, SLACK_S)
    await house.serves_others("aborted")
    assert_cheap(before, house.memory_bytes(), 400)


async def test_an_order_whose_client_has_gone_is_there_when_it_asks_again(house: House) -> None:
    first: list[Answer] = []
    for number in range(20):
        with await Wire.open(house.port) as wire:
            await wire.send(house.order(f"gone-{number}"))
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first += await ask(house.port, house.order(f"gone-{number}"))
    again = await ask(house.port, *(house.order(f"gone-{number}") for number in range(20)))
    assert {answer.status for answer in [*first, *again]} == {201}
    assert [answer.json()["id"] for answer in first] == [answer.json()["id"] for answer in again]
    assert {answer.headers.get("idempotent-replayed") for answer in again} == {"true"}
