"""Whoever closes the laptop at any point and comes back finds the order in one definite state, with the next step.

Between closing and coming back every part of the engine but the servers is killed. Following the steps leads to an end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Engine
from tests.payers import SETTINGS, Lived, Payers, open_sale
from tests.payers_judged import judge, quiet
from tests.processes import pids

BACK_WITHIN_S = 30.0
HOLD_S, SHORT_HOLD_S = 25, 2
VISA, DECLINED = "pm_card_visa", "pm_card_visa_chargeDeclined"

pytestmark = pytest.mark.chaos


class Laptop:
    """One shopper's way to a point, step by step, with the shop doing its part at once."""

    def __init__(self, payers: Payers, order: Lived) -> None:
        self.payers, self.order = payers, order
        self.path = f"/v1/orders/{order.id}"

    async def step(self, path: str, body: Any, *, admin: bool = False, method: str = "POST") -> dict[str, Any]:
        _, told = await self.payers.ask(self.order, method, path, (200, 201), body, admin=admin)
        return told

    async def until(self, name: str, value: str) -> dict[str, Any]:
        """The order as soon as it is so: its `status`, or its `payment`'s."""
        async with asyncio.timeout(BACK_WITHIN_S):
            while True:
                found = await self.payers.look(self.order)
                if (found["status"] if name == "status" else found["payment"]["status"]) == value:
                    return found
                await asyncio.sleep(0.1)

    async def begin(self, method: str = "card") -> dict[str, Any]:
        body = {"method": method} | ({} if method == "card" else {"return_url": "https://shop.example/back"})
        return await self.step(f"{self.path}/payment", body)

    async def confirm(self, card: str = VISA) -> None:
        begun = await self.begin()
        path = f"/v1/payment_intents/{begun['provider_id']}/confirm"
        await self.payers.at_sandbox(self.order, path, {"payment_method": card})

    async def declined(self) -> None:
        await self.confirm(DECLINED)
        await self.until("payment", "failed")

    async def paid(self) -> None:
        await self.confirm()
        await self.until("status", "paid")

    async def paid_by_wallet(self) -> None:
        begun = await self.begin("alipay")
        await self.payers.at_sandbox(self.order, begun["pay_url"], {"method": "alipay", "action": "pay"})
        await self.until("payment", "captured")

    async def cancelled_in_part(self) -> None:
        await self.paid()
        lines = [{"sku": self.order.body["lines"][0]["sku"], "quantity": 1}]
        await self.step(f"{self.path}/cancellation", {"lines": lines})

    async def cancelled(self) -> None:
        await self.paid_by_wallet()
        await self.step(f"{self.path}/cancellation", {})

    async def shipped(self) -> None:
        await self.paid()
        await self.step(f"{self.path}/shipment", {}, admin=True)

    async def delivered(self) -> None:
        await self.shipped()
        await self.until("payment", "captured")
        await self.step(f"{self.path}/delivery", {"delivered": True}, admin=True)

    async def undeliverable(self) -> None:
        await self.shipped()
        await self.step(f"{self.path}/delivery", {"delivered": False}, admin=True)

    async def returning(self) -> str:
        await self.delivered()
        lines = self.order.body["lines"][:1]
        told = await self.step(f"{self.path}/returns", {"lines": lines, "reason": "too loud"})
        return str(told["id"])

    async def return_accepted(self) -> None:
        await self.step(f"/v1/returns/{await self.returning()}/decision", {"accept": True}, admin=True)

    async def nothing(self) -> None:
        pass

    async def page_open(self) -> None:
        await self.begin()

    async def in_the_wallet(self) -> None:
        await self.begin("grabpay")


def confirmed_unheard(laptop: Laptop) -> Awaitable[None]:
    """Paid, and the provider's event is lost."""
    return laptop.confirm()


# Point: the way there, and what the order says on coming back (several where something is still on its way).
POINTS: dict[str, tuple[Callable[[Laptop], Awaitable[Any]], set[tuple[str, str]]]] = {
    "ordered": (Laptop.nothing, {("reserved", "pay")}),
    "pay page open": (Laptop.page_open, {("reserved", "pay")}),
    "in the wallet": (Laptop.in_the_wallet, {("reserved", "pay")}),
    "declined": (Laptop.declined, {("reserved", "pay")}),
    "paid": (Laptop.paid, {("paid", "wait")}),
    "paid by wallet": (Laptop.paid_by_wallet, {("paid", "wait")}),
    "cancelled in part": (Laptop.cancelled_in_part, {("paid", "wait")}),
    "cancelled": (Laptop.cancelled, {("cancelled", "wait"), ("cancelled", "nothing")}),
    "shipped": (Laptop.shipped, {("shipped", "wait")}),
    "delivered": (Laptop.delivered, {("delivered", "return")}),
    "undeliverable": (Laptop.undeliverable, {("undeliverable", "wait"), ("undeliverable", "nothing")}),
    "return asked for": (Laptop.returning, {("delivered", "wait")}),
    "return accepted": (Laptop.return_accepted, {("delivered", "send-back")}),
    "paid, its event lost": (confirmed_unheard, {("reserved", "pay"), ("paid", "wait")}),
}


async def test_whoever_comes_back_finds_one_state_and_a_step_that_leads_on(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(**SETTINGS).start()
    open_sale(engine, "day", tmp_path, hold_s=HOLD_S)
    open_sale(engine, "hour", tmp_path, hold_s=SHORT_HOLD_S)
    day, hour = Payers(engine, "day", 1, lives=0), Payers(engine, "hour", 2, lives=0)
    async with day, hour:
        laptops = {}
        for name, (way, _) in POINTS.items():
            if way is confirmed_unheard:
                await day.faults_at_sandbox(lose=1.0)
            laptop = Laptop(day, await placed(day))
            await way(laptop)
            laptops[name] = laptop
        overdue = await placed(hour)
        await kill_all_but_the_servers(engine)
        await day.faults_at_sandbox()
        for name, (_, expected) in POINTS.items():
            found = await day.look(laptops[name].order)
            assert (found["status"], found["next"]["do"]) in expected, name
        assert (await Laptop(hour, overdue).until("status", "expired"))["next"]["do"] == "order-again"
        ends = await asyncio.gather(*(laptop.payers.follow(laptop.order) for laptop in laptops.values()))
    try:
        print({name: (end["status"], end["next"]["do"]) for name, end in zip(laptops, ends, strict=True)})
        for payers in (day, hour):
            await quiet(engine, payers)
        assert day.faults == hour.faults == []
        assert [fault for fault in await judge(engine, day) if "an intent of nobody" not in fault] == []
    finally:
        await day.aclose()
        await hour.aclose()
    assert engine.stop() == 0


async def placed(payers: Payers) -> Lived:
    """An order of two units of a SKU that is there in plenty."""
    order = payers.new_order()
    order.keeps = True
    order.body["lines"] = [{"sku": "PLENTY-1", "quantity": 2}]
    status, told = await payers.order(order)
    assert status == 201
    order.id, order.reserved_until = told["id"], told["reserved_until"]
    payers.orders.append(order)
    return order


async def kill_all_but_the_servers(engine: Engine) -> None:
    sandbox = json.loads((engine.data_dir / "run.json").read_text())["payments_sandbox"]["pid"]
    before = pids(engine)
    for pid in (before["front 0"], before["worker"], sandbox):
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(BACK_WITHIN_S):
        while {before["front 0"], None} & {pids(engine).get("front 0")}:  # noqa: ASYNC110  another process's state
            await asyncio.sleep(0.02)
    await asyncio.to_thread(engine.wait_until_ready)
