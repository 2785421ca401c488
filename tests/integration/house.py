"""A front's pages on a port of their own over real servers, and hands that do what the hot path and the writer do."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import orjson
import redis.asyncio
from aiohttp import web

from flashsale import merchandising, settings
from flashsale.errors import PROBLEMS
from flashsale.front import auth
from flashsale.front.app import make_app
from flashsale.front.catalogues import Catalogues
from flashsale.front.context import FrontContext
from flashsale.ledger import life, orders, partitions
from flashsale.ledger.pool import Ledger
from flashsale.reservation import commands, keys, server
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.scripts import Script
from flashsale.sale.order import OrderRequest, from_json
from flashsale.sale.payment import IntentState, PaymentFact
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests.integration import contract

SECRET = b"a secret of the tests, 32 bytes.."
RESERVE = Script("reserve")
SALE = """
[sale]
id = "night"
name = "The night"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2096-01-01T00:00:00Z
hold_seconds = 900
"""
OFFER = """
[[offers]]
sku = "{sku}"
brand = "Haier"
title = {{ en = "Fridge {sku}", th = "ตู้เย็น {sku}" }}
stock = 10
quota = 2
weight_g = 1000
prices = {{ {prices} }}
"""
BOTH, SG_ONLY = 'SG = "899.00", TH = "18990"', 'SG = "5.05"'


class House:
    """A front's pages on a port of their own, and hands that do what the hot path and the ledger writer do."""

    def __init__(self, valkey: redis.asyncio.Redis, ledger_url: str, ledger: asyncpg.Connection) -> None:
        self.valkey, self.ledger = valkey, ledger
        self.reasons: list[str] = []
        self.context = FrontContext(
            settings=settings.load(return_origins=["https://shop.example"]),
            valkey=valkey,
            ledger=Ledger(ledger_url),
            catalogues=Catalogues(valkey),
            verifier=auth.Verifier(SECRET),
            ready_reasons=lambda: self.reasons,
        )
        self.app = make_app(self.context)
        self.session: aiohttp.ClientSession

    async def create_sale(self, *offers: tuple[str, str], sale: str = SALE) -> None:
        text = sale + "".join(OFFER.format(sku=sku, prices=prices) for sku, prices in offers)
        await merchandising.create(self.valkey, self.ledger, parse_sale_file(text, "night.toml"), text)

    async def update_sale(self, text: str) -> None:
        await merchandising.update(self.valkey, self.ledger, parse_sale_file(text, "night.toml"), text)

    async def order(self, shopper: str, *lines: tuple[str, int], key: str = "k", sale_id: str = "night") -> Order:
        """Takes the units in Valkey as a batch of one order; fails unless the order is accepted."""
        catalogue = await commands.load_catalogue(self.valkey)
        assert catalogue is not None
        sale = catalogue.sale(sale_id)
        assert sale is not None
        body = {"sale": sale_id, "market": "SG", "lines": [{"sku": sku, "quantity": n} for sku, n in lines]}
        order = Order()
        order.request = request = from_json(orjson.dumps(body))
        assert isinstance(request, OrderRequest)
        order.shopper, order.key = shopper, key
        priced = PricedSale(sale, catalogue.version)
        priced.identify(order)
        priced.price(order)
        partition = await commands.read_partition(self.valkey)
        assert partition is not None
        answer = await RESERVE.run(
            self.valkey,
            script_keys(0, sale_id),
            [partition.epoch, catalogue.version, *arguments([order])],
        )
        assert answer[0] == b"A", answer
        return order

    async def settle(self) -> None:
        """Brings every order of the journal to the ledger and trims the journal, as the ledger writer does."""
        partition = await commands.read_partition(self.valkey)
        assert partition is not None
        mark = (0, 0)
        for entry_id, fields in await self.valkey.xrange(keys.journal(0)):
            ms, seq = (int(part) for part in entry_id.split(b"-"))
            mark = (ms, seq)
            if records := fields.get(b"o"):
                await orders.copy(self.ledger, records.replace(b"\n", b"\t0\t%d\t%d\n" % mark))
        await commands.trim(self.valkey, partition=0, epoch=partition.epoch, mark=mark, written=partition.written)

    async def pay(self, order_id: str) -> None:
        """What the worker does when the provider tells of a card's authorisation; no provider was asked."""
        now_ms = int(time.time() * 1000)
        async with self.ledger.transaction():
            _, payment = await life.begin_payment(self.ledger, order_id, "card", None, now_ms, 60_000)
            fact = PaymentFact(
                *(order_id, f"pi_{order_id}", IntentState.AUTHORISED, "card", payment.amount, 0),
                capture_before_ms=now_ms + 7 * 86_400_000,
                failure=None,
                attempt=None,
                source="test",
            )
            applied = await life.apply_facts(self.ledger, [fact], now_ms)
            assert applied.paid == 1, applied

    def token(self, sub: str, role: str = "shopper") -> dict[str, str]:
        (token,) = auth.mint(SECRET, sub, role, 60, int(time.time()))
        return {"Authorization": f"Bearer {token}"}

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        async with self.session.get(path, headers=headers) as answer:
            body = await answer.read()
            assert answer.status == status, (path, answer.status, body)
            decoded = orjson.loads(body)
            contract.check("GET", path, status, decoded)
            return problem_of(answer, body) if status >= 400 and path != "/readyz" else decoded

    async def post(self, path: str, body: object = None, status: int = 200, **headers: str) -> Any:
        data = b"" if body is None else orjson.dumps(body)
        sent = {"Content-Type": "application/json", **headers}
        async with self.session.post(path, data=data, headers=sent) as answer:
            read = await answer.read()
            assert answer.status == status, (path, answer.status, read)
            decoded = orjson.loads(read)
            contract.check("POST", path, status, decoded)
            if status == 201:
                assert answer.headers["Location"].startswith("/v1/")
            return problem_of(answer, read) if status >= 400 else decoded


def problem_of(answer: aiohttp.ClientResponse, body: bytes) -> Any:
    """The problem, checked against the table: name, status, headers."""
    assert answer.content_type == "application/problem+json"
    problem = orjson.loads(body)
    name = problem["name"] = problem["type"].rpartition("/")[2]
    assert problem["status"] == answer.status == PROBLEMS[name].status
    assert problem["title"] and problem["detail"]
    if answer.status in (429, 503):
        assert int(answer.headers["Retry-After"]) > 0
    if answer.status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    if answer.status == 405:
        assert answer.headers["Allow"]
    return problem


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream: event, id and decoded data."""
    event: dict[str, Any] = {}
    async for line in answer.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name in ("event", "id"):
            event[name] = value
        elif name == "data":
            event["data"] = orjson.loads(value)
        elif not name and event:
            yield event
            event = {}


@asynccontextmanager
async def open_house(redis_url: str, ledger_url: str, kind: type[House] = House) -> AsyncIterator[House]:
    """A house over an empty Valkey and a migrated ledger."""
    valkey = server.connect(redis_url)
    connection = await asyncpg.connect(ledger_url)
    await partitions.ensure(connection, 0)
    epoch = await partitions.raise_epoch(connection, 0)
    run_id = await server.run_id(valkey)
    await valkey.hset(keys.partition(0), mapping={"epoch": epoch, "run_id": run_id})
    house = kind(valkey, ledger_url, connection)
    runner = web.AppRunner(house.app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(10)) as session:
        house.session = session
        yield house
    await runner.cleanup()
    await house.context.ledger.close()
    await connection.close()
    await valkey.aclose()
