"""What orders across borders hold beside their units goes back with them, exactly and once; collected ones are paid."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flashsale.embedded import ValkeyServer
from flashsale.ledger import life
from flashsale.sale.payment import IntentState
from tests.integration.borders import BUYER, GUARANTEED, LANE, Borders
from tests.integration.shop import FRIDGE, KETTLE

ALL = (200, GUARANTEED)


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Borders]:
    async with Borders(valkey_memory.url, ledger) as shop:
        await shop.open()
        yield shop


async def test_a_hold_that_expires_gives_back_guarantee_lane_and_limit(shop: Borders) -> None:
    order = await shop.bought("anna", (KETTLE, 305), (FRIDGE, 1), across=True)
    assert await shop.kettles() == (195, 0)
    assert (await shop.row(order))["drawn"] == [300, 0]
    assert await shop.limits() == {LANE: 1, BUYER: 1000}
    assert await shop.expire() == 1
    await shop.drain()
    assert await shop.kettles() == ALL
    assert await shop.limits() == {}
    assert await shop.faults() == []


async def test_what_is_cancelled_goes_to_the_guarantee_first_and_the_parts_add_up(shop: Borders) -> None:
    order = await shop.bought("anna", (KETTLE, 302), (FRIDGE, 2), across=True)
    shares = []
    for lines in ([(1, 1)], [(1, 299), (0, 1)], [(1, 1)], None):
        await shop.cancel(order, lines)
        await shop.drain()
        shares.append((await shop.kettles(), await shop.limits()))
    prices = (await shop.row(order))["prices"]
    whole = 302 * prices[0] + 2 * prices[1]
    assert [kettles for kettles, _ in shares] == [(198, 1), (198, 300), (199, 300), (200, 300)]
    assert [limits.get(BUYER, 0) for _, limits in shares] == [
        1000 - 1000 * prices[0] // whole,
        1000 - 1000 * (300 * prices[0] + prices[1]) // whole,
        1000 - 1000 * (301 * prices[0] + prices[1]) // whole,
        0,
    ]
    assert [limits.get(LANE, 0) for _, limits in shares] == [1, 1, 1, 0]
    assert await shop.faults() == []


async def test_a_return_gives_the_limit_back_whether_or_not_it_is_restocked(shop: Borders) -> None:
    order = await shop.bought("anna", (KETTLE, 4), across=True)
    await shop.begin_payment(order)
    await shop.pay(order)
    now_ms = await shop.now_ms()
    async with shop.ledger.transaction():
        await life.ship(shop.ledger, order, None, now_ms)
    captured = (await shop.row(order))["total"]
    await shop.told(order, IntentState.CAPTURED, authorised=captured, captured=captured)
    left = []
    for restock in (False, True):
        async with shop.ledger.transaction():
            asked = await life.request_return(shop.ledger, order, [(1, 2)], "too loud", 10**10, now_ms)
            await life.decide_return(shop.ledger, asked.id, True, now_ms)
            await life.receive_return(shop.ledger, asked.id, [(1, 2, restock)], now_ms, sale_open=True, quota=False)
        await shop.drain()
        left.append((await shop.kettles(), (await shop.limits()).get(BUYER, 0), (await shop.limits())[LANE]))
    assert left == [((200, 296), 500, 1), ((200, 298), 0, 1)]
    assert await shop.faults() == []


async def test_a_late_payment_draws_again_what_the_guarantee_has(shop: Borders) -> None:
    order = await shop.bought("anna", (KETTLE, 10))
    await shop.begin_payment(order)
    await shop.cancel(order, [(1, 3)])
    await shop.told(order, IntentState.CLOSED)
    assert await shop.expire() == 1
    await shop.drain()
    assert await shop.kettles() == ALL
    await shop.bought("bo", (KETTLE, 298))  # two are left of the guarantee
    amount = await shop.ledger.fetchval("SELECT amount FROM payment WHERE order_id = $1", order)
    await shop.ledger.execute("UPDATE payment SET state = 'open', rank = 0 WHERE order_id = $1", order)
    await shop.told(order, IntentState.CAPTURED, authorised=amount, captured=amount)
    await shop.drain()
    await shop.drain()
    assert (await shop.status(order), await shop.kettles()) == ("paid", (195, 0))
    assert (await shop.row(order))["drawn"] == [5]  # three were cancelled before, and went back first
    await shop.cancel(order, [(1, 1)])
    await shop.drain()
    assert await shop.kettles() == (195, 1)
    await shop.cancel(order)
    await shop.drain()
    assert await shop.kettles() == (200, 2)
    assert [fault for fault in await shop.faults() if not fault.startswith("money")] == []


async def test_duty_and_tax_go_back_with_their_lines_and_shipping_with_the_last(shop: Borders) -> None:
    order = await shop.bought("anna", (KETTLE, 3))
    price = (await shop.row(order))["prices"][0]
    await shop.ledger.execute(
        "UPDATE orders SET shipping = 700, duties = '{100}', taxes = '{31}', total = total + 831 WHERE id = $1", order
    )
    await shop.begin_payment(order)
    await shop.pay(order)
    now_ms = await shop.now_ms()
    async with shop.ledger.transaction():
        await life.ship(shop.ledger, order, [(1, 2)], now_ms)
    kept = 3 * price + 831 - (3 * price + 131) // 3
    assert await shop.ledger.fetchval("SELECT todo_amount FROM payment WHERE order_id = $1", order) == kept
    await shop.told(order, IntentState.CAPTURED, authorised=3 * price + 831, captured=kept)
    await shop.drain()
    assert await shop.faults() == []


async def test_a_collected_order_is_paid_as_it_comes_and_never_expires(shop: Borders) -> None:
    order, other = await shop.bought("c-1", collected=True), await shop.bought("c-2")
    assert ((await shop.row(order))["status"], (await shop.row(other))["status"]) == ("paid", "reserved")
    (entry,) = await shop.ledger.fetch("SELECT number, event, payment FROM history WHERE order_id = $1", order)
    assert tuple(entry) == (2, "order.paid", "captured")
    await shop.drain()
    assert await shop.expire() == 1
    await shop.drain()
    assert (await shop.status(order), await shop.status(other)) == ("paid", "expired")
    assert await shop.faults() == []


async def test_what_a_channel_collected_it_gives_back_itself(shop: Borders) -> None:
    order = await shop.bought("c-1", (KETTLE, 4), collected=True)
    await shop.cancel(order, [(1, 1)])
    assert (await shop.row(order))["payment"] == "part_refunded"
    now_ms = await shop.now_ms()
    async with shop.ledger.transaction():
        await life.ship(shop.ledger, order, None, now_ms)
        asked = await life.request_return(shop.ledger, order, [(1, 3)], "too loud", 10**10, now_ms)
        await life.decide_return(shop.ledger, asked.id, True, now_ms)
        await life.receive_return(shop.ledger, asked.id, [(1, 3, True)], now_ms, sale_open=True, quota=False)
    assert (await shop.row(order))["payment"] == "refunded"
    assert await shop.ledger.fetchval("SELECT count(*) FROM refund") == 0
    await shop.drain()
    assert await shop.kettles() == ALL
    assert await shop.faults() == []
