"""Selling across borders, row by row, through a whole engine: free first weight, Hong Kong's cut-off, a rule that
changes at midnight with a crowd in flight, and five Lazada channels with stock of their own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec.structs import replace

from flashsale.front.auth import mint
from flashsale.reservation import commands
from flashsale.sale.shipping.calendars import day_number
from flashsale.sale.world import World
from tests.conftest import Engine
from tests.crowd import audit
from tests.e2e.worlds import (
    DAY_S,
    away_from_midnight,
    change_world,
    clock_ms,
    servers,
    until_ms,
    write_zone,
    zone_path,
)  # fmt: skip
from tests.wire import Answer, ask, get, post, post_order

PRICES = {
    "SG": "20.00", "MY": "60.00", "TH": "500", "VN": "400000", "PH": "900", "ID": "250000",
    "HK": "120.00", "TW": "500", "JP": "2500", "KR": "22000", "AU": "25.00",
}  # fmt: skip
OWN = {"lazada-sg": 5, "lazada-my": 4, "lazada-th": 3, "lazada-id": 2, "lazada-ph": 1}
COMMON = 10
AHEAD_S = 3  # a change comes so soon
CLIENTS = 24


def _offer(sku: str, stock: int, weight_g: int, hs_code: str, prices: Mapping[str, str], more: str = "") -> str:
    sold = ", ".join(f'{market} = "{price}"' for market, price in prices.items())
    return (
        f'[[offers]]\nsku = "{sku}"\nbrand = "Shop"\ntitle = {{ en = "{sku}" }}\nstock = {stock}\nquota = 0\n'
        f'weight_g = {weight_g}\nhs_code = "{hs_code}"\norigin = "CN"\nprices = {{ {sold} }}\n{more}\n'
    )


def _guaranteed(channel: str) -> str:
    owned = ", ".join(f'"{each}" = {units}' for each, units in OWN.items())
    return _offer(f"FAN-{channel}", COMMON + sum(OWN.values()), 400, "851712", PRICES, f"guarantees = {{ {owned} }}")


FILE = (
    '[sale]\nid = "rows"\nname = "Rows"\nopens_at = 2020-01-01T00:00:00Z\ncloses_at = 2099-01-01T00:00:00Z\n'
    'ships_from = "CN"\nhold_seconds = 900\n'
    + _offer("LIGHT", 1_000_000, 500, "851712", PRICES)
    + _offer("HEAVY", 1_000_000, 900, "851712", PRICES)
    + _offer("NOODLES", 1_000_000, 1000, "190230", {"HK": "9.50"}, 'service = "supermarket"')
    + "".join(map(_guaranteed, ["web", *OWN]))
)


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose zones the engine finds."""
    return tmp_path_factory.mktemp("zones")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, zones: Path) -> Iterator[Engine]:
    """An engine of this module's own, since its world changes."""
    directory = tmp_path_factory.mktemp("rows")
    # Its zones lie where root alone may read, and so runs the front.
    running = Engine(directory / "engine", PYTHONTZPATH=zone_path(zones), FLASHSALE_ACCOUNT="root").start()
    file = directory / "rows.toml"
    file.write_text(FILE)
    running.command("sale", "create", str(file))
    asyncio.run(change_world(running, lambda world: world))
    yield running
    running.stop()


def token(engine: Engine, role: str, sub: str) -> str:
    return next(mint((engine.data_dir / "secret").read_bytes().strip(), sub, role, 3600, int(time.time())))


def body_of(market: str, sku: str) -> bytes:
    return json.dumps({"sale": "rows", "market": market, "lines": [{"sku": sku, "quantity": 1}]}).encode()


async def quote(engine: Engine, market: str, sku: str) -> dict[str, Any]:
    (answer,) = await ask(engine.port, post("/v1/quotes", body_of(market, sku)))
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


