"""The house of pages with a payment provider, and the hands of a worker who hears it and does what the ledger wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from flashsale.ledger import life, payments, refunds
from flashsale.partners.payments.stripe import StripeProvider
from tests.integration.house import BOTH, SALE, SG_ONLY, House, open_house
from tests.payments_sandbox import API_KEY, Sandbox

BACK = "https://shop.example/back"
EXTENDING = SALE + "extension_seconds = 300\n"


class Shop(House):
    """The house, its provider, and a worker's hands."""

    sandbox: Sandbox
    provider: StripeProvider

    async def buy(self, *lines: tuple[str, int], key: str = "k") -> str:
        """An order of ada's that the ledger has."""
        order = await self.order("ada", *lines, key=key)
        await self.settle()
        return order.id

    async def hear(self, order_id: str) -> None:
        """What the poller does."""
        payment = await payments.find(self.ledger, order_id)
        assert payment is not None
        fact = await self.provider.look(order_id, payment.session_id or "", payment.provider_id)
        await self._apply(fact)

    async def work(self, order_id: str) -> None:
        """What the worker asks of the provider: closes, releases, captures, refunds."""
        payment = await payments.find(self.ledger, order_id)
        assert payment is not None
        session, intent = payment.session_id or "", payment.provider_id or ""
        if payment.todo == "close":
            await self._apply(await self.provider.close(order_id, session, intent))
        elif payment.todo == "release":
            await self._apply(await self.provider.release(order_id, intent))
        elif payment.todo == "capture":
            await self._apply(await self.provider.capture(order_id, intent, payment.todo_amount or 0))
        for refund in await refunds.of_order(self.ledger, order_id):
            if refund.status == "pending":
                fact = await self.provider.refund(refund.id, order_id, intent, refund.amount, refund.created_ms)
                await self._apply(fact)

    async def refunds_arrive(self, order_id: str) -> None:
        """A wallet's refund takes the provider a moment."""
        async with asyncio.timeout(10):
            while any(refund.status == "pending" for refund in await refunds.of_order(self.ledger, order_id)):
                async for fact in self.provider.list_refunds(0):
                    if fact.order_id == order_id:
                        await self._apply(fact)

    async def _apply(self, fact: Any) -> None:
        async with self.ledger.transaction():
            await life.apply_facts(self.ledger, [fact], time.time_ns() // 1_000_000)

    async def pay_by_card(self, order_id: str) -> None:
        """From the shop's button to the worker's hearing of it."""
        begun = await self.post(f"/v1/orders/{order_id}/payment", {"method": "card"}, 201, **self.ada)
        await asyncio.to_thread(
            self.sandbox.client().v1.payment_intents.confirm, begun["provider_id"], {"payment_method": "pm_card_visa"}
        )
        await self.hear(order_id)

    @property
    def ada(self) -> dict[str, str]:
        return self.token("ada")

    @property
    def admin(self) -> dict[str, str]:
        return self.token("boss", "admin")

    async def read(self, order_id: str) -> Any:
        return await self.get(f"/v1/orders/{order_id}", **self.ada)


@asynccontextmanager
async def open_shop(redis_url: str, ledger_url: str, sandbox: Sandbox) -> AsyncIterator[Shop]:
    async with open_house(redis_url, ledger_url, Shop) as shop:
        assert isinstance(shop, Shop)
        shop.sandbox = sandbox
        shop.provider = StripeProvider(API_KEY, sandbox.url, timeout_s=2, return_url=BACK)
        shop.context.payments = shop.provider
        await shop.create_sale(("A", BOTH), ("B", SG_ONLY), sale=EXTENDING)
        yield shop
        await shop.provider.aclose()
