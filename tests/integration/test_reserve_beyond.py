"""reserve.lua where an order takes more than units and quota: guarantees, lanes' days, import limits, grants, marks.

Random batches against a reference that decides one order after the other, on both servers; then the single rules.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashsale.embedded import ValkeyServer
from flashsale.reservation import keys
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.limits import IdentityYear, LaneDay, identity_field, lane_field, parse
from flashsale.reservation.scripts import Script
from flashsale.sale.identity import person_hash
from flashsale.sale.priced import LANE_UNAVAILABLE, NOT_SOLD_HERE, OTHER_TOTAL, OVER_IMPORT_LIMIT, Order
from flashsale.sale.terms import Beyond

SALE, EPOCH, VERSION, FAR_MS = "sale", 3, 1, 2**45
SCRIPT = Script("reserve")
CHANNELS, SKUS, LANES = (0, 1, 2), (0, 1, 2), (1, 2)
DAY, YEAR, ANNUAL, CAPACITY = 20_000, 2026, 100, 4
ANN, BEN = b"a" * 10, b"b" * 10
GRANTED, NOT_GRANTED = person_hash("ann") + person_hash("agent"), person_hash("ben") + person_hash("agent")
_numbers = itertools.count(1)


class Span:
    """What a batch needs of its sale."""

    span = b""


class Asked(NamedTuple):
    """An order as Hypothesis draws it. `again`: how many places before it stands the order whose id it has, 0: none."""

    lines: tuple[tuple[int, int], ...]
    channel: int
    lane: int
    imported: int
    identity: bytes
    agent: int
    marks: int
    again: int


class State(NamedTuple):
    """What the reference decides by: units by field of the stock, what is used of each limit, ids used."""

    stock: dict[str, int]
    used: dict[bytes, int]
    ids: set[bytes]


def decide(state: State, order: Order) -> tuple[str, list[int] | None]:
    """The outcome, and the units that each line drew from a guarantee, None where the order has none."""
    beyond = order.beyond
    assert beyond is not None
    if order.digest in state.ids:
        return "R", None
    if beyond.grant == NOT_GRANTED:
        return "V", None
    for bit, letter in ((LANE_UNAVAILABLE, "L"), (NOT_SOLD_HERE, "X"), (OTHER_TOTAL, "T"), (OVER_IMPORT_LIMIT, "I")):
        if order.marks & bit:
            return letter, None
    imported = None
    if beyond.imported is not None:
        imported = identity_field(*beyond.imported[:2])
        if state.used.get(imported, 0) + beyond.imported[3] > beyond.imported[2]:
            return "I", None
    pools = beyond.pools or bytes(len(order.skus))
    names = [f"{sku}.{pool}" if pool else "" for sku, pool in zip(order.skus, pools, strict=True)]
    lines = list(zip(order.skus, order.quantities, names, strict=True))
    if any(state.stock[str(sku)] + state.stock.get(name, 0) < units for sku, units, name in lines):
        return "S", None
    lane = None
    if beyond.parcel is not None:
        lane = lane_field(*beyond.parcel[:2])
        if beyond.parcel[2] and state.used.get(lane, 0) >= beyond.parcel[2]:
            return "F", None
        state.used[lane] = state.used.get(lane, 0) + 1
    if imported is not None and beyond.imported is not None:
        state.used[imported] = state.used.get(imported, 0) + beyond.imported[3]
    drawn = []
    for sku, units, name in lines:
        of_guarantee = min(units, state.stock[name]) if name else 0
        if name:
            state.stock[name] -= of_guarantee
        state.stock[str(sku)] -= units - of_guarantee
        drawn.append(of_guarantee)
    state.ids.add(order.digest)
    return "A", drawn if beyond.pools else None


def made(asked: Asked, before: list[Order]) -> Order:
    order = Order()
    number = next(_numbers)
    order.digest = struct.pack(">IQ", 7, number)
    if 0 < asked.again <= len(before):
        order.digest = before[-asked.again].digest
    order.id = order.digest.hex()
    order.head = b"h" + bytes(8) + VERSION.to_bytes(3, "big")
    order.skus = tuple(sku for sku, _ in asked.lines)
    order.quantities = tuple(units for _, units in asked.lines)
    order.quotas, order.fields, order.marks = (0,) * len(asked.lines), (), asked.marks
    order.sale = Span()  # type: ignore[assignment]
    parcel = (asked.lane, DAY, CAPACITY if asked.lane == 1 else 0) if asked.lane else None
    imported = (asked.identity, YEAR, ANNUAL, asked.imported) if asked.imported else None
    grant = (b"", GRANTED, NOT_GRANTED)[asked.agent]
    pools = bytes([asked.channel] * len(asked.lines)) if asked.channel else b""
    order.beyond = Beyond(parcel, imported, pools, grant)
    order.record = f"{order.id}\t{number}\t".encode() + (b"" if pools else b"\\N\n")
    return order


@pytest.fixture
def client(either_valkey: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(either_valkey.url) as opened:
        yield opened


def fill(client: redis.Redis, stock: dict[str, int]) -> None:
    client.flushall()
    client.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": VERSION})
    opened = {"number": 1, "status": "open", "opens_at": 0, "closes_at": FAR_MS, "suspended": ""}
    client.hset(keys.state(0, SALE), mapping=opened)
    client.hset(keys.stock(0, SALE), mapping=stock)  # type: ignore[arg-type]
    client.hset(keys.grants(0), GRANTED, "a grant")  # type: ignore[arg-type]


def reserve(client: redis.Redis, orders: list[Order]) -> Any:
    names = script_keys(0, SALE)
    return client.eval(SCRIPT.source.decode(), len(names), *names, EPOCH, VERSION, *arguments(orders))


def used(client: redis.Redis) -> dict[bytes, int]:
    return {name: int(value) for name, value in client.hgetall(keys.limits(0)).items()}  # type: ignore[union-attr]


def stock_of(client: redis.Redis) -> dict[str, int]:
    return {name.decode(): int(units) for name, units in client.hgetall(keys.stock(0, SALE)).items()}  # type: ignore[union-attr]


marks = st.sampled_from([0] * 12 + [LANE_UNAVAILABLE, NOT_SOLD_HERE, OTHER_TOTAL, OVER_IMPORT_LIMIT, 12, 5])
lines = st.lists(
    st.tuples(st.sampled_from(SKUS), st.integers(1, 4)), min_size=1, max_size=3, unique_by=lambda line: line[0]
).map(tuple)
orders = st.builds(
    Asked,
    lines=lines,
    channel=st.sampled_from(CHANNELS),
    lane=st.sampled_from([0, *LANES]),
    imported=st.sampled_from([0, 0, 0, 30, 60]),
    identity=st.sampled_from([ANN, BEN]),
    agent=st.sampled_from([0] * 6 + [1, 2]),
    marks=marks,
    again=st.sampled_from([0] * 8 + [1, 2]),
)
plain = orders.map(lambda asked: asked._replace(marks=0, agent=0, imported=0, again=0))


@given(
    stock=st.lists(st.integers(0, 30), min_size=9, max_size=9),
    batches=st.lists(
        st.one_of(st.lists(orders, min_size=1, max_size=8), st.lists(plain, min_size=1, max_size=8)), max_size=5
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_batches_are_decided_as_if_one_order_came_after_the_other(
    client: redis.Redis, stock: list[int], batches: list[list[Asked]]
) -> None:
    names = [f"{sku}.{channel}" if channel else str(sku) for sku in SKUS for channel in CHANNELS]
    state = State(dict(zip(names, stock, strict=True)), {}, set())
    fill(client, state.stock)
    every: list[Order] = []
    journal = b""
    for batch in batches:
        sent: list[Order] = []
        for asked in batch:
            sent.append(made(asked, every + sent))
        every += sent
        outcomes, _, _, entry, _ = reserve(client, sent)
        expected = [decide(state, order) for order in sent]
        assert outcomes.decode() == "".join(letter for letter, _ in expected)
        records = b"".join(
            order.record + (b"{%b}\n" % b",".join(b"%d" % units for units in drawn) if drawn is not None else b"")
            for order, (letter, drawn) in zip(sent, expected, strict=True)
            if letter == "A"
        )
        assert bool(entry) == bool(records)
        journal += records
    assert stock_of(client) == state.stock
    assert used(client) == {name: units for name, units in state.used.items() if units}
    written = client.xrange(keys.journal(0))
    assert b"".join(fields[b"o"] for _, fields in written) == journal  # type: ignore[union-attr]


def one(**changes: Any) -> Asked:
    return Asked(((0, 1),), 0, 0, 0, ANN, 0, 0, 0)._replace(**changes)


def test_a_full_day_says_how_many_parcels_it_holds_and_the_units_stay(client: redis.Redis) -> None:
    fill(client, {"0": 100})
    answer = reserve(client, [made(one(lane=1), []) for _ in range(CAPACITY + 2)])
    assert (answer[0], answer[1]) == (b"A" * CAPACITY + b"FF", [CAPACITY, CAPACITY])
    assert stock_of(client) == {"0": 100 - CAPACITY}
    assert [parse(field) for field in used(client)] == [LaneDay(1, DAY)]


def test_an_import_beyond_the_year_says_what_is_used(client: redis.Redis) -> None:
    fill(client, {"0": 100})
    answer = reserve(client, [made(one(imported=60), []), made(one(imported=41), []), made(one(imported=40), [])])
    assert (answer[0], answer[1]) == (b"AIA", [60])
    assert {parse(field): units for field, units in used(client).items()} == {IdentityYear(ANN, YEAR): 100}


def test_what_a_channel_may_have_is_its_guarantee_and_the_common_pool(client: redis.Redis) -> None:
    fill(client, {"0": 1, "0.1": 2})
    short = made(one(lines=((0, 4),), channel=1), [])
    answer = reserve(client, [short])
    assert (answer[0], answer[1]) == (b"S", [3, 0])
    answer = reserve(client, [made(one(lines=((0, 3),), channel=1), [])])
    assert (answer[0], stock_of(client)) == (b"A", {"0": 0, "0.1": 0})


def test_another_channel_s_guarantee_is_nobody_else_s(client: redis.Redis) -> None:
    fill(client, {"0": 0, "0.1": 5})
    assert reserve(client, [made(one(channel=2), []), made(one(), []), made(one(channel=1), [])])[0] == b"SSA"


@pytest.mark.parametrize(("opens_ms", "closes_ms"), [(60_000, 120_000), (-120_000, -60_000)])
def test_prices_of_another_time_are_refused_as_stale(client: redis.Redis, opens_ms: int, closes_ms: int) -> None:
    fill(client, {"0": 5})
    seconds, _ = client.time()  # type: ignore[misc]
    now_ms = seconds * 1000
    order = made(one(), [])
    order.sale.span = (now_ms + opens_ms).to_bytes(6, "big") + (now_ms + closes_ms).to_bytes(6, "big")
    answer = reserve(client, [order])
    assert answer[:2] == [b"stale", b"%d" % VERSION]
    assert abs(answer[2] - now_ms) < 60_000
    assert stock_of(client) == {"0": 5}
    order.sale.span = (now_ms - 60_000).to_bytes(6, "big") + (now_ms + 60_000).to_bytes(6, "big")
    assert reserve(client, [order])[0] == b"A"
