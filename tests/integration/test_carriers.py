"""Parcels from the payment to the door: booked at a real sandbox over HTTP, carried, told of, lost, and asked about."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from flashsale import settings
from flashsale.embedded import ValkeyServer
from flashsale.ledger import life
from flashsale.partners.carriers.sandbox.store import waybill_of
from flashsale.sale.world import packaged
from tests.integration.carrier_house import ACROSS, SECRET, CarrierHouse, carriers, open_carrier_house, until, worker


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[CarrierHouse]:
    async with open_carrier_house(valkey_memory.url, ledger) as house:
        yield house


async def _cancel(shop: CarrierHouse, order: str, *lines: tuple[int, int]) -> None:
    async with shop.ledger.transaction():
        await life.cancel(shop.ledger, order, lines or None, time.time_ns() // 1_000_000)


async def _pending(shop: CarrierHouse) -> bool:
    """Whether the duty has looked through all of the history."""
    return not await shop.ledger.fetchval(
        "SELECT EXISTS (SELECT FROM history, carrier_mark m WHERE history.tx >= m.tx)"
    )


# --- the way of a parcel ---


async def test_a_paid_order_is_booked_picked_up_and_delivered(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        order = await shop.place(("KETTLE", 2), ("FAN", 1))
        waybill = await shop.booked(order)
        (booked,) = (await sandbox.read("parcels"))["parcels"]
        assert booked == {
            "reference": order, "waybill": waybill, "carrier": "cainiao", "country": "SG", "status": "booked",
        }  # fmt: skip
        assert await shop.order_is(order, "paid")  # a label is no parcel on its way

        await sandbox.control(f"parcels/{waybill}/advance")
        await until(lambda: shop.order_is(order, "shipped"))
        await sandbox.control(f"parcels/{waybill}/deliver")
        await until(lambda: shop.order_is(order, "delivered"))

        async def all_told() -> bool:  # its webhooks come in any order, and the last may be on its way yet
            return await shop.ledger.fetchval("SELECT count(*) FROM parcel_event WHERE order_id = $1", order) == 5

        await until(all_told)
        tracking = await shop.get(f"/v1/orders/{order}/tracking", **shop.token("ann"))
        assert (tracking["carrier"], tracking["waybill"], tracking["status"]) == ("cainiao", waybill, "delivered")
        codes = [event["code"] for event in tracking["events"]]
        assert codes == ["picked_up", "in_transit", "customs", "out_for_delivery", "delivered"]


async def test_what_could_not_be_delivered_is_given_back(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        order = await shop.place()
        waybill = await shop.booked(order)
        await sandbox.control(f"parcels/{waybill}/fail")
        await until(lambda: shop.order_is(order, "undeliverable"))
        await sandbox.control(f"parcels/{waybill}/return")
        path = f"/v1/orders/{order}/tracking"

        async def returned() -> bool:
            events = (await shop.get(path, **shop.token("ann")))["events"]
            return [event["code"] for event in events] == ["picked_up", "failed", "returned"]

        await until(returned)
        refunded, quantities = await shop.ledger.fetchrow("SELECT refunded, quantities FROM orders")
        assert refunded == quantities


async def test_parcels_move_by_themselves_where_a_clock_is_set(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop, step_s=0.1) as sandbox, worker(ledger, sandbox.address):
        orders = [await shop.place() for _ in range(3)]
        for order in orders:
            await until(lambda order=order: shop.order_is(order, "delivered"))  # type: ignore[misc]


async def test_webhooks_that_come_twice_late_or_never_end_the_same(shop: CarrierHouse, ledger: str) -> None:
    shop.context.settings = settings.load(carriers_secret=SECRET, carriers_silent_s=0.5)
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address, silent_s=0.5):
        await sandbox.control("faults", {"repeat": 0.5, "reorder": 0.5, "lose": 0.3})
        orders = [await shop.place() for _ in range(12)]
        for number, order in enumerate(orders):
            waybill = await shop.booked(order)
            await sandbox.control(f"parcels/{waybill}/{'fail' if number % 3 == 0 else 'deliver'}")
        for number, order in enumerate(orders):
            end = "undeliverable" if number % 3 == 0 else "delivered"
            await until(lambda order=order, end=end: shop.order_is(order, end))  # type: ignore[misc]
        ends = await shop.ledger.fetch(
            "SELECT order_id, count(*) FROM history WHERE event IN ('order.shipped', 'order.delivered',"
            " 'order.undeliverable') GROUP BY order_id"
        )
        assert {row[0]: row[1] for row in ends} == dict.fromkeys(orders, 2)
        assert await shop.ledger.fetchval("SELECT count(*) FROM parcel WHERE error IS NOT NULL") == 0


async def test_a_carrier_that_tells_nothing_is_asked(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop, tells=False) as sandbox, worker(ledger, sandbox.address, silent_s=0.2):
        order = await shop.place()
        waybill = await shop.booked(order)
        await sandbox.control(f"parcels/{waybill}/advance")
        await until(lambda: shop.order_is(order, "shipped"))
        await sandbox.control(f"parcels/{waybill}/deliver")
        await until(lambda: shop.order_is(order, "delivered"))
        events = await shop.ledger.fetchval("SELECT count(*) FROM parcel_event")
        asked = (await sandbox.read("health"))["asked"]
        await asyncio.sleep(0.6)
        assert (events, (await sandbox.read("health"))["asked"]) == (5, asked)  # what has ended is asked no more


# --- which orders, which carriers ---


async def test_every_lanes_carrier_is_booked(shop: CarrierHouse, ledger: str) -> None:
    lanes = packaged().lanes.lanes
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        orders = {}
        for lane in lanes:
            orders[await shop.place()] = lane
        for order, lane in orders.items():
            await shop.booked(order)
            await shop.ledger.execute("DELETE FROM parcel WHERE order_id = $1", order)
            await shop.ledger.execute(
                "UPDATE orders SET lane = $2, lane_number = $3 WHERE id = $1", order, lane.id, lane.number
            )
        # As if they had been paid just now, on that lane, and under references that the carriers have not seen.
        renamed = {}
        for order, lane in orders.items():
            new = f"{order[:-2]}{int(order[-2:], 16) ^ 1:02x}"
            await shop.ledger.execute("UPDATE orders SET id = $2 WHERE id = $1", order, new)
            await shop.ledger.execute(
                "INSERT INTO history (order_id, number, at_ms, event, status, payment)"
                " VALUES ($1, 2, 0, 'order.paid', 'paid', 'authorised')",
                new,
            )
            renamed[new] = lane
        for order, lane in renamed.items():
            waybill = await shop.booked(order)
            row = await shop.parcel(order)
            assert (row["carrier"], row["lane_number"]) == (lane.carrier, lane.number)
            await shop.tell(lane.carrier, _event(waybill))
            assert await shop.order_is(order, "delivered")
        booked = {parcel["carrier"] for parcel in (await sandbox.read("parcels"))["parcels"]}
    assert booked == {lane.carrier for lane in lanes} and len(booked) >= 3


async def test_the_shopper_chooses_the_carrier(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        for lane, carrier in (("cainiao-standard", "cainiao"), ("sf-international", "sf-express")):
            order = await shop.place(lane=lane)
            await shop.booked(order)
            assert (await shop.parcel(order))["carrier"] == carrier


async def test_what_a_marketplace_packs_is_not_booked(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        own, foreign = await shop.place(channel="tmall-world"), await shop.place(channel="lazada-sg", shopper="s1")
        await shop.booked(own)
        await until(lambda: _pending(shop))
        assert await shop.parcel(foreign) is None
        path = f"/v1/channels/lazada-sg/orders/{foreign}"
        packed = await shop.post(f"{path}/pack", {}, 201, **shop.token("boss", "admin"))
        tracking = await shop.get(f"/v1/orders/{foreign}/tracking", **shop.token("boss", "admin"))
        assert tracking == {"order": foreign, "waybill": packed["tracking"], "events": []}


async def test_what_was_paid_before_there_were_carriers_is_booked_when_there_are(
    shop: CarrierHouse, ledger: str
) -> None:
    waiting, cancelled, shipped = [await shop.place() for _ in range(3)]
    unpaid = await shop.place(paid=False)
    await _cancel(shop, cancelled)
    await shop.post(f"/v1/orders/{shipped}/shipment", {}, **shop.token("boss", "admin"))
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        await shop.booked(waiting)
        await until(lambda: _pending(shop))
    assert [await shop.parcel(order) for order in (cancelled, shipped, unpaid)] == [None] * 3


async def test_a_lane_that_nobody_knows_is_for_people(shop: CarrierHouse, ledger: str) -> None:
    order = await shop.place(paid=False)
    await shop.ledger.execute("UPDATE orders SET lane_number = 999")
    await shop.pay(order)
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        await until(lambda: shop.parcel_is(order, "refused"))
        assert (await shop.parcel(order))["error"] == "no carrier is known for the lane"
        assert (await sandbox.read("parcels"))["parcels"] == []


# --- cancelled ---


async def test_an_order_cancelled_before_the_pick_up_is_not_carried(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        order = await shop.place()
        waybill = await shop.booked(order)
        await _cancel(shop, order, (0, 1))  # a part of it: the rest is carried
        await until(lambda: _pending(shop))
        assert await shop.parcel_is(order, "booked")
        await shop.post(f"/v1/orders/{order}/cancellation", {}, **shop.token("ann"))
        await until(lambda: shop.parcel_is(order, "cancelled"))
        (parcel,) = (await sandbox.read("parcels"))["parcels"]
        assert (parcel["waybill"], parcel["status"]) == (waybill, "cancelled")
        assert (await shop.parcel(order))["due_ms"] is None
        assert "tracking" not in await shop.get(f"/v1/orders/{order}", **shop.token("ann"))


async def test_an_order_cancelled_while_the_carrier_is_away_is_not_booked(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox:
        order, kept = await shop.place(), await shop.place()
        async with worker(ledger, "http://127.0.0.1:9"):

            async def tried() -> bool:
                row = await shop.parcel(order)
                return row is not None and row["error"] is not None

            await until(tried)
            await _cancel(shop, order)
            await until(lambda: shop.parcel_is(order, "cancelling"))  # it may be booked, for all that is known
        async with worker(ledger, sandbox.address):
            await shop.booked(kept)
            await until(lambda: shop.parcel_is(order, "cancelled"))
        statuses = {parcel["reference"]: parcel["status"] for parcel in (await sandbox.read("parcels"))["parcels"]}
        assert statuses == {order: "cancelled", kept: "booked"}


async def test_a_parcel_that_was_picked_up_first_travels_and_is_noted(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop, tells=False) as sandbox, worker(ledger, sandbox.address):
        order = await shop.place()
        waybill = await shop.booked(order)
        await sandbox.control(f"parcels/{waybill}/advance")  # nobody heard it
        await _cancel(shop, order)

        async def heard() -> bool:
            return len((await shop.get(f"/v1/orders/{order}/tracking", **shop.token("ann")))["events"]) == 1

        await until(heard)
        row = await shop.parcel(order)
        assert (row["status"], row["error"]) == ("picked_up", "the order is cancelled, and its parcel travels")
        assert await shop.order_is(order, "cancelled")
        await sandbox.control(f"parcels/{waybill}/cancel", status=409)


async def test_a_carrier_that_cancels_a_parcel_leaves_it_to_people(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address, silent_s=0.2):
        order = await shop.place()
        await sandbox.control(f"parcels/{await shop.booked(order)}/cancel")
        await until(lambda: shop.parcel_is(order, "refused"))
        assert (await shop.parcel(order))["error"] == "the carrier cancelled it"
        assert await shop.order_is(order, "paid")
        await shop.post(f"/v1/orders/{order}/shipment", {}, **shop.token("boss", "admin"))  # by other means


async def test_a_channel_that_packs_what_is_booked_carries_it_itself(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        order = await shop.place(channel="tmall-world")
        await shop.booked(order)
        path, admin = f"/v1/channels/tmall-world/orders/{order}", shop.token("boss", "admin")
        await shop.post(f"{path}/pack", {}, 201, **admin)
        await shop.post(f"{path}/ready-to-ship", {}, **admin)
        await until(lambda: shop.parcel_is(order, "cancelled"))
        (parcel,) = (await sandbox.read("parcels"))["parcels"]
        assert parcel["status"] == "cancelled"
        assert await shop.order_is(order, "shipped")


# --- carriers that fail ---


async def test_a_booking_whose_answer_was_lost_is_the_same_booking(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        await sandbox.control("faults", {"unanswered": 3})
        orders = [await shop.place() for _ in range(3)]
        waybills = {order: await shop.booked(order) for order in orders}
        parcels = {parcel["reference"]: parcel["waybill"] for parcel in (await sandbox.read("parcels"))["parcels"]}
        assert parcels == waybills
        assert (await sandbox.read("health"))["asked"] >= 6


async def test_what_changed_between_two_tries_is_booked_as_it_was(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox:
        await sandbox.control("faults", {"unanswered": 1})
        order = await shop.place(("KETTLE", 3))
        async with worker(ledger, sandbox.address, again_ms=(60_000, 60_000)):

            async def tried() -> bool:
                row = await shop.parcel(order)
                return row is not None and row["error"] is not None

            await until(tried)
        await _cancel(shop, order, (0, 1))
        await shop.update_sale(
            ACROSS.replace('"Kettle"', '"Another kettle"').replace("weight_g = 1150", "weight_g = 7")
        )
        async with worker(ledger, sandbox.address):  # a new one asks at once
            await shop.booked(order)
        assert (await shop.parcel(order))["error"] is None


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_carriers_that_are_away_lose_nothing(shop: CarrierHouse, ledger: str, status: int) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        await sandbox.control("faults", {"away": 8, "status": status})
        orders = [await shop.place() for _ in range(4)]
        for order in orders:
            await shop.booked(order)
        assert len((await sandbox.read("parcels"))["parcels"]) == 4


async def test_carriers_that_are_away_are_asked_less_and_less(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        await sandbox.control("faults", {"away": 1000})
        orders = [await shop.place() for _ in range(10)]
        await asyncio.sleep(2)
        asked = (await sandbox.read("health"))["asked"]
        assert 10 <= asked <= 60  # a try of each takes 50 ms at first: 400 without a pause
        await sandbox.control("faults", {})
        for order in orders:
            await shop.booked(order)


async def test_what_a_carrier_refuses_is_for_people(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox:
        order = await shop.place()
        sandbox.running.store.book(order, "cainiao", "SG", b"another parcel")
        async with worker(ledger, sandbox.address):
            await until(lambda: shop.parcel_is(order, "refused"))
            row = await shop.parcel(order)
            assert row["error"].startswith("reference-used") and row["due_ms"] is None
            tracking = await shop.get(f"/v1/orders/{order}/tracking", **shop.token("ann"))
            assert tracking["status"] == "refused" and "error" not in tracking
            seen = await shop.get(f"/v1/orders/{order}/tracking", **shop.token("boss", "admin"))
            assert seen["error"] == row["error"]
            other = await shop.place()  # and the others go on
            await shop.booked(other)
    assert REGISTRY.get_sample_value("flashsale_carrier_calls_total", {"call": "book", "outcome": "refused"})


async def test_two_parcels_can_not_have_one_waybill(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        first = await shop.place()
        await shop.booked(first)
        await shop.ledger.execute("UPDATE parcel SET waybill = $1", waybill_of("cainiao", 2))  # the next one's
        second = await shop.place()
        await until(lambda: shop.parcel_is(second, "refused"))
        assert await shop.parcel_is(first, "booked")


async def test_a_sandbox_that_is_killed_goes_on_where_it_was(shop: CarrierHouse, ledger: str, tmp_path: Path) -> None:
    process, address = await _process(shop, tmp_path, 0)
    port = int(address.rpartition(":")[2])
    orders = [await shop.place() for _ in range(6)]
    async with worker(ledger, address):
        for number in range(1, 5):
            await asyncio.sleep(0.15 * number)
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            orders.append(await shop.place())
            process, _ = await _process(shop, tmp_path, port)
        for order in orders:
            await until(lambda order=order: shop.order_is(order, "delivered"), 30)  # type: ignore[misc]
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    waybills = await shop.ledger.fetch("SELECT waybill FROM parcel")
    assert len({row[0] for row in waybills}) == len(orders)


async def _process(shop: CarrierHouse, directory: Path, port: int) -> tuple[asyncio.subprocess.Process, str]:
    """`flashsale sandbox carriers` in that directory, and its address."""
    arguments = ("sandbox", "carriers", "--data-dir", str(directory), "--port", str(port), "--auto", "0.2")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flashsale", *arguments, "--events-url", shop.events_url),
        env={**os.environ, "FLASHSALE_CARRIERS_SECRET": SECRET, "FLASHSALE_LOG_LEVEL": "warning"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().split()
    assert line[:2] == ["carriers", "sandbox"]
    return process, line[2]


# --- workers that fail ---

WORKER = """
    import asyncio, sys
    from flashsale.partners.carriers.http import HttpCarriers
    from flashsale.pipeline.carrier_calls import CarrierCalls
    carriers = HttpCarriers(sys.argv[2], sys.argv[3], timeout_s=2)
    asyncio.run(CarrierCalls(sys.argv[1], carriers, silent_s=3600, timeout_s=2).run())
