"""Merchants' pages: a catalogue in parts, what became of it, products, stock and settlement; each merchant its own."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashsale.importing import importer
from flashsale.ledger import imports, merchants
from flashsale.sale.local_time import local_time_ms
from tests.integration import contract
from tests.integration.house import SG_ONLY, House, problem_of

PATH = "/v1/merchants/lux/imports"
CSV = (
    b"Handle,Title,Variant SKU,Variant Price,Variant Inventory Qty,Variant Grams\n"
    b"lamp,Lamp,LAMP,9.99,5,400\ndesk,Desk,DESK,100.00,8,9000\n"
)


async def send(
    house: House, method: str, path: str, data: bytes, status: int, sub: str = "lux", role: str = "merchant",
    media_type: str = "text/csv",
) -> Any:  # fmt: skip
    headers = {"Content-Type": media_type, **house.token(sub, role)}
    async with house.session.request(method, path, data=data, headers=headers) as answer:
        body = await answer.read()
        assert answer.status == status, (path, answer.status, body)
        contract.check(method, path, status, orjson.loads(body))
        if status == 202:
            assert answer.headers["Location"] == f"{PATH}/{orjson.loads(body)['id']}"
        return problem_of(answer, body) if status >= 400 else orjson.loads(body)


async def work(house: House) -> None:
    """What a worker does with all that is due."""
    apply = importer(redis_url(house))
    while row := await imports.due(house.ledger, 0):
        await apply(house.ledger, row)


def redis_url(house: House) -> str:
    told = house.valkey.connection_pool.connection_kwargs
    return f"unix://{told['path']}" if "path" in told else f"redis://{told['host']}:{told['port']}/0"


async def lines(house: House, path: str) -> list[dict[str, Any]]:
    async with house.session.get(path, headers=house.token("lux", "merchant")) as answer:
        assert (answer.status, answer.content_type) == (200, "application/jsonl")
        return [orjson.loads(line) for line in (await answer.read()).splitlines()]


async def test_a_catalogue_is_sent_applied_and_read(house: House) -> None:
    own = house.token("lux", "merchant")
    sent = await send(house, "POST", f"{PATH}?market=SG", CSV, 202)
    assert (sent["status"], sent["parts"]) == ("queued", 1)
    assert (await house.get(f"{PATH}/{sent['id']}", **own))["status"] == "queued"
    await work(house)
    ended = await house.get(f"{PATH}/{sent['id']}", **own)
    assert (ended["status"], ended["rows"], ended["created"], ended["faults"]) == ("applied", 2, 2, 0)
    page = await house.get("/v1/merchants/lux/products?limit=1", **own)
    rest = await house.get(page["next"], **own)
    shown = page["products"] + rest["products"]
    assert [(each["sku"], each["prices"]["SG"]["amount"], each["stock"]) for each in shown] == [
        ("DESK", 10000, 8), ("LAMP", 999, 5),
    ]  # fmt: skip


async def test_parts_come_in_any_order_and_are_one_file(house: House) -> None:
    size = len(CSV) // 3
    first, second, third = CSV[:size], CSV[size : 2 * size], CSV[2 * size :]  # a row is torn between two
    sent = await send(house, "POST", f"{PATH}?market=SG&parts=3", first, 202)
    assert sent["status"] == "uploading"
    await send(house, "PUT", f"{PATH}/{sent['id']}/parts/4", b"", 404)
    await send(house, "PUT", f"{PATH}/{sent['id']}/parts/3", b"wrong", 200)
    assert (await send(house, "PUT", f"{PATH}/{sent['id']}/parts/3", third, 200))["status"] == "uploading"
    await work(house)
    assert await house.ledger.fetchval("SELECT count(*) FROM product") == 0
    assert (await send(house, "PUT", f"{PATH}/{sent['id']}/parts/2", second, 200))["status"] == "queued"
    await send(house, "PUT", f"{PATH}/{sent['id']}/parts/2", b"too late", 200)  # it is whole, and stays
    await work(house)
    ended = await house.get(f"{PATH}/{sent['id']}", **house.token("lux", "merchant"))
    assert (ended["status"], ended["created"]) == ("applied", 2)


async def test_faults_are_read_and_nothing_is_changed(house: House) -> None:
    bad = CSV + b'sofa,Sofa,SOFA,"1,234",many,1\nbed,B\xff,BED,1,1,1\n'
    sent = await send(house, "POST", f"{PATH}?market=SG", bad, 202)
    await work(house)
    ended = await house.get(f"{PATH}/{sent['id']}", **house.token("lux", "merchant"))
    assert (ended["status"], ended["faults"]) == ("faulty", 3)
    assert [(each["row"], each["column"], each["code"]) for each in await lines(house, ended["findings"])] == [
        (4, "Variant Price", "not-a-number"), (4, "Variant Inventory Qty", "not-a-number"), (5, "Title", "not-utf-8"),
    ]  # fmt: skip
    assert await house.ledger.fetchval("SELECT count(*) FROM product") == 0


async def test_a_dry_run_is_checked_only(house: House) -> None:
    sent = await send(house, "POST", f"{PATH}?market=SG&dry_run=true", CSV, 202)
    await work(house)
    ended = await house.get(f"{PATH}/{sent['id']}", **house.token("lux", "merchant"))
    assert (ended["status"], ended["created"]) == ("checked", 2)
    assert await house.ledger.fetchval("SELECT count(*) FROM product") == 0


async def test_into_a_sale_whose_offers_are_then_shown_and_ordered(house: House) -> None:
    await house.create_sale(("FRIDGE", SG_ONLY))
    sent = await send(house, "POST", f"{PATH}?market=SG&sale=night", CSV, 202)
    missing = await send(house, "POST", f"{PATH}?market=SG&sale=nosuch", CSV, 202)
    await work(house)
    own = house.token("lux", "merchant")
    assert (await house.get(f"{PATH}/{sent['id']}", **own))["offers"] == 2
    failed = await house.get(f"{PATH}/{missing['id']}", **own)
    assert failed["status"] == "failed" and "nosuch" in failed["error"]
    order = await house.order("ann", ("LAMP", 2))
    await house.settle()
    shown = await house.get(f"/v1/orders/{order.id}", **house.token("ann"))
    assert shown["total"] == {"amount": 1998, "currency": "SGD"}


async def test_a_time_is_the_merchant_s_local_one(house: House) -> None:
    await merchants.put(house.ledger, "lux", "Lux", "Europe/Berlin", 0)
    sent = await send(house, "POST", f"{PATH}?market=SG&at=2095-07-01T00:00", CSV, 202)
    assert sent["at"].startswith("2095-06-30T22:00:00")
    at_ms = await house.ledger.fetchval("SELECT at_ms FROM catalogue_import")
    assert at_ms == local_time_ms("2095-07-01T00:00+02:00", "UTC")
    for never in ("2026-03-29T02:30", "2026-10-25T02:30", "soon", "0001-01-01T00:00"):
        problem = await send(house, "POST", f"{PATH}?market=SG&at={never}", CSV, 400)
        assert problem["name"] == "malformed", problem


async def test_stock_is_compared_and_set(house: House) -> None:
    await send(house, "POST", f"{PATH}?market=SG", CSV, 202)
    await work(house)
    own, path = house.token("lux", "merchant"), "/v1/merchants/lux/products/LAMP/stock"
    assert (await house.post(path, {"to": 7, "expect": 5}, **own))["stock"] == 7
    assert (await house.post(path, {"to": 9, "expect": 5}, 409, **own))["stock"] == 7
    await house.post("/v1/merchants/lux/products/NONE/stock", {"to": 1, "expect": 1}, 404, **own)
    done = await asyncio.gather(*(try_stock(house, path, {"to": 10 + n, "expect": 7}) for n in range(8)))
    assert sorted(done) == [200] + [409] * 7  # one of those who believed the same is right


async def try_stock(house: House, path: str, body: dict[str, int]) -> int:
    async with house.session.post(path, json=body, headers=house.token("lux", "merchant")) as answer:
        return answer.status


async def test_each_merchant_sees_its_own_alone(house: House) -> None:
    sent = await send(house, "POST", f"{PATH}?market=SG", CSV, 202)
    await work(house)
    other, day = house.token("dim", "merchant"), "2026-11-11"
    for path in (PATH, f"{PATH}/{sent['id']}", f"{PATH}/{sent['id']}/findings", "/v1/merchants/lux/products",
                 f"/v1/merchants/lux/settlement?day={day}", f"/v1/merchants/dim/imports/{sent['id']}"):  # fmt: skip
        await house.get(path, 404, **other)
        await house.get(path, 401)
        for role in ("shopper", "agent", "channel"):
            await house.get(path, 403, **house.token("lux", role))
    await send(house, "POST", f"{PATH}?market=SG", CSV, 404, sub="dim")
    await send(house, "PUT", f"{PATH}/{sent['id']}/parts/1", CSV, 404, sub="dim")
    await house.post("/v1/merchants/lux/products/LAMP/stock", {"to": 1, "expect": 5}, 404, **other)
    await house.post("/v1/merchants/dim/products/LAMP/stock", {"to": 1, "expect": 5}, 404, **other)
    assert (await house.get("/v1/merchants/dim/products", **other))["products"] == []
    assert (await house.get("/v1/merchants/dim/imports", **other))["imports"] == []
    admin = house.token("root", "admin")
    assert len((await house.get("/v1/merchants/lux/products", **admin))["products"]) == 2
    settled = await house.get(f"/v1/merchants/lux/settlement?day={day}", **admin)
    assert (settled["merchant"], settled["totals"], settled["entries"]) == ("lux", [], [])


@pytest.mark.parametrize(
    "query", ["", "market=XX", "market=SG&sale=No%20Sale", "market=SG&decimal_mark=;", "market=SG&dry_run=maybe",
              "market=SG&parts=0", "market=SG&parts=1001", "market=SG&parts=%D9%A1"],
)  # fmt: skip
async def test_a_bad_parameter_is_named(house: House, query: str) -> None:
    assert (await send(house, "POST", f"{PATH}?{query}", CSV, 400))["name"] == "malformed"
    assert await house.ledger.fetchval("SELECT count(*) FROM catalogue_import") == 0


async def test_only_so_many_wait_and_only_csv_is_taken(house: House) -> None:
    await send(house, "POST", f"{PATH}?market=SG", b"{}", 415, media_type="application/json")
    for _ in range(imports.WAITING_MAX):
        await send(house, "POST", f"{PATH}?market=SG", CSV, 202)
    await send(house, "POST", f"{PATH}?market=SG", CSV, 429)
    page = await house.get(f"{PATH}?limit=15", **house.token("lux", "merchant"))
    rest = await house.get(page["next"], **house.token("lux", "merchant"))
    assert len(page["imports"]) + len(rest["imports"]) == imports.WAITING_MAX


rows_written = st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**5)), min_size=1, max_size=8)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=rows_written, delimiter=st.sampled_from(",;\t"), bom=st.booleans(), mark=st.sampled_from(".,"))
async def test_every_dialect_is_the_same_products(
    house: House, rows: list[tuple[int, int]], delimiter: str, bom: bool, mark: str
) -> None:
    async def stored(delimiter: str, bom: bool, mark: str) -> list[tuple[Any, ...]]:
        text = io.StringIO()
        file = csv.writer(text, delimiter=delimiter)
        file.writerow(["Handle", "Title", "Variant Price", "Variant Inventory Qty"])
        for number, (price, stock) in enumerate(rows):
            file.writerow([f"h{number}", f"T{number}", f"{price // 100}{mark}{price % 100:02d}", stock])
        await house.ledger.execute("DELETE FROM product")
        await send(house, "POST", f"{PATH}?market=SG", text.getvalue().encode("utf-8-sig" if bom else "utf-8"), 202)
        await work(house)
        found = await house.ledger.fetch("SELECT sku, handle, title, prices, stock FROM product ORDER BY sku")
        return [tuple(row) for row in found]

    assert await stored(delimiter, bom, mark) == (plain := await stored(",", False, "."))
    assert len(plain) == len(rows)
