"""The pages over a real Valkey, a real PostgreSQL and a real socket: what a shopper and an operator read, and when."""

from __future__ import annotations

import asyncio

import msgpack
import orjson
import pytest
import yarl

from flashsale import merchandising
from flashsale.embedded import ValkeyServer
from flashsale.errors import PROBLEMS
from flashsale.front.app import ROUTES
from flashsale.ledger.pool import Ledger
from flashsale.reservation import commands, keys, server
from tests.integration.house import BOTH, OFFER, SALE, SG_ONLY, House, events, problem_of

# Answered by the hot path itself.
HOT_ROUTES = {
    ("POST", "/v1/orders"),
    ("POST", "/v1/channels/{channel}/orders"),
    ("POST", "/v1/webhooks/payments"),
}


# --- sales and offers ---


async def test_a_sale_command_shows_in_the_next_answer(house: House) -> None:
    assert await house.get("/v1/sales") == {"sales": []}
    await house.create_sale(("A", BOTH))
    (listed,) = (await house.get("/v1/sales"))["sales"]
    assert listed == await house.get("/v1/sales/night") | {"as_of": listed["as_of"]}
    assert listed["status"] == "open"
    assert listed["opens_at"] == "2020-01-01T00:00:00.000Z"
    assert [market["code"] for market in listed["markets"]] == ["SG", "TH"]
    for command, status in ((merchandising.pause, "paused"), (merchandising.resume, "open")):
        await command(house.valkey, "night")
        assert (await house.get("/v1/sales/night"))["status"] == status
    await merchandising.suspend(house.valkey, "night", "A")
    assert (await house.get("/v1/sales/night"))["suspended"] == ["A"]
    assert (await house.get("/v1/sales/night/offers"))["offers"][0]["suspended"] is True
    changed = SALE + OFFER.format(sku="A", prices='SG = "7.00", TH = "1"') + OFFER.format(sku="B", prices=SG_ONLY)
    await house.update_sale(changed)
    offers = (await house.get("/v1/sales/night/offers?market=SG"))["offers"]
    assert [(offer["sku"], offer["price"]["amount"]) for offer in offers] == [("A", 700), ("B", 505)]
    assert set((await house.get("/v1/sales/night/stock"))["stock"]) == {"A", "B"}
    await merchandising.close(house.valkey, "night")
    assert (await house.get("/v1/sales/night"))["status"] == "closed"


async def test_offers_are_in_the_markets_currency_and_language(house: House) -> None:
    await house.create_sale(("A", BOTH), ("B", SG_ONLY))
    (offer,) = (await house.get("/v1/sales/night/offers?market=TH"))["offers"]
    assert offer == {
        "sku": "A",
        "title": "ตู้เย็น A",
        "brand": "Haier",
        "price": {"amount": 1899000, "currency": "THB"},
        "quota": 2,
        "available": 10,
        "suspended": False,
    }
    everything = (await house.get("/v1/sales/night/offers"))["offers"]
    assert [offer["title"] for offer in everything] == ["Fridge A", "Fridge B"]
    assert everything[1]["prices"] == {"SG": {"amount": 505, "currency": "SGD"}}
    assert (await house.get("/v1/sales/night/offers?market=JP"))["offers"] == []


async def test_a_list_is_read_page_by_page_each_item_once(house: House) -> None:
    await house.create_sale(*((f"SKU+{number}&?", BOTH if number % 2 else SG_ONLY) for number in range(9)))
    for path, wanted in (("/v1/sales/night/offers?market=TH&limit=3", 4), ("/v1/sales/night/offers?limit=3", 9)):
        seen, pages, following = [], 0, path
        while following:
            page = await house.get(following)
            seen += [offer["sku"] for offer in page["offers"]]
            pages, following = pages + 1, page.get("next")
        assert len(seen) == len(set(seen)) == wanted
        assert pages == -(-wanted // 3)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit=", "limit"),
        ("limit=%00", "limit"),
        ("limit=1e1", "limit"),
        ("limit=٣", "limit"),
        ("after=nothing", "after"),
        ("after=%00", "after"),
        ("after=%ff", "after"),
        ("market=XX", "market"),
        ("market=sg", "market"),
        ("market=", "market"),
        ("market=SG&market=TH", "market"),
    ],
)
async def test_a_bad_query_parameter_is_named(house: House, query: str, named: str) -> None:
    await house.create_sale(("A", BOTH))
    problem = await house.get(f"/v1/sales/night/offers?{query}", status=400)
    assert problem["name"] == "malformed"
    assert problem["parameter"] == named


# --- stock ---


