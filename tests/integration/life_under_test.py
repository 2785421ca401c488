"""A whole life of orders on real servers, step by step: each button does one step of one part and the model's the same.

A step may die at a named point (CRASHES); what goes on then are fresh objects, as after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import time
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

from pgqueuer.errors import RetryRequested

from flashsale import audit, merchandising
from flashsale import errors as problems
from flashsale.ledger import life, partitions, payments
from flashsale.ledger.pool import Ledger
from flashsale.partners.payments.provider import Payable, ProviderAway
from flashsale.partners.payments.stripe import StripeProvider, facts_of
from flashsale.pipeline import ledger_writer, payment_events, provider_calls, refund_jobs
from flashsale.pipeline.expiry import Expiry
from flashsale.pipeline.journal_rows import read_journal
from flashsale.pipeline.outbox import Outbox
from flashsale.pipeline.provider_calls import ProviderCalls
from flashsale.pipeline.refund_jobs import RefundJobs
from flashsale.recovery import by_hand, rebuild
from flashsale.reservation import commands, keys
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.events import APPEND, read_events, trim_events
from flashsale.reservation.movements import Entry, EpochSet
from flashsale.sale.order import Line, OrderRequest
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests import life_model
from tests.integration.shop import RESERVE, Shop
from tests.life_model import DisputeFact, Fact, IntentFact, Model, RefundFact
from tests.payments_sandbox import API_KEY, Sandbox

SALE = "life"
EXTENSION_S, HOLD_S, GRACE_S = 1, 3600, 0.02
GRACE_MS, GUARD_MS, RETURN_MS = round(GRACE_S * 1000), 100, 30 * 86_400_000
NAMES, STOCK, QUOTAS, PRICES = ("FRIDGE", "KETTLE", "FAN"), (4, 6, 5), (0, 2, 3), (89_999, 2050, 333)
FILE = f"""
[sale]
id = "{SALE}"
name = "A life"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2099-01-01T00:00:00Z
hold_seconds = {HOLD_S}
extension_seconds = {EXTENSION_S}
""" + "".join(
    f"""
[[offers]]
sku = "{name}"
brand = "Haier"
title = {{ en = "thing" }}
stock = {stock}
quota = {quota}
weight_g = 1
prices = {{ SG = "{price // 100}.{price % 100:02}" }}
"""
    for name, stock, quota, price in zip(NAMES, STOCK, QUOTAS, PRICES, strict=True)
)
NEVER_MS = 10**12
HEARD = {  # what the account's endpoint is told; the events list has more
    "payment_intent": "amount_capturable_updated canceled payment_failed succeeded",
    "checkout.session": "completed expired",
    "refund": "created failed updated",
    "charge.dispute": "closed created",
}


class Crash(Exception):
    """The process dies here."""


class Point(NamedTuple):
    """Dies when `owner.name` is called, before or after it has done its work. None: between two steps of the button."""

    owner: Any = None
    name: str = ""
    after: bool = False


CRASHES: Mapping[str, Point] = {
    "change: made, not committed": Point(),
    "payment: begun, provider not asked": Point(),
    "payment: opened at the provider, no answer came": Point(),
    "payment: opened at the provider, not noted": Point(),
    "journal: stored, not committed": Point(ledger_writer.partitions, "move_mark"),
    "journal: committed, not trimmed": Point(),
    "outbox: read, release not called": Point(commands, "release"),
    "outbox: release called, then forgotten": Point(commands, "release", after=True),
    "outbox: read, units not asked for again": Point(commands, "reserve_again"),
    "outbox: units asked for again, then forgotten": Point(commands, "reserve_again", after=True),
    "outbox: mirrored, row not cleared": Point(commands, "mirror_status", after=True),
    "late payment: settled, not committed": Point(),
    "events: applied, not committed": Point(),
    "events: committed, not trimmed": Point(),
    "calls: claimed, provider not asked": Point(),
    "calls: done at the provider, no answer came": Point(),
    "calls: answered, not applied": Point(),
    "calls: applied, not committed": Point(provider_calls, "apply_carefully", after=True),
    "refund: done at the provider, no answer came": Point(),
    "refund: answered, not applied": Point(refund_jobs.life, "apply_facts"),
    "refund: applied, job not ended": Point(),
    "expiry: swept, not committed": Point(life, "expire", after=True),
    "expiry: committed, then forgotten": Point(),
    "rebuild: epoch raised, Valkey not built": Point(rebuild, "delete_keys"),
    "rebuild: built, doors not opened": Point(by_hand, "accept"),
}
"""Every named point at which a step of an order's life may be cut off."""


