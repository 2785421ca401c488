"""Guarantees, lanes, import limits and grants after the loss of Valkey: as they were, to the unit; and what the audit
says where one of them is not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flashsale.embedded import ValkeyServer
from flashsale.reservation import commands, keys
from flashsale.reservation.limits import LaneDay, identity_field, lane_field
from flashsale.sale.payment import IntentState
from tests.integration.borders import BUYER, LANE, SG, Borders
from tests.integration.shop import FRIDGE, KETTLE


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Borders]:
    async with Borders(valkey_memory.url, ledger) as shop:
        await shop.open()
        await busy(shop)
        yield shop


async def busy(shop: Borders) -> None:
    """Orders of every fate; at the end one unit of a guarantee is moved, one grant is in force and one is over."""
    kept = await shop.bought("kept", (KETTLE, 40), (FRIDGE, 1), across=True)
    await shop.bought("agents", (KETTLE, 1), channel=None)
    expired = await shop.bought("late", (KETTLE, 5), across=True)
    await shop.begin_payment(expired)
    await shop.told(expired, IntentState.CLOSED)
    await shop.bought("gone", (KETTLE, 3), across=True)
    await shop.bought("collected", (KETTLE, 2), collected=True)
    assert await shop.expire() == 4
    await shop.drain()
    assert await shop.status(kept) == "expired"
    # As Valkey decides of a late payment: a lane's other day, a guarantee that has less than was drawn.
    await shop.bought("rival", (KETTLE, 297))
    partition = await commands.read_partition(shop.valkey)
    assert partition is not None
    amount = await shop.ledger.fetchval("SELECT amount FROM payment WHERE order_id = $1", expired)
    await shop.ledger.execute("UPDATE payment SET state = 'open', rank = 0 WHERE order_id = $1", expired)
    await shop.told(expired, IntentState.AUTHORISED, authorised=amount)
    row = await shop.ledger.fetchrow("SELECT number, items FROM outbox WHERE kind = 'reserve_again'")
    number = await shop.ledger.fetchval("SELECT changes FROM orders WHERE id = $1", expired)
    again = commands.MovedOrder(
        expired, number, "p", [(1, 5)], [], True,
        drawn=[(1, SG.number, 5)], lane=LaneDay(LANE.lane, LANE.day + 1), imported=(BUYER, 1000), capacity=9,
    )  # fmt: skip
    outcome = await commands.reserve_again(
        shop.valkey, epoch=partition.epoch, sale_id="sale", outbox=row[0], order=again
    )
    assert outcome == "taken"
    await shop.write()
    await shop.drain()
    assert await shop.status(expired) == "paid"
    found = await shop.row(expired)
    assert (found["drawn"], found["dispatch_day"]) == ([1], LANE.day + 1)
    of_both = {"partition": 0, "epoch": partition.epoch}
    assert await commands.grant(shop.valkey, **of_both, grant_id="g-1", recipient="anna", agent="bo")
    assert await commands.grant(shop.valkey, **of_both, grant_id="g-2", recipient="anna", agent="carl")
    assert await commands.revoke(shop.valkey, **of_both, grant_id="g-2", recipient="anna", agent="carl")
    cancelled = await shop.bought("again", (FRIDGE, 2), across=True)
    await shop.cancel(cancelled, [(0, 1)])
    await shop.drain()
    assert (await shop.order("anna", (KETTLE, 1), agent="carl"))[0] == "V"
    await shop.bought("anna", (FRIDGE, 1), agent="bo")


async def everything(shop: Borders) -> dict[str, dict[bytes, bytes]]:
    found = await shop.dump()
    found["limits"] = {name: n for name, n in (await shop.valkey.hgetall(keys.limits(0))).items() if n != b"0"}
    found["grants"] = await shop.valkey.hgetall(keys.grants(0))
    quota = found["{p00}:sale:quota"]
    found["{p00}:sale:quota"] = {name: n for name, n in quota.items() if n != b"0"}
    return found


async def test_it_comes_back_to_the_unit(shop: Borders) -> None:
    assert await shop.faults() == []
    before = await everything(shop)
    assert before["grants"] and len(before["limits"]) == 3
    await shop.valkey.flushall()
    assert (await shop.recover()).ok
    assert await everything(shop) == before
    assert await shop.faults() == []


async def test_what_the_journal_alone_has_comes_back_too(shop: Borders) -> None:
    assert (await shop.order("last", (KETTLE, 2)))[0] == "A"
    before = await everything(shop)
    assert (await shop.recover(force=True)).ok
    assert await everything(shop) == before
    assert await shop.faults() == []


@pytest.mark.parametrize(
    ("key", "field", "said"),
    [
        (keys.stock(0, "sale"), b"1.2", "I1 KETTLE"),
        (keys.stock(0, "sale"), b"1", "I1 KETTLE"),
        (keys.limits(0), lane_field(LANE.lane, LANE.day), "I1 None: lane 7"),
        (keys.limits(0), identity_field(*BUYER), "I1 None: an identity"),
    ],
)
async def test_a_counter_that_drifted_is_named(shop: Borders, key: str, field: bytes, said: str) -> None:
    await shop.valkey.hincrby(key, field, 1)
    assert any(fault.startswith(said) for fault in await shop.faults()), await shop.faults()


async def test_units_in_the_wrong_pool_are_named_though_their_sum_is_right(shop: Borders) -> None:
    await shop.valkey.hincrby(keys.stock(0, "sale"), "1", -1)
    await shop.valkey.hincrby(keys.stock(0, "sale"), "1.2", 1)
    assert [fault.partition(":")[0] for fault in await shop.faults()] == ["I1 KETTLE"] * 2


async def test_a_grant_that_is_gone_and_an_order_without_one_are_named(shop: Borders) -> None:
    await shop.valkey.delete(keys.grants(0))
    order = await shop.bought("dora")
    await shop.ledger.execute("UPDATE orders SET agent = 'bo' WHERE id = $1", order)
    faults = await shop.faults()
    assert any("grant of 'anna'" in fault for fault in faults)
    assert any(order in fault and "no grant" in fault for fault in faults)