async def test_stock_is_valkeys_at_that_moment_and_what_is_paid_is_sold(house: House) -> None:
    await house.create_sale(("A", BOTH), ("B", SG_ONLY))
    order = await house.order("ada", ("A", 2), ("B", 1))
    read = await house.get("/v1/sales/night/stock")
    assert read["stock"]["A"] == {"supply": 10, "available": 8, "held": 2, "sold": 0}
    await merchandising.set_stock(house.valkey, "night", "A", to=20, expect=10)
    assert (await house.get("/v1/sales/night/stock"))["stock"]["A"]["available"] == 18
    await house.settle()
    await house.pay(order.id)
    async with asyncio.timeout(10):  # the ledger is asked once a second
        while (read := await house.get("/v1/sales/night/stock"))["stock"]["A"]["sold"] == 0:
            assert read["stock"]["A"]["held"] == 2
    assert read["stock"]["A"] == {"supply": 20, "available": 18, "held": 0, "sold": 2}
    assert read["stock"]["B"] == {"supply": 10, "available": 9, "held": 0, "sold": 1}


async def test_stock_as_events_begins_whole_and_tells_each_change(house: House) -> None:
    await house.create_sale(("A", BOTH))
    async with house.session.get("/v1/sales/night/stock", headers={"Accept": "text/event-stream"}) as answer:
        assert answer.content_type == "text/event-stream"
        stream = events(answer)
        first = await anext(stream)
        assert first["event"] == "stock"
        assert first["data"]["stock"]["A"]["available"] == 10
        await house.order("ada", ("A", 1))
        assert (await anext(stream))["data"]["stock"]["A"] == {"supply": 10, "available": 9, "held": 1, "sold": 0}
        await house.order("bea", ("A", 2))
        assert (await anext(stream))["data"]["stock"]["A"]["available"] == 7


