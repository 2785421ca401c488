"""The batcher against a real Valkey: every order has one answer in its time, whatever Valkey says or does not say."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import pytest

from flashsale import merchandising
from flashsale.audit import audit
from flashsale.embedded import ValkeyServer
from flashsale.front.catalogues import Catalogues
from flashsale.reservation import keys, server
from flashsale.reservation.batcher import AWAY_S, Batcher, Limits
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.order import Amount, Line, OrderRequest
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests.integration.shop import FAN, FILE, FRIDGE, KETTLE, Shop

WITHIN_S = 20  # only a failing test waits this long
LIMITS = {
    "batch_max": 512,
    "batches_in_flight": 2,
    "queue_max": 20_000,
    "linger_ms": 0.0,
    "answer_within_ms": 5000,
    "backlog_max_bytes": 256 * 1024 * 1024,
}
PRICE = {FRIDGE: 89900, KETTLE: 2050}


class Answer(NamedTuple):
    """What an order got: an outcome letter of reserve.lua or a problem, and the seconds that it waited."""

    outcome: str
    after_s: float
    detail: Any = None


class Desk:
    """The batcher's front in these tests: it makes orders as intake.py does, and takes each one's only answer."""

    def __init__(self) -> None:
        self.sales: dict[str, PricedSale] = {}
        self.calls: list[int] = []
        self.batcher: Batcher
        self._loop = asyncio.get_running_loop()
        self._keys = itertools.count()

    def decided(self, orders: list[Order], outcomes: str, details: list[Any], now_ms: int, entry_ms: int) -> None:
        rest = iter(details)
        for order, outcome in zip(orders, outcomes, strict=True):
            count = {"R": 1, "U": 1, "Q": 2, "S": len(order.skus) + 1}.get(outcome, 0)
            self._answer(order, outcome, [next(rest) for _ in range(count)])
        assert next(rest, None) is None

    def refused(self, orders: list[Order], problem: str, detail: str) -> None:
        for order in orders:
            self._answer(order, problem, detail)

    def adopted(self, sales: dict[str, PricedSale]) -> None:
        self.sales = sales

    def batch_took(self, orders: int, waited_s: float, script_s: float) -> None:
        self.calls.append(orders)

    def _answer(self, order: Order, outcome: str, detail: Any) -> None:
        answered, order.client = order.client, None
        if answered is not None:
            answered.set_result(Answer(outcome, self._loop.time() - order.arrived, detail))  # type: ignore[attr-defined]

    def make(self, shopper: str, *lines: tuple[str, int], key: str = "", expected: int | None = None) -> Order:
        """A priced order, not yet sent."""
        order = Order()
        order.shopper, order.key = shopper, key or f"key-{next(self._keys)}"
        order.request = OrderRequest(
            sale="sale",
            market="SG",
            lines=[Line(sku=sku, quantity=quantity) for sku, quantity in lines or ((KETTLE, 1),)],
            expected_total=None if expected is None else Amount(amount=expected, currency="SGD"),
        )
        self.sales["sale"].identify(order)
        self.sales["sale"].price(order)
        return order

    def send(self, order: Order) -> Awaitable[Answer]:
        """Its answer to come."""
        answered: asyncio.Future[Answer] = self._loop.create_future()
        order.client, order.arrived = answered, self._loop.time()
        self.batcher.submit(order)
        return answered

    async def buy(self, shopper: str, *lines: tuple[str, int], key: str = "", expected: int | None = None) -> Answer:
        return await asyncio.wait_for(self.send(self.make(shopper, *lines, key=key, expected=expected)), WITHIN_S)

    async def buy_many(self, count: int, name: str = "many") -> list[str]:
        """The outcomes of orders sent at once, each of one kettle."""
        sent = [self.send(self.make(f"{name}-{number}")) for number in range(count)]
        return [answer.outcome for answer in await asyncio.wait_for(asyncio.gather(*sent), WITHIN_S)]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not true():  # noqa: ASYNC110 - the batcher tells nobody
            await asyncio.sleep(0.005)


@asynccontextmanager
async def open_desk(shop: Shop, **limits: Any) -> AsyncIterator[Desk]:
    """A desk whose batcher takes orders."""
    desk = Desk()
    catalogues = Catalogues(shop.valkey)

    async def load() -> Catalogue:
        return await catalogues.refresh()

    desk.batcher = Batcher(
        shop.redis_url,
        desk,
        Limits(**{**LIMITS, **limits}),
        load=load,
        check=lambda: server.shortcomings(shop.valkey, shop.durability),
    )
    running = asyncio.create_task(desk.batcher.run())
    try:
        await until(lambda: desk.batcher.closed is None)
        yield desk
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Shop]:
    async with Shop(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


@pytest.fixture
async def breakable(own_valkey: Callable[..., ValkeyServer], ledger: str) -> AsyncIterator[tuple[Shop, ValkeyServer]]:
    """A shop on a Valkey that may be stopped, filled and killed."""
    valkey = own_valkey("breakable")
    valkey.start()
    async with Shop(valkey.url, ledger, "fsync") as made:
        await made.open()
        yield made, valkey


@contextmanager
def stopped(valkey: ValkeyServer) -> Iterator[None]:
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(valkey.pid, signal.SIGCONT)


async def is_sound(shop: Shop, orders: int) -> None:
    """Exactly so many orders stand in Valkey and ledger, and every invariant holds."""
    await shop.write()
    report = await audit(shop.redis_url, shop.database_url)
    assert report.faults == []
    assert report.counts.orders_ledger == orders


async def test_a_second_call_goes_beside_the_first_only_if_it_is_full(
    breakable: tuple[Shop, ValkeyServer],
) -> None:
    shop, valkey = breakable
    async with open_desk(shop, batches_in_flight=1, batch_max=20) as desk:
        with stopped(valkey):
            sent = [desk.send(desk.make("first"))]
            await asyncio.sleep(0.05)
            sent += [desk.send(desk.make(f"s-{number}")) for number in range(19)]
            await asyncio.sleep(0.05)
            assert desk.batcher.batches == 1  # it waits for company
            sent += [desk.send(desk.make(f"t-{number}")) for number in range(60)]
            await asyncio.sleep(0.05)
            assert desk.batcher.batches == 2  # one more, however many wait
        answers = await asyncio.wait_for(asyncio.gather(*sent), WITHIN_S)
        assert {answer.outcome for answer in answers} == {"A"}
        assert desk.calls == [1, 20, 20, 20, 19]
        await is_sound(shop, 80)


async def test_orders_of_one_moment_go_in_one_call(shop: Shop) -> None:
    async with open_desk(shop) as desk:
        assert await desk.buy_many(400) == ["A"] * 400
        assert desk.calls == [400]
        assert desk.batcher.pending == desk.batcher.batches == 0
    await is_sound(shop, 400)


async def test_a_call_has_at_most_batch_max_lines(shop: Shop) -> None:
    async with open_desk(shop, batch_max=20) as desk:
        sent = [desk.send(desk.make(f"s-{number}", (FRIDGE, 1), (KETTLE, 1))) for number in range(25)]
        assert [answer.outcome for answer in await asyncio.gather(*sent)] == ["A"] * 25
        assert desk.calls == [10, 10, 5]


async def test_a_double_click_in_one_call_is_one_order(shop: Shop) -> None:
    async with open_desk(shop) as desk:
        sent = [desk.send(desk.make("ann", (FRIDGE, 1), key="k")) for _ in range(3)]
        first, second, third = await asyncio.gather(*sent)
        assert desk.calls == [3]
        assert [first.outcome, second.outcome, third.outcome] == ["A", "R", "R"]
        assert second.detail == third.detail
        assert len(second.detail[0]) == 22
    await is_sound(shop, 1)


async def test_scripts_flushed_in_mid_run_are_loaded_again(shop: Shop) -> None:
    async with open_desk(shop) as desk:
        assert await desk.buy_many(10, "before") == ["A"] * 10
        await shop.valkey.script_flush()
        assert await desk.buy_many(300, "after") == ["A"] * 300
    await is_sound(shop, 310)


async def test_a_change_of_prices_is_obeyed_by_the_next_order(shop: Shop) -> None:
    """The command has returned; whatever a front knew before, its next order is decided at the new price."""
    async with open_desk(shop) as desk:
        await desk.buy("ann", (KETTLE, 1), key="k", expected=PRICE[KETTLE])
        text = FILE.format(id="sale").replace("20.50", "19.90").replace("quota = 0", "quota = 3")
        await merchandising.update(shop.valkey, shop.ledger, parse_sale_file(text, "sale.toml"), text)
        old, new = await asyncio.gather(
            desk.buy("bob", (KETTLE, 1), expected=2050), desk.buy("cleo", (KETTLE, 2), expected=3980)
        )
        assert (old.outcome, new.outcome) == ("T", "A")
        assert (await desk.buy("cleo", (KETTLE, 2))).outcome == "Q"
        assert (await desk.buy("ann", (KETTLE, 1), key="k")).outcome == "R"
        assert {sale.version for sale in desk.sales.values()} == {2}
    await is_sound(shop, 2)


async def test_a_rebuilt_valkey_is_taken_up_with_its_new_epoch(shop: Shop) -> None:
    async with open_desk(shop) as desk:
        assert (await desk.buy("ann", (FRIDGE, 2), key="k")).outcome == "A"
        assert (await shop.recover(force=True)).epoch == 2
        again, more, new = await asyncio.gather(
            desk.buy("ann", (FRIDGE, 2), key="k"), desk.buy("ann", (FRIDGE, 1)), desk.buy("bob", (FRIDGE, 1))
        )
        assert (again.outcome, more.outcome, new.outcome) == ("R", "Q", "A")
    await is_sound(shop, 2)


async def test_a_valkey_that_is_no_longer_verified_takes_nothing(shop: Shop) -> None:
    """The epoch was raised and nobody has accepted this Valkey since: fenced, then 503 with the reason."""
    async with open_desk(shop) as desk:
        await shop.valkey.hset(keys.partition(0), mapping={"epoch": 7, "run_id": "nobody"})
        answer = await desk.buy("ann")
        assert answer.outcome == "overloaded"
        assert answer.after_s < 2
        assert desk.batcher.closed is not None
        assert desk.batcher.reasons() == ["Valkey's data is not verified against the ledger"]
        await shop.valkey.hset(keys.partition(0), mapping={"epoch": 1})
        await shop.recover()
        await until(lambda: desk.batcher.closed is None)
        assert (await desk.buy("ann")).outcome == "A"
    await is_sound(shop, 1)


async def test_full_memory_refuses_whole_orders_and_writes_nothing(breakable: tuple[Shop, ValkeyServer]) -> None:
    shop, _ = breakable
    async with open_desk(shop) as desk:
        assert (await desk.buy("ann", key="k")).outcome == "A"
        before = await shop.dump()
        await shop.valkey.config_set("maxmemory", "1")
        assert set(await desk.buy_many(50)) == {"overloaded"}
        assert await shop.dump() == before
        assert (await desk.buy("ann", key="k")).outcome == "R"
        await shop.valkey.config_set("maxmemory", "100mb")
        assert await desk.buy_many(50, "later") == ["A"] * 50
    await is_sound(shop, 51)


async def test_an_order_that_can_not_be_encoded_fails_alone(shop: Shop) -> None:
    async with open_desk(shop) as desk:
        orders = [desk.make(f"s-{number}") for number in range(20)]
        orders[7] = desk.make("odd", (KETTLE, 2**70))  # more than two bytes hold
        answers = await asyncio.gather(*map(desk.send, orders))
        assert [answer.outcome for answer in answers] == ["A"] * 7 + ["internal"] + ["A"] * 12
        assert desk.batcher.pending == 0
    await is_sound(shop, 19)


async def test_an_order_that_the_script_fails_on_fails_alone(shop: Shop) -> None:
    async with open_desk(shop) as desk:
        orders = [desk.make(f"s-{number}") for number in range(20)]
        orders[7] = desk.make("odd", (FRIDGE, 1))
        orders[7].fields = ()  # the script looks for the quota's field
        answers = await asyncio.gather(*map(desk.send, orders))
        assert [answer.outcome for answer in answers] == ["A"] * 7 + ["internal"] + ["A"] * 12
        assert desk.batcher.pending == 0
    await is_sound(shop, 19)


async def test_more_than_queue_max_are_refused_at_once(breakable: tuple[Shop, ValkeyServer]) -> None:
    shop, valkey = breakable
    async with open_desk(shop, queue_max=100) as desk:
        with stopped(valkey):
            sent = [desk.send(desk.make(f"s-{number}")) for number in range(130)]
            beyond = await asyncio.gather(*sent[100:])
            assert {answer.outcome for answer in beyond} == {"overloaded"}
            assert max(answer.after_s for answer in beyond) < 0.1
        assert {answer.outcome for answer in await asyncio.gather(*sent[:100])} == {"A"}
        assert await desk.buy_many(100, "later") == ["A"] * 100
    await is_sound(shop, 200)


async def test_a_silent_valkey_is_waited_for_no_longer_than_said(breakable: tuple[Shop, ValkeyServer]) -> None:
    """Sent and unanswered: 504, it may have been done. Never sent: 503, it was not. Both tell at a retry."""
    shop, valkey = breakable
    within_s = 0.8
    limits = {"batch_max": 20, "batches_in_flight": 1, "answer_within_ms": round(within_s * 1000)}
    async with open_desk(shop, **limits) as desk:
        with stopped(valkey):
            sent = [desk.send(desk.make(f"s-{number}", key=f"k-{number}")) for number in range(60)]
            answers = await asyncio.wait_for(asyncio.gather(*sent), WITHIN_S)
            # Two calls of 20 were under way, the second because it was full.
            assert [answer.outcome for answer in answers] == ["outcome-unknown"] * 40 + ["overloaded"] * 20
            assert max(answer.after_s for answer in answers) < within_s + 0.5
            assert min(answer.after_s for answer in answers) > AWAY_S
            assert desk.batcher.pending == 0
            await until(lambda: desk.batcher.closed is not None)
            assert desk.batcher.reasons() != []
        await until(lambda: desk.batcher.closed is None)
        again = await asyncio.gather(*(desk.buy(f"s-{number}", key=f"k-{number}") for number in range(60)))
        assert {answer.outcome for answer in again[40:]} == {"A"}
        assert {answer.outcome for answer in again[:40]} <= {"A", "R"}
    await is_sound(shop, 60)


async def test_an_order_that_nobody_knows_is_answered_in_time_too(breakable: tuple[Shop, ValkeyServer]) -> None:
    """It waits for the catalogue in force, in case that knows it; a silent Valkey does not keep it for ever."""
    shop, valkey = breakable
    within_s = 0.8
    async with open_desk(shop, answer_within_ms=round(within_s * 1000)) as desk:
        loop = asyncio.get_running_loop()
        with stopped(valkey):
            began = loop.time()
            told, answers = asyncio.Event(), list[bool]()
            desk.batcher.when_current(lambda known: answers.append(known) or told.set())
            await asyncio.wait_for(told.wait(), WITHIN_S)
            assert loop.time() - began < within_s + 0.5
            assert answers == [False]


async def test_a_killed_valkey_is_found_again_and_nothing_is_decided_twice(
    breakable: tuple[Shop, ValkeyServer],
) -> None:
    shop, valkey = breakable
    async with open_desk(shop) as desk:
        with stopped(valkey):
            sent = [desk.send(desk.make(f"s-{number}", key=f"k-{number}")) for number in range(50)]
            await until(lambda: desk.batcher.batches == 1)
            valkey.kill()
            valkey.start()
        async with Shop(valkey.url, shop.database_url, "fsync") as after:
            await after.recover()
            answers = await asyncio.wait_for(asyncio.gather(*sent), WITHIN_S)
            assert {answer.outcome for answer in answers} == {"A"}
            await until(lambda: desk.batcher.closed is None)
            again = await asyncio.gather(*(desk.buy(f"s-{number}", key=f"k-{number}") for number in range(50)))
            assert {answer.outcome for answer in again} == {"R"}
            await is_sound(after, 50)


async def test_a_setting_that_would_lose_orders_closes_the_doors(breakable: tuple[Shop, ValkeyServer]) -> None:
    """Changed behind our back while orders go on: one clear line, and open again when it is put right."""
    shop, _ = breakable
    changes = [("maxmemory-policy", "allkeys-lru", "noeviction"), ("appendfsync", "everysec", "always")]
    async with open_desk(shop) as desk:
        for number, (name, wrong, right) in enumerate(changes):
            await shop.valkey.config_set(name, wrong)
            await until(lambda: desk.batcher.closed is not None)
            (reason,) = desk.batcher.reasons()
            assert name in reason
            assert (await desk.buy("ann")).outcome == "overloaded"
            await shop.valkey.config_set(name, right)
            await until(lambda: desk.batcher.closed is None)
            assert (await desk.buy(f"bob-{number}")).outcome == "A"


async def test_last_unit_in_one_call_goes_to_the_first(shop: Shop) -> None:
    async with open_desk(shop) as desk:
        await merchandising.set_stock(shop.valkey, "sale", FAN, to=1, expect=3)
        sent = [desk.send(desk.make(f"s-{n}", (KETTLE, 1), (FAN, 1))) for n in range(5)]
        answers = await asyncio.gather(*sent)
        assert [answer.outcome for answer in answers] == ["A", "S", "S", "S", "S"]
        assert answers[4].detail == [499, 0, 0]
    await is_sound(shop, 1)
