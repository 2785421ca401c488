"""Any sequence of buying, paying in time or late, declining, cancelling, expiring, with workers that die at any step,
dispatchers that repeat old rows and a Valkey that is built anew: every unit is available, held or sold, and once."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashsale.embedded import ValkeyServer
from flashsale.errors import Refused
from flashsale.ledger import outbox, partitions
from flashsale.ledger.outbox import OutboxRow
from flashsale.sale.payment import IntentState
from tests.integration.life import GRACE_S, HOLD_MS, Life
from tests.integration.shop import FAN, FRIDGE, KETTLE

SKUS = {FRIDGE: 0, KETTLE: 1, FAN: 2}
LIMITED = {0, 2}
BASKETS = [((FAN, 1),), ((FAN, 1), (KETTLE, 2)), ((FRIDGE, 2), (KETTLE, 1)), ((FRIDGE, 1),)]
which = st.integers(0, 9)
steps = st.one_of(
    st.tuples(st.just("buy"), st.integers(0, 4), st.sampled_from(BASKETS)),
    st.tuples(st.sampled_from(["begin", "pay", "close", "cancel", "cancel_one"]), which),
    st.tuples(st.sampled_from(["expire", "expire_all", "write", "round", "restart", "remember", "repeat"])),
    st.tuples(st.just("rebuild")),
)
_numbers = itertools.count(1)


class Story:
    """What happens to one sale."""

    def __init__(self, shop: Life, sale: str) -> None:
        self.shop, self.sale = shop, sale
        self.orders: list[str] = []
        self.remembered: list[OutboxRow] = []

    async def play(self, step: tuple) -> None:  # type: ignore[type-arg]
        shop = self.shop
        match step:
            case ("buy", shopper, lines):
                outcome, order_id = await shop.buy(f"shopper-{shopper}", *lines, sale_id=self.sale)
                if outcome == "A":
                    self.orders.append(order_id)
                    await shop.write()
            case ("expire",):
                await shop.expire()
            case ("expire_all",):
                await shop.expire(HOLD_MS + GRACE_S * 1000 + 1000)
            case ("write",):
                await shop.write()
            case ("round",):
                await shop.outbox.round(shop.ledger)
            case ("restart",):
                shop.outbox, shop.expiry = shop.new_outbox(), shop.new_expiry()
            case ("remember",):
                self.remembered += await outbox.pending(shop.ledger, 5)
            case ("repeat",):
                known = await partitions.get(shop.ledger, 0)
                assert known is not None
                paused = shop.new_outbox()
                for row in self.remembered:
                    if await shop.ledger.fetchval("SELECT true FROM outbox WHERE number < $1 LIMIT 1", row.number):
                        continue  # a dispatcher that has an old list had told the older rows before
                    await paused._tell(shop.ledger, known, row)
            case ("rebuild",):
                await shop.recover(force=True)
            case (what, index):
                if self.orders:
                    await self.change(what, self.orders[index % len(self.orders)])

    async def change(self, what: str, order_id: str) -> None:
        shop = self.shop
        begun = await shop.ledger.fetchval("SELECT true FROM payment WHERE order_id = $1", order_id)
        try:
            if what == "begin":
                await shop.begin_payment(order_id)
            elif what == "pay" and begun:
                await shop.pay(order_id)
            elif what == "close" and begun:
                await shop.told(order_id, IntentState.CLOSED)
            elif what == "cancel":
                await shop.cancel(order_id)
            elif what == "cancel_one":
                sku = await shop.ledger.fetchval("SELECT skus[1] FROM orders WHERE id = $1", order_id)
                await shop.cancel(order_id, [(sku, 1)])
        except Refused:
            pass  # not in this state

    async def check(self) -> None:
        """After the outbox is drained."""
        shop = self.shop
        await shop.drain()
        sale, _ = await shop.sale(self.sale)
        held, sold, quota = Counter[int](), Counter[int](), 0
        for row in await shop.ledger.fetch("SELECT * FROM orders WHERE sale = $1", sale.number):
            gone = row["cancelled"] or [0] * len(row["skus"])
            if row["status"] in ("reserved", "paid"):
                for sku, units, less in zip(row["skus"], row["quantities"], gone, strict=True):
                    (held if row["status"] == "reserved" else sold)[sku] += units - less
                    quota += (units - less) * (sku in LIMITED)
        supply = {0: 1000, 1: 500, 2: 3}
        available = await shop.available(self.sale)
        assert available == {sku: supply[sku] - held[sku] - sold[sku] for sku in supply}
        counted = await shop.ledger.fetch("SELECT sku, units FROM sold WHERE sale = $1 AND units <> 0", sale.number)
        assert dict(counted) == {sku: units for sku, units in sold.items() if units}
        assert await shop.quota_used(self.sale) == quota
        asked = await shop.ledger.fetchval("SELECT count(*) FROM payment WHERE late = 'asked'")
        assert asked == 0, "every late payment is decided"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(told=st.lists(steps, min_size=5, max_size=60))
def test_every_unit_is_available_or_held_or_sold_whatever_happens(
    valkey_memory: ValkeyServer,
    ledger: str,
    told: list[tuple],  # type: ignore[type-arg]
) -> None:
    async def play() -> None:
        async with Life(valkey_memory.url, ledger) as shop:
            story = Story(shop, f"sale-{next(_numbers)}")
            await shop.open(story.sale)
            for step in told:
                await story.play(step)
            await story.check()
            await shop.expire(HOLD_MS + GRACE_S * 1000 + 1000)
            await story.check()

    asyncio.run(play())
