"""The life of an order as its shopper and an admin drive it: real pages, real servers, the payments sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import msgpack
import pytest

from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.front.watch import WATCH
from flashsale.ledger import life, payments, refunds
from flashsale.ledger.migrate import migrate
from flashsale.ledger.pool import Ledger
from flashsale.partners.payments.stripe import StripeProvider
from flashsale.pipeline.expiry import Expiry
from flashsale.sale.next_step import Do
from tests.integration.house import BOTH, SALE, SG_ONLY, House, events, open_house
from tests.payments_sandbox import API_KEY, Sandbox

BACK = "https://shop.example/back"
EXTENDING = SALE + "extension_seconds = 300\n"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path_factory.mktemp("sandbox")).start()
    yield made
    made.stop()


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


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str, sandbox: Sandbox) -> AsyncIterator[Shop]:
    async with open_shop(valkey_memory.url, ledger, sandbox) as shop:
        yield shop
    sandbox.faults()


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


# --- payment ---


async def test_a_card_is_paid_on_the_providers_page(shop: Shop) -> None:
    order_id = await shop.buy(("A", 2))
    path = f"/v1/orders/{order_id}/payment"
    assert (await shop.get(path, status=404, **shop.ada))["name"] == "not-found"
    begun = await shop.post(path, {"method": "card", "return_url": BACK}, 201, **shop.ada)
    assert begun == await shop.get(path, **shop.ada)
    assert begun == await shop.post(path, {"method": "card", "return_url": BACK}, 201, **shop.ada)
    assert (begun["id"], begun["status"], begun["method"]) == (order_id, "none", "card")
    assert begun["amount"] == {"amount": 179800, "currency": "SGD"}
    assert begun["methods"] == ["card", "alipay", "grabpay"]
    status, leads_to, _ = await asyncio.to_thread(shop.sandbox.choose, begun["pay_url"], "card", "pay")
    assert (status, leads_to) == (303, BACK)
    await shop.hear(order_id)
    paid = await shop.read(order_id)
    assert (paid["status"], paid["payment"]["status"], paid["next"]["do"]) == ("paid", "authorised", "wait")
    assert [entry["event"] for entry in paid["history"]] == ["order.reserved", "order.paid"]
    again = await shop.post(path, {"method": "alipay"}, 409, **shop.ada)
    assert (again["name"], again["status"]) == ("already-paid", 409)
    assert (await shop.get("/v1/sales/night/stock"))["stock"]["A"] == {
        "supply": 10, "available": 8, "held": 0, "sold": 2,
    }  # fmt: skip


async def test_a_wallet_is_entered_directly_and_a_declined_one_may_be_changed(shop: Shop) -> None:
    order_id = await shop.buy(("B", 1))
    path = f"/v1/orders/{order_id}/payment"
    card = await shop.post(path, {"method": "card"}, 201, **shop.ada)
    wallet = await shop.post(path, {"method": "alipay", "return_url": BACK}, 201, **shop.ada)
    assert wallet["provider_id"] == card["provider_id"]
    assert (wallet["method"], wallet == await shop.get(path, **shop.ada)) == ("alipay", True)
    await asyncio.to_thread(shop.sandbox.choose, wallet["pay_url"], "alipay", "decline")
    await shop.hear(order_id)
    declined = await shop.read(order_id)
    assert (declined["status"], declined["payment"]["status"], declined["next"]["do"]) == ("reserved", "failed", "pay")
    again = await shop.post(path, {"method": "grabpay", "return_url": BACK}, 201, **shop.ada)
    assert again["provider_id"] == card["provider_id"]
    await asyncio.to_thread(shop.sandbox.choose, again["pay_url"], "grabpay", "pay")
    await shop.hear(order_id)
    assert (await shop.read(order_id))["payment"]["status"] == "captured"


async def test_clicks_at_the_same_time_are_one_session(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    before = len((await asyncio.to_thread(shop.sandbox.client().v1.checkout.sessions.list, {"limit": 100})).data)
    answers = await asyncio.gather(*(_click(shop, order_id, method) for method in ("card", "alipay") * 5))
    taken = [body for status, body in answers if status == 201]
    assert taken
    assert {status for status, _ in answers} <= {201, 503}  # 503: the provider is busy with the same key
    assert len({body["provider_id"] for body in taken}) == 1
    sessions = await asyncio.to_thread(shop.sandbox.client().v1.checkout.sessions.list, {"limit": 100})
    assert len(sessions.data) == before + 1


async def _click(shop: Shop, order_id: str, method: str) -> tuple[int, Any]:
    body = {"method": method, "return_url": BACK}
    async with shop.session.post(f"/v1/orders/{order_id}/payment", json=body, headers=shop.ada) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_payment_begun_before_a_crash_is_found(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    path = f"/v1/orders/{order_id}/payment"
    begun = await shop.post(path, {"method": "card"}, 201, **shop.ada)
    # The front died before it noted the provider's answer; and before that, before it asked.
    await shop.ledger.execute("UPDATE payment SET session_id = NULL, provider_id = NULL, pay_url = NULL")
    assert (await shop.get(path, **shop.ada))["pay_url"] is None
    assert await shop.post(path, {"method": "card"}, 201, **shop.ada) == begun


@pytest.mark.parametrize("faults", [{"charge_then_timeout": 1.0}, {"delay_ms": 5000}])
async def test_a_provider_that_does_not_answer_is_away_and_makes_one_session(
    shop: Shop, faults: dict[str, float]
) -> None:
    order_id = await shop.buy(("A", 1))
    path = f"/v1/orders/{order_id}/payment"
    before = len((await asyncio.to_thread(shop.sandbox.client().v1.checkout.sessions.list, {"limit": 100})).data)
    await shop.provider.aclose()
    shop.provider = shop.context.payments = StripeProvider(API_KEY, shop.sandbox.url, timeout_s=0.5, return_url=BACK)
    shop.sandbox.faults(seed=1, **faults)
    away = await shop.post(path, {"method": "card"}, 503, **shop.ada)
    assert away["name"] == "provider-away"
    assert (await shop.read(order_id))["next"]["do"] == "pay"
    shop.sandbox.faults()
    await shop.post(path, {"method": "card"}, 201, **shop.ada)
    sessions = await asyncio.to_thread(shop.sandbox.client().v1.checkout.sessions.list, {"limit": 100})
    assert len(sessions.data) == before + 1


async def test_without_a_provider_payments_are_away(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    nowhere = StripeProvider(API_KEY, "http://127.0.0.1:1", timeout_s=1, return_url=BACK)
    for provider in (None, nowhere):
        shop.context.payments = provider
        away = await shop.post(f"/v1/orders/{order_id}/payment", {"method": "card"}, 503, **shop.ada)
        assert away["name"] == "provider-away"
    await nowhere.aclose()


async def test_what_may_not_be_paid_is_refused_with_its_reason(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    path = f"/v1/orders/{order_id}/payment"
    unknown = await shop.post(path, {"method": "cash"}, 422, **shop.ada)
    assert (unknown["name"], unknown["methods"]) == ("method-unavailable", ["card", "alipay", "grabpay"])
    assert (await shop.post(path, {"method": "card"}, 404, **shop.token("eve")))["name"] == "not-found"
    assert (await shop.post(path, {"method": "card"}, 401))["name"] == "unauthenticated"
    wrong = await shop.post(path, {"method": "card", "return_url": "http://shop.example", "x": 1}, 422, **shop.ada)
    assert (wrong["name"], list(wrong["fields"])) == ("invalid-request", ["x"])
    wrong = await shop.post(path, {"method": "card", "return_url": "http://shop.example"}, 422, **shop.ada)
    assert list(wrong["fields"]) == ["return_url"]
    await shop.post(f"/v1/orders/{order_id}/cancellation", **shop.ada)
    over = await shop.post(path, {"method": "card"}, 409, **shop.ada)
    assert (over["name"], over["order_status"]) == ("not-payable", "cancelled")


async def test_a_body_is_json_or_messagepack_and_nothing_else(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    path = f"/v1/orders/{order_id}/payment"
    packed = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"} | shop.ada
    async with shop.session.post(path, data=msgpack.packb({"method": "card"}), headers=packed) as answer:
        assert (answer.status, answer.content_type) == (201, "application/msgpack")
        assert msgpack.unpackb(await answer.read())["method"] == "card"
    for given in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        assert (await shop.post(path, {"method": "card"}, 415, **given, **shop.ada))["name"] == "unsupported-media-type"
    async with shop.session.post(path, data=b"{", headers={"Content-Type": "application/json"} | shop.ada) as answer:
        assert (answer.status, (await answer.json(content_type=None))["type"]) == (400, "/problems/malformed")
    async with shop.session.post(
        path, data=b" " * 300_000, headers={"Content-Type": "application/json"} | shop.ada
    ) as answer:
        assert (answer.status, (await answer.json(content_type=None))["type"]) == (413, "/problems/too-large")


# --- right after the 201 ---


async def test_a_step_waits_for_the_ledger(shop: Shop) -> None:
    order = await shop.order("ada", ("A", 1))
    stepping = asyncio.create_task(shop.post(f"/v1/orders/{order.id}/payment", {"method": "card"}, 201, **shop.ada))
    await asyncio.sleep(0.3)
    assert not stepping.done()
    await shop.settle()
    assert (await stepping)["id"] == order.id
    late = await shop.order("ada", ("B", 1), key="late")
    began = time.monotonic()
    assert (await shop.post(f"/v1/orders/{late.id}/payment", {"method": "card"}, 503, **shop.ada))[
        "name"
    ] == "overloaded"
    assert 1.9 < time.monotonic() - began < 4
    for path in ("payment", "extension", "cancellation"):  # another's, and one that never was, at once
        began = time.monotonic()
        body = {"method": "card"} if path == "payment" else {}
        await shop.post(f"/v1/orders/{late.id}/{path}", body, 404, **shop.token("eve"))
        await shop.post(f"/v1/orders/{late.id[:-4]}ffff/{path}", body, 404, **shop.ada)
        assert time.monotonic() - began < 1.5


# --- extension, cancellation ---


async def test_a_hold_is_extended_once(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    before = await shop.read(order_id)
    extended = await shop.post(f"/v1/orders/{order_id}/extension", **shop.ada)
    assert _seconds(extended["reserved_until"]) - _seconds(before["reserved_until"]) == 300
    assert extended["next"]["until"] == extended["reserved_until"]
    assert extended == await shop.read(order_id)
    again = await shop.post(f"/v1/orders/{order_id}/extension", {}, 409, **shop.ada)
    assert (again["name"], "once" in again["detail"]) == ("not-extendable", True)
    await shop.ledger.execute("UPDATE orders SET extended = false, hold_ms = 1")
    assert (await shop.post(f"/v1/orders/{order_id}/extension", {}, 409, **shop.ada))["name"] == "not-extendable"


def _seconds(text: str) -> float:
    return round(datetime.fromisoformat(text).timestamp(), 3)


async def test_cancelling_gives_back_what_was_paid_and_a_second_time_changes_nothing(shop: Shop) -> None:
    order_id = await shop.buy(("A", 2), ("B", 1))
    await shop.post(f"/v1/orders/{order_id}/payment", {"method": "alipay", "return_url": BACK}, 201, **shop.ada)
    payment = await shop.get(f"/v1/orders/{order_id}/payment", **shop.ada)
    await asyncio.to_thread(shop.sandbox.choose, payment["pay_url"], "alipay", "pay")
    await shop.hear(order_id)
    path = f"/v1/orders/{order_id}/cancellation"
    part = {"lines": [{"sku": "A", "quantity": 1}], "reason": "one is enough"}
    for _ in range(3):  # under one key: once
        order = await shop.post(path, part, **shop.ada, **{"Idempotency-Key": "one"})
        assert [refund["amount"]["amount"] for refund in order["refunds"]] == [89900]
        assert order["lines"][0]["cancelled"] == order["lines"][0]["refunded"] == 1
    assert order["status"] == "paid"
    assert "key" not in order["history"][2]["detail"]
    assert order["history"][2]["detail"]["lines"] == [{"sku": "A", "quantity": 1}]
    fault = await shop.post(path, {"lines": [{"sku": "A", "quantity": 2}]}, 409, **shop.ada)
    assert fault["name"] == "not-cancellable"
    fault = await shop.post(path, {"lines": [{"sku": "X", "quantity": 1}]}, 422, **shop.ada)
    assert list(fault["fields"]) == ["lines[0].sku"]
    await shop.work(order_id)
    for _ in range(2):
        order = await shop.post(path, **shop.ada)
        assert (order["status"], order["next"]["do"]) == ("cancelled", "wait")
        assert [refund["amount"]["amount"] for refund in order["refunds"]] == [89900, 89900 + 505]
    await shop.work(order_id)
    await shop.refunds_arrive(order_id)
    order = await shop.read(order_id)
    assert (order["status"], order["payment"]["status"], order["next"]["do"]) == ("cancelled", "refunded", "nothing")
    assert [refund["status"] for refund in order["refunds"]] == ["succeeded", "succeeded"]
    listed = await shop.get(f"/v1/orders/{order_id}/refunds", **shop.ada)
    assert listed["refunds"] == order["refunds"]


async def test_an_open_payment_is_closed_with_its_cancelled_order(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    begun = await shop.post(f"/v1/orders/{order_id}/payment", {"method": "card"}, 201, **shop.ada)
    await shop.post(f"/v1/orders/{order_id}/cancellation", **shop.ada)
    await shop.work(order_id)
    _, leads_to, page = await asyncio.to_thread(shop.sandbox.choose, begun["pay_url"], "card", "pay")
    assert leads_to is None
    assert "be paid any more" in page
    assert (await shop.read(order_id))["next"]["do"] == "nothing"


# --- shipping, returns, goodwill ---


async def test_a_partial_shipment_captures_its_part_and_cancels_the_rest(shop: Shop) -> None:
    order_id = await shop.buy(("A", 2), ("B", 1))
    await shop.pay_by_card(order_id)
    path = f"/v1/orders/{order_id}/shipment"
    assert (await shop.post(path, {}, 403, **shop.ada))["name"] == "forbidden"
    lines = {"lines": [{"sku": "A", "quantity": 1}]}
    order = await shop.post(path, lines, **shop.admin, **{"Idempotency-Key": "parcel-1"})
    assert order == await shop.post(path, lines, **shop.admin, **{"Idempotency-Key": "parcel-1"})
    assert (order["status"], order["next"]["do"]) == ("shipped", "wait")
    assert [line.get("shipped", 0) for line in order["lines"]] == [1, 0]
    assert [line.get("cancelled", 0) for line in order["lines"]] == [1, 1]
    await shop.work(order_id)
    payment = await shop.get(f"/v1/orders/{order_id}/payment", **shop.ada)
    assert (payment["status"], payment["captured"]["amount"]) == ("captured", 89900)
    assert (await shop.post(path, {}, 409, **shop.admin))["name"] == "not-shippable"
    assert (await shop.post(f"/v1/orders/{order_id}/cancellation", {}, 409, **shop.ada))["name"] == "not-cancellable"


async def test_what_is_not_wanted_goes_back_and_its_price_returns(shop: Shop) -> None:
    order_id = await shop.buy(("A", 2))
    await shop.pay_by_card(order_id)
    path = f"/v1/orders/{order_id}/returns"
    asked = {"lines": [{"sku": "A", "quantity": 1}], "reason": "too loud"}
    assert (await shop.post(path, asked, 409, **shop.ada))["name"] == "not-returnable"
    await shop.post(f"/v1/orders/{order_id}/shipment", **shop.admin)
    await shop.work(order_id)
    delivered = await shop.post(f"/v1/orders/{order_id}/delivery", {"delivered": True}, **shop.admin)
    assert (delivered["status"], delivered["next"]["do"]) == ("delivered", "return")
    assert delivered["next"]["href"] == path
    again = await shop.post(f"/v1/orders/{order_id}/delivery", {"delivered": True}, **shop.admin)
    assert again == delivered
    made = await shop.post(path, asked, 201, **shop.ada, **{"Idempotency-Key": "back"})
    assert made == await shop.post(path, asked, 201, **shop.ada, **{"Idempotency-Key": "back"})
    assert (made["status"], made["lines"]) == ("requested", asked["lines"])
    one = f"/v1/returns/{made['id']}"
    assert made == await shop.get(one, **shop.ada)
    for suffix in ("", "/decision", "/receipt"):
        assert suffix or (await shop.get(one, status=404, **shop.token("eve")))["name"] == "not-found"
    for nonsense in ("x", "rt-%00", f"rt-{'0' * 30}-2", "%ff"):
        await shop.get(f"/v1/returns/{nonsense}", status=404, **shop.ada)
    assert (await shop.post(f"{one}/decision", {"accept": True}, 403, **shop.ada))["name"] == "forbidden"
    assert (await shop.read(order_id))["next"]["do"] == "wait"
    receipt = {"lines": [{"sku": "A", "quantity": 1, "restock": True}]}
    assert (await shop.post(f"{one}/receipt", receipt, 409, **shop.admin))["name"] == "not-returnable"
    assert (await shop.post(f"{one}/decision", {"accept": True}, **shop.admin))["status"] == "accepted"
    assert (await shop.read(order_id))["next"]["do"] == "send-back"
    received = await shop.post(f"{one}/receipt", receipt, **shop.admin)
    assert received == await shop.post(f"{one}/receipt", receipt, **shop.admin)
    assert received["lines"] == [{"sku": "A", "quantity": 1, "received": 1, "restocked": 1}]
    await shop.work(order_id)
    order = await shop.read(order_id)
    assert (order["payment"]["status"], order["payment"]["refunded"]["amount"]) == ("part_refunded", 89900)
    assert order["lines"][0]["returned"] == 1
    assert order["next"]["do"] == "return"  # the other one may go back as well
    assert (await shop.get(path, **shop.ada))["returns"] == order["returns"] == [received]
    await shop.ledger.execute("UPDATE history SET at_ms = at_ms - 40::int8 * 86400000")
    late = await shop.post(path, asked, 409, **shop.ada)
    assert late["returnable_until"].endswith("Z")
    assert (await shop.read(order_id))["next"]["do"] == "nothing"


async def test_goodwill_is_bounded_by_the_payment(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    path = f"/v1/orders/{order_id}/refunds"
    some = {"amount": {"amount": 1000, "currency": "SGD"}, "reason": "sorry"}
    assert (await shop.post(path, some, 403, **shop.ada))["name"] == "forbidden"
    none_left = await shop.post(path, some, 409, **shop.admin)
    assert (none_left["name"], none_left["refundable"]["amount"]) == ("refund-exceeds-payment", 0)
    await shop.pay_by_card(order_id)
    await shop.post(f"/v1/orders/{order_id}/shipment", **shop.admin)
    await shop.work(order_id)
    for _ in range(2):
        order = await shop.post(path, some, **shop.admin, **{"Idempotency-Key": "sorry"})
        assert [refund["amount"]["amount"] for refund in order["refunds"]] == [1000]
    foreign = some | {"amount": {"amount": 1, "currency": "THB"}}
    assert list((await shop.post(path, foreign, 422, **shop.admin))["fields"]) == ["amount.currency"]
    more = some | {"amount": {"amount": 88_901, "currency": "SGD"}}
    assert (await shop.post(path, more, 409, **shop.admin))["refundable"]["amount"] == 88_900


# --- a shopper who closes the laptop ---


async def test_whoever_comes_back_finds_one_state_and_the_next_step(
    shop: Shop, valkey_memory: ValkeyServer, ledger: str
) -> None:
    """After each thing that can happen, the shopper reads the order afresh, and the order in the list agrees."""
    seen: list[tuple[str, str]] = []

    async def look(order_id: str) -> None:
        order = await shop.read(order_id)
        assert order["next"]["do"] in set(Do)
        assert order["next"]["why"]
        assert [entry["number"] for entry in order["history"]] == list(range(1, len(order["history"]) + 1))
        listed = await shop.get("/v1/shoppers/me/orders", **shop.ada)
        statuses = {each["id"]: each["status"] for each in listed["orders"]}
        assert statuses.get(order_id, order["status"]) == order["status"]
        if href := order["next"].get("href"):
            async with shop.session.request("GET", href, headers=shop.ada) as answer:
                # No payment was begun yet; or the page waits for the ledger, to which nobody brings the order.
                assert answer.status in (200, 404, 503), href
        seen.append((order["status"], order["next"]["do"]))

    fresh = await shop.order("ada", ("A", 1))
    await look(fresh.id)  # only the journal has it
    await shop.settle()
    await look(fresh.id)
    begun = await shop.post(f"/v1/orders/{fresh.id}/payment", {"method": "card"}, 201, **shop.ada)
    await look(fresh.id)
    await asyncio.to_thread(shop.sandbox.choose, begun["pay_url"], "card", "decline")
    await shop.hear(fresh.id)
    await look(fresh.id)
    await asyncio.to_thread(shop.sandbox.choose, begun["pay_url"], "card", "pay")
    await look(fresh.id)  # paid, and nobody has heard of it
    await shop.hear(fresh.id)
    await look(fresh.id)
    await shop.post(f"/v1/orders/{fresh.id}/shipment", **shop.admin)
    await look(fresh.id)
    await shop.work(fresh.id)
    await shop.post(f"/v1/orders/{fresh.id}/delivery", {"delivered": False}, **shop.admin)
    await look(fresh.id)
    await shop.work(fresh.id)
    await look(fresh.id)
    assert seen == [
        *[("reserved", "pay")] * 5,
        *[("paid", "wait"), ("shipped", "wait"), ("undeliverable", "wait"), ("undeliverable", "nothing")],
    ]

    seen.clear()
    unpaid = await shop.buy(("A", 1), key="unpaid")
    expiry = Expiry(valkey_memory.url, ledger, grace_s=0)
    try:
        await shop.ledger.execute("UPDATE orders SET hold_ms = 1 WHERE id = $1", unpaid)
        await look(unpaid)  # overdue, and not swept yet
        await shop.ledger.execute("UPDATE orders SET hold_ms = 900000 WHERE id = $1", unpaid)
        await expiry.sweep(shop.ledger, time.time_ns() // 1_000_000 + 901_000)
        await look(unpaid)
    finally:
        await expiry._client.aclose()
    assert seen == [("reserved", "wait"), ("expired", "order-again")]


# --- events ---


async def test_a_stream_tells_every_change_once_and_resumes_by_number(shop: Shop) -> None:
    order_id = await shop.buy(("A", 2))
    path = f"/v1/orders/{order_id}/events"
    async with shop.session.get(path, headers=shop.ada) as answer, asyncio.timeout(15):
        told = events(answer)
        first = await anext(told)
        assert (first["id"], first["data"]["event"]) == ("1", "order.reserved")
        await shop.pay_by_card(order_id)
        paid = await anext(told)
        assert (paid["id"], paid["data"]["event"], paid["data"]["status"]) == ("2", "order.paid", "paid")
        await shop.post(f"/v1/orders/{order_id}/shipment", {"lines": [{"sku": "A", "quantity": 1}]}, **shop.admin)
        assert [(await anext(told))["id"] for _ in range(2)] == ["3", "4"]
    await shop.post(f"/v1/orders/{order_id}/delivery", {"delivered": True}, **shop.admin)
    async with shop.session.get(path, headers=shop.ada | {"Last-Event-ID": "2"}) as answer, asyncio.timeout(5):
        told = events(answer)
        got = [await anext(told) for _ in range(3)]
        assert [each["id"] for each in got] == ["3", "4", "5"]
        assert got[-1]["data"]["status"] == "delivered"


async def test_many_streams_are_one_look_at_the_ledger(shop: Shop) -> None:
    ids = [await shop.buy(("B", 1), key=f"k{number}") for number in range(2)]
    asked = 0
    connection = shop.context.ledger.connection

    def counted() -> Any:
        nonlocal asked
        asked += 1
        return connection()

    shop.context.ledger.connection = counted  # type: ignore[method-assign]
    streams = [await shop.session.get(f"/v1/orders/{ids[n % 2]}/events", headers=shop.ada) for n in range(20)]
    for answer in streams:
        assert (await anext(events(answer)))["id"] == "1"
    asked = 0
    await asyncio.sleep(3.2)
    assert asked <= 4  # one a second, whoever follows
    for answer in streams:
        answer.close()
    async with asyncio.timeout(5):
        while shop.app[WATCH]._looking is not None:  # noqa: ASYNC110  nothing tells when a reader has gone
            await asyncio.sleep(0.05)


# --- the ledger away ---


async def test_without_the_ledger_steps_are_503_and_nothing_was_done(shop: Shop) -> None:
    order_id = await shop.buy(("A", 1))
    await shop.pay_by_card(order_id)
    there, shop.context.ledger = shop.context.ledger, Ledger("postgresql://nobody@127.0.0.1:1/nothing")
    steps: dict[str, Any] = {
        "payment": {"method": "card"},
        "extension": {},
        "cancellation": {},
        "shipment": {},
        "delivery": {"delivered": True},
        "returns": {"lines": [{"sku": "A", "quantity": 1}], "reason": "x"},
        "refunds": {"amount": {"amount": 1, "currency": "SGD"}, "reason": "x"},
    }
    for step, body in steps.items():
        refused = await shop.post(f"/v1/orders/{order_id}/{step}", body, 503, **shop.admin)
        assert refused["name"] == "overloaded", step
    for page in ("payment", "refunds", "returns", ""):
        await shop.get(f"/v1/orders/{order_id}/{page}".rstrip("/"), status=503, **shop.ada)
    await shop.get(f"/v1/returns/rt-{order_id}-2", status=503, **shop.ada)
    shop.context.ledger = there
    assert [entry["event"] for entry in (await shop.read(order_id))["history"]] == ["order.reserved", "order.paid"]


async def test_a_frozen_ledger_costs_a_step_its_timeout(
    valkey_memory: ValkeyServer, own_postgres: Callable[..., PostgresServer], sandbox: Sandbox
) -> None:
    server = own_postgres()
    server.start()
    await migrate(server.url)
    async with open_shop(valkey_memory.url, server.url, sandbox) as shop:
        order_id = await shop.buy(("A", 1))
        await shop.read(order_id)
        frozen = _processes_of(server.pid)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert (await shop.post(f"/v1/orders/{order_id}/cancellation", {}, 503, **shop.ada))["name"] == "overloaded"
            assert time.monotonic() - began < 5
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert (await shop.post(f"/v1/orders/{order_id}/cancellation", **shop.ada))["status"] == "cancelled"


def _processes_of(parent: int) -> list[int]:
    """The server and its backends."""
    children = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    if int(stat.read().rpartition(")")[2].split()[1]) == parent:
                        children.append(int(entry))
            except FileNotFoundError:
                continue
    return [parent, *children]
