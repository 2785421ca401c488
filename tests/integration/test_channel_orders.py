"""A channel sees its orders to the door and back, over real pages, a real Valkey and a real ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pypdfium2
import pytest
import zxingcpp

from flashsale.embedded import ValkeyServer
from tests.integration.channel_house import FRIDGE, KETTLE, ChannelHouse, open_channel_house

SG = "/v1/channels/lazada-sg"


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[ChannelHouse]:
    async with open_channel_house(valkey_memory.url, ledger) as house:
        yield house


async def _status(shop: ChannelHouse, order_id: str) -> str:
    return str(await shop.ledger.fetchval("SELECT status FROM orders WHERE id = $1", order_id))


# --- lists ---


async def test_a_channel_lists_its_own_orders_oldest_first_by_page_and_window(shop: ChannelHouse) -> None:
    made = [await shop.channel_order("lazada-sg", KETTLE, shopper=f"s{n}", paid=False) for n in range(5)]
    await shop.channel_order("lazada-th", FRIDGE, market="TH")
    seen, path, pages = [], f"{SG}/orders?limit=2", 0
    while path:
        body = await shop.get(path, **shop.of("lazada-sg"))
        seen += [order["id"] for order in body["orders"]]
        path, pages = body.get("next"), pages + 1
    assert (seen, pages) == (made, 3)
    everything = (await shop.get(f"{SG}/orders", **shop.admin))["orders"]
    assert [order["id"] for order in everything] == made
    first = everything[0]
    assert (first["shopper"], first["reference"], first["payment"]) == ("s0", "ref-1", "none")
    assert first["ship_to"]["name"] == "王小明"
    third = everything[2]["created_at"]
    later = await shop.get(f"{SG}/orders?created_after={third}&limit=1", **shop.of("lazada-sg"))
    assert [order["id"] for order in later["orders"]] == [made[3]]
    assert "created_after" in later["next"]
    rest = await shop.get(later["next"], **shop.of("lazada-sg"))
    assert ([order["id"] for order in rest["orders"]], "next" in rest) == ([made[4]], False)
    within = await shop.get(f"{SG}/orders?created_before={third}", **shop.of("lazada-sg"))
    assert [order["id"] for order in within["orders"]] == made[:2]


@pytest.mark.parametrize("query", ["limit=201", "limit=0", "after=x", "created_after=now", "created_after=2026-11-11"])
async def test_a_list_is_asked_for_properly(shop: ChannelHouse, query: str) -> None:
    assert (await shop.get(f"{SG}/orders?{query}", 400, **shop.admin))["name"] == "malformed"


async def test_every_page_is_the_channels_own_and_the_admins(shop: ChannelHouse) -> None:
    mine = await shop.channel_order("lazada-sg", FRIDGE)
    thai, admin, ada = shop.of("lazada-th"), shop.admin, shop.token("ada")
    paths = [("get", ""), ("get", "/waybill"), ("post", "/pack"), ("post", "/ready-to-ship"), ("post", "/delivered")]
    paths += [("post", "/failed-delivery"), ("get", "/reverse-orders")]
    for method, suffix in paths:
        ask: Any = shop.get if method == "get" else lambda path, status, **given: shop.post(path, None, status, **given)
        assert (await ask(f"{SG}/orders/{mine}{suffix}", 404, **thai))["name"] == "not-found"
        assert (await ask(f"/v1/channels/lazada-th/orders/{mine}{suffix}", 404, **thai))["name"] == "not-found"
        assert (await ask(f"/v1/channels/lazada-th/orders/{mine}{suffix}", 404, **admin))["name"] == "not-found"
        assert (await ask(f"{SG}/orders/{mine}{suffix}", 403, **ada))["name"] == "forbidden"
        assert (await ask(f"{SG}/orders/{mine}{suffix}", 401))["name"] == "unauthenticated"
    assert (await shop.get("/v1/channels/shopee/orders", 404, **admin))["name"] == "not-found"
    assert await _status(shop, mine) == "paid"
    assert (await shop.get(f"{SG}/orders/{mine}", **admin))["id"] == mine


# --- to the door ---


async def test_a_parcel_is_packed_once_labelled_shipped_and_delivered(shop: ChannelHouse) -> None:
    order_id = await shop.channel_order("lazada-sg", FRIDGE, KETTLE)
    own, path = shop.of("lazada-sg"), f"{SG}/orders/{order_id}"
    for suffix in ("/ready-to-ship", "/delivered", "/failed-delivery"):
        assert (await shop.post(f"{path}{suffix}", None, 409, **own))["name"] == "not-packed"
    assert (await shop.get(f"{path}/waybill", 409, **own))["name"] == "not-packed"
    package = await shop.post(f"{path}/pack", None, 201, **own)
    assert package["lines"] == [{"sku": "FRIDGE", "quantity": 1}, {"sku": "KETTLE", "quantity": 2}]
    again = await shop.post(f"{path}/pack", None, 409, **own)
    assert (again["name"], again["package"], again["tracking"]) == (
        "already-packed",
        package["package"],
        package["tracking"],
    )
    assert (await shop.post(f"{path}/delivered", None, 409, **own))["name"] == "not-shippable"
    for _ in range(2):
        shipped = await shop.post(f"{path}/ready-to-ship", None, **own)
        assert (shipped["status"], shipped["package"]) == ("shipped", package)
    for _ in range(2):
        assert (await shop.post(f"{path}/delivered", None, **own))["status"] == "delivered"
    assert (await shop.post(f"{path}/ready-to-ship", None, **own))["status"] == "delivered"
    assert (await shop.post(f"{path}/failed-delivery", None, 409, **own))["name"] == "not-shippable"
    events = await shop.ledger.fetch("SELECT event FROM history WHERE order_id = $1 ORDER BY number", order_id)
    assert [row[0] for row in events] == ["order.paid", "order.shipped", "order.delivered"]


async def test_what_is_not_in_the_parcel_is_cancelled_when_it_ships(shop: ChannelHouse) -> None:
    order_id = await shop.channel_order("lazada-sg", FRIDGE, KETTLE)
    own, path = shop.of("lazada-sg"), f"{SG}/orders/{order_id}"
    for wrong in (("FRIDGE", 2), ("KETTLE", 3)):
        lines = {"lines": [{"sku": wrong[0], "quantity": wrong[1]}]}
        assert (await shop.post(f"{path}/pack", lines, 409, **own))["name"] == "not-shippable"
    assert (await shop.post(f"{path}/pack", {"lines": [{"sku": "X", "quantity": 1}]}, 422, **own))["name"]
    await shop.post(f"{path}/pack", {"lines": [{"sku": "KETTLE", "quantity": 2}]}, 201, **own)
    # One kettle is cancelled between packing and shipping: it is taken out of the parcel again.
    part = {"lines": [{"sku": "KETTLE", "quantity": 1}]}
    await shop.post(f"/v1/orders/{order_id}/cancellation", part, **shop.admin)
    shipped = await shop.post(f"{path}/ready-to-ship", None, **own)
    assert [(line.get("shipped", 0), line.get("cancelled", 0)) for line in shipped["lines"]] == [(0, 1), (1, 1)]


async def test_only_a_paid_order_is_packed_and_a_cancelled_one_does_not_ship(shop: ChannelHouse) -> None:
    own = shop.of("lazada-sg")
    unpaid = await shop.channel_order("lazada-sg", FRIDGE, paid=False)
    refused = await shop.post(f"{SG}/orders/{unpaid}/pack", None, 409, **own)
    assert (refused["name"], refused["order_status"]) == ("not-shippable", "reserved")
    packed = await shop.channel_order("lazada-sg", FRIDGE)
    await shop.post(f"{SG}/orders/{packed}/pack", None, 201, **own)
    await shop.post(f"/v1/orders/{packed}/cancellation", None, **shop.admin)
    assert (await shop.post(f"{SG}/orders/{packed}/ready-to-ship", None, 409, **own))["name"] == "not-shippable"


async def test_a_failed_delivery_makes_the_order_undeliverable_and_it_comes_home(shop: ChannelHouse) -> None:
    order_id = await shop.channel_order("lazada-sg", KETTLE)
    own, path = shop.of("lazada-sg"), f"{SG}/orders/{order_id}"
    await shop.post(f"{path}/pack", None, 201, **own)
    await shop.post(f"{path}/ready-to-ship", None, **own)
    await _captured(shop, order_id)
    for _ in range(2):
        failed = await shop.post(f"{path}/failed-delivery", None, **own)
        assert (failed["status"], failed["lines"][0]["refunded"]) == ("undeliverable", 2)
    assert (await shop.post(f"{path}/delivered", None, 409, **own))["name"] == "not-shippable"


async def test_the_waybill_is_a_pdf_whose_bars_are_the_tracking_number(shop: ChannelHouse) -> None:
    order_id = await shop.channel_order("lazada-sg", FRIDGE, KETTLE)
    own, path = shop.of("lazada-sg"), f"{SG}/orders/{order_id}"
    package = await shop.post(f"{path}/pack", None, 201, **own)
    async with shop.session.get(f"{path}/waybill", headers=own) as answer:
        assert (answer.status, answer.content_type) == (200, "application/pdf")
        pdf = await answer.read()
    (page,) = pypdfium2.PdfDocument(pdf)
    text = page.get_textpage().get_text_bounded()
    for written in (
        "1 Orchard Road",
        "SG",
        package["tracking"],
        "FRIDGE",
        "2 x KETTLE",
        "69.800 kg",
        order_id,
    ):
        assert written in text, text
    found = zxingcpp.read_barcodes(page.render(scale=4).to_pil())
    assert [(str(bars.format), bars.text) for bars in found] == [("Code 128", package["tracking"])]


# --- and back ---


async def _captured(shop: ChannelHouse, order_id: str) -> None:
    """What the provider's answer to the capture changes."""
    await shop.ledger.execute(
        "UPDATE payment SET captured = todo_amount, rank = 3, state = 'captured', todo = NULL WHERE order_id = $1",
        order_id,
    )


