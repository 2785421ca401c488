"""What carriers tell over POST /v1/carriers/{carrier}/events: signed, twice, in any order; and what they may not."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook

from flashsale import settings as engine_settings
from flashsale.embedded import ValkeyServer
from flashsale.front.carriers import EVENT_MAX_BYTES
from flashsale.ledger import life, parcels
from flashsale.sale.tracking import Code, ParcelStatus, after
from tests.integration.carrier_house import SECRET, CarrierHouse, open_carrier_house

CAINIAO = {1: "cainiao"}
_waybills = (f"CA{number:08d}CN" for number in itertools.count(1))
_ids = (f"ev-{number}" for number in itertools.count(1))
ENDS = {Code.DELIVERED: "delivered", Code.FAILED: "undeliverable", Code.RETURNED: "undeliverable"}


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[CarrierHouse]:
    async with open_carrier_house(valkey_memory.url, ledger) as house:
        yield house


async def _booked(shop: CarrierHouse) -> tuple[str, str]:
    """An order whose parcel is booked, and the waybill; no carrier was asked."""
    order, waybill, now_ms = await shop.place(), next(_waybills), int(time.time() * 1000)
    while await parcels.take_up(shop.ledger, CAINIAO, [], rows=1000, now_ms=now_ms):
        pass
    await parcels.booked(shop.ledger, order, waybill, now_ms + 3_600_000)
    return order, waybill


def _event(waybill: str, code: str, **given: Any) -> dict[str, Any]:
    return {"id": next(_ids), "waybill": waybill, "code": code, "at": datetime.now(UTC).isoformat(), **given}


async def _history(shop: CarrierHouse, order: str) -> list[str]:
    rows = await shop.ledger.fetch("SELECT event FROM history WHERE order_id = $1 ORDER BY number", order)
    return [row[0] for row in rows if row[0] != "order.paid"]


# --- any order, any number of times ---

one_truth = st.one_of(
    st.sets(st.sampled_from([code for code in Code if code not in (Code.FAILED, Code.RETURNED)])),
    st.sets(st.sampled_from([code for code in Code if code is not Code.DELIVERED])),
)


@st.composite
def tellings(draw: st.DrawFn) -> list[tuple[int, Code]]:
    """Events of one parcel, each with its place in time, told in some order and some of them more than once."""
    codes = draw(one_truth)
    events = list(enumerate(code for code in Code if code in codes))
    repeated = draw(st.lists(st.sampled_from(events), max_size=3)) if events else []
    return draw(st.permutations([*events, *repeated]))


def test_the_end_depends_on_the_set_of_events_alone(valkey_memory: ValkeyServer, ledger: str) -> None:
    began = datetime.now(UTC)

    async def tell(shop: CarrierHouse, told: Sequence[tuple[int, Code]]) -> None:
        order, waybill = await _booked(shop)
        # A carrier's clock counts on, from when the parcel was made.
        times = {place: began + timedelta(minutes=place) for place, _ in told}
        for place, code in told:
            event = {"id": f"{waybill}-{place}", "waybill": waybill, "code": code, "at": times[place].isoformat()}
            assert await shop.tell("cainiao", event) == {"received": True}
        codes = {code for _, code in told}
        ends = {ENDS[code] for code in codes if code in ENDS}
        expected = ends.pop() if ends else "shipped" if codes else "paid"
        parcel = await shop.parcel(order)
        assert await shop.order_is(order, expected)
        by_order = {"paid": "booked", "shipped": "picked_up", "undeliverable": "failed"}
        assert parcel["status"] == by_order.get(expected, expected)
        assert (parcel["due_ms"] is None) == (expected in ENDS.values())
        assert parcel["error"] is None
        moved = ["order.shipped", f"order.{expected}"][: {"paid": 0, "shipped": 1}.get(expected, 2)]
        events = await _history(shop, order)
        assert [event for event in events if not event.startswith("refund")] == moved
        shown = (await shop.get(f"/v1/orders/{order}/tracking", **shop.token("ann")))["events"]
        assert [event["code"] for event in shown] == [code for _, code in sorted(set(told))]
        ended_ms = await shop.ledger.fetchval("SELECT ended_ms FROM promise WHERE order_id = $1", order)
        assert (ended_ms is not None) == (expected in ENDS.values())

    with asyncio.Runner() as runner:
        opened = open_carrier_house(valkey_memory.url, ledger)
        shop = runner.run(opened.__aenter__())

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(told=tellings())
        def play(told: list[tuple[int, Code]]) -> None:
            runner.run(tell(shop, told))

        try:
            play()
        finally:
            runner.run(opened.__aexit__(None, None, None))


@given(told=st.lists(st.sampled_from(list(Code)), max_size=12))
def test_a_parcel_never_moves_back(told: list[Code]) -> None:
    status, way = ParcelStatus.BOOKED, [ParcelStatus.BOOKED]
    for code in told:
        status = after(status, code)
        way.append(status)
    order = [ParcelStatus.BOOKED, ParcelStatus.PICKED_UP, ParcelStatus.DELIVERED, ParcelStatus.FAILED]
    places = [order.index(each) for each in way]
    assert places == sorted(places)
    ended = [each for each in way if each in (ParcelStatus.DELIVERED, ParcelStatus.FAILED)]
    assert len(set(ended)) <= 1  # what was said first stays


async def test_many_tell_the_same_at_once(shop: CarrierHouse) -> None:
    order, waybill = await _booked(shop)
    events = [_event(waybill, code) for code in Code if code not in (Code.FAILED, Code.RETURNED)]
    told = events * 6
    random.shuffle(told)
    answers = await asyncio.gather(*(_post(shop, "cainiao", event) for event in told))
    # What met another change of the order was not done, and a carrier tells it again.
    assert {status for status, _ in answers} <= {200, 503}
    for event in events:
        await shop.tell("cainiao", event)
    assert await shop.order_is(order, "delivered")
    assert await _history(shop, order) == ["order.shipped", "order.delivered"]
    assert await shop.ledger.fetchval("SELECT count(*) FROM parcel_event") == len(events)


async def test_a_carrier_that_contradicts_itself_is_noted_and_what_it_said_first_stays(shop: CarrierHouse) -> None:
    for first, second, end in (("delivered", "failed", "delivered"), ("failed", "delivered", "undeliverable")):
        order, waybill = await _booked(shop)
        await shop.tell("cainiao", _event(waybill, first))
        await shop.tell("cainiao", _event(waybill, second))
        assert await shop.order_is(order, end)
        row = await shop.parcel(order)
        assert row["status"] == first
        assert row["error"] == f"the order is {end}, and the carrier calls its parcel {second}"


async def test_a_promise_is_judged_by_the_carriers_time(shop: CarrierHouse) -> None:
    order, waybill = await _booked(shop)
    made_ms = (await shop.parcel(order))["created_ms"]
    at = datetime.fromtimestamp((made_ms + 5) / 1000, UTC)
    await shop.tell("cainiao", _event(waybill, "delivered", at=at.isoformat(timespec="milliseconds")))
    assert await shop.ledger.fetchval("SELECT ended_ms FROM promise WHERE order_id = $1", order) == made_ms + 5
    # No parcel arrives before it is made, nor after now.
    for at in (datetime(1999, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(hours=20)):
        order, waybill = await _booked(shop)
        await shop.tell("cainiao", _event(waybill, "delivered", at=at.isoformat()))
        ended_ms = await shop.ledger.fetchval("SELECT ended_ms FROM promise WHERE order_id = $1", order)
        assert (await shop.parcel(order))["created_ms"] <= ended_ms <= time.time() * 1000


async def test_a_parcel_that_travels_without_its_order_moves_nothing_else(shop: CarrierHouse) -> None:
    order, waybill = await _booked(shop)
    async with shop.ledger.transaction():
        await life.cancel(shop.ledger, order, None, int(time.time() * 1000))
    await shop.tell("cainiao", _event(waybill, "in_transit"))
    await shop.tell("cainiao", _event(waybill, "delivered"))
    assert await shop.order_is(order, "cancelled")
    row = await shop.parcel(order)
    assert (row["status"], row["error"]) == ("delivered", "the order is cancelled, and its parcel travels")


async def test_an_order_that_people_shipped_goes_on_as_the_carrier_tells(shop: CarrierHouse) -> None:
    order, waybill = await _booked(shop)
    admin = shop.token("boss", "admin")
    await shop.post(f"/v1/orders/{order}/shipment", {}, **admin)
    await shop.tell("cainiao", _event(waybill, "out_for_delivery"))
    await shop.tell("cainiao", _event(waybill, "failed"))
    assert await shop.order_is(order, "undeliverable")
    assert "order.shipped" in await _history(shop, order)
    assert (await shop.parcel(order))["error"] is None


# --- what is refused ---


async def test_who_can_not_sign_is_refused(shop: CarrierHouse) -> None:
    order, waybill = await _booked(shop)
    event = _event(waybill, "delivered")
    body = orjson.dumps(event).decode()
    right = shop.signing.headers(body)
    other = "whsec_" + base64.b64encode(b"another key of 24 bytes.").decode()

    def at(offset_s: int, secret: str = SECRET) -> dict[str, str]:
        then = datetime.now(UTC) + timedelta(seconds=offset_s)
        signed = Webhook(secret).sign("m", then, body)
        return {"webhook-id": "m", "webhook-timestamp": str(int(then.timestamp())), "webhook-signature": signed}

    wrong: list[dict[str, str]] = [
        {},
        {name: value for name, value in right.items() if name != "webhook-id"},
        {name: value for name, value in right.items() if name != "webhook-signature"},
        {**right, "webhook-id": "another"},
        {**right, "webhook-timestamp": str(int(right["webhook-timestamp"]) + 1)},
        {**right, "webhook-timestamp": "soon"},
        {**right, "webhook-timestamp": "nan"},
        {**right, "webhook-timestamp": "1e400"},
        {**right, "webhook-signature": right["webhook-signature"].replace("v1,", "v2,")},
        {**right, "webhook-signature": "v1," + base64.b64encode(bytes(32)).decode()},
        {**right, "webhook-signature": "v1,é"},
        {**right, "webhook-signature": "v1"},
        {**right, "webhook-signature": ""},
        shop.signing.headers(body + " "),
        at(-301),
        at(301),
        at(0, other),
        shop.token("boss", "admin"),
    ]
    for headers in wrong:
        status, answer = await _post(shop, "cainiao", body.encode(), headers)
        assert (status, answer["type"]) == (400, "/problems/webhook-signature"), (headers, answer)
    assert await shop.order_is(order, "paid")
    for headers in (at(-290), at(290), {**right, "webhook-signature": f"v1,AAAA {right['webhook-signature']}"}):
        assert (await _post(shop, "cainiao", body.encode(), headers))[0] == 200, headers
    assert await shop.order_is(order, "delivered")


async def test_what_is_no_event_is_refused_and_says_why(shop: CarrierHouse) -> None:
    order, waybill = await _booked(shop)
    good = _event(waybill, "picked_up")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"code": "lost"}, "code"),
        ({"code": ""}, "code"),
        ({"code": None}, "code"),
        ({"at": "yesterday"}, "at"),
        ({"at": "2026-11-12T08:30:00"}, "at"),  # where?
        ({"at": (datetime.now(UTC) + timedelta(days=2)).isoformat()}, "at"),
        ({"at": "0001-01-01T00:00:00Z"}, "at"),
        ({"at": "9999-12-31T23:59:59-23:59"}, "at"),
        ({"at": 1}, "at"),
        ({"id": ""}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": "a\0b"}, "id"),
        ({"detail": "x" * 201}, "detail"),
        ({"country": "sg"}, "country"),
        ({"country": "ÄÖ"}, "country"),
        ({"waybill": "x" * 41}, "waybill"),
        ({"status": "delivered"}, "status"),
    ]
    for change, field in wrong:
        problem = await shop.tell("cainiao", {**good, **change}, 422)
        assert problem["name"] == "invalid-request" and field in problem["fields"], (change, problem)
    missing = {name: value for name, value in good.items() if name != "code"}
    assert "code" in (await shop.tell("cainiao", missing, 422))["fields"]
    for body in (b"{", b"\xff", b"[]" * 3):
        status, _ = await _post(shop, "cainiao", body, shop.signing.headers(body.decode("latin-1")))
        assert status == 400, body
    assert (await shop.tell("cainiao", [good], 422))["fields"] == {"$": "the body is an object"}
    for carrier, number in (("cosco", waybill), ("cainiao", "CA99999999CN"), ("%00", waybill), ("a'b", waybill)):
        status, problem = await _post(shop, carrier, {**good, "waybill": number})
        assert (status, problem["type"]) == (404, "/problems/not-found"), carrier
    assert (await shop.parcel(order))["status"] == "booked"
    assert not await shop.ledger.fetchval("SELECT count(*) FROM parcel_event")


async def test_an_event_of_two_parcels_is_none(shop: CarrierHouse) -> None:
    (_, one), (other, two) = await _booked(shop), await _booked(shop)
    event = _event(one, "picked_up")
    await shop.tell("cainiao", event)
    problem = await shop.tell("cainiao", {**event, "waybill": two, "code": "delivered"}, 422)
    assert problem["fields"] == {"id": "this event was told before, of another parcel"}
    assert await shop.order_is(other, "paid")


async def test_a_body_that_is_too_large_is_refused_before_its_signature_is_looked_at(shop: CarrierHouse) -> None:
    _, waybill = await _booked(shop)
    large = orjson.dumps(_event(waybill, "picked_up", detail="x" * EVENT_MAX_BYTES))
    for size in (large, large * 100):  # beyond the engine's own bound, too
        status, problem = await _post(shop, "cainiao", size, {})
        assert (status, problem["type"]) == (413, "/problems/too-large")

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    async with shop.session.post("/v1/carriers/cainiao/events", data=chunks()) as answer:  # of a length not told
        assert answer.status == 413


async def test_without_a_secret_nobody_is_believed(shop: CarrierHouse) -> None:
    _, waybill = await _booked(shop)
    shop.context.settings = engine_settings.load()
    problem = await shop.tell("cainiao", _event(waybill, "picked_up"), 503)
    assert "FLASHSALE_CARRIERS_SECRET" in problem["detail"]
    for url in ("http://127.0.0.1:1", "carriers.example"):
        with pytest.raises(engine_settings.SettingsFault, match="CARRIERS_URL"):
            engine_settings.load(carriers_url=url)
    for secret in ("whsec_", "whsec_AAAA", "not one", "whsec_%%%", SECRET[6:]):
        with pytest.raises(engine_settings.SettingsFault, match="FLASHSALE_CARRIERS_SECRET"):
            engine_settings.load(carriers_secret=secret)


async def test_a_ledger_that_is_away_is_told_again(shop: CarrierHouse) -> None:
    order, waybill = await _booked(shop)
    event = _event(waybill, "delivered")
    ledger = shop.context.ledger
    shop.context.ledger = type(ledger)("postgresql://127.0.0.1:1/none")
    assert (await shop.tell("cainiao", event, 503))["name"] == "overloaded"
    shop.context.ledger = ledger
    await shop.tell("cainiao", event)
    assert await shop.order_is(order, "delivered")


# --- who reads it ---


async def test_tracking_is_for_those_whom_the_order_concerns(shop: CarrierHouse) -> None:
    order = await shop.place(paid=False)
    path, ann = f"/v1/orders/{order}/tracking", shop.token("ann")
    assert await shop.get(path, **ann) == {"order": order, "events": []}  # nobody was asked to carry it
    assert "tracking" not in await shop.get(f"/v1/orders/{order}", **ann)
    order, waybill = await _booked(shop)
    path = f"/v1/orders/{order}/tracking"
    await shop.tell("cainiao", _event(waybill, "customs", at="2026-11-12T08:30:00.5+08:00", country="SG"))
    await shop.ledger.execute("UPDATE orders SET agent = 'li-wei' WHERE id = $1", order)
    for who in (ann, shop.token("li-wei", "agent"), shop.token("boss", "admin")):
        read = await shop.get(path, **who)
        assert (read["carrier"], read["waybill"], read["status"]) == ("cainiao", waybill, "picked_up")
        (event,) = read["events"]
        assert (event["code"], event["at"], event["country"]) == ("customs", "2026-11-12T00:30:00.500Z", "SG")
        assert (await shop.get(f"/v1/orders/{order}", **who))["tracking"] == waybill
    for who in (shop.token("bea"), shop.token("ann", "agent"), shop.token("ann", "channel")):
        assert (await shop.get(path, 404, **who))["name"] == "not-found"
    assert (await shop.get(path, 401))["name"] == "unauthenticated"


async def _post(
    shop: CarrierHouse, carrier: str, event: object, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and body; signed rightly unless headers are given."""
    data = event if isinstance(event, bytes) else orjson.dumps(event)
    if headers is None:
        headers = shop.signing.headers(data.decode())
    sent = {"Content-Type": "application/json", **headers}
    try:
        async with shop.session.post(f"/v1/carriers/{carrier}/events", data=data, headers=sent) as answer:
            return answer.status, orjson.loads(await answer.read())
    except aiohttp.ClientOSError:  # it was answered, and hung up on
        return 413, {"type": "/problems/too-large"}
