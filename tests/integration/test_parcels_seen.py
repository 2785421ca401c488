"""Parcels as an operator sees them: the command that lists and retries them, and what the audit says of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flashsale.audit import audit
from flashsale.embedded import ValkeyServer
from flashsale.ledger import parcels
from tests.integration.carrier_house import CarrierHouse, carriers, open_carrier_house, until, worker
from tests.integration.test_audit_commands import command


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[CarrierHouse]:
    async with open_carrier_house(valkey_memory.url, ledger) as house:
        yield house


async def test_what_was_refused_is_listed_and_booked_again(
    shop: CarrierHouse, valkey_memory: ValkeyServer, ledger: str, tmp_path: Path
) -> None:
    async def run(*arguments: str) -> tuple[int, Any]:
        done = await asyncio.to_thread(
            command, valkey_memory.url, ledger, tmp_path, "parcels", *arguments, "--json"
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout)

    async with carriers(shop) as sandbox, worker(ledger, sandbox.address):
        assert await run("list") == (0, {"parcels": []})
        good = await shop.place()
        waybill = await shop.booked(good)
        await sandbox.control("faults", {"away": 1, "status": 422})  # no carrier's word: it is asked again
        other = await shop.place()
        await shop.booked(other)
        bad = await shop.place(paid=False)
        sandbox.running.store.book(bad, "cainiao", "SG", b"another parcel")
        await shop.pay(bad)
        await until(lambda: shop.parcel_is(bad, "refused"))
        (listed,) = (await run("list"))[1]["parcels"]
        assert (listed["order"], listed["carrier"], listed["waybill"]) == (bad, "cainiao", None)
        assert "another parcel was booked" in listed["error"]
        (_, booked) = await run("list", "--status", "booked")
        assert {each["order"] for each in booked["parcels"]} == {good, other}
        assert (await run("list", "--status", "booked", "--limit", "1"))[1]["parcels"][0]["order"] == other
        text = command(valkey_memory.url, ledger, tmp_path, "parcels", "list", "--status", "booked").stdout
        assert f"{good}  booked     cainiao      {waybill}" in text

        sandbox.running.store._sql.execute("DELETE FROM parcel WHERE reference = ?", (bad,))  # somebody rang them up
        assert await run("retry", bad) == (0, {"order": bad, "status": "to_book"})
        await shop.booked(bad)
        assert (await run("list"))[1] == {"parcels": []}
        for wrong in (bad, "none"):
            status, answer = await run("retry", wrong)
            assert status == 1 and wrong in answer["error"]
    done = command(valkey_memory.url, ledger, tmp_path, "parcels", "list", "--status", "lost")
    assert done.returncode == 2 and "picked_up" in done.stderr
    away = command(valkey_memory.url, "postgresql://127.0.0.1:1/none", tmp_path, "parcels", "list")
    assert away.returncode == 1 and len(away.stderr.splitlines()) == 1
    assert "Example: flashsale parcels" in command(valkey_memory.url, ledger, tmp_path, "parcels", "-h").stdout


MOVED = "UPDATE parcel SET status = 'booked' WHERE status = 'delivered'"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("SELECT 1", None),
        ("DELETE FROM parcel WHERE status = 'delivered'", "a carrier told of its parcel, and it has none"),
        ("UPDATE parcel SET order_id = 'x' WHERE status = 'booked'", "there is no such order"),
        ("UPDATE parcel SET waybill = NULL", "without a waybill"),
        (MOVED, "its parcel is booked, though its carrier has moved it"),
        ("UPDATE parcel SET status = 'cancelled' WHERE status = 'picked_up'", "though its carrier has moved it"),
        ("UPDATE parcel SET status = 'failed' WHERE status = 'delivered'", "which is not what its carrier told"),
        ("DELETE FROM parcel_event WHERE code = 'delivered'", "which is not what its carrier told"),
        ("UPDATE parcel SET status = 'picked_up' WHERE status = 'booked'", "which is not what its carrier told"),
        ("UPDATE orders SET status = 'paid' WHERE status = 'shipped'", "its parcel is picked_up, and the order paid"),
        ("UPDATE orders SET status = 'shipped' WHERE status = 'delivered'", "and the order shipped"),
        ("UPDATE orders SET status = 'delivered' WHERE status = 'undeliverable'", "and the order delivered"),
    ],
)
async def test_the_audit_names_what_is_wrong(
    shop: CarrierHouse, valkey_memory: ValkeyServer, ledger: str, damage: str, fault: str | None
) -> None:
    now_ms = int(time.time() * 1000)
    for number, code in enumerate((None, "in_transit", "delivered", "failed")):
        order, waybill = await shop.place(), f"CA{number}"
        await parcels.take_up(shop.ledger, {1: "cainiao"}, [], rows=100, now_ms=now_ms)
        await parcels.booked(shop.ledger, order, waybill, now_ms)
        if code is not None:
            event = {"id": f"ev-{number}", "waybill": waybill, "code": code, "at": "2026-11-12T08:30:00+08:00"}
            await shop.tell("cainiao", event)
    await shop.ledger.execute(damage)
    found = [each for each in (await audit(valkey_memory.url, ledger)).faults if each.invariant == "parcel"]
    if fault is None:
        assert not found
    else:
        assert found and any(fault in each.detail for each in found), found
        assert all(each.order for each in found)