async def order(engine: Engine, market: str, sku: str, key: str, shopper: str = "ann") -> Answer:
    (answer,) = await ask(engine.port, post_order(body_of(market, sku), token(engine, "shopper", shopper), key))
    return answer


def ms_of(time_text: str) -> int:
    return (datetime.fromisoformat(time_text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


# --- the demo sale ---


async def test_the_demo_sale_takes_orders_in_more_than_twelve_markets(engine: Engine) -> None:
    (page,) = await ask(engine.port, get("/v1/sales/double11"))
    sold = []
    for market in [each["code"] for each in page.json()["markets"] if each["code"] != "CN"]:  # imports ask who buys
        (answer,) = await ask(engine.port, get(f"/v1/sales/double11/offers?market={market}&limit=1"))
        sku = answer.json()["offers"][0]["sku"]
        who = token(engine, "shopper", f"demo-{market}")
        asked = {"sale": "double11", "market": market, "lines": [{"sku": sku, "quantity": 1}]}
        (made,) = await ask(engine.port, post_order(json.dumps(asked).encode(), who, "demo"))
        assert made.status == 201, made
        sold.append((market, made.json()["total"]["currency"]))
    assert len(sold) > 12
    assert len({currency for _, currency in sold}) >= 10  # some of Europe share one


# --- the first weight is free in ten countries ---


@pytest.mark.parametrize(
    ("market", "beyond"),  # four steps of 100 g beyond Cainiao's first 500 g, minor units
    [
        ("SG", 240), ("MY", 760), ("TH", 5600), ("VN", 44_000), ("PH", 9600),
        ("ID", 2_800_000), ("HK", 880), ("TW", 5200), ("JP", 240), ("KR", 2400),
    ],
)  # fmt: skip
async def test_the_first_weight_is_free_in_each_of_ten_countries(engine: Engine, market: str, beyond: int) -> None:
    for sku, asked in (("LIGHT", 0), ("HEAVY", beyond)):
        quoted = await quote(engine, market, sku)
        made = await order(engine, market, sku, f"free-{market}-{sku}")
        assert made.status == 201, made
        assert quoted["lane"] == made.json()["lane"] == "cainiao-standard"
        assert quoted["shipping"]["amount"] == asked
        for name in ("shipping", "duty", "tax", "total", "due_on_delivery"):
            assert made.json()[name] == quoted[name]


async def test_the_first_weight_is_charged_in_an_eleventh_country(engine: Engine) -> None:
    for sku, asked in (("LIGHT", 980), ("HEAVY", 980 + 4 * 130)):
        quoted = await quote(engine, "AU", sku)
        made = await order(engine, "AU", sku, f"charged-{sku}")
        assert made.status == 201, made
        assert made.json()["shipping"] == quoted["shipping"] == {"amount": asked, "currency": "AUD"}
        assert made.json()["total"] == quoted["total"]


# --- what changes at a moment ---


class Crossing:
    """Shoppers who order one thing in one market without a pause, each one after another, while a moment passes."""

    def __init__(self, engine: Engine, market: str, sku: str) -> None:
        self._engine, self._market, self._sku = engine, market, sku
        self.answers: list[Answer] = []
        self.over = asyncio.Event()

    async def run(self, until: float) -> None:
        await asyncio.gather(*(self._shop(number, until) for number in range(CLIENTS)))

    async def _shop(self, number: int, until: float) -> None:
        who, count = token(self._engine, "shopper", f"{self._market}-{number}"), 0
        while time.monotonic() < until:
            request = post_order(body_of(self._market, self._sku), who, f"x-{self._sku}-{count}")
            self.answers += await ask(self._engine.port, request)
            count += 1
            await asyncio.sleep(0.01)

    async def rows(self, ledger: Any) -> list[Any]:
        """The ledger's orders of the crowd, once all are there."""
        assert {answer.status for answer in self.answers} == {201}, [a for a in self.answers if a.status != 201][:3]
        ids = [answer.json()["id"] for answer in self.answers]
        deadline = time.monotonic() + 15
        while True:
            rows: list[Any] = await ledger.fetch("SELECT * FROM orders WHERE id = ANY ($1::text[])", ids)
            if len(rows) == len(ids):
                return rows
            assert time.monotonic() < deadline, f"{len(rows)} of {len(ids)} orders are in the ledger"
            await asyncio.sleep(0.1)


async def test_hong_kong_s_next_day_ends_at_the_cut_off(engine: Engine) -> None:
    async with servers(engine) as (valkey, ledger):
        await away_from_midnight(valkey)
        cutoff = (await clock_ms(valkey) // 1000 + AHEAD_S) * 1000
        there = datetime.fromtimestamp(cutoff / 1000, ZoneInfo("Asia/Hong_Kong"))
        today = there.date()
        seconds = there.hour * 3600 + there.minute * 60 + there.second

        def world(known: World) -> World:
            lanes = [
                replace(lane, cutoff_s=seconds, capacity=0) if lane.id == "tmall-supermarket-hk" else lane
                for lane in known.lanes.lanes
            ]
            return replace(known, lanes=replace(known.lanes, lanes=tuple(lanes)))

        await change_world(engine, world)
        crowd = Crossing(engine, "HK", "NOODLES")
        running = asyncio.create_task(crowd.run(time.monotonic() + (cutoff - await clock_ms(valkey)) / 1000 + 1))
        quoted = await quote(engine, "HK", "NOODLES")
        before = await order(engine, "HK", "NOODLES", "before")
        assert await clock_ms(valkey) < cutoff, "the cut-off passed before the test could order"
        assert quoted["lane"] == before.json()["lane"] == "tmall-supermarket-hk"
        assert ms_of(quoted["valid_until"]) <= cutoff
        next_day, day_after = [(today + timedelta(days=days)).isoformat() for days in (1, 2)]
        assert quoted["lanes"][0]["promise"] == {"days": 1, "by": next_day}
        assert before.json()["promised_by"] == next_day
        await until_ms(valkey, cutoff)
        after = await order(engine, "HK", "NOODLES", "after")
        assert after.json()["promised_by"] == day_after
        assert (await quote(engine, "HK", "NOODLES"))["lanes"][0]["promise"] == {"days": 2, "by": day_after}
        again = await order(engine, "HK", "NOODLES", "before")  # what was promised stays promised
        assert (again.json()["id"], again.json()["promised_by"]) == (before.json()["id"], next_day)
        await running
        crowd.answers += [before, after]
        _split(await crowd.rows(ledger), cutoff, ("dispatch_day", "promised_by"), [
            (day_number(today), today + timedelta(days=1)),
            (day_number(today) + 1, today + timedelta(days=2)),
        ])  # fmt: skip
        told = {answer.json()["promised_by"] for answer in crowd.answers}
        assert told == {next_day, day_after}


def _split(rows: Sequence[Any], edge_ms: int, columns: Sequence[str], sides: Sequence[tuple[Any, ...]]) -> None:
    """Each order's columns are those of its side of the edge, by the time at which Valkey took it, and both sides have
    orders."""
    taken = {row["id"]: row["journal_ms"] for row in rows}
    wrong = [
        (taken[row["id"]] - edge_ms, [row[name] for name in columns])
        for row in rows
        if tuple(row[name] for name in columns) != sides[taken[row["id"]] >= edge_ms]
    ]
    assert not wrong, wrong[:5]
    assert {at >= edge_ms for at in taken.values()} == {False, True}


async def test_a_rule_that_changes_at_midnight_changes_the_order_at_midnight(engine: Engine, zones: Path) -> None:
    async with servers(engine) as (valkey, ledger):
        await away_from_midnight(valkey)
        edge = (await clock_ms(valkey) // 1000 + AHEAD_S) * 1000
        # A zone of the customs in which the day begins just then.
        offset = (-edge // 1000) % DAY_S
        offset -= DAY_S if offset > DAY_S // 2 else 0
        write_zone(zones, "SoonMidnight", offset)
        local = datetime.fromtimestamp(edge // 1000 + offset, UTC)
        assert (local.hour, local.minute, local.second) == (0, 0, 0)
        day, eve = local.date().isoformat(), (local.date() - timedelta(days=1)).isoformat()

        def world(known: World) -> World:
            countries = [
                replace(each, zone="SoonMidnight") if each.code == "SG" else each for each in known.trade.countries
            ]
            rules = []
            for rule in known.trade.rules:
                if (rule.country, rule.kind, rule.to) == ("SG", "tax_rate", None):
                    rules += [replace(rule, to=eve), replace(rule, since=day, value=rule.value * 2)]
                else:
                    rules.append(rule)
            lanes = [  # no cut-off of a lane beside it
                replace(lane, cutoff_s=0) if abs(lane.cutoff_s - _of_day(edge, lane.zone)) < 60 else lane
                for lane in known.lanes.lanes
            ]
            trade = replace(known.trade, countries=tuple(countries), rules=tuple(rules))
            return replace(known, trade=trade, lanes=replace(known.lanes, lanes=tuple(lanes)))

        await change_world(engine, world)
        crowd = Crossing(engine, "SG", "LIGHT")
        running = asyncio.create_task(crowd.run(time.monotonic() + (edge - await clock_ms(valkey)) / 1000 + 1))
        quoted = await quote(engine, "SG", "LIGHT")
        before = await order(engine, "SG", "LIGHT", "old-tax")
        assert await clock_ms(valkey) < edge, "midnight passed before the test could order"
        assert ms_of(quoted["valid_until"]) == edge
        assert before.json()["tax"] == quoted["tax"] == {"amount": 180, "currency": "SGD"}  # 9 % of 20.00
        await until_ms(valkey, edge)
        after = await order(engine, "SG", "LIGHT", "new-tax")
        assert after.json()["tax"]["amount"] == 360
        assert after.json()["total"]["amount"] == before.json()["total"]["amount"] + 180
        assert (await quote(engine, "SG", "LIGHT"))["tax"]["amount"] == 360
        again = await order(engine, "SG", "LIGHT", "old-tax")
        assert (again.json()["id"], again.json()["tax"]["amount"]) == (before.json()["id"], 180)
        await running
        crowd.answers += [before, after]
        _split(await crowd.rows(ledger), edge, ("taxes", "total"), [([180], 2180), ([360], 2360)])
        shown = {(answer.json()["tax"]["amount"], answer.json()["total"]["amount"]) for answer in crowd.answers}
        assert shown == {(180, 2180), (360, 2360)}


def _of_day(at_ms: int, zone: str) -> int:
    there = datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone))
    return there.hour * 3600 + there.minute * 60 + there.second


# --- five channels with their own stock ---


async def batch(engine: Engine, channel: str, sku: str, name: str, count: int) -> list[dict[str, Any]]:
    """Orders of one unit each, in one request of the channel's."""
    orders = [
        {
            "reference": f"{name}-{number}",
            "shopper": "ann",
            "sale": "rows",
            "market": channel[-2:].upper(),
            "lines": [{"sku": sku, "quantity": 1}],
        }
        for number in range(count)
    ]
    path, who = f"/v1/channels/{channel}/orders", token(engine, "channel", channel)
    (answer,) = await ask(engine.port, post(path, json.dumps({"orders": orders}).encode(), who))
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def taken(results: Sequence[dict[str, Any]]) -> list[str]:
    """Ids of those that were taken, which come first; the others found nothing left."""
    ids = [each["order"]["id"] for each in results if each["status"] == 201]
    assert [each["status"] for each in results] == [201] * len(ids) + [409] * (len(results) - len(ids))
    assert {each["problem"]["type"] for each in results[len(ids) :]} <= {"/problems/sold-out"}
    return ids


async def stock_of(engine: Engine, sku: str) -> tuple[int, dict[str, int]]:
    """Units of the common pool, and of each channel's own."""
    async with servers(engine) as (valkey, _):
        catalogue = await commands.load_catalogue(valkey)
        reading = await commands.read_sale(valkey, "rows")
        assert catalogue is not None and reading is not None
        sale = catalogue.sale("rows")
        assert sale is not None
        index = sale.by_sku[sku].index
        names = {each.number: each.id for each in catalogue.world.channels}
        own = {names[number]: units for (offer, number), units in reading.guarantees.items() if offer == index}
        assert reading.available[index] == reading.common[index] + sum(own.values())
        return reading.common[index], own


async def cancelled(engine: Engine, *order_ids: str) -> None:
    admin = token(engine, "admin", "clerk")
    for order_id in order_ids:
        deadline = time.monotonic() + 15
        while True:  # the ledger may not have the order yet
            (answer,) = await ask(engine.port, post(f"/v1/orders/{order_id}/cancellation", b"{}", admin))
            if answer.status == 200:
                break
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.1)


async def until_stock(engine: Engine, sku: str, wanted: tuple[int, dict[str, int]]) -> None:
    deadline = time.monotonic() + 15
    while (found := await stock_of(engine, sku)) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("channel", OWN)
async def test_a_channel_sells_its_guarantee_and_the_common_pool_and_no_other_s(engine: Engine, channel: str) -> None:
    sku = f"FAN-{channel}"
    assert await stock_of(engine, sku) == (COMMON, OWN)
    mine = taken(await batch(engine, channel, sku, f"all-{channel}", COMMON + sum(OWN.values())))
    assert len(mine) == OWN[channel] + COMMON
    assert await stock_of(engine, sku) == (0, OWN | {channel: 0})
    for other in OWN.keys() - {channel}:
        assert len(taken(await batch(engine, other, sku, f"after-{channel}", OWN[other] + 1))) == OWN[other]
    assert await stock_of(engine, sku) == (0, dict.fromkeys(OWN, 0))
    # The first came from its own, the last from the common pool; each goes back where it was drawn.
    await cancelled(engine, mine[0], mine[-1])
    await until_stock(engine, sku, (1, dict.fromkeys(OWN, 0) | {channel: 1}))


async def test_five_channels_keep_their_own_when_the_web_has_taken_all_it_can(engine: Engine) -> None:
    sku = "FAN-web"
    answers = [await order(engine, "SG", sku, f"web-{number}", "wen") for number in range(COMMON + 1)]
    assert [answer.status for answer in answers] == [201] * COMMON + [409]
    assert answers[-1].problem == "sold-out"
    assert await stock_of(engine, sku) == (0, OWN)
    drawn = {channel: taken(await batch(engine, channel, sku, "own", units + 2)) for channel, units in OWN.items()}
    assert {channel: len(ids) for channel, ids in drawn.items()} == OWN
    for channel, ids in drawn.items():  # given back, one of each: for that channel alone
        await cancelled(engine, ids[0])
        await until_stock(engine, sku, (0, dict.fromkeys(OWN, 0) | {channel: 1}))
        others = [each for each in OWN if each != channel]
        assert not taken(await batch(engine, others[0], sku, f"again-{channel}", 1))
        assert (await order(engine, "SG", sku, f"again-{channel}", "wen")).problem == "sold-out"
        assert len(taken(await batch(engine, channel, sku, f"back-{channel}", 2))) == 1
    await cancelled(engine, answers[0].json()["id"])  # anybody's again
    await until_stock(engine, sku, (1, dict.fromkeys(OWN, 0)))
    assert len(taken(await batch(engine, "lazada-ph", sku, "anybody", 2))) == 1


async def test_the_books_are_right_afterwards(engine: Engine) -> None:
    report = await audit(engine)
    assert report["ok"], report
