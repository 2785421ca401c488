"""The life of an order as its shopper and an admin drive it: real pages, real servers, the payments sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.front.watch import WATCH
from flashsale.ledger.migrate import migrate
from flashsale.ledger.pool import Ledger
from flashsale.pipeline.expiry import Expiry
from flashsale.sale.next_step import Do
from tests.integration.house import events
from tests.integration.paying_house import BACK, Shop, open_shop
from tests.payments_sandbox import Sandbox

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
    valkey_memory: ValkeyServer, own_postgres: Callable[..., PostgresServer], payments_sandbox: Sandbox
) -> None:
    server = own_postgres()
    server.start()
    await migrate(server.url)
    async with open_shop(valkey_memory.url, server.url, payments_sandbox) as shop:
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