async def test_a_reverse_order_is_asked_for_accepted_and_received(shop: ChannelHouse) -> None:
    order_id = await shop.channel_order("lazada-sg", KETTLE)
    own, path = shop.of("lazada-sg"), f"{SG}/orders/{order_id}"
    asked = {"lines": [{"sku": "KETTLE", "quantity": 1}], "reason": "leaks"}
    assert (await shop.post(f"{path}/reverse-orders", asked, 409, **own))["name"] == "not-returnable"
    await shop.post(f"{path}/pack", None, 201, **own)
    await shop.post(f"{path}/ready-to-ship", None, **own)
    await _captured(shop, order_id)
    await shop.post(f"{path}/delivered", None, **own)
    made = await shop.post(f"{path}/reverse-orders", asked, 201, **own, **{"Idempotency-Key": "r1"})
    assert made == await shop.post(f"{path}/reverse-orders", asked, 201, **own, **{"Idempotency-Key": "r1"})
    one = f"{SG}/reverse-orders/{made['id']}"
    assert await shop.get(one, **own) == made
    foreign = f"/v1/channels/lazada-th/reverse-orders/{made['id']}"
    for wrong in (foreign, f"{SG}/reverse-orders/x", f"{SG}/reverse-orders/rt-{'0' * 30}-2"):
        assert (await shop.get(wrong, 404, **shop.admin))["name"] == "not-found"
        assert (await shop.post(f"{wrong}/decision", {"accept": True}, 404, **shop.admin))["name"] == "not-found"
    receipt = {"lines": [{"sku": "KETTLE", "quantity": 1, "restock": True}]}
    assert (await shop.post(f"{one}/receipt", receipt, 409, **own))["name"] == "not-returnable"
    assert (await shop.post(f"{one}/decision", {"accept": True}, **own))["status"] == "accepted"
    for _ in range(2):
        received = await shop.post(f"{one}/receipt", receipt, **own)
        assert received["lines"] == [{"sku": "KETTLE", "quantity": 1, "received": 1, "restocked": 1}]
    assert (await shop.get(f"{path}/reverse-orders", **own))["returns"] == [received]
    assert (await shop.get(path, **own))["lines"][0]["returned"] == 1


