"""One key, one order, one first answer: links cut between request and reply, clients that retry, buttons clicked twice;
and every refusal in CONTRACT's order of checks, obeyed by every process the moment a sale command returns.

`FLASHSALE_CUTS=1000` cuts the link to Valkey so often (`FLASHSALE_FULL=1` does too); the default is 20.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
import redis

from tests import corpora
from tests.conftest import FLASHSALE, Engine, free_port
from tests.crowd import Crowd, audit, open_sale
from tests.processes import pids
from tests.wire import Answer, Wire, ask, get, post_order

CUTS = int(os.environ.get("FLASHSALE_CUTS", "1000" if corpora.FULL else "20"))
SEED = 2009
CUT_SHARE = 0.1  # of the calls, while cuts are left
WITHIN_S = 30
MSGPACK = "application/msgpack"

SALE = """
[sale]
id = "{sale}"
name = "Once"
opens_at = {opens}
closes_at = 2099-01-01T00:00:00Z
hold_seconds = 900
"""
OFFER = """
[[offers]]
sku = "{sku}"
brand = "Haier"
title = {{ en = "kettle" }}
stock = {stock}
quota = {quota}
weight_g = 900
prices = {{ SG = "{price}", JP = "{yen}" }}
"""
PAST, FUTURE = "2020-01-01T00:00:00Z", "2090-01-01T00:00:00Z"
_numbers = itertools.count(1)


class Shop:
    """A sale of its own on a running engine, its file, and the commands on it."""

    def __init__(self, engine: Engine, directory: Path, *offers: dict[str, Any], opens: str = PAST) -> None:
        self.engine, self.port = engine, engine.port
        self.id = f"once-{next(_numbers)}"
        self._file = directory / f"{self.id}.toml"
        self.write(*offers, opens=opens)
        engine.command("sale", "create", str(self._file))

    def write(self, *offers: dict[str, Any], opens: str = PAST) -> None:
        offer = {"sku": "KETTLE", "stock": 1000, "quota": 0, "price": "20.50", "yen": "2000"}
        text = SALE.format(sale=self.id, opens=opens)
        self._file.write_text(text + "".join(OFFER.format(**{**offer, **changed}) for changed in offers or ({},)))

    def update(self, *offers: dict[str, Any], opens: str = PAST) -> None:
        self.write(*offers, opens=opens)
        self.engine.command("sale", "update", str(self._file))

    def command(self, name: str, *arguments: str) -> None:
        self.engine.command("sale", name, self.id, *arguments)

    def order(self, *lines: tuple[str, int], market: str = "SG", **more: Any) -> dict[str, Any]:
        asked = [{"sku": sku, "quantity": quantity} for sku, quantity in lines or (("KETTLE", 1),)]
        return {"sale": self.id, "lines": asked, "market": market, **more}

    async def send(self, order: dict[str, Any], token: str, key: str | bytes, packed: bool = False) -> Answer:
        (answer,) = await ask(self.port, request(order, token, key, packed))
        return answer


def request(order: dict[str, Any], token: str, key: str | bytes, packed: bool = False) -> bytes:
    if packed:
        return post_order(msgpack.packb(order), token, key, MSGPACK)
    return post_order(json.dumps(order).encode(), token, key)


def said(answer: Answer) -> dict[str, Any]:
    """The body in either encoding."""
    if answer.headers["content-type"] == MSGPACK:
        return dict(msgpack.unpackb(answer.body))
    return dict(answer.json())


def is_replay(answer: Answer) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


# --- a link that is cut between request and reply ---


class Cutter:
    """A proxy before Valkey that cuts connections in the middle of a decision, at random: with a part of the request
    sent, with all of it sent and no reply passed on, or with a part of the reply."""

    def __init__(self, valkey: str, path: Path, cuts: int) -> None:
        self.path, self.left, self.kinds = path, cuts, dict.fromkeys(("request", "reply", "part"), 0)
        self._valkey = valkey
        self._random = random.Random(SEED)

    async def start(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._pass, str(self.path))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_valkey, to_valkey = await asyncio.open_unix_connection(self._valkey)
        cutting: list[str] = []

        async def back() -> None:
            while data := await from_valkey.read(64 * 1024):
                if cutting:
                    writer.write(data[: self._random.randrange(len(data))] if cutting[0] == "part" else b"")
                    with contextlib.suppress(OSError):
                        await writer.drain()
                    break
                writer.write(data)
            writer.close()
            to_valkey.close()

        returning = asyncio.create_task(back())
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * 1024):
                if self.left and b"EVALSHA" in data and not cutting and self._random.random() < CUT_SHARE:
                    self.left -= 1
                    cutting.append(self._random.choice(("reply", "reply", "reply", "part", "request")))
                    self.kinds[cutting[0]] += 1
                    if cutting[0] == "request":
                        to_valkey.write(data[: self._random.randrange(len(data))])
                        break
                to_valkey.write(data)
        to_valkey.close()
        writer.close()
        await returning


@contextmanager
def own_front(engine: Engine, redis_url: str) -> Iterator[Engine]:
    """One more front of that engine, on a port of its own and with another way to Valkey."""
    front = copy.copy(engine)
    front.port = free_port()
    front.url = f"http://127.0.0.1:{front.port}"
    environment = {**engine.environment, "FLASHSALE_PORT": str(front.port), "FLASHSALE_REDIS_URL": redis_url}
    with front.errors.open("ab") as errors:
        front.process = subprocess.Popen([str(FLASHSALE), "serve"], env=environment, stderr=errors)
    try:
        yield front
    finally:
        front.process.send_signal(signal.SIGTERM)
        assert front.process.wait(WITHIN_S) == 0


@pytest.mark.chaos
async def test_a_link_cut_at_random_leaves_one_hold_a_key(engine: Engine, tmp_path: Path) -> None:
    """No shopper even notices: every cut is repaired within the time that an order may take."""
    address = json.loads((engine.data_dir / "run.json").read_text())["valkey"]["address"].removeprefix("unix://")
    open_sale(engine, "cut", tmp_path)
    cutter = Cutter(address, tmp_path / "cut.sock", CUTS)
    proxy = await cutter.start()
    with own_front(engine, f"unix://{cutter.path}") as front:
        await asyncio.to_thread(front.wait_until_ready)
        async with Crowd(front, "cut", SEED) as crowd:
            await crowd.until(lambda: cutter.left == 0, within_s=60 + CUTS)
            await crowd.until_accepted(20)
        proxy.close()
    assert crowd.faults == []
    assert crowd.statuses().keys() <= {201, 409}
    count = await crowd.compare_with_ledger()
    assert count == len(crowd.accepted)
    with redis.Redis(unix_socket_path=address) as client:
        assert client.hlen("{p00}:cut:holds") == count
    await audit(engine)
    print(f"{CUTS} cuts ({cutter.kinds}), {len(crowd.orders)} orders, {count} accepted, {len(crowd.sent)} requests")


# --- the client that retries ---


async def until_in_ledger(shop: Shop) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await audit(shop.engine))["counts"]["backlog"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_retry_gets_the_first_answer_whatever_has_happened_since(engine: Engine, tmp_path: Path) -> None:
    shop = Shop(engine, tmp_path, {"quota": 3}, {"sku": "FAN"})
    token = engine.token("shopper", "ann")
    order = shop.order(("KETTLE", 2), ("FAN", 1), channel="tmall-world", ship_to={"name": "Ann", "country": "SG"})
    first = await shop.send(order, token, "a-key")
    assert (first.status, is_replay(first)) == (201, False)
    document = first.json()

    async def judge() -> None:
        spaced = {**order, "expected_total": {"amount": 1, "currency": "SGD"}}
        for number, again in enumerate(
            await asyncio.gather(
                shop.send(order, token, "a-key"),
                shop.send(order, token, '"a-key"'),
                shop.send(order, token, "a-key", packed=True),
                shop.send(spaced, token, '"a-key"', packed=True),
                shop.send(dict(reversed(order.items())), token, "a-key"),
            )
        ):
            assert (again.status, is_replay(again)) == (201, True), (number, again.body)
            assert again.headers["location"] == first.headers["location"]
            assert said(again) == document
        others = (
            shop.order(("KETTLE", 1), ("FAN", 1)),
            {**order, "market": "JP"},
            {**order, "channel": "shopee"},
            {**order, "ship_to": {"name": "Bob", "country": "SG"}},
            {**order, "lines": order["lines"][:1]},
        )
        for other in others:
            refused = await shop.send(other, token, "a-key")
            assert (refused.status, refused.problem) == (422, "idempotency-mismatch")
            assert refused.json()["id"] == document["id"]

    await judge()
    await until_in_ledger(shop)
    await judge()
    await asyncio.to_thread(shop.update, {"quota": 1, "price": "19.90", "yen": "1900"}, {"sku": "FAN", "price": "3"})
    await judge()
    new = await shop.send(order, engine.token("shopper", "bob"), "a-key")
    assert (new.status, new.problem) == (409, "quota-exceeded")
    await asyncio.to_thread(shop.command, "stock", "KETTLE", "--to", "2", "--expect", "1000")
    await asyncio.to_thread(shop.command, "suspend", "FAN")
    await asyncio.to_thread(shop.command, "pause")
    await judge()
    await asyncio.to_thread(shop.command, "close")
    await judge()
    (shown,) = await ask(shop.port, get(first.headers["location"], token))
    assert shown.json().items() >= document.items()
    await audit(engine)


async def test_a_refusal_is_not_kept_and_a_key_belongs_to_one_shopper(engine: Engine, tmp_path: Path) -> None:
    shop = Shop(engine, tmp_path, {"stock": 1})
    ann, bob = engine.token("shopper", "ann"), engine.token("shopper", "bob")
    refused = await shop.send(shop.order(("KETTLE", 2)), ann, "k")
    assert refused.problem == "sold-out"
    taken = await shop.send(shop.order(("KETTLE", 1)), ann, "k")  # another body too: nothing was kept
    assert (taken.status, is_replay(taken), taken.json()["id"]) == (201, False, refused.json()["id"])
    other = await shop.send(shop.order(("KETTLE", 1)), bob, "k")
    assert (other.problem, other.json()["id"] == taken.json()["id"]) == ("sold-out", False)


async def test_a_double_click_is_one_order(engine: Engine, tmp_path: Path) -> None:
    """Two connections at once, and pipelined on one, where both clicks go to Valkey in one call."""
    shop = Shop(engine, tmp_path, {"quota": 1})
    tokens = engine.command("token", "shopper", "double", "--count", "40").stdout.split()
    for number, token in enumerate(tokens):
        click = request(shop.order(), token, "k", packed=number % 4 == 3)
        if number % 2:
            clicks = [answer for (answer,) in await asyncio.gather(ask(shop.port, click), ask(shop.port, click))]
        else:
            clicks = await ask(shop.port, click, click)
        assert [answer.status for answer in clicks] == [201, 201]
        assert sorted(map(is_replay, clicks)) == [False, True]
        assert said(clicks[0]) == said(clicks[1])
    (stock,) = await ask(shop.port, get(f"/v1/sales/{shop.id}/stock"))
    assert stock.json()["stock"]["KETTLE"]["available"] == 1000 - len(tokens)
    await audit(engine)


# --- the order of checks ---


class Situation(NamedTuple):
    """What is wrong with an order, all at once."""

    sale: str  # open, paused, upcoming or closed
    key: str  # new, used by this order, used by another one
    suspended: bool
    price: bool
    quota: bool
    short: bool

    @property
    def verdict(self) -> str:
        """CONTRACT: replay → open → paused → suspended → price → quota → stock. The first that fails is the answer."""
        if self.key != "new":
            return "replayed" if self.key == "used" else "idempotency-mismatch"
        state = {"upcoming": "sale-not-open", "closed": "sale-closed", "paused": "sale-paused"}.get(self.sale)
        checks = [
            (self.suspended, "sku-suspended"),
            (self.price, "price-changed"),
            (self.quota, "quota-exceeded"),
            (self.short, "sold-out"),
        ]
        return state or next((name for wrong, name in checks if wrong), "accepted")

    @property
    def sku(self) -> str:
        return f"KETTLE-{'SUSPENDED' if self.suspended else 'SOLD'}-{'SHORT' if self.short else 'PLENTY'}"


STATUS = {
    "accepted": 201, "replayed": 201, "idempotency-mismatch": 422, "sale-not-open": 403, "sale-closed": 410,
    "sale-paused": 503, "sku-suspended": 409, "price-changed": 409, "quota-exceeded": 409, "sold-out": 409,
}  # fmt: skip
BOTH = (False, True)
SKUS = [Situation("", "", suspended, False, False, short).sku for suspended in BOTH for short in BOTH]


@pytest.mark.slow
async def test_the_first_check_that_fails_is_the_answer(engine: Engine, tmp_path: Path) -> None:
    """Every combination. In each sale `over` has one unit of its quota of 2, `first` both by keys k-1 and k-2."""
    over, first = engine.token("shopper", "over"), engine.token("shopper", "first")
    fresh = iter(engine.command("token", "shopper", "new", "--count", "200").stdout.split())
    offers = [{"sku": sku, "quota": 2, "stock": 4 if sku.endswith("SHORT") else 500} for sku in SKUS]
    sales = {}
    for state in ("open", "paused", "upcoming", "closed"):
        shop = sales[state] = await asyncio.to_thread(Shop, engine, tmp_path, *offers)
        for sku in SKUS:
            for token, key in ((over, "k-0"), (first, "k-1"), (first, "k-2")):
                taken = await shop.send(shop.order((sku, 1)), token, f"{key}-{sku}")
                assert taken.status == 201, taken.body
        for sku in SKUS:
            if "SUSPENDED" in sku:
                await asyncio.to_thread(shop.command, "suspend", sku)
    await asyncio.to_thread(sales["paused"].command, "pause")
    await asyncio.to_thread(sales["closed"].command, "close")
    await asyncio.to_thread(lambda: sales["upcoming"].update(*offers, opens=FUTURE))

    wrong = []
    for situation in itertools.starmap(
        Situation, itertools.product(sales, ("new", "used", "other's"), BOTH, BOTH, BOTH, BOTH)
    ):
        shop, sku = sales[situation.sale], situation.sku
        if situation.key == "new":
            token, key = (over if situation.quota else next(fresh)), f"new-{next(_numbers)}"
        else:
            token, key = (first, f"k-1-{sku}") if situation.quota else (over, f"k-0-{sku}")
        quantity = 1 if situation.key == "used" else 2
        order = shop.order((sku, quantity))
        amount = 2050 * quantity + situation.price
        order["expected_total"] = {"amount": amount, "currency": "SGD"}
        answer = await shop.send(order, token, key, packed=bool(next(_numbers) % 2))
        name = answer.problem or ("replayed" if is_replay(answer) else "accepted")
        document = said(answer)
        members = {
            "sold-out": {"lines": [{"sku": sku, "requested": 2, "available": 1}]},
            "quota-exceeded": {"sku": sku, "quota": 2, "used": 1},
            "price-changed": {"total": {"amount": 4100, "currency": "SGD"}},
            "sku-suspended": {"sku": sku},
        }.get(name, {})
        if (
            (name, answer.status) != (situation.verdict, STATUS[situation.verdict])
            or len(document["id"]) != 30
            or not document.items() >= members.items()
            or answer.headers.get("retry-after", "").isdigit() != (name in ("sale-not-open", "sale-paused"))
        ):
            wrong.append(f"{situation} {situation.verdict}: {answer.status} {answer.headers} {document}")
    assert not wrong, "\n".join(wrong)
    await audit(engine)


@pytest.mark.slow
async def test_each_line_is_judged_and_all_are_told(engine: Engine, tmp_path: Path) -> None:
    shop = Shop(engine, tmp_path, {"sku": "A", "stock": 5}, {"sku": "B", "stock": 1, "quota": 9}, {"sku": "C"})
    token = engine.token("shopper", "ann")
    short = await shop.send(shop.order(("A", 2), ("B", 2), ("C", 1)), token, "k")
    assert short.json()["lines"] == [
        {"sku": "A", "requested": 2, "available": 5},
        {"sku": "B", "requested": 2, "available": 1},
        {"sku": "C", "requested": 1, "available": 1000},
    ]
    over = await shop.send(shop.order(("A", 9), ("B", 10)), token, "k")
    assert (over.problem, over.json()["sku"], over.json()["quota"], over.json()["used"]) == (
        "quota-exceeded",
        "B",
        9,
        0,
    )
    await asyncio.to_thread(shop.command, "suspend", "C")
    out = await shop.send(shop.order(("A", 9), ("B", 10), ("C", 1)), token, "k")
    assert (out.problem, out.json()["sku"]) == ("sku-suspended", "C")


@pytest.mark.slow
async def test_what_comes_before_the_sale_is_checked_first(engine: Engine, tmp_path: Path) -> None:
    """Each request has every fault that comes later as well, on a sale that is closed."""
    shop = Shop(engine, tmp_path)
    token, admin = engine.token("shopper", "ann"), engine.token("admin")
    first = await shop.send(shop.order(), token, "used")
    await asyncio.to_thread(shop.command, "close")
    unknown_sale = {**shop.order(("NONE", 1), market="XX"), "sale": "none"}
    bad = {**unknown_sale, "lines": [{"sku": "NONE", "quantity": 0}], "extra": 1}
    known = {"id": first.json()["id"]}
    nothing: dict[str, str] = {}
    for asked, problem, members, fields in (
        (shop.send(bad, "no-token", b'"open'), "malformed", nothing, set()),
        (shop.send(bad, "no-token", b""), "idempotency-key-missing", nothing, set()),
        (shop.send(bad, "no-token", "used"), "unauthenticated", nothing, set()),
        (shop.send(bad, admin, "used"), "forbidden", nothing, set()),
        (shop.send(bad, token, "used"), "invalid-order", nothing, {"lines[0].quantity", "extra"}),
        (shop.send(unknown_sale, token, "used"), "unknown-sale", nothing, set()),
        (shop.send(shop.order(("NONE", 1)), token, "used"), "unknown-sku", known, set()),
        (shop.send(shop.order(market="XX"), token, "used"), "invalid-order", known, {"market"}),
        (shop.send(shop.order(market="MY"), token, "used"), "invalid-order", known, {"market"}),
        (shop.send(shop.order(("KETTLE", 2)), token, "used"), "idempotency-mismatch", known, set()),
        (shop.send(shop.order(("KETTLE", 2)), token, "new"), "sale-closed", nothing, set()),
    ):
        answer = await asked
        document = answer.json()
        assert answer.problem == problem, answer.body
        assert document.items() >= members.items(), (problem, document)
        assert set(document.get("fields", ())) == fields, (problem, document)
        assert ("id" in document) == (bool(members) or problem == "sale-closed"), (problem, document)
        assert ("www-authenticate" in answer.headers) == (problem == "unauthenticated")


# --- every process obeys ---

FRONTS = 3
CONNECTIONS = 24  # the kernel spreads them over the fronts


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("fronts") / "engine", FLASHSALE_PROCESSES=str(FRONTS)).start()
    yield engine
    engine.stop()


@asynccontextmanager
async def counters(engine: Engine) -> AsyncIterator[Callable[..., Any]]:
    """Connections to every front; `all_say(order, token)`: what each of them answers to an order of its own key."""
    wires = [await Wire.open(engine.port) for _ in range(CONNECTIONS)]

    async def all_say(order: dict[str, Any], token: str, while_sent: Callable[[], None] = lambda: None) -> set[str]:
        async def say(wire: Wire) -> str:
            wire.received = b""
            await wire.send(request(order, token, f"obey-{next(_numbers)}"))
            (answer,) = await wire.read(1)
            return answer.problem or f"accepted {said(answer)['total']['amount']}"

        asked = [asyncio.create_task(say(wire)) for wire in wires]
        await asyncio.sleep(0)
        while_sent()
        return set(await asyncio.gather(*asked))

    try:
        yield all_say
    finally:
        for wire in wires:
            wire.socket.close()


@pytest.mark.slow
async def test_every_process_obeys_a_command_the_moment_it_returns(fronts: Engine, tmp_path: Path) -> None:
    token = fronts.token("shopper", "ann")
    async with counters(fronts) as all_say:
        assert await all_say(
            {"sale": "double11", "lines": [{"sku": "NONE", "quantity": 1}], "market": "SG"}, token
        ) == {"unknown-sku"}
        shop = Shop(fronts, tmp_path, opens=FUTURE)
        order = shop.order()
        assert await all_say(order, token) == {"sale-not-open"}
        for step, command, verdict in (
            ("open", ("open",), "accepted 2050"),
            ("pause", ("pause",), "sale-paused"),
            ("resume", ("resume",), "accepted 2050"),
            ("pause again", ("pause",), "sale-paused"),
            ("open ends a pause", ("open",), "accepted 2050"),
            ("stock", ("stock", "KETTLE", "--to", str(3 * CONNECTIONS), "--expect", "1000"), "sold-out"),
            ("more stock", ("stock", "KETTLE", "--to", "5000", "--expect", str(3 * CONNECTIONS)), "accepted 2050"),
            ("suspend", ("suspend", "KETTLE"), "sku-suspended"),
            ("unsuspend", ("unsuspend", "KETTLE"), "accepted 2050"),
        ):
            shop.command(*command)
            assert await all_say(order, token) == {verdict}, step
        shop.update({"price": "19.90"}, {"sku": "NEW"}, opens=FUTURE)
        assert await all_say(order, token) == {"accepted 1990"}
        assert await all_say(shop.order(("NEW", 1)), token) == {"accepted 2050"}
        shop.command("close")
        assert await all_say(order, token) == {"sale-closed"}
    await audit(fronts)


@pytest.mark.slow
async def test_a_front_that_slept_through_a_command_obeys_it_too(fronts: Engine, tmp_path: Path) -> None:
    """Stopped before the command, continued after it: what it knew is old, what it answers is not."""
    shop = Shop(fronts, tmp_path)
    token = fronts.token("shopper", "ann")
    sleeper = pids(fronts)["front 1"]
    async with counters(fronts) as all_say:
        assert await all_say(shop.order(), token) == {"accepted 2050"}
        for command, verdict in (
            (lambda: shop.update({"price": "19.90"}), "accepted 1990"),
            (lambda: shop.update({"price": "18.50"}, {"sku": "FAN"}), "accepted 1850"),
            (lambda: shop.command("suspend", "KETTLE"), "sku-suspended"),
            (lambda: shop.command("unsuspend", "KETTLE"), "accepted 1850"),
            (lambda: shop.command("pause"), "sale-paused"),
            (lambda: shop.command("resume"), "accepted 1850"),
            (lambda: shop.command("close"), "sale-closed"),
        ):
            os.kill(sleeper, signal.SIGSTOP)
            try:
                command()
            finally:
                woken = asyncio.get_running_loop().call_later(0.1, os.kill, sleeper, signal.SIGCONT)
                try:
                    verdicts = await all_say(shop.order(), token)
                finally:
                    woken.cancel()
                    os.kill(sleeper, signal.SIGCONT)
            assert verdicts == {verdict}
    await audit(fronts)
