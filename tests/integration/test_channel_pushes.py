"""Channels are told what becomes of their orders and what they may sell: over real HTTP to a marketplace that fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import pytest

from flashsale import settings
from flashsale.embedded import ValkeyServer
from flashsale.ledger import channel_pushes
from flashsale.partners.channels.marketplace import Endpoint, HttpMarketplace, Sellable
from flashsale.partners.channels.sandbox.server import Faults, Marketplace, started
from flashsale.partners.outbound import Outbound, networks
from flashsale.pipeline.channel_pushes import ChannelPushes, now_ms
from flashsale.reservation import commands
from tests.integration import contract
from tests.integration.channel_house import FRIDGE, KETTLE, ChannelHouse, open_channel_house

SECRET = "whsec_WYMOvDpBhBEFZr8aKQ0IRz39y9SSzkmLFM0aXi+i5EE="
SG = "/v1/channels/lazada-sg"
LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[ChannelHouse]:
    async with open_channel_house(valkey_memory.url, ledger) as house:
        house.context.settings = settings.load(webhook_allow=LOOPBACK)
        yield house


@asynccontextmanager
async def _market(port: int = 0) -> AsyncIterator[tuple[Marketplace, str]]:
    market = Marketplace(SECRET)
    runner, address = await started(market, port)
    try:
        yield market, f"{address}/push"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _worker(valkey: ValkeyServer, ledger: str, **given: Any) -> AsyncIterator[ChannelPushes]:
    outbound = Outbound(timeout_s=given.pop("timeout_s", 2.0), allow=networks(LOOPBACK))
    options = {"give_up_s": 3600.0, "stock_s": 0.1, "log_days": 30, "pause_s": (0.05, 0.2), **given}
    duty = ChannelPushes(valkey.url, ledger, HttpMarketplace(outbound), **options)
    running = asyncio.create_task(duty.run())
    try:
        yield duty
    finally:
        duty.stop()
        await asyncio.wait_for(running, 10)


async def _until(true: Callable[[], bool] | Callable[[], Awaitable[bool]], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


async def _hear(shop: ChannelHouse, channel: str, url: str) -> None:
    await channel_pushes.set_endpoint(shop.ledger, channel, url, SECRET, now_ms())


def _sellable(market: Marketplace) -> dict[str, int]:
    return {sku: units for (_, sku), (_, units) in market.stock.items()}


async def _pushes(shop: ChannelHouse, status: str) -> int:
    found: int = await shop.ledger.fetchval("SELECT count(*) FROM channel_push WHERE status = $1", status)
    return found


# --- stock ---


async def test_each_channel_sees_its_guarantee_and_the_common_pool(
    shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with _market() as (sg, sg_url), _market() as (th, th_url), _worker(valkey_memory, ledger):
        await _hear(shop, "lazada-sg", sg_url)
        await _hear(shop, "lazada-th", th_url)
        # Of 10 fridges 4 are Singapore's and 1 is Thailand's; kettles are not sold in Thailand at all.
        await _until(lambda: _sellable(sg) == {"FRIDGE": 9, "KETTLE": 20} and _sellable(th) == {"FRIDGE": 6})
        await shop.channel_order("lazada-sg", ("FRIDGE", 3), KETTLE)
        await _until(lambda: _sellable(sg) == {"FRIDGE": 6, "KETTLE": 18})
        assert _sellable(th) == {"FRIDGE": 6}  # it came out of Singapore's own
        await shop.channel_order("lazada-sg", ("FRIDGE", 3))
        await _until(lambda: _sellable(sg)["FRIDGE"] == 3 and _sellable(th) == {"FRIDGE": 4})
        known = await commands.read_partition(shop.valkey)
        assert known is not None
        given = {"partition": 0, "epoch": known.epoch, "sale_id": "night"}
        await commands.suspend(shop.valkey, sku=0, **given)  # type: ignore[arg-type]
        await _until(lambda: _sellable(sg) == {"FRIDGE": 0, "KETTLE": 18} and _sellable(th) == {"FRIDGE": 0})
        await commands.unsuspend(shop.valkey, sku=0, **given)  # type: ignore[arg-type]
        await _until(lambda: _sellable(sg)["FRIDGE"] == 3)
        await commands.set_status(shop.valkey, action="pause", **given)  # type: ignore[arg-type]
        await _until(lambda: set(_sellable(sg).values()) == {0})


async def test_stock_that_was_not_taken_is_told_as_it_is_by_then(
    shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with _market() as (sg, url), _worker(valkey_memory, ledger):
        sg.faults = Faults(fail=3, status=500)
        await _hear(shop, "lazada-sg", url)
        await _until(lambda: [push.status for push in sg.pushes] == [500] * 3 + [204])
        assert _sellable(sg) == {"FRIDGE": 9, "KETTLE": 20}
        sg.faults = Faults(fail=1, status=500, lost=True)  # it took it, and said that it did not
        await shop.channel_order("lazada-sg", KETTLE)
        await _until(lambda: [push.items for push in sg.pushes][-2:] == [1, 1] and sg.pushes[-1].status == 204)
        assert _sellable(sg)["KETTLE"] == 18
        told = await channel_pushes.stock_told(shop.ledger, "lazada-sg")
        assert sorted(told.values()) == [9, 18]


# --- orders ---


async def test_a_channel_hears_what_becomes_of_its_orders(
    shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with _market() as (sg, url), _worker(valkey_memory, ledger):
        await _hear(shop, "lazada-sg", url)
        order_id = await shop.channel_order("lazada-sg", FRIDGE)
        await shop.channel_order("lazada-th", FRIDGE, market="TH")
        await _until(lambda: order_id in sg.orders)
        first = sg.orders[order_id]
        assert (first["event"], first["status"], first["reference"], first["sale"]) == (
            "order.paid",
            "paid",
            "ref-1",
            "night",
        )
        package = await shop.post(f"{SG}/orders/{order_id}/pack", None, 201, **shop.admin)
        await shop.post(f"{SG}/orders/{order_id}/ready-to-ship", None, **shop.admin)
        await shop.post(f"{SG}/orders/{order_id}/delivered", None, **shop.admin)
        await _until(lambda: sg.orders[order_id]["status"] == "delivered")
        assert sg.orders[order_id]["tracking"] == package["tracking"]
        assert list(sg.orders) == [order_id]  # another channel's is not its business
        numbers = await shop.ledger.fetch("SELECT number FROM channel_push WHERE order_id = $1", order_id)
        history = await shop.ledger.fetch("SELECT number FROM history WHERE order_id = $1", order_id)
        assert sorted(row[0] for row in numbers) == sorted(row[0] for row in history)


async def test_a_channel_that_is_away_is_told_when_it_is_back(
    shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with _market() as (_, url):
        port = int(url.split(":")[2].split("/")[0])
    async with _worker(valkey_memory, ledger):
        await _hear(shop, "lazada-sg", url)
        made = [await shop.channel_order("lazada-sg", KETTLE) for _ in range(3)]

        async def failing() -> bool:
            row = await channel_pushes.endpoint(shop.ledger, "lazada-sg")
            return row is not None and row.failures >= 2

        await _until(failing)
        page = await shop.get(f"{SG}/endpoint", **shop.of("lazada-sg"))
        assert (page["status"], page["waiting"]) == ("unreachable", 3)
        async with _market(port) as (sg, _):
            await _until(lambda: set(sg.orders) == set(made))
            await _until(lambda: _sellable(sg).get("KETTLE") == 14)
            page = await shop.get(f"{SG}/endpoint", **shop.of("lazada-sg"))
            assert (page["status"], page["waiting"]) == ("enabled", 0)


async def test_one_order_that_a_channel_refuses_holds_up_no_other_and_is_given_up(
    shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashsale.pipeline.channel_pushes.SWEEP_S", 0.1)
    made = [await shop.channel_order("lazada-sg", KETTLE, paid=False) for _ in range(5)]
    async with _market() as (sg, url):
        sg.faults = Faults(orders=[made[2]])
        await _hear(shop, "lazada-sg", url)
        for order_id in made:
            await shop.pay(order_id)
        async with _worker(valkey_memory, ledger, give_up_s=2.0):
            await _until(lambda: set(sg.orders) == set(made) - {made[2]})

            async def given_up() -> bool:
                return await _pushes(shop, "given_up") == 1

            await _until(given_up)
        row = await shop.ledger.fetchrow("SELECT * FROM channel_push WHERE status = 'given_up'")
        assert (row["order_id"], row["refusals"] > 1, row["error"][:3]) == (made[2], True, "422")
        assert await _pushes(shop, "delivered") == 4


async def test_a_channel_that_hangs_holds_up_no_other(
    shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with _market() as (sg, sg_url), _market() as (th, th_url), _worker(valkey_memory, ledger, timeout_s=30):
        sg.faults = Faults(stall_s=60)
        await _hear(shop, "lazada-sg", sg_url)
        await _hear(shop, "lazada-th", th_url)
        await shop.channel_order("lazada-sg", FRIDGE)
        order_id = await shop.channel_order("lazada-th", FRIDGE, market="TH")
        await _until(lambda: order_id in th.orders and _sellable(th) == {"FRIDGE": 5}, within_s=8)
        assert not sg.orders


async def test_nobody_else_can_tell_a_channel_anything(shop: ChannelHouse) -> None:
    async with _market() as (sg, url):
        stranger = HttpMarketplace(Outbound(timeout_s=2, allow=networks(LOOPBACK)))
        other = Endpoint("lazada-sg", url, "whsec_" + "A" * 43 + "=")
        outcome = await stranger.tell_stock(other, [Sellable("night", "FRIDGE", 999)], now_ms())
        assert (outcome.taken, outcome.refused, outcome.error[:3]) == (False, True, "401")
        assert not sg.stock


WORKER = """
    import asyncio, sys
    from flashsale.partners.channels.marketplace import HttpMarketplace
    from flashsale.partners.outbound import Outbound, networks
    from flashsale.pipeline.channel_pushes import ChannelPushes
    outbound = Outbound(timeout_s=5, allow=networks(["127.0.0.0/8"]))
    marketplace = HttpMarketplace(outbound)
    duty = ChannelPushes(
        sys.argv[1], sys.argv[2], marketplace, give_up_s=3600, stock_s=0.1, log_days=30, pause_s=(0.05, 0.2)
    )
    asyncio.run(duty.run())
