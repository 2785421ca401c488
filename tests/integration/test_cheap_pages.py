"""Pages cost Valkey what they show, however many offers a sale has; who asks at once shares one look."""

from __future__ import annotations

import asyncio

import pytest

from flashsale.front.stock import FEEDS
from flashsale.reservation import keys
from tests.integration.house import BOTH, House

MANY = 1500


async def fields_read(house: House, path: str) -> int:
    """Fields of the sale's stock and supply that Valkey hands out for a page, by its own count of what it was asked."""
    monitored: list[str] = []
    async with house.valkey.monitor() as monitor:

        async def until_done() -> None:
            async for command in monitor.listen():
                if "done" in command["command"]:
                    return
                monitored.append(command["command"])

        listening = asyncio.create_task(until_done())
        await house.get(path)
        await house.valkey.echo("done")
        await asyncio.wait_for(listening, 10)
    whole = [each for each in monitored if each.upper().startswith("HGETALL")]
    some = [each for each in monitored if each.upper().startswith("HMGET") and keys.stock(0, "night") in each]
    return MANY * len(whole) + sum(len(each.split()) - 2 for each in some)


async def test_a_page_of_offers_reads_the_page_alone(house: House) -> None:
    await house.create_sale(*((f"S{number}", BOTH) for number in range(MANY)))
    assert await fields_read(house, "/v1/sales/night/offers?limit=1") <= 2
    assert await fields_read(house, "/v1/sales/night/offers?market=SG&limit=20&after=S700") <= 21
    assert await fields_read(house, "/v1/sales/night") == 0
    page = await house.get("/v1/sales/night/offers?market=SG&limit=3&after=S700")
    assert [offer["sku"] for offer in page["offers"]] == ["S701", "S702", "S703"]
    assert (await house.get(page["next"]))["offers"][0]["sku"] == "S704"


async def test_who_asks_at_once_shares_a_look_that_began_after_all_had_asked(house: House) -> None:
    await house.create_sale(("A", BOTH))
    before = (await house.valkey.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)
    pages = await asyncio.gather(*(house.get("/v1/sales/night/offers") for _ in range(60)))
    after = (await house.valkey.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert all(page["offers"] == pages[0]["offers"] for page in pages)
    assert after - before <= 30
    await house.order("ada", ("A", 1))
    assert (await house.get("/v1/sales/night/offers"))["offers"][0]["available"] == (
        pages[0]["offers"][0]["available"] - 1
    )


async def test_readers_of_the_stock_get_one_event_and_one_serial_number(house: House) -> None:
    await house.create_sale(("A", BOTH))
    feed = house.app[FEEDS].of("night")
    seen = await asyncio.gather(*(feed.look() for _ in range(50)))
    assert len({id(each.frame) for each in seen}) == 1
    again = await feed.look()
    assert (again.serial, again.frame) == (seen[0].serial, seen[0].frame)
    await house.order("ada", ("A", 1))
    assert (await feed.look()).serial == seen[0].serial + 1


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSALE_STREAMS_OF_ONE_MAX", "3")


async def test_one_address_holds_its_share_of_the_streams_and_no_more(limited: None, house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    accept = {"Accept": "text/event-stream"}
    held = [await house.session.get("/v1/sales/night/stock", headers=accept) for _ in range(3)]
    async with house.session.get("/v1/sales/night/stock", headers=accept) as refused:
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) >= 1
    async with house.session.get(f"/v1/orders/{order.id}/events", headers=accept | house.token("ada")) as mine:
        assert mine.status == 200  # another kind has a bound of its own
    held.pop().close()
    for _ in range(100):
        async with house.session.get("/v1/sales/night/stock", headers=accept) as again:
            if again.status == 200:
                break
        await asyncio.sleep(0.02)
    assert again.status == 200
    for each in held:
        each.close()
