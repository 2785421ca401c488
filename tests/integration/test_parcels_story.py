"""Parcels and orders whatever happens to them: payments, cancellations, people and carriers, in any order, with faults.

The duty is stepped by hand, so that what it does falls between any two other things.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashsale.audit import audit
from flashsale.embedded import ValkeyServer
from flashsale.errors import Refused
from flashsale.ledger import life, parcels
from flashsale.partners.carriers.http import HttpCarriers
from flashsale.partners.carriers.sandbox.faults import Faults
from flashsale.partners.carriers.sandbox.store import Refusal
from flashsale.pipeline.carrier_calls import CarrierCalls, now_ms
from flashsale.sale.tracking import Code
from tests.integration.carrier_house import SECRET, CarrierHouse, carriers, open_carrier_house
from tests.integration.carrier_house import Sandbox as Carriers

ORDERS = 2
which = st.integers(0, ORDERS - 1)
worker = st.tuples(st.sampled_from(["work", "work", "take_up", "ask", "ask_unanswered", "ask_away", "begin_again"]))
steps = st.one_of(
    worker,
    worker,
    st.tuples(st.sampled_from(["pay", "cancel", "cancel", "cancel_one", "ship", "deliver"]), which),
    st.tuples(st.sampled_from(["advance", "advance", "arrive", "fail", "return", "call_off"]), which),
    st.tuples(st.sampled_from(["tell", "tell_twice"])),
)


class Story:
    """Some orders, their carriers, and a worker that takes one step at a time."""

    def __init__(self, shop: CarrierHouse, sandbox: Carriers, client: HttpCarriers, ledger_url: str) -> None:
        self.shop, self.sandbox, self.client, self.url = shop, sandbox, client, ledger_url
        self.orders: list[str] = []
        self.untold: list[dict[str, Any]] = []
        self.seen: set[str] = set()

    async def begin(self, paid: list[bool]) -> None:
        self.orders = [await self.shop.place(("KETTLE", 2), paid=each) for each in paid]
        self.connection = await asyncpg.connect(self.url)
        await self.connection.execute("UPDATE parcel SET due_ms = NULL")  # those of earlier stories
        self.begin_again()

    def begin_again(self) -> None:
        """The worker dies, and another one begins."""
        self.duty = CarrierCalls(self.url, self.client, silent_s=0.001, timeout_s=2, again_ms=(1, 1))

    async def play(self, step: tuple[Any, ...]) -> None:
        name, store = step[0], self.sandbox.running.store
        order = self.orders[step[1]] if len(step) > 1 else ""
        try:
            match name:
                case "pay":
                    await self.shop.pay(order)
                case "cancel" | "cancel_one":
                    async with self.shop.ledger.transaction():
                        lines = None if name == "cancel" else [(0, 1)]
                        await life.cancel(self.shop.ledger, order, lines, now_ms())
                case "ship":
                    async with self.shop.ledger.transaction():
                        await life.ship(self.shop.ledger, order, None, now_ms())
                case "deliver":
                    async with self.shop.ledger.transaction():
                        await life.deliver(self.shop.ledger, order, True, now_ms())
                case "take_up":
                    await self.duty._take_up(self.connection)
                case "ask":
                    await self.ask()
                case "begin_again":
                    self.begin_again()
                case "work":
                    await self.duty._take_up(self.connection)
                    await self.ask()
                case "ask_away" | "ask_unanswered":
                    store.faults = Faults(away=9) if name == "ask_away" else Faults(unanswered=9)
                    await self.ask()
                    store.faults = Faults()
                case "tell" | "tell_twice":
                    await self.tell(2 if name == "tell_twice" else 1)
                case _:
                    self.carrier(name, order)
        except (Refused, Refusal):  # not possible now: nothing was done
            pass

    def carrier(self, name: str, order: str) -> None:
        """What the carrier does with a parcel that it has."""
        store = self.sandbox.running.store
        waybill = next((each["waybill"] for each in store.all(100) if each["reference"] == order), None)
        if waybill is None:
            return
        match name:
            case "advance":
                store.advance(waybill)
            case "call_off":
                store.cancel(waybill)
            case _:
                store.finish(waybill, {"arrive": Code.DELIVERED, "fail": Code.FAILED, "return": Code.RETURNED}[name])
        for event in store.read(waybill)["events"]:
            if event["id"] not in self.seen:
                self.seen.add(event["id"])
                self.untold.insert(len(self.untold) // 2, event)

    async def ask(self) -> None:
        await asyncio.sleep(0.002)
        self.duty._ask_after = 0.0
        await self.duty._ask_some(self.connection)

    async def tell(self, times: int) -> None:
        """One of the webhooks that are on their way; one that is refused is told again."""
        if not self.untold:
            return
        event = self.untold.pop()
        for _ in range(times):
            headers = self.shop.signing.headers(_text(event))
            async with self.shop.session.post(
                "/v1/carriers/cainiao/events",
                data=_text(event),
                headers={"Content-Type": "application/json", **headers},
            ) as answer:
                assert answer.status in (200, 404), await answer.text()  # 404: its booking was not answered yet

    async def settle(self) -> None:
        """Faults over: the worker goes on until it has nothing new to do. Webhooks that are on their way are lost."""
        self.sandbox.running.store.faults = Faults()
        for _ in range(5):
            await self.duty._take_up(self.connection)
            await self.connection.execute("UPDATE parcel SET due_ms = 0 WHERE due_ms IS NOT NULL")
            await self.ask()

    async def check(self) -> None:
        known = {each["reference"]: each for each in self.sandbox.running.store.all(10_000)}
        for order in self.orders:
            status = await self.connection.fetchval("SELECT status FROM orders WHERE id = $1", order)
            parcel = await parcels.of_order(self.connection, order)
            there = known.get(order, {}).get("status")
            told = (status, parcel, there)
            if parcel is None:  # never paid, or over before anybody looked
                assert there is None and status != "paid", told
                continue
            assert parcel.status not in ("to_book", "cancelling"), told
            if there == "booked":
                assert parcel.status == "booked" and status not in ("cancelled", "reserved"), told
            elif there == "cancelled":
                assert parcel.status == ("cancelled" if status == "cancelled" else parcel.status), told
                assert parcel.status in ("cancelled", "refused"), told
            elif there is None:
                assert parcel.status == "cancelled" and status != "paid", told
            else:
                ends = {"delivered": "delivered", "failed": "failed", "returned": "failed"}
                assert parcel.status == ends.get(there, "picked_up"), told
                if parcel.error is None:
                    assert status in ("shipped", "delivered", "undeliverable"), told
                else:
                    assert status in ("cancelled", "delivered"), told  # by the shopper, or by people
        assert await self.connection.fetchval("SELECT count(*) FROM parcel") == len(
            await self.connection.fetch("SELECT DISTINCT order_id FROM parcel")
        )

    async def end(self) -> None:
        await self.connection.close()


def _text(event: dict[str, Any]) -> str:
    return orjson.dumps(event).decode()


def test_parcel_and_order_agree_whatever_happens(valkey_memory: ValkeyServer, ledger: str) -> None:
    async def play(shop: CarrierHouse, sandbox: Carriers, paid: list[bool], told: list[tuple[Any, ...]]) -> None:
        client = HttpCarriers(sandbox.address, SECRET, timeout_s=2)
        story = Story(shop, sandbox, client, ledger)
        await story.begin(paid)
        try:
            for step in told:
                await story.play(step)
            await story.settle()
            await story.check()
            found = [each for each in (await audit(valkey_memory.url, ledger)).faults if each.invariant == "parcel"]
            assert not found
        finally:
            await story.end()
            await client.aclose()

    with asyncio.Runner() as runner:
        opened = open_carrier_house(valkey_memory.url, ledger)
        shop = runner.run(opened.__aenter__())
        carrying = carriers(shop, tells=False)
        sandbox = runner.run(carrying.__aenter__())

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(paid=st.tuples(*[st.booleans()] * ORDERS), told=st.lists(steps, min_size=8, max_size=40))
        def tried(paid: tuple[bool, ...], told: list[tuple[Any, ...]]) -> None:
            runner.run(play(shop, sandbox, list(paid), told))

        try:
            tried()
        finally:
            runner.run(carrying.__aexit__(None, None, None))
            runner.run(opened.__aexit__(None, None, None))