"""


async def test_a_killed_worker_loses_nothing(shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str) -> None:
    async with _market() as (sg, url):
        await _hear(shop, "lazada-sg", url)
        made: list[str] = []
        sg.faults = Faults(stall_s=0.3)  # so that it dies between the marketplace's taking and the ledger's hearing
        for round_ in range(3):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", textwrap.dedent(WORKER), valkey_memory.url, ledger
            )
            made += [await shop.channel_order("lazada-sg", KETTLE) for _ in range(2)]
            before = len(sg.pushes)
            await _until(lambda before=before: len(sg.pushes) > before)  # type: ignore[misc]
            await asyncio.sleep(0.05 * round_)
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
        sg.faults = Faults()
        async with _worker(valkey_memory, ledger):
            await _until(lambda: set(sg.orders) == set(made))
            await _until(lambda: _sellable(sg).get("KETTLE") == 8)

            async def settled() -> bool:
                return await _pushes(shop, "pending") == 0

            await _until(settled)
        assert await _pushes(shop, "delivered") == len(made)


# --- where a channel hears ---


async def test_a_channel_says_where_it_hears(shop: ChannelHouse, ledger: str) -> None:
    own, path = shop.of("lazada-sg"), f"{SG}/endpoint"
    assert (await shop.get(path, 404, **own))["name"] == "not-found"
    for wrong in ("ftp://shop.example/", "https://shop.example:25/", "https://10.0.0.1/", "http://shop.example/"):
        async with shop.session.put(path, json={"url": wrong}, headers=own) as answer:
            assert (answer.status, list((await answer.json(content_type=None))["fields"])) == (422, ["url"])
    url = "http://127.0.0.1:9999/push"
    made = await _put(shop, path, url, own)
    assert (made["url"], made["status"], made["waiting"]) == (url, "enabled", 0)
    again = await _put(shop, path, url, own)
    assert again["secret"].startswith("whsec_") and again["secret"] != made["secret"]
    read = await shop.get(path, **own)
    assert read == {name: value for name, value in again.items() if name != "secret"}
    async with shop.session.put(path, json={"url": url}, headers=shop.of("lazada-th")) as answer:
        assert answer.status == 404
    assert (await shop.get(path, 403, **shop.token("ada")))["name"] == "forbidden"
    for status in (204, 404):
        async with shop.session.delete(path, headers=shop.admin) as answer:
            assert answer.status == status


async def _put(shop: ChannelHouse, path: str, url: str, own: dict[str, str]) -> Any:
    async with shop.session.put(path, json={"url": url}, headers=own) as answer:
        assert answer.status == 200, await answer.text()
        body = await answer.json()
    contract.check("PUT", path, 200, body)
    return body


async def test_a_removed_endpoint_hears_nothing_more(
    shop: ChannelHouse, valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with _market() as (sg, url):
        await _hear(shop, "lazada-sg", url)
        await shop.channel_order("lazada-sg", KETTLE)
        connection = await asyncpg.connect(ledger)
        await channel_pushes.tell(connection, rows=10, now_ms=now_ms())
        await connection.close()
        async with shop.session.delete(f"{SG}/endpoint", headers=shop.admin) as answer:
            assert answer.status == 204
        async with _worker(valkey_memory, ledger):
            await shop.channel_order("lazada-sg", KETTLE)
            await _until(_marked(shop))
        assert not sg.pushes
        assert [await _pushes(shop, status) for status in ("pending", "given_up")] == [0, 1]


def _marked(shop: ChannelHouse) -> Callable[[], Awaitable[bool]]:
    async def marked() -> bool:
        return not await shop.ledger.fetchval(
            "SELECT EXISTS (SELECT FROM history, channel_mark m WHERE history.tx >= m.tx)"
        )

    return marked


# --- the sandbox by itself ---


async def test_the_sandbox_shows_what_it_knows_and_fails_on_request() -> None:
    async with _market() as (_, url), aiohttp.ClientSession(url.removesuffix("/push")) as session:
        async with session.get("/sandbox/health") as answer:
            assert (await answer.json())["ok"]
        async with session.post("/sandbox/faults", data=b'{"fail": "x"}') as answer:
            assert answer.status == 400
        async with session.post("/sandbox/faults", json={"fail": 2, "status": 500}) as answer:
            assert json.loads(await answer.read())["fail"] == 2
        async with session.post("/push", data=b"{}") as answer:
            assert answer.status == 401  # what is not signed is not even failed
        for path in ("orders", "stock"):
            async with session.get(f"/{path}") as answer:
                assert await answer.json() == {path: []}
        async with session.get("/pushes") as answer:
            assert [push["status"] for push in (await answer.json())["pushes"]] == [401]


async def test_the_sandbox_is_told_the_key_that_signs(shop: ChannelHouse) -> None:
    async with _market() as (market, url), aiohttp.ClientSession(url.removesuffix("/push")) as session:
        market.secret = ""
        tell = HttpMarketplace(Outbound(timeout_s=2, allow=networks(LOOPBACK))).tell_stock
        levels = [Sellable("night", "FRIDGE", 3)]
        made = await _put(shop, f"{SG}/endpoint", url, shop.admin)
        endpoint = Endpoint("lazada-sg", url, made["secret"])
        assert (await tell(endpoint, levels, now_ms())).error.startswith("401")
        for wrong in ({"secret": "whsec_?"}, {"key": "x"}, {"secret": ""}):
            async with session.post("/sandbox/secret", json=wrong) as answer:
                assert answer.status == 400
        async with session.post("/sandbox/secret", json={"secret": made["secret"]}) as answer:
            assert answer.status == 200
        assert (await tell(endpoint, levels, now_ms())).taken
        assert _sellable(market) == {"FRIDGE": 3}
