"""Paying over the pages: real servers and the payments sandbox; one order is one session, whatever fails."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgpack
import pytest

from flashsale.partners.payments.stripe import StripeProvider
from tests.integration.paying_house import BACK, Shop
from tests.payments_sandbox import API_KEY

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
    for elsewhere in ("https://evil.example/", "https://shop.example.evil.example/", "https://shop.example:8443/"):
        wrong = await shop.post(path, {"method": "card", "return_url": elsewhere}, 422, **shop.ada)
        assert "no place of this shop" in wrong["fields"]["return_url"], elsewhere
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