@contextlib.contextmanager
def dying(point: Point) -> Iterator[None]:
    """Whoever comes to the point dies."""
    if point.owner is None:
        yield
        return
    real: Callable[..., Awaitable[Any]] = getattr(point.owner, point.name)

    async def dies(*args: Any, **kwargs: Any) -> Any:
        if point.after:
            await real(*args, **kwargs)
        raise Crash(point.name)

    with patch.object(point.owner, point.name, dies):
        yield


class Desk:
    """The sandbox from outside: the shopper at the pay page, the clerk at the dashboard, the list of events."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=10)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        data = None
        if isinstance(body, dict) and path.startswith("/sandbox/"):
            data, headers["Content-Type"] = json.dumps(body), "application/json"
        elif body is not None:
            data, headers["Content-Type"] = urllib.parse.urlencode(body), "application/x-www-form-urlencoded"
        self._connection.request(method, path, data, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status in (200, 303), (method, path, answer.status, text[:500])
        return json.loads(text) if answer.getheader("Content-Type", "").startswith("application/json") else None

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """What is changed at the provider is changed, and not answered."""
        self.ask("POST", "/sandbox/faults", {"charge_then_timeout": 1})
        try:
            yield
        finally:
            self.ask("POST", "/sandbox/faults", {})

    def listed(self, what: str, **filters: str) -> list[dict[str, Any]]:
        """The newest objects of a kind, newest first; with ending_before all behind that one."""
        query = urllib.parse.urlencode({"limit": 100, **filters})
        page = self.ask("GET", f"/v1/{what}?{query}")
        data: list[dict[str, Any]] = page["data"]
        if page["has_more"] and "ending_before" in filters:
            return self.listed(what, **filters | {"ending_before": data[0]["id"]}) + data
        return data


class LifeUnderTest(Shop):
    """Ledger, Valkey and sandbox, and the model beside them."""

    def __init__(self, redis_url: str, database_url: str, sandbox: Sandbox) -> None:
        super().__init__(redis_url, database_url)
        self.sandbox = sandbox
        self.crashes: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.taken = 0
        self._last_event = ""

    async def __aenter__(self) -> LifeUnderTest:
        await super().__aenter__()
        self.desk = Desk(self.sandbox)
        self.pool = Ledger(self.database_url, timeout_s=5)
        self.provider = StripeProvider(API_KEY, self.sandbox.url, timeout_s=5, return_url="http://shop.test/")
        self._duties: list[Any] = []
        self._own_clock = patch.object(provider_calls, "now_ms", self.now_ms)
        self._own_clock.start()
        return self

    async def __aexit__(self, *fault: Any) -> None:
        self._own_clock.stop()
        await self._close_duties()
        await self.provider.aclose()
        await self.pool.close()
        await super().__aexit__(*fault)

    # --- beginnings ---

    async def begin_anew(self) -> None:
        """An empty ledger and Valkey, and one sale."""
        tables = await self.ledger.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> ALL ($1::text[])",
            ["alembic_version", "webhook_mark", "settlement_mark"],
        )
        names = ", ".join(f'"{row[0]}"' for row in tables)
        await self.ledger.execute(f"TRUNCATE {names}")
        await self.valkey.flushall()
        self.clock_ms = 0
        assert (await self.recover()).ok
        await merchandising.create(self.valkey, self.ledger, parse_sale_file(FILE, "sale.toml"), FILE)
        await self.write()
        self.offered, self.version = await self.sale(SALE)
        await self._look_at_partition()
        by_sku = lambda values: dict(enumerate(values))  # noqa: E731
        self.model = Model(by_sku(STOCK), by_sku(QUOTAS), by_sku(PRICES))
        self.events: list[tuple[Fact, bytes]] = []  # that the provider has to tell, oldest first
        self.told: list[tuple[Fact, bytes]] = []  # that were delivered once at least
        self.declines: Counter[str] = Counter()
        self.requests: dict[str, tuple[str, dict[int, int], str]] = {}
        self._failed: Counter[str] = Counter()
        self._keys = itertools.count()
        self.listen()
        self.events.clear()
        await self.restart()

    async def _look_at_partition(self) -> None:
        partition = await commands.read_partition(self.valkey)
        assert partition is not None
        self.epoch = partition.epoch

    async def _close_duties(self) -> None:
        for duty in self._duties:
            await duty._client.aclose()
        self._duties = []

    async def restart(self) -> None:
        """Fresh workers, as after a crash."""
        await self._close_duties()
        self.outbox = Outbox(self.redis_url, self.database_url)
        self.expiry = Expiry(self.redis_url, self.database_url, grace_s=GRACE_S)
        self._duties = [self.outbox, self.expiry]
        self.calls_ = ProviderCalls(self.database_url, self.provider, concurrency=64, timeout_s=1)
        self.jobs_ = RefundJobs(self.pool, self.provider)
        await payments.unlease(self.ledger, self.now_ms())
        self.model.restart()

    def now_ms(self) -> int:
        """The real time, or what a sweep has been told it is."""
        self.clock_ms = max(self.clock_ms, time.time_ns() // 1_000_000)
        return self.clock_ms

    async def died(self, crash: str) -> None:
        assert crash in CRASHES
        self.crashes[crash] += 1
        await self.restart()

    async def both(
        self, ours: Callable[[], Any], theirs: Callable[[], Coroutine[Any, Any, Any]], crash: str = ""
    ) -> Any:
        """A change by somebody: the ledger and the model make it, or refuse with the same problem."""
        try:
            async with self.ledger.transaction():
                answer = await theirs()
                if crash:
                    raise Crash(crash)
        except Crash:
            return await self.died(crash)
        except problems.Refused as refused:
            try:
                ours()
            except life_model.Refused as ours_too:
                assert str(ours_too) == refused.name, (str(ours_too), refused.name, refused.detail)
                return None
            raise AssertionError(f"the ledger refuses, the model does not: {refused.name} {refused.detail}") from None
        try:
            ours()
        except life_model.Refused as refused:
            raise AssertionError(f"the model refuses, the ledger does not: {refused}") from None
        return answer

    # --- the shopper ---

    async def reserve(self, shopper: str, lines: Mapping[int, int], key: str | None = None) -> None:
        order = Order()
        order.shopper, order.key = shopper, key or f"key-{next(self._keys)}"
        wanted = [Line(sku=NAMES[sku], quantity=units) for sku, units in lines.items()]
        order.request = OrderRequest(sale=SALE, market="SG", lines=wanted)
        priced = PricedSale(self.offered, self.version)
        priced.identify(order)
        priced.price(order)
        names = script_keys(0, SALE)
        answer = await RESERVE.run(self.valkey, names, [self.epoch, self.version, *arguments([order])])
        expected = self.model.reserve(order.id, shopper, lines)
        assert answer[0].decode() == expected, (answer, expected)
        if expected == "A":
            self.taken += 1
            self.requests[order.id] = (shopper, dict(lines), order.key)

    async def retry(self, order_id: str) -> None:
        """The first request once more."""
        shopper, lines, key = self.requests[order_id]
        await self.reserve(shopper, lines, key)

    async def pay(self, order_id: str, method: str, crash: str = "") -> None:
        """The three phases of the front."""
        now_ms = time.time_ns() // 1_000_000
        refused = True

        def ours() -> None:
            nonlocal refused
            self.model.begin_payment(order_id)
            refused = False

        begun = await self.both(ours, lambda: life.begin_payment(self.ledger, order_id, method, None, now_ms, NEVER_MS))
        if begun is None or refused:
            return
        if crash == "payment: begun, provider not asked":
            return await self.died(crash)
        order, payment = begun
        payable = Payable.of_order(
            order_id, "SG", payment.amount, payment.currency, None, order.journal_ms + order.hold_ms
        )
        if crash == "payment: opened at the provider, no answer came":
            with contextlib.suppress(ProviderAway), self.desk.silence():
                opened = await self.provider.open(payable, payment.created_ms)
                # It was opened before, in other words (the order was extended since): nothing was changed now.
                self.model.open(order_id, opened.session_id, opened.provider_id or "")
            return await self.died(crash)
        opened = await self.provider.open(payable, payment.created_ms)
        self.model.open(order_id, opened.session_id, opened.provider_id or "")
        if crash == "payment: opened at the provider, not noted":
            return await self.died(crash)
        await payments.opened(self.ledger, order_id, payment.created_ms, *opened)
        self.model.opened(order_id)

    def approve(self, order_id: str, method: str, action: str) -> None:
        """At the provider's page, if it is open: pay or decline."""
        intent = self.model.intents.get(order_id)
        if intent is None or intent.state != life_model.OPEN:
            return
        self.desk.ask("POST", f"/c/pay/{intent.session}", {"method": method, "action": action})
        if action == "decline":
            self.declines[intent.id] += 1
            intent.attempt = str(self.declines[intent.id])
            return
        intent.wallet = method != "card"
        intent.state = life_model.CAPTURED if intent.wallet else life_model.AUTHORISED
        intent.authorised, intent.captured = intent.amount, intent.amount if intent.wallet else 0

    def lapse(self, order_id: str) -> None:
        """The provider drops what is authorised, or the session runs out."""
        intent = self.model.intents.get(order_id)
        if intent is None or intent.state not in (life_model.OPEN, life_model.AUTHORISED):
            return
        of_session, of_intent = f"checkout/sessions/{intent.session}/expire", f"payment_intents/{intent.id}/cancel"
        self.desk.ask("POST", f"/v1/{of_session if intent.state == life_model.OPEN else of_intent}", {})
        intent.state = life_model.CLOSED

    def fail_refund(self, number: int) -> None:
        """The bank sends money back that was refunded."""
        made = [
            (intent, refund_id)
            for intent in self.model.intents.values()
            for refund_id, (_, status) in intent.refunds.items()
            if status != "failed"
        ]
        if made:
            intent, refund_id = made[number % len(made)]
            for found in self.desk.listed("refunds", payment_intent=intent.id):
                if found["metadata"]["refund"] == refund_id:
                    self.desk.ask("POST", f"/sandbox/refunds/{found['id']}/fail", {})
                    intent.refunds[refund_id] = (found["amount"], "failed")

    def dispute(self, order_id: str, outcome: str) -> None:
        """Opened, and later decided."""
        intent = self.model.intents.get(order_id)
        if intent is None or intent.state != life_model.CAPTURED:
            return
        if intent.dispute in (None, "won"):
            made = self.desk.ask("POST", f"/sandbox/intents/{intent.id}/dispute", {})
            intent.dispute, intent.dispute_id = "open", made["id"]
        elif intent.dispute == "open":
            self.desk.ask("POST", f"/sandbox/disputes/{intent.dispute_id}/close", {"status": outcome})
            intent.dispute = outcome

    # --- the ways of the workers ---

    async def write_some(self, most: int, crash: str = "") -> None:
        """The ledger writer."""
        known = await partitions.get(self.ledger, 0)
        assert known is not None
        items = (await read_journal(self.valkey, 0, known.mark, 100))[:most]
        if not items:
            return
        try:
            with dying(CRASHES[crash] if crash else Point()):
                await ledger_writer.store_entries(self.ledger, known, items)
        except Crash:
            return await self.died(crash)
        rows = await self.ledger.fetch("SELECT id, journal_ms + hold_ms FROM orders")
        ours = [item for item in items if isinstance(item, Entry) and not isinstance(item.movement, EpochSet)]
        assert len(ours) == len([item for item in items if not isinstance(getattr(item, "movement", None), EpochSet)])
        self.model.write(len(ours), {row[0]: row[1] for row in rows})
        if crash:
            return await self.died(crash)
        await self.trim()

    async def dispatch(self, crash: str = "") -> None:
        """A round of the outbox."""
        called = 0
        point = CRASHES[crash] if crash else Point()
        with contextlib.ExitStack() as patches:
            for name in ("release", "reserve_again", "mirror_status"):
                real = getattr(commands, name)

                async def counted(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
                    nonlocal called
                    if point.name == _name and not point.after:
                        raise Crash(crash)
                    answer = await _real(*args, **kwargs)
                    called += 1
                    if point.name == _name:
                        raise Crash(crash)
                    return answer

                patches.enter_context(patch.object(commands, name, counted))
            try:
                await self.outbox.round(self.ledger)
            except Crash:
                self.model.round(called)
                return await self.died(crash)
        self.model.round()

    async def settle_again(self, crash: str = "") -> None:
        """Late payments whose units were decided about."""
        try:
            async with self.ledger.transaction():
                await life.settle_again(self.ledger, self.now_ms())
                if crash:
                    raise Crash(crash)
        except Crash:
            return await self.died(crash)
        self.model.settle_again()

    def listen(self) -> None:
        """What the provider has to tell since the last time."""
        if self._last_event:
            fresh = self.desk.listed("events", ending_before=self._last_event)
        else:
            fresh = self.desk.listed("events")
        if fresh:
            self._last_event = fresh[0]["id"]
        for event in reversed(fresh):
            fact = self._fact(event)
            if fact is not None and (not isinstance(fact, IntentFact) or fact.order in self.model.orders):
                self.events.append((fact, json.dumps(event).encode()))

    def _fact(self, event: dict[str, Any]) -> Fact | None:
        kind, found = event["type"], event["data"]["object"]
        of, _, what = kind.rpartition(".")
        if what not in HEARD.get(of, "").split():
            return None
        if kind.startswith("refund."):
            return RefundFact(found["metadata"]["refund"], found["status"])
        if kind.startswith("charge.dispute."):
            orders = [key for key, intent in self.model.intents.items() if intent.id == found["payment_intent"]]
            state = found["status"] if found["status"] in ("won", "lost") else "open"
            return DisputeFact(orders[0], found["id"], state) if orders else None
        order = found["metadata"]["order"]
        intent = found["payment_intent"] if of == "checkout.session" else found["id"]
        if kind.startswith("checkout.session."):
            if found["status"] != "complete":
                return IntentFact(order, intent, life_model.OPEN, 0, 0, None)
            if found["payment_status"] != "paid":
                return IntentFact(order, intent, life_model.PROCESSING, 0, 0, None)
            return IntentFact(order, intent, life_model.CAPTURED, found["amount_total"], found["amount_total"], None)
        if kind == "payment_intent.payment_failed":
            self._failed[intent] += 1
            return IntentFact(order, intent, life_model.FAILED, 0, 0, str(self._failed[intent]))
        match found["status"]:
            case "requires_capture":
                return IntentFact(order, intent, life_model.AUTHORISED, found["amount_capturable"], 0, None)
            case "succeeded":
                return IntentFact(order, intent, life_model.CAPTURED, found["amount"], found["amount_received"], None)
            case "canceled":
                return IntentFact(order, intent, life_model.CLOSED, 0, 0, None)
        return IntentFact(order, intent, life_model.OPEN, 0, 0, None)

    async def webhooks(self, chosen: Sequence[int], *, again: bool, together: bool) -> None:
        """Some events arrive, in this order: of those not heard before, or (`again`) of those that were."""
        self.listen()
        source = self.told if again else self.events
        if not source:
            return
        picked = [source[number % len(source)] for number in chosen]
        if not again:
            picked = list({id(event): event for event in picked}.values())
            self.events = [event for event in self.events if event not in picked]
            self.told += picked
        for batch in [picked] if together else [[event] for event in picked]:
            await self._arrive(batch)

    async def _arrive(self, batch: Sequence[tuple[Fact, bytes]]) -> None:
        names = [keys.PAYMENT_EVENTS, keys.PAYMENT_EVENTS_STATE]
        answer = await APPEND.run(self.valkey, names, [64 * 1024 * 1024, *(body for _, body in batch)])
        assert answer[0] == b"ok"
        self.model.stream.append([fact for fact, _ in batch])

    async def apply_events(self, crash: str = "", most: int = 100) -> None:
        """The applier's loop, once."""
        entries = await read_events(self.valkey, (0, 0), most)
        assert bool(entries) == bool(self.model.stream)
        if not entries:
            return
        batch = payment_events.decode(entries, facts_of)
        assert not batch.damaged
        try:
            async with self.ledger.transaction():
                _, damaged = await payment_events.apply(self.ledger, batch, self.now_ms())
                assert not damaged, damaged
                if crash == "events: applied, not committed":
                    raise Crash
        except Crash:
            return await self.died(crash)
        self.model.apply([fact for facts in self.model.stream[: len(entries)] for fact in facts])
        if crash:
            return await self.died(crash)
        await trim_events(self.valkey, batch.last)
        del self.model.stream[: len(entries)]

    async def sweep(self, until_ms: int, crash: str = "") -> None:
        """An expiry's sweep as of that time, once all events are applied that arrived by then."""
        judged = await payment_events.events_applied(self.valkey, until_ms)
        assert judged == (not self.model.stream)
        if not judged:
            return
        self.clock_ms = max(self.clock_ms, until_ms)
        try:
            with dying(CRASHES[crash] if crash else Point()):
                await self.expiry.sweep(self.ledger, until_ms)
        except Crash:
            return await self.died(crash)
        self.model.expire(until_ms, GRACE_MS)
        if crash == "expiry: committed, then forgotten":
            await self.died(crash)

    async def make_due(self, order_ids: Sequence[str]) -> None:
        """As much time passes as these payments wait for."""
        await self.ledger.execute(
            "UPDATE payment SET due_ms = 0 WHERE order_id = ANY ($1::text[]) AND due_ms IS NOT NULL", list(order_ids)
        )

    async def calls(self, crash: str = "") -> None:
        """All that is due is asked of the provider."""
        model, now_ms = self.model, self.now_ms()
        rows = await self.ledger.fetch("SELECT order_id FROM payment WHERE due_ms <= $1", now_ms)
        due = {row[0] for row in rows}
        due -= {order_id for order_id in due if model.capture_early(order_id)}
        claimed = await self.calls_._claim(self.ledger, 1000)
        assert {payment.order_id for payment, _ in claimed} == due
        if not claimed:
            return
        if crash == "calls: claimed, provider not asked":
            return await self.died(crash)
        silent = crash == "calls: done at the provider, no answer came"
        with self.desk.silence() if silent else contextlib.nullcontext():
            answers = await asyncio.gather(*(self.calls_._ask(*row) for row in claimed))
        facts: list[Fact] = []
        opened: list[str] = []
        for answer in answers:
            order_id = answer.payment.order_id
            payment = model.orders[order_id].payment
            assert payment is not None
            if answer.opened is not None:
                model.open(order_id, answer.opened.session_id, answer.opened.provider_id or "")
                opened.append(order_id)
            elif not payment.opened:
                assert silent and answer.fact is None
                continue
            before = model.intents[order_id].state
            fact = model.ask(order_id)
            if silent and model.intents[order_id].state != before:
                fact = None
            told = None if answer.fact is None else (answer.fact.state.value, answer.fact.captured)
            assert told == (None if fact is None else (fact.state, fact.captured)), (order_id, told, fact)
            if fact is not None:
                facts.append(fact)
        if crash == "calls: answered, not applied":
            return await self.died(crash)
        try:
            with dying(CRASHES[crash] if crash else Point()):
                await self.calls_._store(self.ledger, list(answers))
        except Crash:
            return await self.died(crash)
        for order_id in opened:
            model.opened(order_id)
        model.apply(facts, answered=True)
        if silent:
            await self.died(crash)

    async def queued(self) -> list[str]:
        rows = await self.ledger.fetch("SELECT payload FROM pgqueuer WHERE entrypoint = 'refund' ORDER BY id")
        return [bytes(row[0]).decode() for row in rows]

    async def refund_job(self, number: int, crash: str = "") -> None:
        """A job of the queue."""
        waiting = await self.queued()
        if not waiting:
            return
        refund_id = waiting[number % len(waiting)]
        refund = self.model.refunds[refund_id]
        if refund.status != "pending":
            await self.jobs_.handle(refund_id)
            return await self._end_job(refund_id)
        legal = self.model.refund_at_provider(refund_id)
        silent = crash == "refund: done at the provider, no answer came"
        again = False
        try:
            with (
                dying(CRASHES[crash] if crash else Point()),
                self.desk.silence() if silent else contextlib.nullcontext(),
            ):
                await self.jobs_.handle(refund_id)
        except RetryRequested:
            again = True
        except Crash:
            return await self.died(crash)
        status = await self.ledger.fetchval("SELECT status FROM refund WHERE id = $1", refund_id)
        assert status in legal | {"pending"}, (status, legal)
        if status == "pending":
            assert again
        self.model.apply([RefundFact(refund_id, status)])
        if crash:
            return await self.died(crash)
        if not again:
            await self._end_job(refund_id)

    async def _end_job(self, refund_id: str) -> None:
        await self.ledger.execute("DELETE FROM pgqueuer WHERE payload = $1", refund_id.encode())

    async def rebuild(self, lost: bool, crash: str = "") -> None:
        """Valkey is built anew; `lost`: it came back empty."""
        if lost:
            await self.valkey.flushall()
            # A lost event of an intent is found by the poll. Of refunds and disputes `reconcile` tells: as if the
            # clerk has them sent again.
            gone = {id(fact) for facts in self.model.stream for fact in facts if not isinstance(fact, IntentFact)}
            self.events += [event for event in self.told if id(event[0]) in gone]
            self.model.lose_valkey()
            self.requests = {key: value for key, value in self.requests.items() if key in self.model.orders}
        with contextlib.suppress(Crash), dying(CRASHES[crash] if crash else Point()):
            await self.recover(force=True)
        if crash:
            await self.died(crash)
            assert (await self.recover()).ok
        rows = await self.ledger.fetch("SELECT id, journal_ms + hold_ms FROM orders")
        self.model.write(len(self.model.journal), {row[0]: row[1] for row in rows})
        self.model.valkey_as_of_ledger()
        self.model.restart()
        await self._look_at_partition()

    # --- comparisons ---

    async def name_refunds(self) -> None:
        """New refunds have ids that the ledger chose."""
        if self.model.fresh:
            rows = await self.ledger.fetch("SELECT id FROM refund ORDER BY order_id, length(id), id")
            self.model.named(row[0] for row in rows if row[0] not in self.model.refunds)
            assert not self.model.fresh

    async def compare(self) -> None:
        """Ledger and Valkey are as the model says, to the last unit."""
        await self.name_refunds()
        model = self.model
        rows = await self.ledger.fetch(
            "SELECT o.id, o.status, o.payment AS shown, o.extended, o.journal_ms + o.hold_ms AS deadline, o.changes,"
            " o.skus, o.cancelled, o.shipped, o.returned, o.restocked, o.refunded,"
            " p.state, p.rank, p.amount, p.authorised, p.captured, p.released, p.refunding, p.refunded AS back,"
            " p.refund_failed, p.goodwill, p.late, p.dispute, p.todo, p.due_ms,"
            " h.entries, h.last, h.declines"
            " FROM orders AS o LEFT JOIN payment AS p ON p.order_id = o.id"
            " LEFT JOIN LATERAL (SELECT count(*) AS entries, max(number) AS last,"
            "  count(*) FILTER (WHERE event = 'payment.failed') AS declines FROM history WHERE order_id = o.id) AS h"
            "  ON true"
        )
        stored = {order.id: order for order in model.orders.values() if order.stored}
        assert {row["id"] for row in rows} == stored.keys()
        for row in rows:
            order = stored[row["id"]]
            theirs: dict[str, Any] = {name: row[name] for name in ("status", "shown", "extended", "deadline")}
            ours: dict[str, Any] = {name: getattr(order, name) for name in theirs}
            for name in ("cancelled", "shipped", "returned", "restocked", "refunded"):
                theirs[name] = {sku: n for sku, n in zip(row["skus"], row[name] or (), strict=False) if n}
                ours[name] = {sku: n for sku, n in getattr(order, name).items() if n}
            if order.payment is not None:
                names = "state amount authorised captured released refunding refund_failed goodwill late dispute todo"
                theirs |= {name: row[name] for name in names.split()} | {"back": row["back"]}
                ours |= {name: getattr(order.payment, name) for name in names.split()}
                ours["back"] = order.payment.refunded
                assert row["todo"] is None or row["due_ms"] is not None, "what is to be asked is asked some time"
            else:
                assert row["state"] is None
            theirs["declines"], ours["declines"] = row["declines"], order.failures
            assert theirs == ours, f"{order.id}\nledger {_unlike(theirs, ours)}\nmodel  {_unlike(ours, theirs)}"
            assert row["entries"] == row["changes"] - 1 and (row["last"] or 1) == row["changes"], "a gap in the history"
        refunds = await self.ledger.fetch("SELECT id, order_id, amount, status FROM refund")
        assert {row[0]: (row[1], row[2], row[3]) for row in refunds} == {
            key: (refund.order, refund.amount, refund.status) for key, refund in model.refunds.items()
        }
        queued = set(await self.queued())
        assert {key for key, refund in model.refunds.items() if refund.status == "pending"} <= queued
        returns = await self.ledger.fetch("SELECT id, status FROM return_request")
        assert dict(returns) == {key: asked.status for key, asked in model.returns.items()}
        sold = await self.ledger.fetch("SELECT sku, units FROM sold WHERE units <> 0")
        assert dict(sold) == {sku: units for sku, units in model.sold.items() if units}, (sold, model.sold)
        left = await self.ledger.fetch("SELECT kind, outcome FROM outbox ORDER BY number")
        assert [tuple(row) for row in left] == [(row.kind, row.outcome) for row in model.outbox]
        await self._compare_valkey()

    async def _compare_valkey(self) -> None:
        model = self.model
        async with self.valkey.pipeline(transaction=False) as pipe:
            for make in (keys.stock, keys.quota, keys.holds):
                pipe.hgetall(make(0, SALE))
            stock, quota, holds = await pipe.execute()
        assert {int(sku): int(units) for sku, units in stock.items()} == model.available
        identity = PricedSale(self.offered, self.version).identity
        used = {identity.quota_field(*who): units for who, units in model.used.items() if units}
        assert {field: int(units) for field, units in quota.items() if int(units)} == used
        letters = {key.hex(): chr(hold[0]) for key, hold in holds.items()}
        assert letters == {order_id[-24:]: letter for order_id, letter in model.letters.items()}

    async def drain(self) -> None:
        """Whatever is on its way arrives."""
        for _ in range(40):
            self.listen()
            while self.events:
                await self.webhooks(range(20), again=False, together=True)
            await self.apply_events()
            await self.name_refunds()
            await self.write_some(100)
            await self.dispatch()
            await self.write_some(100)
            await self.settle_again()
            await self.name_refunds()
            await self.make_due(self.model.silent())
            await self.calls()
            await self.name_refunds()
            for _ in range(len(await self.queued())):
                await self.refund_job(0)
                await self.name_refunds()
            if self.rested():
                return
            if any(refund.status == "pending" for refund in self.model.refunds.values()):
                self.desk.ask("POST", "/sandbox/clock", {"advance_s": 2})
                await asyncio.sleep(0.05)
        raise AssertionError("it does not come to rest")

    def rested(self) -> bool:
        model = self.model
        return (
            not (model.outbox or model.journal or model.stream or self.events)
            and all(refund.status != "pending" for refund in model.refunds.values())
            and all(order.payment is None or order.payment.todo is None for order in model.orders.values())
        )

    def compare_money(self) -> None:
        """The provider itself: one intent an order, captured once, and what is kept is owed."""
        model = self.model
        intents = defaultdict(list)
        for found in self.desk.listed("payment_intents"):
            intents[found["metadata"].get("order")].append(found)
        for order in model.orders.values():
            payment, known = order.payment, model.intents.get(order.id)
            if payment is None or known is None:
                continue
            for former in intents[order.id]:
                assert former["id"] == known.id or former["status"] == "canceled", "one intent at a time"
            (found,) = [each for each in intents[order.id] if each["id"] == known.id]
            charges = self.desk.listed("charges", payment_intent=known.id)
            assert sum(charge["captured"] for charge in charges) <= 1, "captured twice"
            back = self.desk.listed("refunds", payment_intent=known.id)
            kept = found["amount_received"] - sum(
                r["amount"] for r in back if r["status"] not in ("failed", "canceled")
            )
            assert kept == known.kept(), (order.id, kept, known)
            assert payment.captured == found["amount_received"] and payment.refunding == 0
            assert kept == payment.captured - payment.refunded
            blocked = max(0, payment.refundable - model.owed(order)) if payment.dispute in ("open", "lost") else 0
            if found["amount_received"]:
                short = model.owed(order) - (kept - payment.refund_failed - blocked)
                assert short == 0, (order.id, short, payment)
            if order.status in life_model.OVER:
                assert found["status"] in ("succeeded", "canceled"), "nobody can pay an order that is over"

    def count(self) -> None:
        """What became of this sale's orders."""
        model = self.model
        self.reached.update(f"order {order.status}" for order in model.orders.values())
        paid = [order.payment for order in model.orders.values() if order.payment is not None]
        self.reached.update(f"late {payment.late}" for payment in paid if payment.late)
        self.reached.update(f"dispute {payment.dispute}" for payment in paid if payment.dispute)
        self.reached.update("begun anew" for payment in paid if payment.former)
        self.reached.update(f"refund {refund.status}" for refund in model.refunds.values())
        self.reached.update(f"return {asked.status}" for asked in model.returns.values())

    async def audited(self) -> None:
        report = await audit.audit(self.redis_url, self.database_url)
        assert not report.faults, [str(fault) for fault in report.faults]


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if other.get(name) != value}
