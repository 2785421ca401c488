"""A sales channel's orders, many in one request: each is answered on its own, and its guarantee is its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from flashsale.front.auth import mint
from tests.conftest import Engine
from tests.crowd import audit
from tests.wire import Answer, ask, get, post, post_order

SALE = """
[sale]
id = "{id}"
name = "Channels"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2099-01-01T00:00:00Z
hold_seconds = 900
[[offers]]
sku = "FRIDGE"
brand = "Haier"
title = {{ en = "fridge" }}
stock = 20
quota = 2
weight_g = 900
prices = {{ SG = "899.00" }}
guarantees = {{ "lazada-sg" = 5, "lazada-my" = 3 }}
[[offers]]
sku = "KETTLE"
brand = "Joyoung"
title = {{ en = "kettle" }}
stock = 5000
quota = 0
weight_g = 900
prices = {{ SG = "20.50" }}
"""


@pytest.fixture(scope="module", autouse=True)
def sale(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("channels") / "sale.toml"
    file.write_text(SALE.format(id="channels"))
    engine.command("sale", "create", str(file))
    return "channels"


def token(engine: Engine, role: str, sub: str) -> str:
    secret = (Path(engine.data_dir) / "secret").read_bytes().strip()
    return next(mint(secret, sub, role, 3600, int(time.time())))


def an_order(
    reference: str, sku: str = "KETTLE", quantity: int = 1, shopper: str = "ann", **more: Any
) -> dict[str, Any]:
    lines = [{"sku": sku, "quantity": quantity}]
    return {"reference": reference, "shopper": shopper, "sale": "channels", "market": "SG", "lines": lines, **more}


async def send(engine: Engine, orders: list[Any], channel: str = "lazada-sg", role: str = "channel") -> Answer:
    path = f"/v1/channels/{channel}/orders"
    (answer,) = await ask(
        engine.port, post(path, json.dumps({"orders": orders}).encode(), token(engine, role, channel))
    )
    return answer


async def results(engine: Engine, orders: list[Any], channel: str = "lazada-sg") -> list[dict[str, Any]]:
    answer = await send(engine, orders, channel)
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json()["results"]
    assert len(found) == len(orders)
    return found


async def test_five_hundred_orders_are_answered_in_their_order(engine: Engine) -> None:
    found = await results(engine, [an_order(f"many-{number}") for number in range(500)])
    assert [each["reference"] for each in found] == [f"many-{number}" for number in range(500)]
    assert {each["status"] for each in found} == {201}
    assert len({each["order"]["id"] for each in found}) == 500
    one = found[7]["order"]
    assert (one["channel"], one["status"], one["total"]) == (
        "lazada-sg", "reserved", {"amount": 2050, "currency": "SGD"},
    )  # fmt: skip
    (read,) = await ask(engine.port, get(f"/v1/orders/{one['id']}", token(engine, "admin", "clerk")))
    assert (read.status, read.json()["id"]) == (200, one["id"])


async def test_one_order_s_fault_is_its_own(engine: Engine) -> None:
    found = await results(
        engine,
        [
            an_order("good"),
            an_order("no sale") | {"sale": "nowhere"},
            an_order("no sku", sku="SOCKS"),
            {"reference": "odd", "lines": 3},
            "not even an object",
            an_order("too many", quantity=20_000),
            an_order("recipient", **{"for": "ben"}),
            an_order("elsewhere", channel="lazada-my"),
            an_order("good"),
            an_order('"quoted\\"'),
            an_order("bad identity", identity="idn_" + "0" * 36),
        ],
    )
    assert [each["status"] for each in found] == [201, 404, 404, 422, 422, 422, 422, 422, 201, 201, 422]
    assert [each["reference"] for each in found][3:5] == ["odd", None]
    assert found[9]["reference"] == '"quoted\\"'
    assert found[8]["order"] == found[0]["order"]
    assert "lines[0].quantity" in found[5]["problem"]["fields"]
    assert found[10]["problem"]["type"] == "/problems/identity-unverified"


async def test_a_channel_draws_on_its_guarantee_and_then_on_the_common_pool(engine: Engine) -> None:
    # 20 fridges: 5 are lazada-sg's, 3 lazada-my's, 12 anybody's. Two a shopper.
    sold = await results(engine, [an_order(f"f{n}", "FRIDGE", 2, f"s{n}") for n in range(10)])
    assert [each["status"] for each in sold] == [201] * 8 + [409] * 2  # 16 of 17; then one is left
    assert sold[8]["problem"]["lines"] == [{"sku": "FRIDGE", "requested": 2, "available": 1}]
    body = json.dumps({"sale": "channels", "market": "SG", "lines": [{"sku": "FRIDGE", "quantity": 2}]}).encode()
    (world,) = await ask(engine.port, post_order(body, token(engine, "shopper", "web"), "k"))
    assert (world.status, world.json()["lines"][0]["available"]) == (409, 1)
    own = await results(engine, [an_order("m1", "FRIDGE", 2, "m1"), an_order("m2", "FRIDGE", 2, "m2")], "lazada-my")
    assert [each["status"] for each in own] == [201, 201]  # three of its own and the last one of all
    over = await results(engine, [an_order("again", "FRIDGE", 1, "s0")])
    assert over[0]["problem"]["type"] == "/problems/quota-exceeded"


async def test_who_has_the_money_is_a_part_of_the_order(engine: Engine) -> None:
    (unpaid,) = await results(engine, [an_order("owed")])
    (other,) = await results(engine, [an_order("owed", collected_by="channel")])
    assert (unpaid["status"], other["problem"]["type"]) == (201, "/problems/idempotency-mismatch")
    paid, again = await results(engine, [an_order("had", collected_by="channel")] * 2)
    assert (paid["status"], paid["order"]["status"], again["order"]) == (201, "paid", paid["order"])
    (other,) = await results(engine, [an_order("had")])
    assert other["problem"]["type"] == "/problems/idempotency-mismatch"


async def test_no_shopper_orders_in_a_marketplace_s_name(engine: Engine) -> None:
    body = {"sale": "channels", "market": "SG", "lines": [{"sku": "KETTLE", "quantity": 1}], "channel": "lazada-sg"}
    (answer,) = await ask(
        engine.port, post_order(json.dumps(body).encode(), token(engine, "shopper", "sly"), "k")
    )  # fmt: skip
    assert (answer.status, list(answer.json()["fields"])) == (422, ["channel"])
    body["channel"] = "tmall-world"
    (answer,) = await ask(engine.port, post_order(json.dumps(body).encode(), token(engine, "shopper", "sly"), "k"))
    assert answer.status == 201


async def test_references_and_shoppers_are_the_channel_s_own(engine: Engine) -> None:
    (first,) = await results(engine, [an_order("same", shopper="zoe")])
    (other,) = await results(engine, [an_order("same", shopper="zoe")], "lazada-my")
    assert first["order"]["id"] != other["order"]["id"]
    (refused,) = await results(engine, [an_order("same", shopper="zoe", quantity=2)])
    assert refused["problem"]["type"] == "/problems/idempotency-mismatch"
    (read,) = await ask(engine.port, get(f"/v1/orders/{first['order']['id']}", token(engine, "shopper", "zoe")))
    assert read.status == 404


@pytest.mark.parametrize(
    ("channel", "role", "sub", "status"),
    [
        ("lazada-sg", "channel", "lazada-my", 403),
        ("lazada-sg", "shopper", "lazada-sg", 403),
        ("lazada-sg", "admin", "clerk", 200),
        ("nowhere", "channel", "nowhere", 404),
    ],
)
async def test_a_channel_orders_with_its_own_token(
    engine: Engine, channel: str, role: str, sub: str, status: int
) -> None:
    body = json.dumps({"orders": [an_order("who")]}).encode()
    (answer,) = await ask(engine.port, post(f"/v1/channels/{channel}/orders", body, token(engine, role, sub)))
    assert answer.status == status


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"orders":[]}', b'{"orders":3}', b'{"orders":[{}],"more":1}'])
async def test_a_body_that_is_no_list_of_orders_is_refused_whole(engine: Engine, body: bytes) -> None:
    who = token(engine, "channel", "lazada-sg")
    (answer,) = await ask(engine.port, post("/v1/channels/lazada-sg/orders", body, who))
    assert answer.status in (400, 422)
    too_many = json.dumps({"orders": [{}] * 501}).encode()
    (answer,) = await ask(engine.port, post("/v1/channels/lazada-sg/orders", too_many, who))
    assert answer.status == 422


async def test_messagepack_is_answered_in_kind(engine: Engine) -> None:
    body = msgpack.packb({"orders": [an_order("packed"), an_order("sold out", "FRIDGE", 50)]})
    who = token(engine, "channel", "lazada-sg")
    request = post("/v1/channels/lazada-sg/orders", body, who, "application/msgpack")
    (answer,) = await ask(engine.port, request)
    good, bad = msgpack.unpackb(answer.body)["results"]
    assert (good["status"], good["order"]["status"]) == (201, "reserved")
    assert bad["problem"]["type"] in ("/problems/quota-exceeded", "/problems/sold-out")


async def test_the_books_are_right_afterwards(engine: Engine) -> None:
    assert (await audit(engine))["ok"]
