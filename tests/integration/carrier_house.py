"""A house that sells across borders and has carriers: the sandbox on a port of its own, and a worker that asks it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from flashsale import merchandising, settings
from flashsale.partners.carriers.http import HttpCarriers
from flashsale.partners.carriers.sandbox import server
from flashsale.partners.carriers.sandbox.server import Running
from flashsale.partners.carriers.signing import Signing
from flashsale.pipeline.carrier_calls import CarrierCalls
from flashsale.reservation import commands
from flashsale.reservation.batch import arguments, script_keys
from flashsale.sale.order import OrderRequest, from_json
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests.integration.house import RESERVE, House, open_house

SECRET = "whsec_WYMOvDpBhBEFZr8aKQ0IRz39y9SSzkmLFM0aXi+i5EE="
ACROSS = """
[sale]
id = "across"
name = "Across"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2096-01-01T00:00:00Z
hold_seconds = 900
ships_from = "CN"
[[offers]]
sku = "KETTLE"
brand = "Midea"
title = { en = "Kettle" }
stock = 10000
quota = 0
weight_g = 1150
hs_code = "8516.79"
origin = "CN"
prices = { SG = "31.90", MY = "99.00" }
[[offers]]
sku = "FAN"
brand = "Midea"
title = { en = "Fan" }
stock = 10000
quota = 0
weight_g = 2000
hs_code = "8414.51"
origin = "CN"
prices = { SG = "21.90", MY = "69.00" }
"""
ADDRESS = {"name": "Ann Lee", "street": "1 Orchard Road", "city": "Singapore", "postcode": "238823"}


class CarrierHouse(House):
    """The house, and orders that cross a border."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.context.settings = settings.load(carriers_secret=SECRET)
        self.signing = Signing(SECRET)
        self._keys = itertools.count(1)

    async def place(
        self,
        *lines: tuple[str, int],
        shopper: str = "ann",
        market: str = "SG",
        lane: str | None = None,
        channel: str | None = None,
        paid: bool = True,
    ) -> str:
        """The id of an order that the ledger has; paid by card."""
        catalogue = await commands.load_catalogue(self.valkey)
        partition = await commands.read_partition(self.valkey)
        assert catalogue is not None and partition is not None
        sale = catalogue.sale("across")
        assert sale is not None
        body: dict[str, Any] = {
            "sale": "across",
            "market": market,
            "ship_to": {"country": market, **ADDRESS},
            "lines": [{"sku": sku, "quantity": n} for sku, n in lines or (("KETTLE", 2),)],
        }
        body |= {name: given for name, given in (("lane", lane), ("channel", channel)) if given is not None}
        order = Order()
        order.request = request = from_json(orjson.dumps(body))
        assert isinstance(request, OrderRequest)
        order.shopper, order.key, order.msgpack = shopper, f"k-{next(self._keys)}", False
        priced = PricedSale(sale, catalogue.version, 0, catalogue.world, time.time_ns() // 1_000_000)
        priced.identify(order)
        priced.price(order)
        answer = await RESERVE.run(
            self.valkey, script_keys(0, "across"), [partition.epoch, catalogue.version, *arguments([order])]
        )
        assert answer[0] == b"A", answer
        await self.settle()
        if paid:
            await self.pay(order.id)
        return order.id

    async def parcel(self, order_id: str) -> Any:
        return await self.ledger.fetchrow("SELECT * FROM parcel WHERE order_id = $1", order_id)

    async def parcel_is(self, order_id: str, status: str) -> bool:
        row = await self.parcel(order_id)
        return row is not None and row["status"] == status

    async def order_is(self, order_id: str, status: str) -> bool:
        return bool(await self.ledger.fetchval("SELECT status FROM orders WHERE id = $1", order_id) == status)

    async def booked(self, order_id: str) -> str:
        """The waybill of an order's parcel, once it is booked."""
        await until(lambda: self.parcel_is(order_id, "booked"))
        return str((await self.parcel(order_id))["waybill"])

    async def tell(self, carrier: str, event: object, status: int = 200, **headers: str) -> Any:
        """Posts an event that is signed with the right key."""
        data = orjson.dumps(event)
        return await self.post(
            f"/v1/carriers/{carrier}/events", event, status, **(self.signing.headers(data.decode()) | headers)
        )

    @property
    def events_url(self) -> str:
        assert self.session._base_url is not None
        return f"{self.session._base_url.origin()}/v1/carriers"


class Sandbox:
    """The carriers' sandbox, and its controls by HTTP."""

    def __init__(self, running: Running) -> None:
        self.running, self.address = running, running.address

    async def control(self, path: str, body: object = None, status: int = 200) -> Any:
        async with aiohttp.request("POST", f"{self.address}/sandbox/{path}", json=body) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    async def read(self, path: str) -> Any:
        async with aiohttp.request("GET", f"{self.address}/sandbox/{path}") as answer:
            return await answer.json()


@asynccontextmanager
async def carriers(
    house: CarrierHouse, *, path: Path | None = None, port: int = 0, tells: bool = True, step_s: float = 0
) -> AsyncIterator[Sandbox]:
    """Carriers that tell the house what happens, unless they keep it to themselves."""
    running = await server.start(port, SECRET, path=path, events_url=house.events_url if tells else None, step_s=step_s)
    try:
        yield Sandbox(running)
    finally:
        await running.stop()


@asynccontextmanager
async def worker(ledger_url: str, address: str, **given: Any) -> AsyncIterator[CarrierCalls]:
    """The duty that asks the carriers at that address."""
    asked = HttpCarriers(address, SECRET, timeout_s=2)
    options = {"silent_s": 3600.0, "timeout_s": 2, "again_ms": (50, 200), **given}
    duty = CarrierCalls(ledger_url, asked, **options)
    running = asyncio.create_task(duty.run())
    try:
        yield duty
    finally:
        duty.stop()
        await asyncio.wait_for(running, 10)
        await asked.aclose()


async def until(true: Callable[[], Awaitable[bool]], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not await true():  # noqa: ASYNC110  it looks at servers, which set no event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_carrier_house(redis_url: str, ledger_url: str) -> AsyncIterator[CarrierHouse]:
    async with open_house(redis_url, ledger_url, CarrierHouse) as house:
        assert isinstance(house, CarrierHouse)
        await merchandising.create(house.valkey, house.ledger, parse_sale_file(ACROSS, "across.toml"), ACROSS)
        yield house
