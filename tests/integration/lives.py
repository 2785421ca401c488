"""Orders in every state of their life, made by the functions that make them, for what must hold in all of them."""

from __future__ import annotations

from typing import Any

from flashsale.ledger import life
from flashsale.sale.payment import IntentState, RefundFact, RefundState
from tests.integration.life import GRACE_S, HOLD_MS, Life
from tests.integration.shop import FAN, FRIDGE, KETTLE

EXTENSION_MS = 300_000
LIVES = (
    *("reserved", "extended", "cancelled", "part_cancelled", "expired", "late_taken", "late_refused", "paid"),
    *("shipped", "part_shipped", "captured", "refunded", "kept_quota", "restocked", "undeliverable", "goodwill"),
    *("disputed", "refund_failed"),
)


async def every_life(shop: Life) -> dict[str, str]:
    """Order ids by what became of them; all that Valkey has to hear is told, and what the ledger has to hear."""
    orders: dict[str, str] = {}
    for name in LIVES:
        outcome, orders[name] = await shop.buy(f"shopper-{name}", (FRIDGE, 2), (KETTLE, 3))
        assert outcome == "A", name
    await shop.write()
    for name in ("expired", "late_taken", "late_refused"):
        await shop.begin_payment(orders[name])
        await shop.told(orders[name], IntentState.CLOSED if name == "expired" else IntentState.OPEN)
    others = [name for name in LIVES if name not in ("expired", "late_taken", "late_refused")]
    await shop.ledger.execute(
        "UPDATE orders SET hold_ms = hold_ms + 86400000 WHERE id = ANY ($1::text[])", [orders[name] for name in others]
    )
    assert await shop.expire(HOLD_MS + GRACE_S * 1000 + 1000) == 3
    await shop.ledger.execute(
        "UPDATE orders SET hold_ms = hold_ms - 86400000 WHERE id = ANY ($1::text[])", [orders[name] for name in others]
    )
    await shop.drain()
    # The shopper of one bought again meanwhile, so that her quota is used up.
    assert (await shop.buy("shopper-late_refused", (FRIDGE, 2)))[0] == "A"
    assert (await shop.buy("collector", (FAN, 1)))[0] == "A"
    for name in ("late_taken", "late_refused"):
        await shop.pay(orders[name])
    await step(shop, life.extend, orders["extended"], EXTENSION_MS, await shop.now_ms(), 1000)
    await shop.cancel(orders["cancelled"])
    await shop.cancel(orders["part_cancelled"], [(0, 1)])
    for name in others[others.index("paid") :]:
        await shop.begin_payment(orders[name])
        await shop.pay(orders[name])
    await step(shop, life.ship, orders["part_shipped"], [(0, 1)], await shop.now_ms())
    for name in others[others.index("shipped") :]:
        if name != "part_shipped":
            await step(shop, life.ship, orders[name], None, await shop.now_ms())
    for name in others[others.index("part_shipped") :]:
        await capture(shop, orders[name])
    for name in ("refunded", "kept_quota", "restocked", "refund_failed"):
        await step(shop, life.deliver, orders[name], True, await shop.now_ms())
        await give_back(shop, orders[name], restock=name in ("kept_quota", "restocked"), quota=name == "restocked")
    await step(shop, life.deliver, orders["undeliverable"], False, await shop.now_ms())
    await step(shop, life.refund_goodwill, orders["goodwill"], 100, "scratched", await shop.now_ms())
    for name in ("refunded", "restocked"):
        await refund(shop, orders[name], RefundState.SUCCEEDED)
    await refund(shop, orders["refund_failed"], RefundState.FAILED)
    await shop.ledger.execute("UPDATE payment SET dispute = 'open' WHERE order_id = $1", orders["disputed"])
    await shop.drain()
    statuses = {name: await shop.status(orders[name]) for name in LIVES}
    assert (statuses["late_taken"], statuses["late_refused"]) == ("paid", "expired")
    return orders


async def step(shop: Life, function: Any, *arguments: Any) -> Any:
    """One function of the life, in a transaction."""
    async with shop.ledger.transaction():
        return await function(shop.ledger, *arguments)


async def capture(shop: Life, order_id: str) -> None:
    """The provider did what it was asked."""
    row = await shop.ledger.fetchrow("SELECT authorised, todo_amount FROM payment WHERE order_id = $1", order_id)
    await shop.told(order_id, IntentState.CAPTURED, authorised=row[0], captured=row[1])


async def give_back(shop: Life, order_id: str, *, restock: bool, quota: bool) -> None:
    """One unit comes back."""
    now_ms = await shop.now_ms()
    asked = await step(shop, life.request_return, order_id, [(0, 1)], "too big", 86_400_000, now_ms)
    await step(shop, life.decide_return, asked.id, True, now_ms)
    async with shop.ledger.transaction():
        await life.receive_return(
            shop.ledger, asked.id, [(0, 1, restock)], now_ms, sale_open=True, quota=quota
        )  # fmt: skip


async def refund(shop: Life, order_id: str, state: RefundState) -> None:
    """What the provider says of the order's refund."""
    row = await shop.ledger.fetchrow("SELECT id, amount FROM refund WHERE order_id = $1", order_id)
    fact = RefundFact(order_id, row[0], f"re_{order_id}", state, row[1], None, "evt_1")
    await step(shop, life.apply_facts, [fact], await shop.now_ms())
