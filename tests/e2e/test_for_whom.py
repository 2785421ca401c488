"""Whose limits an order counts for, over HTTP: a verified identity's imports, and the recipient of an agent's order."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flashsale.front.identities import IdentityTokens
from tests.conftest import Engine
from tests.crowd import audit
from tests.wire import Answer, ask, get, post, post_order

SALE = "double11"
WATCH, DRYER, SERUM = "IMPORT-WATCH-PRESAGE", "IMPORT-DRYER-HD15", "IMPORT-SERUM-50"
ANNUAL, SINGLE = 2_600_000, 500_000  # fen
WITHIN_S = 10


def identity(engine: Engine, shopper: str, person: bytes) -> str:
    """What a verification would have answered this shopper."""
    secret = (Path(engine.data_dir) / "secret").read_bytes().strip()
    return IdentityTokens(secret).issue(shopper, person)


async def place(engine: Engine, token: str, key: str, market: str, *skus: str, **more: Any) -> Answer:
    lines = [{"sku": sku, "quantity": 1} for sku in skus]
    body = json.dumps({"sale": SALE, "market": market, "lines": lines, **more}).encode()
    (answer,) = await ask(engine.port, post_order(body, token, key))
    return answer


async def imported(engine: Engine, shopper: str, person: bytes, *skus: str, key: str = "k") -> Answer:
    token = engine.token("shopper", shopper)
    return await place(
        engine, token, key, "CN", *skus, channel="tmall-global", identity=identity(engine, shopper, person)
    )  # fmt: skip


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not await look():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_year_s_imports_count_for_the_person_whatever_account_orders(engine: Engine) -> None:
    person = b"person-one"
    used, ids = 0, []
    for number in range(4):  # a single watch is dearer than one order's limit, and allowed with full tax
        answer = await imported(engine, f"imp-{number}", person, WATCH)
        assert answer.status == 201, answer
        made = answer.json()
        assert made["tax"]["amount"] > 0
        used += made["total"]["amount"] - made["tax"]["amount"] - made["duty"]["amount"]
        ids.append(made["id"])
    refused = await imported(engine, "imp-4", person, WATCH)
    assert (refused.status, refused.problem) == (409, "import-limit-exceeded")
    said = {name: refused.json()[name]["amount"] for name in ("limit", "used", "left")}
    assert said == {"limit": ANNUAL, "used": used, "left": ANNUAL - used}
    assert (await imported(engine, "imp-9", b"person-two", WATCH)).status == 201

    cancelled = engine.token("shopper", "imp-0")
    (answer,) = await ask(engine.port, post(f"/v1/orders/{ids[0]}/cancellation", b"{}", cancelled))
    assert answer.status in (200, 201), answer

    async def fits() -> bool:
        return (await imported(engine, "imp-4", person, WATCH)).status == 201

    await eventually(fits)


async def test_another_person_under_the_same_key_is_another_order(engine: Engine) -> None:
    first = await imported(engine, "imp-7", b"person-fou", SERUM)
    again = await imported(engine, "imp-7", b"person-fou", SERUM)
    assert (first.status, again.json()["id"]) == (201, first.json()["id"])
    other = await imported(engine, "imp-7", b"person-fiv", SERUM)
    assert (other.status, other.problem) == (422, "idempotency-mismatch")


async def test_several_goods_beyond_one_order_s_limit_are_refused(engine: Engine) -> None:
    refused = await imported(engine, "imp-5", b"person-thr", WATCH, DRYER)
    assert (refused.status, refused.problem) == (409, "import-limit-exceeded")
    assert refused.json()["limit"]["amount"] == SINGLE
    assert refused.json()["left"]["amount"] == ANNUAL


async def test_somebody_else_s_identity_is_no_identity(engine: Engine) -> None:
    token = engine.token("shopper", "thief")
    stolen = identity(engine, "imp-1", b"person-one")
    refused = await place(engine, token, "k", "CN", SERUM, channel="tmall-global", identity=stolen)
    assert (refused.status, refused.problem) == (422, "identity-unverified")


@pytest.fixture(scope="module")
def sku(engine: Engine) -> str:
    """An offer with a quota of two, in Singapore."""
    return "HAIER-FRIDGE-90"


async def grant(engine: Engine, recipient: str, agent: str) -> str:
    body = json.dumps({"agent": agent}).encode()
    (answer,) = await ask(
        engine.port, post("/v1/shoppers/me/grants", body, engine.token("shopper", recipient))
    )  # fmt: skip
    assert answer.status == 201, answer
    return str(answer.json()["id"])


async def test_an_agent_orders_under_a_grant_and_the_recipient_s_quota(engine: Engine, sku: str) -> None:
    agent, recipient = engine.token("agent", "daigou"), engine.token("shopper", "rui")
    refused = await place(engine, agent, "a0", "SG", sku, **{"for": "rui"})
    assert (refused.status, refused.problem) == (403, "not-granted")
    given = await grant(engine, "rui", "daigou")
    first = await place(engine, agent, "a1", "SG", sku, **{"for": "rui"})
    assert first.status == 201, first
    own = await place(engine, recipient, "a1", "SG", sku)  # the same key, and an order of its own
    assert own.status == 201
    assert own.json()["id"] != first.json()["id"]
    over = await place(engine, agent, "a2", "SG", sku, **{"for": "rui"})
    assert (over.status, over.problem) == (409, "quota-exceeded")
    assert (over.json()["quota"], over.json()["used"]) == (2, 2)
    for token in (agent, recipient):
        (read,) = await ask(engine.port, get(f"/v1/orders/{first.json()['id']}", token))
        assert (read.status, read.json()["agent"]) == (200, "daigou")
    (read,) = await ask(engine.port, get(f"/v1/orders/{own.json()['id']}", agent))
    assert read.status == 404

    path = f"/v1/orders/{first.json()['id']}/payment"
    away = json.dumps({"method": "card", "return_url": "https://daigou.example/"}).encode()
    (refused,) = await ask(engine.port, post(path, away, agent))  # who pays is not led to a place of the agent's
    assert (refused.status, list(refused.json()["fields"])) == (422, ["return_url"])
    card = json.dumps({"method": "card"}).encode()
    (paying,) = await ask(engine.port, post(path, card, agent))
    assert paying.status == 201

    revoke = f"DELETE /v1/shoppers/me/grants/{given} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {recipient}\r\n\r\n"
    (gone,) = await ask(engine.port, revoke.encode())
    assert gone.status == 204
    (refused,) = await ask(engine.port, post(path, card, agent))  # no step without a grant that is in force
    assert (refused.status, refused.problem) == (403, "not-granted")
    refused = await place(engine, agent, "a3", "SG", "MIDEA-FAN-16", **{"for": "rui"})
    assert (refused.status, refused.problem) == (403, "not-granted")
    again = await place(engine, agent, "a1", "SG", sku, **{"for": "rui"})
    assert (again.status, again.json()["id"]) == (201, first.json()["id"])


async def test_only_agents_name_whom_they_order_for(engine: Engine, sku: str) -> None:
    for who, more in ((("shopper", "ann"), {"for": "rui"}), (("agent", "daigou"), {})):
        refused = await place(engine, engine.token(*who), "n", "SG", sku, **more)
        assert (refused.status, list(refused.json()["fields"])) == (422, ["for"])


async def test_the_books_are_right_afterwards(engine: Engine) -> None:
    report = await audit(engine)
    assert report["ok"], report