async def test_streams_end_when_the_process_stops(house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    accept = {"Accept": "text/event-stream"}
    stock = await house.session.get("/v1/sales/night/stock", headers=accept)
    statuses = await house.session.get(f"/v1/orders/{order.id}/events", headers=accept | house.token("ada"))
    await house.app.shutdown()
    async with asyncio.timeout(5):
        await stock.read()
        await statuses.read()


# --- orders ---


async def test_an_order_reads_the_same_from_the_journal_and_from_the_ledger(house: House) -> None:
    await house.create_sale(("A", BOTH), ("B", SG_ONLY))
    order = await house.order("ad\\a\\n", ("B", 1), ("A", 2), key="k\\t")
    path, token = f"/v1/orders/{order.id}", house.token("ad\\a\\n")
    from_journal = await house.get(path, **token)
    await house.settle()
    assert await house.valkey.xlen(keys.journal(0)) == 0
    assert await house.get(path, **token) == from_journal
    assert from_journal["lines"] == [
        {"sku": "B", "quantity": 1, "price": {"amount": 505, "currency": "SGD"}},
        {"sku": "A", "quantity": 2, "price": {"amount": 89900, "currency": "SGD"}},
    ]
    assert from_journal["total"] == {"amount": 180305, "currency": "SGD"}
    assert (from_journal["sale"], from_journal["status"], from_journal["market"]) == ("night", "reserved", "SG")
    assert from_journal["channel"] == "direct"
    assert from_journal["created_at"] < from_journal["reserved_until"]
    first = {"number": 1, "status": "reserved", "at": from_journal["created_at"], "event": "order.reserved"}
    assert from_journal["history"] == [first]
    assert from_journal["payment"] == {"status": "none", "amount": from_journal["total"]}
    assert (from_journal["next"]["do"], from_journal["next"]["until"]) == ("pay", from_journal["reserved_until"])


async def test_an_order_is_its_shoppers_and_an_admins(house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    path = f"/v1/orders/{order.id}"
    for _ in range(2):  # from the journal, then from the ledger
        assert (await house.get(path, status=401))["name"] == "unauthenticated"
        for suffix in ("", "/events"):
            assert (await house.get(path + suffix, status=404, **house.token("eve")))["name"] == "not-found"
        assert (await house.get(path, **house.token("root", "admin")))["id"] == order.id
        await house.settle()


@pytest.mark.parametrize(
    "order_id", ["x", "0" * 30, "f" * 30, "0" * 31, "A" * 30, "%00", "%ff%fe", "..", "é", "0001" * 7]
)
async def test_an_unknown_order_is_not_found(house: House, order_id: str) -> None:
    await house.create_sale(("A", BOTH))
    await house.get(f"/v1/orders/{order_id}", status=404, **house.token("ada"))


async def test_a_shoppers_orders_newest_first_page_by_page(house: House) -> None:
    await house.create_sale(("A", BOTH), ("B", SG_ONLY))
    placed = [(await house.order("ada", (sku, 1), key=f"{number}")).id for number, sku in enumerate("ABAB")]
    await house.order("eve", ("A", 1))
    await house.settle()
    seen, following = [], "/v1/shoppers/me/orders?limit=3"
    while following:
        page = await house.get(following, **house.token("ada"))
        seen += [order["id"] for order in page["orders"]]
        following = page.get("next")
    assert seen == placed[::-1]
    assert page["orders"][0]["lines"][0]["sku"] == "A"
    assert (await house.get("/v1/shoppers/me/orders", **house.token("nobody"))) == {"orders": []}
    assert (await house.get("/v1/shoppers/me/orders", status=401))["name"] == "unauthenticated"
    await house.get("/v1/shoppers/me/orders?after=x", status=400, **house.token("ada"))


async def test_order_events_go_on_where_the_reader_left_off(house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    path = f"/v1/orders/{order.id}/events"
    async with house.session.get(path, headers=house.token("ada")) as answer:
        event = await anext(events(answer))
        assert (event["event"], event["id"], event["data"]["status"]) == ("status", "1", "reserved")
    async with house.session.get(path, headers=house.token("ada") | {"Last-Event-ID": "1"}) as answer:
        assert await answer.content.readline() == b"retry: 1000\n"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):  # longer than between two looks: nothing new, nothing again
                await anext(events(answer))


# --- servers away ---


async def test_without_the_ledger_what_valkey_knows_goes_on(house: House, valkey_memory: ValkeyServer) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    house.context.ledger = Ledger("postgresql://nobody@127.0.0.1:1/nothing")
    token = house.token("ada")
    assert (await house.get(f"/v1/orders/{order.id}", **token))["status"] == "reserved"
    assert (await house.get("/v1/sales/night/stock"))["stock"]["A"]["held"] == 1
    ready = await house.get("/readyz")
    assert ready["ready"] is True
    assert "ledger" in ready["warnings"][0]
    assert (await house.get("/v1/shoppers/me/orders", status=503, **token))["name"] == "overloaded"
    await house.valkey.xtrim(keys.journal(0), maxlen=0)
    assert (await house.get(f"/v1/orders/{order.id}", status=503, **token))["name"] == "overloaded"


async def test_without_valkey_pages_are_503_and_come_back_by_themselves(house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    away = server.connect("unix:///nowhere/valkey.sock")
    there, house.context.valkey = house.context.valkey, away
    for path in ("/v1/sales", "/v1/sales/night", "/v1/sales/night/stock", f"/v1/orders/{order.id}"):
        assert (await house.get(path, status=503, **house.token("ada")))["name"] == "overloaded"
    async with house.session.get("/metrics") as answer:
        assert b"flashsale_valkey_up 0.0" in await answer.read()
    house.context.valkey = there
    assert await house.get("/v1/sales/night")
    await away.aclose()


async def test_while_valkey_is_rebuilt_nothing_is_said_to_be_absent(house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    await house.get("/v1/sales/night")
    await house.valkey.flushall()
    house.reasons = ["Valkey's data is not verified against the ledger"]
    assert (await house.get("/v1/sales/night", status=503))["name"] == "overloaded"
    assert (await house.get("/v1/sales", status=503))["name"] == "overloaded"
    assert (await house.get(f"/v1/orders/{order.id}", status=503, **house.token("ada")))["name"] == "overloaded"
    told = await house.get("/readyz", status=503)
    assert (told["ready"], told["reasons"]) == (False, house.reasons)
    (nobody,) = told["warnings"]
    assert "no worker gives a sign of life" in nobody


# --- what every page has ---


async def test_every_route_is_described_and_every_description_is_a_route(house: House) -> None:
    document = await house.get("/openapi.json")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described - {(method, path) for method, path, _ in ROUTES} == HOT_ROUTES
    assert {(method, path) for method, path, _ in ROUTES} <= described
    schemas = set(document["components"]["schemas"])
    text = orjson.dumps(document).decode()
    assert {piece.partition('"')[0] for piece in text.split("#/components/schemas/")[1:]} == schemas
    async with house.session.get("/docs") as answer:
        page = await answer.text()
        assert answer.content_type == "text/html"
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert all(path in page for path in document["paths"])


async def test_every_problem_has_a_page(house: House) -> None:
    listed = (await house.get("/problems"))["problems"]
    assert [each["name"] for each in listed] == list(PROBLEMS)
    for each in listed:
        assert await house.get(each["type"]) == each
        async with house.session.get(each["type"], headers={"Accept": "text/html,*/*;q=0.8"}) as answer:
            assert each["name"] in await answer.text()
    assert (await house.get("/problems/none", status=404))["name"] == "not-found"


async def test_methods_other_than_reading_are_refused_or_described(house: House) -> None:
    await house.create_sale(("A", BOTH))
    for path, allowed in (("/v1/sales/night", "GET, HEAD, OPTIONS"), ("/v1/orders", "OPTIONS, POST")):
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
            async with house.session.request(method, path, data=b"x") as answer:
                assert problem_of(answer, await answer.read())["name"] == "method-not-allowed"
                assert answer.headers["Allow"] == allowed
        async with house.session.options(path) as answer:
            assert (answer.status, answer.headers["Allow"]) == (204, allowed)
    async with house.session.post(yarl.URL("/v1/%6frders", encoded=True), data=b"{}") as answer:
        assert problem_of(answer, await answer.read())["name"] == "not-found"
    for path in (path for method, path, _ in ROUTES if method == "GET"):
        url = path.replace("{sale}", "night").replace("{name}", "internal").replace("{id}", "0" * 30)
        url = url.replace("{channel}", "tmall-world")
        async with house.session.head(
            url, headers=house.token("ada", "admin") | {"Accept": "text/event-stream"}
        ) as answer:
            # There is no such order, and nobody hears. A merchant who has brought nothing has empty lists.
            absent = ("{id}" in path and "merchants" not in path) or "{import}" in path or path.endswith("/endpoint")
            asks = path == "/v1/lanes" or path.endswith("/settlement")  # of which sale and market, of which day?
            wants = 404 if absent else 400 if asks else 200
            others = "/grants" in path or "/agents/" in path  # shoppers' and agents' own
            assert answer.status == (403 if others else wants), path
            assert await answer.read() == b""


async def test_unknown_paths_and_names_are_problems(house: House) -> None:
    await house.create_sale(("A", BOTH))
    for path in ("/", "/v1", "/v1/orders/", "/v1/sales/night/x", "/%00", "/v1//sales", "/favicon.ico"):
        assert (await house.get(path, status=404))["name"] == "not-found"
    for name in ("none", "%00", "%ff", "NIGHT", "x" * 3000, "'; drop", "%F0%9F%92%A9"):
        for page in ("", "/offers", "/stock"):
            assert (await house.get(f"/v1/sales/{name}{page}", status=404))["name"] == "unknown-sale"


async def test_what_goes_wrong_inside_is_a_problem_with_the_requests_id(house: House) -> None:
    await house.create_sale(("A", BOTH))
    await house.valkey.hset(keys.stock(0, "night"), "0", "not a number")
    async with house.session.get("/v1/sales/night/stock", headers={"X-Request-Id": "night-1"}) as answer:
        problem = problem_of(answer, await answer.read())
        assert answer.headers["X-Request-Id"] == "night-1"
    assert (problem["name"], problem["request_id"]) == ("internal", "night-1")


async def test_answers_carry_a_request_id_and_headers_that_keep_browsers_safe(house: House) -> None:
    seen = set()
    for given in ("", "ok-1", "a b", "x" * 65):
        async with house.session.get("/livez", headers={"X-Request-Id": given} if given else {}) as answer:
            seen.add(answer.headers["X-Request-Id"])
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Cache-Control"] == "no-store"
            assert "Python" not in answer.headers["Server"]
    assert "ok-1" in seen
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/msgpack", "application/msgpack"),
        ("application/x-msgpack;q=0.9, */*;q=0.1", "application/x-msgpack"),
        ("*/*", "application/json"),
        ("application/json, application/msgpack;q=0.5", "application/json"),
        ("text/html", "application/json"),
        (";;;q=x,,", "application/json"),
        ("application/msgpack;q=0", "application/json"),
    ],
)
async def test_accept_chooses_between_json_and_messagepack(house: House, accept: str, content_type: str) -> None:
    async with house.session.get("/livez", headers={"Accept": accept}) as answer:
        body = await answer.read()
        assert answer.content_type == content_type
    assert (msgpack.unpackb if "msgpack" in content_type else orjson.loads)(body) == {"live": True}


async def test_metrics_tell_the_backlog_as_valkey_has_it(house: House) -> None:
    await house.create_sale(("A", BOTH))
    await house.order("ada", ("A", 1))
    partition = await commands.read_partition(house.valkey)
    assert partition is not None
    async with house.session.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert figures["flashsale_valkey_up"] == "1.0"
    assert float(figures["flashsale_backlog_entries"]) == await house.valkey.xlen(keys.journal(0))
    assert float(figures["flashsale_backlog_bytes"]) == partition.written - partition.trimmed > 0
    assert 0 <= float(figures["flashsale_backlog_age_seconds"]) < 60