"""


async def test_a_killed_worker_loses_nothing_and_books_nothing_twice(shop: CarrierHouse, ledger: str) -> None:
    async with carriers(shop) as sandbox:
        made: list[str] = []
        for number in range(3):
            before = (await sandbox.read("health"))["parcels"]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", textwrap.dedent(WORKER), ledger, sandbox.address, SECRET)
            )
            made += [await shop.place() for _ in range(5)]

            async def some(before: int = before) -> bool:
                return bool((await sandbox.read("health"))["parcels"] > before)

            await until(some)
            await asyncio.sleep(0.02 * number)
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
        async with worker(ledger, sandbox.address):
            for order in made:
                await shop.booked(order)
        parcels = (await sandbox.read("parcels"))["parcels"]
        assert sorted(parcel["reference"] for parcel in parcels) == sorted(made)


async def test_a_worker_that_is_to_stop_waits_for_no_carrier(shop: CarrierHouse, ledger: str) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        asked.set()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    order = await shop.place()
    async with worker(ledger, f"http://127.0.0.1:{port}", timeout_s=60):
        await asyncio.wait_for(asked.wait(), 10)
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    listening.close()
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):  # the next one asks at once
        await asyncio.wait_for(shop.booked(order), 5)


def _event(waybill: str) -> dict[str, str]:
    return {"id": f"ev-{waybill}", "waybill": waybill, "code": "delivered", "at": "2026-11-12T08:30:00+08:00"}


async def test_a_parcel_that_cannot_be_described_or_stored_holds_up_no_other(shop: CarrierHouse, ledger: str) -> None:
    unread, refused = await shop.place(("KETTLE", 1)), await shop.place(("KETTLE", 1))
    version = await shop.ledger.fetchval("SELECT catalogue_version FROM orders WHERE id = $1", unread)
    await shop.ledger.execute("INSERT INTO catalogue SELECT 0, '\\xc1'::bytea")
    await shop.ledger.execute("UPDATE orders SET catalogue_version = 0 WHERE id = $1", unread)
    await shop.ledger.execute(
        f"ALTER TABLE parcel ADD CONSTRAINT poison CHECK (order_id <> '{refused}' OR waybill IS NULL)"
    )
    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        later = await shop.place(("FAN", 1))
        assert await shop.booked(later)

        async def both_say_why() -> bool:
            query = "SELECT count(*) FROM parcel WHERE order_id = ANY ($1) AND status = 'to_book' AND error IS NOT NULL"
            return bool(await shop.ledger.fetchval(query, [unread, refused]) == 2)

        await until(both_say_why)
        await shop.ledger.execute("ALTER TABLE parcel DROP CONSTRAINT poison")
        await shop.ledger.execute("UPDATE orders SET catalogue_version = $2 WHERE id = $1", unread, version)
        assert await shop.booked(unread)
        assert await shop.booked(refused)