async def test_an_order_that_the_channel_collected_goes_the_same_way_without_a_provider(shop: ChannelHouse) -> None:
    order_id = await shop.channel_order("lazada-sg", KETTLE, collected=True)
    own, path = shop.of("lazada-sg"), f"{SG}/orders/{order_id}"
    assert (await shop.get(path, **own))["payment"] == "captured"
    await shop.post(f"{path}/pack", None, 201, **own)
    await shop.post(f"{path}/ready-to-ship", None, **own)
    await shop.post(f"{path}/delivered", None, **own)
    asked = {"lines": [{"sku": "KETTLE", "quantity": 2}], "reason": "leaks"}
    made = await shop.post(f"{path}/reverse-orders", asked, 201, **own)
    one = f"{SG}/reverse-orders/{made['id']}"
    await shop.post(f"{one}/decision", {"accept": True}, **own)
    received = await shop.post(f"{one}/receipt", {"lines": [{"sku": "KETTLE", "quantity": 2}]}, **own)
    assert received["status"] == "received"
    order = await shop.get(path, **own)
    assert (order["lines"][0]["returned"], order["lines"][0]["refunded"]) == (2, 2)


async def test_a_collected_order_that_can_not_be_delivered_is_undeliverable(shop: ChannelHouse) -> None:
    order_id = await shop.channel_order("lazada-sg", KETTLE, collected=True)
    own, path = shop.of("lazada-sg"), f"{SG}/orders/{order_id}"
    await shop.post(f"{path}/pack", None, 201, **own)
    await shop.post(f"{path}/ready-to-ship", None, **own)
    assert (await shop.post(f"{path}/failed-delivery", None, **own))["status"] == "undeliverable"
