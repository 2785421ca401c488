"""A shop whose orders live on: the buttons of a worker, each pressed when the test says so, on real servers."""

from __future__ import annotations

from types import TracebackType

from flashsale import audit
from flashsale.ledger import life, outbox
from flashsale.pipeline.expiry import Expiry
from flashsale.pipeline.holds_may_return import HoldsMayReturn
from flashsale.pipeline.outbox import Outbox
from flashsale.reservation import commands
from flashsale.sale.payment import IntentState, PaymentFact
from tests.integration.shop import Shop

HOLD_MS = 900_000
GRACE_S = 60
ROUNDS_MAX = 50


class Life(Shop):
    """The shop with one worker of each kind; a dead one is replaced by a new one."""

    async def __aenter__(self) -> Life:
        await super().__aenter__()
        self._made: list[Outbox | Expiry | HoldsMayReturn] = []
        self.outbox, self.expiry = self.new_outbox(), self.new_expiry()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for duty in self._made:
            await duty._client.aclose()
        await super().__aexit__(kind, error, trace)

    def new_outbox(self) -> Outbox:
        self._made.append(made := Outbox(self.redis_url, self.database_url))
        return made

    def new_expiry(self) -> Expiry:
        self._made.append(made := Expiry(self.redis_url, self.database_url, grace_s=GRACE_S))
        return made

    def new_returns(self) -> HoldsMayReturn:
        self._made.append(made := HoldsMayReturn(self.redis_url, self.database_url))
        return made

    async def now_ms(self) -> int:
        return await commands.clock(self.valkey)

    async def expire(self, later_ms: int = HOLD_MS + 1) -> int:
        """A sweep as it will be that much later."""
        return await self.expiry.sweep(self.ledger, await self.now_ms() + later_ms)

    async def begin_payment(self, order_id: str) -> None:
        async with self.ledger.transaction():
            await life.begin_payment(self.ledger, order_id, "card", None, await self.now_ms(), 60_000)

    async def told(
        self, order_id: str, state: IntentState, *, authorised: int = 0, captured: int = 0, source: str = "evt_1"
    ) -> life.Applied:
        """The provider says something about the order's intent."""
        fact = PaymentFact(
            order_id, f"pi_{order_id}", state, "card", authorised, captured, None, None, None, source
        )  # fmt: skip
        async with self.ledger.transaction():
            return await life.apply_facts(self.ledger, [fact], await self.now_ms())

    async def pay(self, order_id: str) -> life.Applied:
        """The card is authorised for all of it."""
        amount = await self.ledger.fetchval("SELECT amount FROM payment WHERE order_id = $1", order_id)
        return await self.told(order_id, IntentState.AUTHORISED, authorised=amount)

    async def cancel(self, order_id: str, lines: list[tuple[int, int]] | None = None) -> None:
        async with self.ledger.transaction():
            await life.cancel(self.ledger, order_id, lines, await self.now_ms())

    async def drain(self) -> None:
        """Until the outbox is empty: its dispatcher and the ledger writer in turns."""
        for _ in range(ROUNDS_MAX):
            await self.outbox.round(self.ledger)
            await self.write()
            if not await self.ledger.fetchval("SELECT count(*) FROM outbox"):
                return
        raise AssertionError(f"the outbox is not empty: {await outbox.pending(self.ledger, 10)}")

    async def status(self, order_id: str) -> str:
        return str(await self.ledger.fetchval("SELECT status FROM orders WHERE id = $1", order_id))

    async def available(self, sale_id: str = "sale") -> dict[int, int]:
        reading = await commands.read_sale(self.valkey, sale_id)
        assert reading is not None
        return dict(enumerate(reading.available))

    async def quota_used(self, sale_id: str = "sale") -> int:
        values = await self.valkey.hvals(f"{{p00}}:{sale_id}:quota")
        return sum(int(value) for value in values)

    async def faults(self) -> list[str]:
        """What the audit finds."""
        report = await audit.audit(self.redis_url, self.database_url)
        return [f"{fault.invariant} {fault.order or fault.sku}: {fault.detail}" for fault in report.faults]
