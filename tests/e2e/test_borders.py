"""Orders across borders over HTTP: the demo's own offers, each market's lanes and landed cost, held with the order."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Engine
from tests.crowd import audit
from tests.wire import Answer, ask, get, post_order

SALE = "borders"
FREE = ("SG", "MY", "TH", "VN", "PH", "ID", "HK", "TW", "JP", "KR")


@pytest.fixture(scope="module", autouse=True)
def sale(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's offers in a sale that ships from China, open now."""
    text = files("flashsale.sale").joinpath("double11.toml").read_text(encoding="utf-8")
    file = tmp_path_factory.mktemp("borders") / "borders.toml"
    file.write_text(text.replace('# ships_from = "CN"', 'ships_from = "CN"'))
    engine.command("sale", "create", str(file), "--as", SALE)
    engine.command("sale", "update", str(_open(file)), "--as", SALE)
    return SALE


def _open(file: Path) -> Path:
    """The same file with a window that is not over."""
    file.write_text(file.read_text().replace("closes_at = 2026-11-11T16:00:00Z", "closes_at = 2099-11-11T16:00:00Z"))
    return file


async def offers(engine: Engine, market: str) -> list[dict[str, Any]]:
    (answer,) = await ask(engine.port, get(f"/v1/sales/{SALE}/offers?market={market}"))
    found: list[dict[str, Any]] = answer.json()["offers"]
    return found


async def order(engine: Engine, who: str, market: str, sku: str, key: str = "k", **more: Any) -> Answer:
    body = {"sale": SALE, "market": market, "lines": [{"sku": sku, "quantity": 1}], **more}
    token = engine.token("shopper", f"{who}-{market}")
    (answer,) = await ask(engine.port, post_order(json.dumps(body).encode(), token, key))
    return answer


@pytest.mark.parametrize("market", [*FREE, "AU", "NZ", "GB", "US", "DE"])
async def test_an_order_freezes_what_its_border_costs(engine: Engine, market: str) -> None:
    """The parts are the total; the first-weight part is free in ten countries, and charged elsewhere."""
    light = min(await offers(engine, market), key=lambda offer: offer["price"]["amount"])
    answer = await order(engine, "ann", market, light["sku"])
    assert answer.status == 201, answer
    made = answer.json()
    parts = [light["price"], made["shipping"], made["duty"], made["tax"]]
    assert made["total"]["amount"] == sum(part["amount"] for part in parts)
    assert {part["currency"] for part in parts} == {made["total"]["currency"]}
    assert made["lane"] == "cainiao-standard"
    assert made["promised_by"] > made["reserved_until"][:10]
    if market not in FREE:
        assert made["shipping"]["amount"] > 0
    again = (await order(engine, "ann", market, light["sku"])).json()
    assert again == made
    (read,) = await ask(
        engine.port, get(f"/v1/orders/{made['id']}", engine.token("shopper", f"ann-{market}"))
    )  # fmt: skip
    for name in ("lane", "shipping", "duty", "tax", "due_on_delivery", "promised_by", "total"):
        assert read.json()[name] == made[name]


async def test_the_shopper_chooses_the_lane(engine: Engine) -> None:
    light = min(await offers(engine, "SG"), key=lambda offer: offer["price"]["amount"])["sku"]
    chosen = (await order(engine, "ben", "SG", light, lane="sf-international")).json()
    assert chosen["lane"] == "sf-international"
    refused = await order(engine, "ben", "SG", light, "other", lane="pigeon")
    assert (refused.status, refused.problem) == (422, "lane-unavailable")
    assert "cainiao-standard" in refused.json()["lanes"]


async def test_an_import_needs_a_verified_identity(engine: Engine) -> None:
    sku = (await offers(engine, "CN"))[0]["sku"]
    refused = await order(engine, "cho", "CN", sku, channel="tmall-global")
    assert (refused.status, refused.problem) == (422, "identity-unverified")


async def test_the_books_are_right_afterwards(engine: Engine) -> None:
    report = await audit(engine)
    assert report["ok"], report
