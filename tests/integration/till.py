"""A shop with a till: its orders are paid at the sandbox, whose events the test hands on as it likes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import stripe

from flashsale.ledger import life, payments, refunds
from flashsale.ledger.pool import Ledger
from flashsale.partners.payments.provider import Opened, Payable
from flashsale.partners.payments.stripe import StripeProvider, facts_of
from flashsale.pipeline.jobs import Jobs
from flashsale.pipeline.payment_events import PaymentEvents
from flashsale.pipeline.provider_calls import ProviderCalls
from flashsale.pipeline.refund_jobs import RefundJobs
from flashsale.reservation import keys
from flashsale.reservation.events import APPEND
from tests.integration.life import Life
from tests.integration.shop import KETTLE
from tests.payments_sandbox import API_KEY, Receiver, Sandbox

WITHIN_S = 20
METHODS = ("card", "alipay", "grabpay")


HELD = ("paid", "authorised", "authorised")  # what orders, their payment and their intent are
TAKEN = ("paid", "captured", "captured")
OPEN = ("reserved", "none", "open")


class Work(Protocol):
    async def run(self) -> None: ...

    def stop(self) -> None: ...


@asynccontextmanager
async def running(*parts: Work) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        yield
    finally:
        began = time.monotonic()
        for part in parts:
            part.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), WITHIN_S)
        took = time.monotonic() - began
    assert took < 1.5, f"it took {took:.1f} s to stop"


async def until(holds: Callable[[], Awaitable[Any]], what: str, within_s: float = WITHIN_S) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := await holds()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)
    return found


class Till(Life):
    """`provider` is what the workers ask; `client` is Stripe's own, and acts as the shopper or a clerk would."""

    def __init__(self, redis_url: str, database_url: str, sandbox: Sandbox, receiver: Receiver) -> None:
        super().__init__(redis_url, database_url)
        self.sandbox, self.receiver = sandbox, receiver
        self.client: stripe.StripeClient = sandbox.client()

    async def __aenter__(self) -> Till:
        await super().__aenter__()
        self.provider = StripeProvider(API_KEY, self.sandbox.url, timeout_s=2, return_url="http://shop.test/")
        self.pool = Ledger(self.database_url, timeout_s=5)
        self._shoppers = 0
        await self.open()
        return self

    async def __aexit__(self, *fault: Any) -> None:
        await self.provider.aclose()
        await self.pool.close()
        await super().__aexit__(*fault)

    def events(self) -> PaymentEvents:
        return PaymentEvents(self.redis_url, self.database_url, facts_of)

    def calls(self, concurrency: int = 4) -> ProviderCalls:
        return ProviderCalls(self.database_url, self.provider, concurrency=concurrency, timeout_s=2)

    def jobs(self) -> Jobs:
        return Jobs(self.database_url, {refunds.JOB: RefundJobs(self.pool, self.provider).handle})

    # --- what shoppers do ---

    async def orders(self, count: int, *lines: tuple[str, int], silent_ms: int = 600_000) -> list[str]:
        """Reserved orders whose payment was begun and opened at the provider."""
        made = []
        for _ in range(count):
            self._shoppers += 1
            outcome, order_id = await self.buy(f"shopper-{self._shoppers}", *(lines or ((KETTLE, 2),)))
            assert outcome == "A"
            made.append(order_id)
        await self.write()
        await self.trim()
        for order_id in made:
            await self.begin(order_id, silent_ms)
        return made

    async def begin(self, order_id: str, silent_ms: int = 600_000) -> None:
        """The three phases of the front."""
        at_ms = await self.now_ms()
        async with self.ledger.transaction():
            _, payment = await life.begin_payment(self.ledger, order_id, "card", None, at_ms, silent_ms)
        opened = await self.open_session(order_id, payment.amount, payment.created_ms)
        await payments.opened(self.ledger, order_id, payment.created_ms, *opened)

    async def open_session(self, order_id: str, amount: int, created_ms: int) -> Opened:
        payable = Payable(order_id, amount, "SGD", METHODS, None, created_ms + 900_000, f"Order {order_id}")
        return await self.provider.open(payable, created_ms)

    async def intent(self, order_id: str) -> str:
        return str(await self.ledger.fetchval("SELECT provider_id FROM payment WHERE order_id = $1", order_id))

    async def confirm(self, order_id: str, method: str = "pm_card_visa") -> None:
        """The shopper pays at the provider."""
        intent = await self.intent(order_id)
        params: Any = {"payment_method": method, "return_url": "http://shop.test/"}
        confirmed = await asyncio.to_thread(self.client.v1.payment_intents.confirm, intent, params)
        if confirmed.status == "requires_action":
            action: Any = confirmed.next_action
            url = action[action["type"]]["url"]
            await asyncio.to_thread(self.sandbox.choose, url, method.removeprefix("pm_"))

    async def ship(self, order_id: str, *lines: tuple[int, int]) -> None:
        """Units of the order (none named: all) leave the house."""
        async with self.ledger.transaction():
            await life.ship(self.ledger, order_id, lines or None, await self.now_ms())

    # --- what the provider tells ---

    async def heard(self, *types: str) -> list[bytes]:
        """Bodies of the events that have arrived, of these types or of all; waits until none is on its way."""

        async def quiet() -> bool:
            return not (await asyncio.to_thread(self.sandbox.get, "/sandbox/health"))["webhooks_waiting"]

        await until(quiet, "the sandbox has told all")
        bodies = [body for _, body in list(self.receiver.received)]
        self.receiver.received.clear()
        return [body for body in bodies if not types or any(f'"{each}"'.encode() in body for each in types)]

    async def arrive(self, bodies: Sequence[bytes], at_once: int = 3) -> None:
        """Events into the stream, as the fronts put them there."""
        for first in range(0, len(bodies), at_once):
            names = [keys.PAYMENT_EVENTS, keys.PAYMENT_EVENTS_STATE]
            answer = await APPEND.run(self.valkey, names, [64 * 1024 * 1024, *bodies[first : first + at_once]])
            assert answer[0] == b"ok"

    async def applied(self) -> bool:
        return not await self.valkey.xlen(keys.PAYMENT_EVENTS)

    async def tell(self) -> None:
        """All that the provider has to tell arrives and is applied."""
        await self.arrive(await self.heard())
        async with running(self.events()):
            await until(self.applied, "the events are applied")

    # --- what is then so ---

    async def states(self, order_ids: Sequence[str]) -> list[tuple[str, str, str]]:
        rows = await self.ledger.fetch(
            "SELECT o.id, o.status, o.payment, p.state FROM orders AS o LEFT JOIN payment AS p ON p.order_id = o.id"
            " WHERE o.id = ANY ($1::text[])",
            list(order_ids),
        )
        found = {row[0]: (row[1], row[2], row[3]) for row in rows}
        return [found[order_id] for order_id in order_ids]

    async def history(self, order_id: str) -> list[str]:
        rows = await self.ledger.fetch("SELECT event FROM history WHERE order_id = $1 ORDER BY number", order_id)
        return [row[0] for row in rows]

    async def until_state(self, order_id: str, *state: str) -> None:
        async def so() -> bool:
            return (await self.states([order_id]))[0] == state

        try:
            await until(so, "")
        except AssertionError:
            raise AssertionError(f"{await self.states([order_id])}, not {state}") from None
