"""The whole life of orders against the pure model (tests/life_model.py), on real Valkey, PostgreSQL and the sandbox.

FLASHSALE_LIFE_STEPS sets how many steps (few by default; 20000 takes minutes). Whatever is done in whatever order,
however often a worker dies and at whichever point: after every step ledger and Valkey are as the model says, and once
everything has come to rest the provider's money too.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flashsale.embedded import ValkeyServer
from flashsale.ledger import life
from tests.integration.life_under_test import (
    CRASHES,
    EXTENSION_S,
    GRACE_MS,
    GUARD_MS,
    NAMES,
    RETURN_MS,
    LifeUnderTest,
)
from tests.payments_sandbox import Sandbox

STEPS = int(os.environ.get("FLASHSALE_LIFE_STEPS", "400"))
STEPS_AN_EXAMPLE = 50
FULL_STEPS = 20_000  # from here on every point has a part of its own, and as many tries until it is come to
TRIES = 4
SHOPPERS = ("ann", "ben", "cho")
FATES = ("reserved", "reserved", "approved", "declined", "paid", "shipped", "delivered")
METHODS = ("card", "alipay", "grabpay")

which = st.integers(0, 7)
units = st.sampled_from([1, 1, 1, 2, 3])
baskets = st.dictionaries(st.integers(0, len(NAMES) - 1), units, min_size=1, max_size=3)
some_lines = st.one_of(st.none(), st.dictionaries(st.integers(0, len(NAMES) - 1), units, min_size=1, max_size=2))


_favourite = [""]  # the point at which workers die often, in this part of a long run


def crash(of: str) -> Any:
    """Mostly none; else one of the points whose names begin so."""
    names = [name for name in CRASHES if name.startswith(of)]
    return st.one_of(
        st.sampled_from([""] * (2 * len(names)) + names),
        st.builds(lambda: _favourite[0] if _favourite[0].startswith(of) else ""),
    )


class Machine(RuleBasedStateMachine):
    """`run` runs a coroutine to its end."""

    def __init__(self, shop: LifeUnderTest, run: Callable[[Any], Any], steps: Counter[str]) -> None:
        super().__init__()
        self.shop, self._run, self.steps = shop, run, steps
        self.sound = True
        self.run(shop.begin_anew())

    def run(self, coroutine: Any) -> Any:
        try:
            return self._run(coroutine)
        except BaseException:
            self.sound = False  # what comes next would only hide it
            traceback.print_exc()  # should it not come again, Hypothesis tells nothing else of it
            raise

    def order(self, number: int, *states: str) -> str:
        """One of the younger orders, mostly one of those in these states (its own, or its intent's at the provider); an
        unknown one while there is none."""
        model = self.shop.model
        known = list(model.orders)[-8:]
        if states and number:
            fitting = [
                order.id
                for order in model.orders.values()
                if order.status in states or (order.id in model.intents and model.intents[order.id].state in states)
            ]
            known = fitting or known
        return known[number % len(known)] if known else "0" * 30

    def step(self, name: str, coroutine: Any) -> None:
        self.steps[name] += 1
        self.run(coroutine)

    @initialize(
        orders=st.lists(
            st.tuples(st.sampled_from(SHOPPERS), baskets, st.sampled_from(METHODS), st.sampled_from(FATES)),
            min_size=1,
            max_size=5,
        )
    )
    def begin(self, orders: list[tuple[str, dict[int, int], str, str]]) -> None:
        for shopper, lines, method, fate in orders:
            before = len(self.shop.model.orders)
            self.reserve_and_begin(shopper, lines, method)
            if fate == "reserved" or len(self.shop.model.orders) == before:
                continue
            order_id = list(self.shop.model.orders)[-1]
            self.shop.approve(order_id, method, "decline" if fate == "declined" else "pay")
            if fate in ("paid", "shipped", "delivered"):
                self.everybody_works("")
            if fate in ("shipped", "delivered"):
                self._ship(order_id, None)
            if fate == "delivered":
                self._deliver(order_id, True)

    # --- the shopper ---

    @rule(shopper=st.sampled_from(SHOPPERS), lines=baskets)
    def reserve(self, shopper: str, lines: dict[int, int]) -> None:
        self.step("reserve", self.shop.reserve(shopper, lines))

    @rule(shopper=st.sampled_from(SHOPPERS), lines=baskets, method=st.sampled_from(METHODS))
    def reserve_and_begin(self, shopper: str, lines: dict[int, int], method: str) -> None:
        before = len(self.shop.model.orders)
        self.step("reserve", self.shop.reserve(shopper, lines))
        if len(self.shop.model.orders) > before:
            self.step("write", self.shop.write_some(100))
            self.step("pay", self.shop.pay(list(self.shop.model.orders)[-1], method))

    @rule(number=which)
    def retry(self, number: int) -> None:
        if self.shop.model.orders:
            self.step("retry", self.shop.retry(self.order(number)))

    @rule(number=which, method=st.sampled_from(METHODS), crash=crash("payment:"))
    def pay(self, number: int, method: str, crash: str) -> None:
        self.step("pay", self.shop.pay(self.order(number, "reserved"), method, crash))

    @rule(number=which, method=st.sampled_from(METHODS))
    def approve(self, number: int, method: str) -> None:
        self.steps["approve"] += 1
        self.shop.approve(self.order(number, "open"), method, "pay")

    @rule(number=which, method=st.sampled_from(METHODS))
    def decline(self, number: int, method: str) -> None:
        self.steps["decline"] += 1
        self.shop.approve(self.order(number, "open"), method, "decline")

    @rule(number=which)
    def lapse(self, number: int) -> None:
        self.steps["lapse"] += 1
        self.shop.lapse(self.order(number, "open", "authorised"))

    @rule(number=which, early=st.sampled_from([-1, 0, 0, 1, 500]), crash=crash("change:"))
    def extend(self, number: int, early: int, crash: str) -> None:
        shop, order_id = self.shop, self.order(number, "reserved")
        order = shop.model.orders.get(order_id)
        at_ms = max(shop.now_ms(), order.deadline - GUARD_MS - early) if order and order.stored else 0
        self.step(
            "extend",
            shop.both(
                lambda: shop.model.extend(order_id, EXTENSION_S * 1000, at_ms, GUARD_MS),
                lambda: life.extend(shop.ledger, order_id, EXTENSION_S * 1000, at_ms, GUARD_MS),
                crash,
            ),
        )

    @rule(number=which, lines=some_lines, crash=crash("change:"))
    def cancel(self, number: int, lines: dict[int, int] | None, crash: str) -> None:
        shop, order_id = self.shop, self.order(number, "reserved", "paid")
        given = None if lines is None else list(lines.items())
        self.step(
            "cancel",
            shop.both(
                lambda: shop.model.cancel(order_id, lines),
                lambda: life.cancel(shop.ledger, order_id, given, shop.now_ms()),
                crash,
            ),
        )

    @rule(number=which, lines=some_lines, crash=crash("change:"))
    def ask_to_return(self, number: int, lines: dict[int, int] | None, crash: str) -> None:
        shop, order_id = self.shop, self.order(number, "shipped", "delivered", "undeliverable")
        order = shop.model.orders.get(order_id)
        wanted = lines or (order.left() if order is not None else {}) or {0: 1}
        made = self.run(
            shop.both(
                lambda: shop.model.request_return(order_id, wanted),
                lambda: life.request_return(
                    shop.ledger, order_id, list(wanted.items()), "why not", RETURN_MS, shop.now_ms()
                ),
                crash,
            )
        )
        self.steps["ask_to_return"] += 1
        if made is not None:
            shop.model.requested(made.id, order_id, wanted)

    # --- the shop ---

    def _ship(self, order_id: str, lines: dict[int, int] | None, crash: str = "") -> None:
        shop = self.shop
        given = None if lines is None else list(lines.items())
        self.step(
            "ship",
            shop.both(
                lambda: shop.model.ship(order_id, lines),
                lambda: life.ship(shop.ledger, order_id, given, shop.now_ms()),
                crash,
            ),
        )

    @rule(number=which, lines=some_lines, crash=crash("change:"))
    def ship(self, number: int, lines: dict[int, int] | None, crash: str) -> None:
        self._ship(self.order(number, "paid"), lines, crash)

    def _deliver(self, order_id: str, delivered: bool, crash: str = "") -> None:
        shop = self.shop
        self.step(
            "deliver",
            shop.both(
                lambda: shop.model.deliver(order_id, delivered),
                lambda: life.deliver(shop.ledger, order_id, delivered, shop.now_ms()),
                crash,
            ),
        )

    @rule(number=which, delivered=st.booleans(), crash=crash("change:"))
    def deliver(self, number: int, delivered: bool, crash: str) -> None:
        self._deliver(self.order(number, "shipped"), delivered, crash)

    @rule(number=which, accept=st.sampled_from([True, True, False]), crash=crash("change:"))
    def decide_return(self, number: int, accept: bool, crash: str) -> None:
        shop = self.shop
        if shop.model.returns:
            return_id = list(shop.model.returns)[number % len(shop.model.returns)]
            self.step(
                "decide_return",
                shop.both(
                    lambda: shop.model.decide_return(return_id, accept),
                    lambda: life.decide_return(shop.ledger, return_id, accept, shop.now_ms()),
                    crash,
                ),
            )

    @rule(number=which, less=st.booleans(), restock=st.booleans(), sale_open=st.booleans(), quota=st.booleans(),
          crash=crash("change:"))  # fmt: skip
    def receive_return(self, number: int, less: bool, restock: bool, sale_open: bool, quota: bool, crash: str) -> None:
        shop = self.shop
        if not shop.model.returns:
            return
        return_id = list(shop.model.returns)[number % len(shop.model.returns)]
        came = dict(shop.model.returns[return_id].lines)
        if less:
            came[next(iter(came))] -= 1
        given = [(sku, count, restock) for sku, count in came.items()]
        self.step(
            "receive_return",
            shop.both(
                lambda: shop.model.receive_return(return_id, came, restock, sale_open, quota),
                lambda: life.receive_return(
                    shop.ledger, return_id, given, shop.now_ms(), sale_open=sale_open, quota=quota
                ),
                crash,
            ),
        )

    @rule(number=which, amount=st.sampled_from([1, 333, 2050, 50_000]), crash=crash("change:"))
    def goodwill(self, number: int, amount: int, crash: str) -> None:
        shop, order_id = self.shop, self.order(number, "captured")
        self.step(
            "goodwill",
            shop.both(
                lambda: shop.model.goodwill(order_id, amount),
                lambda: life.refund_goodwill(shop.ledger, order_id, amount, "sorry", shop.now_ms()),
                crash,
            ),
        )

    # --- the provider ---

    @rule(number=which)
    def fail_refund(self, number: int) -> None:
        self.steps["fail_refund"] += 1
        self.shop.fail_refund(number)

    @rule(number=which, outcome=st.sampled_from(["won", "lost"]))
    def dispute(self, number: int, outcome: str) -> None:
        self.steps["dispute"] += 1
        self.shop.dispute(self.order(number, "captured"), outcome)

    @rule(chosen=st.lists(st.integers(0, 30), min_size=1, max_size=6), again=st.sampled_from([False, False, True]),
          together=st.booleans())  # fmt: skip
    def webhooks(self, chosen: list[int], again: bool, together: bool) -> None:
        self.step("webhooks", self.shop.webhooks(chosen, again=again, together=together))

    @rule(number=which, method=st.sampled_from(METHODS), heard=st.lists(st.integers(0, 3), min_size=2, max_size=4))
    def decline_twice(self, number: int, method: str, heard: list[int]) -> None:
        """And the events of it come again, one by one."""
        shop, order_id = self.shop, self.order(number, "open")
        for _ in range(2):
            self.steps["decline"] += 1
            shop.approve(order_id, method, "decline")
            self.step("webhooks", shop.webhooks(range(20), again=False, together=False))
            self.step("apply_events", shop.apply_events())
        for place in heard:
            self.step("webhooks", shop.webhooks([len(shop.told) - 1 - place], again=True, together=False))
            self.step("apply_events", shop.apply_events())

    @rule(
        number=which,
        method=st.sampled_from(METHODS),
        sold=st.booleans(),
        before=crash("outbox: re"),
        crash=crash("outbox: units") | crash("outbox: read, units"),
    )
    def pay_late(self, number: int, method: str, sold: bool, before: str, crash: str) -> None:
        """After expiry, and perhaps after others bought what there was."""
        shop, order_id = self.shop, self.order(number, "open")
        if order_id not in shop.model.intents:
            return
        order = shop.model.orders[order_id]
        self.step("sweep", shop.sweep(max(shop.now_ms(), order.deadline + GRACE_MS)))
        self.step("dispatch", shop.dispatch(before))
        self.step("dispatch", shop.dispatch())
        if sold:
            for place, sku in enumerate(order.lines):
                for _ in range(3):
                    self.step("reserve", shop.reserve(f"crowd-{place}-{_}", {sku: 2 if sku != 1 else 3}))
        self.steps["approve"] += 1
        shop.approve(order_id, method, "pay")
        self.step("webhooks", shop.webhooks(range(20), again=False, together=True))
        self.step("apply_events", shop.apply_events())
        self.step("dispatch", shop.dispatch(crash))

    @rule(number=which, restock=st.booleans(), quota=st.booleans())
    def give_back(self, number: int, restock: bool, quota: bool) -> None:
        """A return from the request to the shelf."""
        before = len(self.shop.model.returns)
        self.ask_to_return(number, None, "")
        if len(self.shop.model.returns) > before:
            self.decide_return(before, True, "")
            self.receive_return(before, False, restock, True, quota, "")

    # --- the workers ---

    @rule(most=st.sampled_from([1, 2, 100]), crash=crash("journal:"))
    def write(self, most: int, crash: str) -> None:
        self.step("write", self.shop.write_some(most, crash))

    @rule(crash=crash("outbox:"))
    def dispatch(self, crash: str) -> None:
        self.step("dispatch", self.shop.dispatch(crash))

    @rule(crash=crash("late payment:"))
    def settle_again(self, crash: str) -> None:
        self.step("settle_again", self.shop.settle_again(crash))

    @rule(crash=crash("events:"), most=st.sampled_from([1, 2, 100]))
    def apply_events(self, crash: str, most: int) -> None:
        self.step("apply_events", self.shop.apply_events(crash, most))

    @rule(number=which, later_ms=st.sampled_from([-1, 0, 0, GRACE_MS - 1, GRACE_MS]), crash=crash("expiry:"))
    def sweep(self, number: int, later_ms: int, crash: str) -> None:
        shop = self.shop
        held = [order for order in shop.model.orders.values() if order.stored and order.status == "reserved"]
        deadline = held[number % len(held)].deadline if held else 0
        self.step("sweep", shop.sweep(max(shop.now_ms(), deadline + later_ms), crash))

    @rule(numbers=st.lists(which, max_size=3), crash=crash("calls:"))
    def calls(self, numbers: list[int], crash: str) -> None:
        self.run(self.shop.make_due([self.order(number) for number in numbers]))
        self.step("calls", self.shop.calls(crash))

    @rule(number=which, crash=crash("refund:"))
    def refund_job(self, number: int, crash: str) -> None:
        self.step("refund_job", self.shop.refund_job(number, crash))

    @rule(lost=st.booleans(), crash=crash("rebuild:"), really=st.sampled_from([False, False, True]))
    def rebuild(self, lost: bool, crash: str, really: bool) -> None:
        if really:
            self.step("rebuild", self.shop.rebuild(lost, crash))

    @rule(crash=st.one_of(crash("events:"), crash("journal:"), crash("outbox:"), crash("calls:"), crash("refund:")))
    def everybody_works(self, crash: str) -> None:
        shop = self.shop

        def of(part: str) -> str:
            return crash if crash.startswith(part) else ""

        async def work() -> None:
            await shop.webhooks(range(20), again=False, together=True)
            await shop.apply_events(of("events:"))
            await shop.name_refunds()
            await shop.write_some(100, of("journal:"))
            await shop.dispatch(of("outbox:"))
            await shop.calls(of("calls:"))
            await shop.name_refunds()
            await shop.refund_job(0, of("refund:"))

        self.step("everybody_works", work())

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        self.run(self.shop.compare())

    def teardown(self) -> None:
        shop = self.shop
        if not self.sound:
            return

        async def end() -> None:
            await shop.drain()
            await shop.compare()
            if self.steps["examples"] % 2:
                deadlines = [order.deadline for order in shop.model.orders.values()]
                await shop.sweep(max([shop.now_ms(), *deadlines]) + GRACE_MS)
                await shop.drain()
                await shop.compare()
            shop.compare_money()
            if self.steps["examples"] % 5 == 0:
                await shop.audited()

        self.steps["examples"] += 1
        self.run(end())
        shop.count()


def lives(machine: Callable[[], Machine], steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=max(1, steps // STEPS_AN_EXAMPLE),
            stateful_step_count=STEPS_AN_EXAMPLE,
            deadline=None,
            # A failure is said at once; FLASHSALE_LIFE_SHRINK=1 looks, for minutes, for a shorter way to it.
            phases=[Phase.generate, *([Phase.shrink] if os.environ.get("FLASHSALE_LIFE_SHRINK") else [])],
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_orders_live_as_the_model_says(valkey_memory: ValkeyServer, ledger: str, tmp_path: Path) -> None:
    steps: Counter[str] = Counter()
    sandbox = Sandbox(tmp_path / "sandbox").start()
    began = time.monotonic()
    points = list(CRASHES) if STEPS >= FULL_STEPS else [""]
    with asyncio.Runner() as runner:
        shop = LifeUnderTest(valkey_memory.url, ledger, sandbox)
        runner.run(shop.__aenter__())
        try:
            for point in points:
                _favourite[0] = point
                for _ in range(TRIES):
                    lives(lambda: Machine(shop, runner.run, steps), STEPS // len(points))
                    if not point or shop.crashes[point]:
                        break
        finally:
            runner.run(shop.__aexit__(None, None, None))
            sandbox.stop()
            took = time.monotonic() - began
            done = sum(steps.values()) - steps["examples"]
            print(f"{done} steps in {took:.0f} s ({done / took:.0f}/s), {shop.taken} orders")
            print("steps: ", dict(steps.most_common()))
            print("came to:", dict(sorted(shop.reached.items())))
            print("crashes:", dict(sorted(shop.crashes.items())))
            print("not come to this time:", sorted(CRASHES.keys() - shop.crashes.keys()))
