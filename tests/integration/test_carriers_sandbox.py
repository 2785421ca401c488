"""The carriers' sandbox by itself, what it answers to whom, and what the client makes of answers that are none."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from flashsale.partners.carriers.carrier import (
    PICKED_UP,
    UNKNOWN,
    CarrierAway,
    CarrierRefused,
    Goods,
    Parcel,
)
from flashsale.partners.carriers.http import ANSWER_MAX_BYTES, HttpCarriers
from flashsale.partners.carriers.sandbox import server
from flashsale.partners.carriers.sandbox.server import Running
from flashsale.partners.carriers.sandbox.store import waybill_of
from flashsale.partners.carriers.signing import Signing, request_text
from flashsale.sale.tracking import Code
from flashsale.sale.world import packaged

SECRET = "whsec_WYMOvDpBhBEFZr8aKQ0IRz39y9SSzkmLFM0aXi+i5EE="
OTHER = "whsec_" + "QUJD" * 8
KETTLE = Goods("KETTLE", "Kettle", 2, 3190, "8516.79", "CN")
PARCEL = Parcel("o-1", "cainiao", "cainiao-standard", "CN", "SG", {"name": "王小明"}, 2300, "SGD", [KETTLE])


@pytest.fixture
async def sandbox() -> AsyncIterator[Running]:
    running = await server.start(0, SECRET)
    yield running
    await running.stop()


@pytest.fixture
async def client(sandbox: Running) -> AsyncIterator[HttpCarriers]:
    made = HttpCarriers(sandbox.address + "/", SECRET, timeout_s=2)
    yield made
    await made.aclose()


async def _control(sandbox: Running, path: str, body: object = None) -> tuple[int, Any]:
    async with aiohttp.request("POST", f"{sandbox.address}/sandbox/{path}", json=body) as answer:
        return answer.status, await answer.json()


# --- the interface ---


async def test_one_reference_is_one_parcel(client: HttpCarriers) -> None:
    first = await client.book(PARCEL)
    assert await client.book(PARCEL) == first
    assert await client.book(PARCEL._replace(reference="o-2")) != first
    for other in (PARCEL._replace(weight_g=2301), PARCEL._replace(country="MY"), PARCEL._replace(carrier="cosco")):
        with pytest.raises(CarrierRefused) as refused:
            await client.book(other)
        assert refused.value.code == "reference-used"


async def test_every_carrier_of_the_lanes_books(client: HttpCarriers) -> None:
    names = {lane.carrier for lane in packaged().lanes.lanes}
    waybills = {await client.book(PARCEL._replace(reference=name, carrier=name)) for name in names}
    assert len(waybills) == len(names) >= 3
    with pytest.raises(CarrierRefused, match="unknown-carrier"):
        await client.book(PARCEL._replace(carrier="No Such"))
    with pytest.raises(CarrierRefused, match="invalid-parcel"):
        await client.book(PARCEL._replace(goods=[]))


async def test_a_parcel_is_cancelled_until_it_is_picked_up(sandbox: Running, client: HttpCarriers) -> None:
    waybill = await client.book(PARCEL)
    await client.cancel(waybill)
    await client.cancel(waybill)
    assert await client.look(waybill) == (True, [])
    status, body = await _control(sandbox, f"parcels/{waybill}/advance")
    assert (status, body["error"]["code"]) == (409, "ended")
    other = await client.book(PARCEL._replace(reference="o-2"))
    await _control(sandbox, f"parcels/{other}/advance")
    for call, code in (
        (client.cancel(other), PICKED_UP),
        (client.cancel("XX00"), UNKNOWN),
        (client.look("X"), UNKNOWN),
    ):
        with pytest.raises(CarrierRefused) as refused:
            await call
        assert refused.value.code == code


async def test_a_parcel_goes_its_way(sandbox: Running, client: HttpCarriers) -> None:
    waybill, began_ms = await client.book(PARCEL), time.time() * 1000
    way = [*Code][:5]
    for number, code in enumerate(way, 1):
        assert await _control(sandbox, f"parcels/{waybill}/advance") == (200, {"waybill": waybill, "status": code})
        state = await client.look(waybill)
        assert not state.cancelled and [event.code for event in state.events] == way[:number]
    assert [event.country for event in state.events] == ["CN", "SG", "SG", "SG", "SG"]
    assert all(began_ms - 1 <= event.at_ms <= time.time() * 1000 for event in state.events)
    assert len({event.id for event in state.events}) == 5
    for control in ("advance", "deliver", "fail", "return", "cancel"):
        assert (await _control(sandbox, f"parcels/{waybill}/{control}"))[0] == 409
    assert (await _control(sandbox, "parcels/NONE/advance"))[0] == 404
    failed = await client.book(PARCEL._replace(reference="o-2"))
    for control in ("fail", "return"):
        assert (await _control(sandbox, f"parcels/{failed}/{control}"))[0] == 200
    codes = [event.code for event in (await client.look(failed)).events]
    assert codes == [Code.PICKED_UP, Code.FAILED, Code.RETURNED]


@pytest.mark.parametrize(("number", "digits"), [(47312482, "473124829"), (12345678, "123456785"), (0, "000000005")])
def test_waybills_are_numbered_as_the_post_does(number: int, digits: str) -> None:
    # UPU S10: the check digits of its own example, of the one that most carriers print, and of remainder 0.
    assert waybill_of("cainiao", number) == f"CA{digits}CN"
    assert waybill_of("x", number) == f"XX{digits}CN"


# --- who may ask ---


async def test_only_who_signs_is_answered(sandbox: Running) -> None:
    body = b'{"reference":"o-1"}'
    right, path = Signing(SECRET), "/v1/parcels"
    text = request_text("POST", path, body.decode())
    async with aiohttp.ClientSession(sandbox.address) as session:
        for headers in (
            {},
            Signing(OTHER).headers(text),
            right.headers(body.decode()),  # not bound to method and path
            right.headers(request_text("GET", path, body.decode())),
            right.headers(request_text("POST", "/v1/parcels/X/cancellation", body.decode())),
            {**right.headers(text), "webhook-timestamp": "1"},
        ):
            async with session.post(path, data=body, headers=headers) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (401, "signature"), headers
        async with session.post(path, data=body, headers=right.headers(text)) as answer:
            assert answer.status == 422
        for wrong in ("parcels/X", "parcels/X/cancellation"):
            async with session.get(f"/v1/{wrong}") as answer:
                assert answer.status in (401, 405)


@pytest.mark.parametrize("secret", ["", "whsec_", "x", "whsec_é"])
def test_what_is_no_key_signs_nothing(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and base64"):
        Signing(secret)


# --- what fails ---


async def test_faults_are_checked_and_all_set_at_once(sandbox: Running, client: HttpCarriers) -> None:
    for wrong in ({"away": -1}, {"lose": 2}, {"status": 200}, {"none": 1}, [], {"repeat": "x"}):
        status, body = await _control(sandbox, "faults", wrong)
        assert (status, body["error"]["code"]) == (422, "invalid"), wrong
    for wrong in ({"step_s": -1}, {}, {"step_s": 1e9}):
        assert (await _control(sandbox, "clock", wrong))[0] == 422
    assert (await _control(sandbox, "faults", {"away": 1, "status": 429}))[1]["away"] == 1
    with pytest.raises(CarrierAway, match="status 429"):
        await client.book(PARCEL)
    await _control(sandbox, "faults", {"unanswered": 1})
    with pytest.raises(CarrierAway, match=r"ServerDisconnected|ClientOS"):
        await client.book(PARCEL)
    async with aiohttp.request("GET", f"{sandbox.address}/sandbox/health") as answer:
        assert (await answer.json())["parcels"] == 1  # it was done, and not answered
    await client.book(PARCEL)


Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def _strange(page: Page) -> AsyncIterator[HttpCarriers]:
    """A client of a server that answers everything with `page`."""
    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", page)
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = HttpCarriers(f"http://127.0.0.1:{runner.addresses[0][1]}", SECRET, timeout_s=0.5)
    try:
        yield client
    finally:
        await client.aclose()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"waybill":1,"status":2}'),
        (200, b'{"waybill":"a b","status":"booked","events":[{}]}'),
        (200, b'{"waybill":"' + b"A" * 41 + b'","status":"booked","events":1}'),
        (200, b'{"waybill":"A\\u0000B","status":"booked","events":[{"id":"","code":"delivered","at":"2026"}]}'),
        (200, b" " * (ANSWER_MAX_BYTES + 1)),
        (201, b'{"waybill":"../x","status":null}'),
        (302, b""),
        (400, b'{"error":{"code":"x"}}'),
        (404, b"nothing here"),
        (409, b'{"error":{}}'),
        (422, b"\xff"),
        (500, b'{"waybill":"ABCD","status":"booked"}'),
    ],
)
async def test_an_answer_that_says_nothing_is_a_carrier_that_is_away(status: int, body: bytes) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"Location": "http://127.0.0.1:1/"})

    async with _strange(page) as client:
        for call in (client.book(PARCEL), client.look("ABCD")):
            with pytest.raises(CarrierAway):
                await call


async def test_no_answer_in_time_is_a_carrier_that_is_away() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.1)

    for page in (silent, slow):
        async with _strange(page) as client:
            began = time.monotonic()
            with pytest.raises(CarrierAway):
                await client.cancel("ABCD")
            assert time.monotonic() - began < 2
    nobody = HttpCarriers("http://127.0.0.1:9", SECRET, timeout_s=1)
    with pytest.raises(CarrierAway):
        await nobody.cancel("ABCD")
    await nobody.aclose()


async def test_what_a_refusal_says_can_be_kept_and_shown() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"code": "no\0", "message": "\x1b[31m" + "x" * 5000}}, status=409)

    async with _strange(page) as client:
        with pytest.raises(CarrierRefused) as refused:
            await client.book(PARCEL)
        text = str(refused.value)
        assert text.isprintable() and len(text) < 500


# --- the command ---


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashsale", "sandbox", "carriers", *arguments],
        env={"PATH": os.environ["PATH"], "FLASHSALE_LOG_LEVEL": "error", **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_says_what_it_lacks(tmp_path: Path) -> None:
    helped = _command("--help")
    assert helped.returncode == 0 and "Example: flashsale sandbox carriers" in helped.stdout
    unset = _command("--data-dir", str(tmp_path))
    assert unset.returncode == 2 and "FLASHSALE_CARRIERS_SECRET" in unset.stderr
    url = _command("--events-url", "ftp://x", FLASHSALE_CARRIERS_SECRET=SECRET)
    assert url.returncode == 2 and "--events-url" in url.stderr
    no_file = tmp_path / "parcels.sqlite"
    no_file.mkdir()
    broken = _command("--data-dir", str(tmp_path), FLASHSALE_CARRIERS_SECRET=SECRET)
    assert broken.returncode == 1 and "can't run" in broken.stderr and "Traceback" not in broken.stderr


async def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flashsale", "sandbox", "carriers", "--json", "--data-dir", str(tmp_path)),
        env={**os.environ, "FLASHSALE_CARRIERS_SECRET": SECRET, "FLASHSALE_LOG_LEVEL": "warning"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    told = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    assert told["pid"] == process.pid
    port = told["address"].rpartition(":")[2]
    taken = await asyncio.to_thread(
        _command, "--port", port, "--data-dir", str(tmp_path / "b"), FLASHSALE_CARRIERS_SECRET=SECRET
    )
    assert taken.returncode == 1 and f"port {port}" in taken.stderr
    client = HttpCarriers(told["address"], SECRET, timeout_s=2)
    waybill = await client.book(PARCEL)
    await client.aclose()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 5) == 0
    again = await server.start(0, SECRET, path=tmp_path / "parcels.sqlite")
    assert again.store.read(waybill)["reference"] == "o-1"
    await again.stop()
