"""The promise ledger: parcels judged where they went, the share of a lane's last 200, alerts, and who shows it all."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import date
from functools import partial
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flashsale.embedded import ValkeyServer
from flashsale.ledger import fulfilment, life, promises
from flashsale.pipeline.promise_alerts import PromiseAlerts, look
from flashsale.sale.market import MARKETS
from flashsale.sale.shipping.calendars import day_number
from flashsale.sale.shipping.promises import LAST, Share
from tests.integration.house import SALE, House
from tests.integration.parcels import KETTLE, NOODLES, Parcels, cutoff_ms, lane_of, noon_there_ms
from tests.integration.till import until

SUPERMARKET = lane_of("tmall-supermarket-hk")
HOUR_MS = 3_600_000


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Parcels]:
    async with Parcels(valkey_memory.url, ledger) as shop:
        await shop.open()
        yield shop


async def kept_of(shop: Parcels, order_id: str) -> Any:
    return await shop.ledger.fetchrow("SELECT * FROM promise WHERE order_id = $1", order_id)


def last_ms(market: str, day: date) -> int:
    """The last millisecond of a day there."""
    return noon_there_ms(MARKETS[market].zone, day_number(day)) + 12 * HOUR_MS - 1


# --- a parcel's end ---


@pytest.mark.parametrize(("sku", "market"), [(NOODLES, "HK"), (KETTLE, "NZ"), (KETTLE, "SG")])
async def test_a_parcel_is_on_time_until_the_promised_day_ends_where_it_goes(
    shop: Parcels, sku: str, market: str
) -> None:
    early, late, failed = [await shop.ordered(sku, market) for _ in range(3)]
    row = await shop.row(early)
    await shop.paid_at(await shop.now_ms(), early, late, failed)
    end = last_ms(market, row["promised_by"])
    await shop.arrives(early, end)
    await shop.arrives(late, end + 1)
    await shop.arrives(failed, end - HOUR_MS, delivered=False)
    found = [await kept_of(shop, order) for order in (early, late, failed)]
    assert [(each["delivered"], each["on_time"]) for each in found] == [(True, True), (True, False), (False, False)]
    assert [each["ended_ms"] for each in found] == [end, end + 1, end - HOUR_MS]
    first = found[0]
    assert (first["lane_number"], first["market"]) == (row["lane_number"], market)
    assert first["promised_by"] == first["ended_on"] == row["promised_by"]
    (share,) = await promises.shares(shop.ledger)
    assert share == (row["lane_number"], market, Share(3, 1), None)


async def test_a_restated_promise_is_the_one_that_is_judged(shop: Parcels) -> None:
    order = await shop.ordered(NOODLES)
    row = await shop.row(order)
    await shop.paid_at(cutoff_ms(SUPERMARKET, row["dispatch_day"]), order)
    restated = (await shop.row(order))["restated_by"]
    await shop.arrives(order, last_ms("HK", restated))
    found = await kept_of(shop, order)
    assert (found["promised_by"], found["restated_by"], found["on_time"]) == (row["promised_by"], restated, True)
    assert found["ended_on"] == restated > row["promised_by"]


async def test_the_row_is_written_once_and_with_the_change_alone(shop: Parcels) -> None:
    order = await shop.ordered(NOODLES)
    now_ms = await shop.now_ms()
    await shop.paid_at(now_ms, order)
    async with shop.ledger.transaction():
        await life.ship(shop.ledger, order, None, now_ms)
    with pytest.raises(ZeroDivisionError):
        async with shop.ledger.transaction():
            await life.deliver(shop.ledger, order, True, now_ms)
            raise ZeroDivisionError
    assert await kept_of(shop, order) is None
    for delivered_ms in (now_ms, now_ms + 86_400_000 * 30):
        async with shop.ledger.transaction():
            await life.deliver(shop.ledger, order, True, delivered_ms)
    assert (await kept_of(shop, order))["ended_ms"] == now_ms
    await shop.drain()
    assert await shop.faults() == []


async def test_a_channel_s_word_writes_it_too_and_a_carrier_s_time_counts(shop: Parcels) -> None:
    told, known = await shop.ordered(NOODLES), await shop.ordered(NOODLES)
    now_ms = await shop.now_ms()
    await shop.paid_at(now_ms, told, known)
    far_ms = now_ms + 30 * 86_400_000
    async with shop.ledger.transaction():
        await fulfilment.pack(shop.ledger, told, None, now_ms)
        await fulfilment.hand_over(shop.ledger, told, now_ms)
        await fulfilment.arrived(shop.ledger, told, True, far_ms)
        await life.ship(shop.ledger, known, None, now_ms)
        await life.deliver(shop.ledger, known, True, far_ms, ended_ms=now_ms)
    assert not (await kept_of(shop, told))["on_time"]
    found = await kept_of(shop, known)
    assert (found["on_time"], found["ended_ms"]) == (True, now_ms)
    # History says when the ledger knew it.
    at_ms = await shop.ledger.fetchval("SELECT max(at_ms) FROM history WHERE order_id = $1", known)
    assert at_ms == far_ms


async def test_an_order_without_a_promise_has_no_row(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'), sale=SALE)
    order = await house.order("ada", ("A", 1))
    await house.settle()
    await house.pay(order.id)
    async with house.ledger.transaction():
        await life.ship(house.ledger, order.id, None, 1)
        await life.deliver(house.ledger, order.id, True, 2)
    assert await house.ledger.fetchval("SELECT count(*) FROM promise") == 0
    assert (await house.get("/v1/lanes/promises", **house.token("boss", "admin"))) == {"last": LAST, "promises": []}


# --- shares ---

_numbers = itertools.count()


async def ended(
    ledger: asyncpg.Connection, lane: int, market: str, ends: Sequence[tuple[int, bool]], prefix: str | None = None
) -> None:
    """Rows of parcels that ended at these times, on time or not."""
    name = prefix or f"o{next(_numbers)}-"
    await ledger.executemany(
        "INSERT INTO promise VALUES ($1, $2, $3, '2026-11-12', NULL, true, $4, '2026-11-12', $5)",
        [(f"{name}{place:06d}", lane, market, at_ms, on_time) for place, (at_ms, on_time) in enumerate(ends)],
    )


async def test_the_201st_oldest_counts_no_more(shop: Parcels) -> None:
    await ended(shop.ledger, 10, "HK", [(at, at > 1) for at in range(1, 201)])  # the oldest was late
    assert [each.share for each in await promises.shares(shop.ledger)] == [Share(200, 199)]
    await ended(shop.ledger, 10, "HK", [(1000, True)])
    assert [each.share for each in await promises.shares(shop.ledger)] == [Share(200, 200)]
    await ended(shop.ledger, 10, "HK", [(999, False)])  # told later, but there before the newest
    assert [each.share for each in await promises.shares(shop.ledger)] == [Share(200, 199)]
    await ended(shop.ledger, 10, "HK", [(0, False)])  # older than all that count
    assert [each.share for each in await promises.shares(shop.ledger)] == [Share(200, 199)]


async def test_each_country_and_each_lane_has_its_own_last_ones(shop: Parcels) -> None:
    await ended(shop.ledger, 1, "SG", [(at, False) for at in range(300)])
    await ended(shop.ledger, 1, "HK", [(at, True) for at in range(50)])
    await ended(shop.ledger, 2, "HK", [(5000, False), (5001, True)])
    assert [tuple(each) for each in await promises.shares(shop.ledger)] == [
        (1, "HK", Share(50, 50), None),
        (1, "SG", Share(200, 0), None),
        (2, "HK", Share(2, 1), None),
    ]


ends = st.lists(
    st.tuples(st.sampled_from([1, 2, 300]), st.sampled_from(["AU", "HK", "SG"]), st.integers(0, 50), st.booleans()),
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=ends, repeats=st.sampled_from([1, 1, 9]))
def test_shares_are_what_plain_python_counts(
    ledger: str, written: list[tuple[int, str, int, bool]], repeats: int
) -> None:
    """Rows in any order, many at the same millisecond; nine times over there are more than count."""
    rows = [(f"o{place:05d}", *each) for place, each in enumerate(written * repeats)]
    by_lane: dict[tuple[int, str], list[tuple[int, str, bool]]] = defaultdict(list)
    for order_id, lane, market, at_ms, on_time in rows:
        by_lane[lane, market].append((at_ms, order_id, on_time))
    expected = []
    for (lane, market), of_lane in sorted(by_lane.items()):
        newest = sorted(of_lane, reverse=True)[:LAST]
        expected.append((lane, market, Share(len(newest), sum(on_time for _, _, on_time in newest)), None))

    async def found() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(ledger)
        try:
            await connection.execute("TRUNCATE promise")
            await connection.executemany(
                "INSERT INTO promise VALUES ($1, $2, $3, '2026-11-12', NULL, true, $4, '2026-11-12', $5)", rows
            )
            return [tuple(each) for each in await promises.shares(connection)]
        finally:
            await connection.close()

    assert asyncio.run(found()) == expected


async def test_a_share_reads_the_index_and_no_more_than_the_last_ones(shop: Parcels) -> None:
    """However many parcels there were: the plan walks the index, lane by lane."""
    await shop.ledger.execute(
        "INSERT INTO promise SELECT 'o' || n, n % 3, 'HK', '2026-11-12', NULL, true, n, '2026-11-12', true"
        " FROM generate_series(1, 30000) AS n"
    )
    await shop.ledger.execute("VACUUM ANALYZE promise")
    plan = "\n".join(row[0] for row in await shop.ledger.fetch("EXPLAIN ANALYZE " + promises._SHARES, LAST))
    assert "Seq Scan on promise p" not in plan, plan
    assert "Index Only Scan using promise_lane" in plan and "rows=200" in plan, plan


# --- alerts ---


async def test_an_alert_is_raised_once_and_cleared_once(shop: Parcels) -> None:
    assert await look(shop.ledger, 1) == (0, 0)
    await ended(shop.ledger, 10, "HK", [(at, at > 2) for at in range(19)])  # 16 of 19: too few to say anything
    await ended(shop.ledger, 1, "HK", [(at, False) for at in range(100)])  # a lane without a rule
    with capture_logs() as log:
        assert await look(shop.ledger, 2) == (0, 0)
        await ended(shop.ledger, 10, "HK", [(100, True)])
        assert await look(shop.ledger, 3) == (1, 0)  # 17 of 20
        assert await look(shop.ledger, 4) == (0, 0)
    assert log == [
        {
            "event": "a lane keeps too few of its promises",
            "log_level": "warning",
            "lane": SUPERMARKET.id,
            "country": "HK",
            "deliveries": 20,
            "on_time": 17,
            "share": "85.0%",
            "below": "90%",
        }
    ]
    assert await promises.alerts(shop.ledger) == [(10, "HK", 3, Share(20, 17))]
    await ended(shop.ledger, 10, "HK", [(200 + at, True) for at in range(10)])  # 27 of 30: not under 90 %
    with capture_logs() as log:
        assert await look(shop.ledger, 5) == (0, 1)
        assert await look(shop.ledger, 6) == (0, 0)
    assert [(entry["event"], entry["log_level"]) for entry in log] == [("a lane keeps its promises again", "warning")]
    assert await promises.alerts(shop.ledger) == []
    await ended(shop.ledger, 10, "HK", [(300, False)])
    assert await look(shop.ledger, 7) == (1, 0)
    times = await shop.ledger.fetch("SELECT raised_ms, cleared_ms FROM promise_alert ORDER BY number")
    assert [tuple(row) for row in times] == [(3, 5), (7, None)]


async def test_two_workers_raise_one_alert(shop: Parcels, ledger: str) -> None:
    await ended(shop.ledger, 10, "HK", [(at, False) for at in range(20)])
    others = [await asyncpg.connect(ledger) for _ in range(4)]
    try:
        raised = await asyncio.gather(*(look(each, 1) for each in others))
    finally:
        for each in others:
            await each.close()
    assert sorted(raised) == [(0, 0)] * 3 + [(1, 0)]
    assert len(await promises.alerts(shop.ledger)) == 1


async def at_work(duty: PromiseAlerts) -> bool:
    return duty.working


async def test_a_worker_that_takes_over_says_nothing_twice(shop: Parcels, ledger: str) -> None:
    await ended(shop.ledger, 10, "HK", [(at, False) for at in range(20)])
    with capture_logs() as log:
        for _ in range(2):
            duty = PromiseAlerts(ledger, look_s=0.05)
            running = asyncio.create_task(duty.run())
            await until(partial(at_work, duty), "it looks")
            await asyncio.sleep(0.3)  # for some more looks
            duty.stop()
            await running
    assert [entry["event"] for entry in log].count("a lane keeps too few of its promises") == 1
    assert len(await promises.alerts(shop.ledger)) == 1


# --- who shows it ---


async def test_the_page_metrics_and_readiness_say_the_same(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    await house.context.catalogues.refresh()
    await ended(house.ledger, 10, "HK", [(at, at >= 30) for at in range(200)])
    await ended(house.ledger, 1, "SG", [(at, at >= 1) for at in range(3)])
    await ended(house.ledger, 999, "SG", [(1, True)])
    await house.get("/v1/lanes/promises", 401)
    for role in ("shopper", "merchant", "channel", "agent"):
        refused = await house.get("/v1/lanes/promises", 403, **house.token("ada", role))
        assert refused["name"] == "forbidden"
    boss = house.token("boss", "admin")
    rule = {"alert_below": 0.9, "alert_from": 20}
    hong_kong = {"lane": SUPERMARKET.id, "country": "HK", "deliveries": 200, "on_time": 170, "share": 0.85, **rule}
    others = [
        {"lane": "cainiao-standard", "country": "SG", "deliveries": 3, "on_time": 2, "share": 0.6667, "alert": False},
        {"lane": "999", "country": "SG", "deliveries": 1, "on_time": 1, "share": 1.0, "alert": False},
    ]
    assert await house.get("/v1/lanes/promises", **boss) == {
        "last": 200,
        "promises": [others[0], {**hong_kong, "alert": True}, others[1]],
    }
    assert lanes_of(await house.get("/readyz")) == []  # not raised yet
    await look(house.ledger, 1_794_000_000_000)
    since = "2026-11-06T21:20:00.000Z"
    shown = await house.get("/v1/lanes/promises", **boss)
    assert shown["promises"][1] == {**hong_kong, "alert": True, "alert_since": since}
    ready = await house.get("/readyz")
    assert ready["ready"] is True
    assert lanes_of(ready) == [
        f"lane {SUPERMARKET.id} to HK keeps too few of its promises since {since}, when it fell to 170 of the last 200"
    ]
    async with house.session.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    assert 'flashsale_lane_on_time_ratio{country="HK",lane="tmall-supermarket-hk"} 0.85' in lines
    assert 'flashsale_lane_promise_alert{country="HK",lane="tmall-supermarket-hk"} 1.0' in lines
    assert 'flashsale_lane_promise_alert{country="SG",lane="cainiao-standard"} 0.0' in lines


def lanes_of(ready: dict[str, Any]) -> list[str]:
    """The warnings about lanes."""
    return [line for line in ready["warnings"] if line.startswith("lane ")]
