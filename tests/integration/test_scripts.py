"""The scripts' promises that no model states: all or nothing under any ACL, the bounds, and what Valkey must be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import RedisError

from flashsale.embedded import ValkeyServer
from flashsale.reservation import commands, keys, server
from flashsale.reservation.batch import script_keys
from flashsale.reservation.commands import MovedOrder
from flashsale.reservation.holds import Hold, pack, unpack
from flashsale.reservation.movements import Released, ReleasedOrder, ReservedAgain, decode_entry
from flashsale.reservation.scripts import Script
from flashsale.sale.catalogue import Catalogue
from tests.integration.test_reservation_model import QUOTAS, SALE, order_hex, pack_batch, quota_field, used_id
from tests.model import Order

EPOCH, NUMBER, FAR_MS = 3, 7, 4_000_000_000_000
RESERVE = Script("reserve")
RESERVE_KEYS = script_keys(0, SALE)
OF_SALE: dict[str, Any] = {"partition": 0, "epoch": EPOCH, "sale_id": SALE}
OF_ORDERS: dict[str, Any] = {"epoch": EPOCH, "sale_id": SALE}
OF_MOVEMENT: dict[str, Any] = {**OF_ORDERS, "outbox": 9}
COMMANDS = ("hset", "xadd", "xtrim", "del", "hget", "hmget", "hgetall", "hkeys", "hexists", "time", "exists", "xinfo")
WRITES = {
    "reserve": {"hset", "xadd"},
    "create_sale": {"hset", "xadd"},
    "set_status": {"hset", "xadd"},
    "set_suspended": {"hset", "xadd"},
    "adjust": {"hset", "xadd"},
    "release": {"hset", "xadd"},
    "reserve_again": {"hset", "xadd"},
    "reserve_again, refused": {"hset", "xadd"},
    "mirror_status": {"hset"},
    "set_returns": {"hset", "del"},
    "publish": {"hset", "xadd"},
    "trim": {"hset", "xtrim"},
}


def order(number: int, *lines: tuple[int, int], shopper: int = 0) -> Order:
    """An order with the record that find_record looks for."""
    record = b"%s\t%d\n" % (order_hex(number).encode(), number)
    return Order(used_id(number), b"h" + bytes(8) + (1).to_bytes(3), shopper, lines, False, record)


def moved(order: int, number: int, *lines: tuple[int, int], letter: str = "c") -> MovedOrder:
    """A movement of an order's units, its shopper's quota with them."""
    quota = [(quota_field(0, sku), units) for sku, units in lines if QUOTAS[sku]]
    limits = [QUOTAS[sku] for sku, _ in lines if QUOTAS[sku]]
    return MovedOrder(order_hex(order), number, letter, lines, quota, True, limits)


GIVEN_BACK = moved(2, 2, (0, 1), (2, 1), letter="e")


async def reserve(client: Any, *orders: Order) -> list[Any]:
    answer: list[Any] = await RESERVE.run(client, RESERVE_KEYS, [EPOCH, 1, *pack_batch(list(orders))])
    if answer[0] == b"denied":
        raise commands.Denied(answer[1].decode())
    return answer


async def trim_all(client: Any) -> int:
    partition = await commands.read_partition(client)
    assert partition is not None
    return await commands.trim(client, partition=0, epoch=EPOCH, mark=(FAR_MS, 0), written=partition.written)


CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    # Order 1 is a replay, 3 takes a quota (SKU 2), 4 has two lines; the quota isn't enough for 5, the stock for 7.
    "reserve": lambda client: reserve(
        client, order(1, (0, 1)), order(3, (2, 2)), order(4, (0, 1), (1, 1)), order(5, (2, 2)), order(7, (1, 10))
    ),
    "create_sale": lambda client: commands.create_sale(
        client, **OF_SALE, number=NUMBER, opens_at_ms=1, closes_at_ms=FAR_MS + 1, supply=[0, 0, 0, 4]
    ),
    "set_status": lambda client: commands.set_status(client, **OF_SALE, action="close"),
    "set_suspended": lambda client: commands.suspend(client, **OF_SALE, sku=1),
    "adjust": lambda client: commands.adjust(client, **OF_SALE, sku=1, to=10**9, expect=10),
    "release": lambda client: commands.release(client, **OF_MOVEMENT, orders=[GIVEN_BACK, moved(1, 2, (0, 1))]),
    "reserve_again": lambda client: commands.reserve_again(client, **OF_MOVEMENT, order=moved(6, 3, (0, 1), (2, 1))),
    "reserve_again, refused": lambda client: commands.reserve_again(
        client, **OF_MOVEMENT, order=moved(6, 3, (0, 1), (2, 11))
    ),
    "mirror_status": lambda client: commands.mirror_status(
        client, **OF_ORDERS, letters=[(order_hex(1), "p"), (order_hex(2), "H"), (order_hex(77), "p")]
    ),
    "set_returns": lambda client: commands.set_returns(client, **OF_ORDERS, deadlines={0: FAR_MS, 2: 5}),
    "publish": lambda client: commands.publish(client, partition=0, epoch=EPOCH, catalogue=Catalogue(2, ())),
    "trim": trim_all,
}


async def fill(client: Any) -> None:
    """One open sale of three SKUs, two orders taken, a third one given back; units of SKU 1 may come back."""
    await client.flushall()
    await client.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": 1})
    # The document is no part of publish.lua; it may stay when the script is refused.
    await client.hset(keys.CATALOGUE, "2", Catalogue(2, ()).encode())
    await commands.create_sale(client, **OF_SALE, number=NUMBER, opens_at_ms=1, closes_at_ms=FAR_MS, supply=[10] * 3)
    taken = order(1, (0, 1)), order(2, (0, 1), (2, 1)), order(6, (0, 1), (2, 1))
    assert (await reserve(client, *taken))[0] == b"AAA"
    back = moved(6, 2, (0, 1), (2, 1), letter="e")
    assert await commands.release(client, **OF_MOVEMENT, orders=[back]) == ["ok"]
    await commands.set_returns(client, **OF_ORDERS, deadlines={1: FAR_MS})


async def contents(client: Any) -> dict[bytes, Any]:
    """Every key and what it holds."""
    found: dict[bytes, Any] = {}
    for key in await client.keys("*"):
        is_stream = await client.type(key) == b"stream"
        found[key] = await (client.xrange(key) if is_stream else client.hgetall(key))
    return found


@pytest.fixture
async def client(either_valkey: ValkeyServer) -> AsyncIterator[Any]:
    connected = server.connect(either_valkey.url)
    yield connected
    await connected.aclose()


@pytest.fixture
async def limited(either_valkey: ValkeyServer, client: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """`await limited("-xadd")`: a client whose user lacks what the rules take away."""
    made: list[Any] = []

    async def connect(*rules: str) -> Any:
        await client.acl_deluser("limited")
        await client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "+@all", *rules)
        made.append(server.connect(either_valkey.url.replace("unix://", "unix://limited:pw@")))
        return made[-1]

    yield connect
    for each in made:
        await each.aclose()
    await client.acl_deluser("limited")


@pytest.mark.parametrize("script", CALLS)
async def test_a_denied_command_leaves_nothing_or_everything(client: Any, limited: Any, script: str) -> None:
    for command in COMMANDS:
        await fill(client)
        before = await contents(client)
        user = await limited("~*", f"-{command}")
        refusal: Exception | None = None
        try:
            await CALLS[script](user)
        except (commands.Denied, RedisError) as fault:
            refusal = fault
        if command in WRITES[script]:
            assert refusal is not None, command
        changed = await contents(client) != before
        assert changed == (refusal is None), (command, refusal)


@pytest.mark.parametrize("script", CALLS)
async def test_a_key_that_may_only_be_read_leaves_nothing_or_everything(client: Any, limited: Any, script: str) -> None:
    await fill(client)
    await CALLS[script](client)
    for key in [*RESERVE_KEYS, keys.supply(0, SALE)]:
        await fill(client)
        before = await contents(client)
        others = [f"~{name}" for name in [*RESERVE_KEYS, keys.supply(0, SALE), keys.CATALOGUE] if name != key]
        user = await limited(f"%R~{key}", *others)
        refusal: Exception | None = None
        try:
            await CALLS[script](user)
        except (commands.Denied, RedisError) as fault:
            refusal = fault
        changed = await contents(client) != before
        assert changed == (refusal is None), (key, refusal)


async def test_a_script_runs_after_valkey_forgot_it(client: Any) -> None:
    await fill(client)
    await client.script_flush()
    assert (await commands.set_status(client, **OF_SALE, action="pause")).status == "paused"


async def test_nothing_is_written_where_the_partition_is_absent(client: Any) -> None:
    await client.flushall()
    for name, call in CALLS.items():
        if name in ("reserve", "trim"):
            continue
        with pytest.raises(commands.Fenced):
            await call(client)
    assert await reserve(client, order(1, (0, 1))) == [b"fenced"]
    with pytest.raises(commands.Fenced):
        await commands.trim(client, partition=0, epoch=EPOCH, mark=(1, 0), written=0)
    assert set(await client.keys("*")) <= {keys.CATALOGUE.encode()}
    assert await commands.read_state(client, SALE) is None
    assert await commands.load_catalogue(client) is None


async def test_the_largest_sale_is_made_and_read_whole(client: Any) -> None:
    await client.hset(keys.partition(0), "epoch", EPOCH)
    made = {"number": NUMBER, "opens_at_ms": 1, "closes_at_ms": FAR_MS}
    assert await commands.create_sale(client, **OF_SALE, **made, supply=[10**9] * 10_000) == 10_000
    state = await commands.read_state(client, SALE)
    assert state is not None
    assert state.supply == state.available == (10**9,) * 10_000
    level = await commands.adjust(client, **OF_SALE, sku=9_999, to=10**9 - 1, expect=10**9)
    assert level[:2] == (10**9 - 1, 10**9 - 1)
    assert await client.hget(keys.stock(0, SALE), "9999") == b"999999999"
    with pytest.raises(ValueError, match="supply"):
        await commands.adjust(client, **OF_SALE, sku=0, to=10**9 + 1, expect=10**9)


async def test_a_batch_of_2000_lines_is_decided_and_2001_change_nothing(client: Any) -> None:
    await client.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": 1})
    made = {"number": NUMBER, "opens_at_ms": 1, "closes_at_ms": FAR_MS}
    await commands.create_sale(client, **OF_SALE, **made, supply=[10**9] * 20)
    # Even SKUs of QUOTAS without a limit and the one with 10, each shopper once: every hash gets its longest write.
    full = [order(number, (4, 1), shopper=number % 250) for number in range(2000)]
    before = await contents(client)
    with pytest.raises(RedisError, match="2000 lines"):
        await reserve(client, *full, order(2000, (4, 1)))
    assert await contents(client) == before
    answer = await reserve(client, *full)
    assert answer[0] == b"A" * 2000
    assert QUOTAS[4] == 10
    assert await client.hlen(keys.holds(0, SALE)) == 2000


# Stock 8, 10, 9; SKU 2 has a quota of 3, of which shopper 0 has taken 1. A batch fits but for one order, or just fits.
@pytest.mark.parametrize(
    ("batch", "outcomes", "stock", "quotas"),
    [
        ([order(8, (0, 1)), order(8, (0, 1))], b"AR", (7, 10, 9), (1, 0)),
        ([order(8, (0, 1)), order(1, (0, 1))], b"AR", (7, 10, 9), (1, 0)),
        ([order(8, (1, 6)), order(9, (1, 5))], b"AS", (8, 4, 9), (1, 0)),
        ([order(8, (1, 6)), order(9, (1, 5)), order(10, (1, 4))], b"ASA", (8, 0, 9), (1, 0)),
        ([order(8, (1, 6)), order(9, (1, 4), (0, 8))], b"AA", (0, 0, 9), (1, 0)),
        ([order(8, (2, 2)), order(9, (2, 1)), order(10, (0, 1))], b"AQA", (7, 10, 7), (3, 0)),
        ([order(8, (2, 2), shopper=1), order(9, (2, 2), shopper=1)], b"AQ", (8, 10, 7), (1, 2)),
        ([order(8, (2, 2), shopper=1), order(9, (2, 1), (1, 1), shopper=1)], b"AA", (8, 9, 6), (1, 3)),
        ([order(8, (2, 2), shopper=1), order(9, (0, 9), (2, 1)), order(8, (2, 2))], b"ASR", (8, 10, 7), (1, 2)),
        ([order(8, (4, 1), (5, 1), (2, 4)), order(9, (2, 1), shopper=1)], b"QA", (8, 10, 8), (1, 1)),
    ],
)
async def test_one_order_that_does_not_fit_is_refused_alone(
    client: Any, batch: list[Order], outcomes: bytes, stock: tuple[int, ...], quotas: tuple[int, int]
) -> None:
    await fill(client)
    await commands.create_sale(client, **OF_SALE, number=NUMBER, opens_at_ms=1, closes_at_ms=FAR_MS, supply=[10] * 6)
    assert (await reserve(client, *batch))[0] == outcomes
    state = await commands.read_sale(client, SALE)
    assert state is not None and state.available == (*stock, 10, 10, 10)
    taken = await client.hmget(keys.quota(0, SALE), [quota_field(0, 2), quota_field(1, 2)])
    assert tuple(int(units or 0) for units in taken) == quotas
    assert await client.hlen(keys.quota(0, SALE)) == sum(map(bool, quotas))
    assert await client.hlen(keys.holds(0, SALE)) == 3 + outcomes.count(b"A")


async def test_two_orders_crossing_at_the_last_units_have_one_winner(client: Any) -> None:
    crossing = order(1, (0, 1), (1, 1), (2, 1)), order(2, (2, 1), (1, 1), (0, 1))
    for together in (True, False):
        await client.flushall()
        await client.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": 1})
        made = {"number": NUMBER, "opens_at_ms": 1, "closes_at_ms": FAR_MS}
        await commands.create_sale(client, **OF_SALE, **made, supply=[1, 1, 1])
        batches = [crossing] if together else [(each,) for each in crossing]
        answers = await asyncio.gather(*(reserve(client, *batch) for batch in batches))
        assert sorted(b"".join(answer[0] for answer in answers)) == sorted(b"AS")
        state = await commands.read_sale(client, SALE)
        assert state is not None and state.available == (0, 0, 0)


async def test_no_unit_is_lost_while_the_supply_is_adjusted_under_load(client: Any) -> None:
    await client.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": 1})
    made = {"number": NUMBER, "opens_at_ms": 1, "closes_at_ms": FAR_MS}
    await commands.create_sale(client, **OF_SALE, **made, supply=[100])
    adjusted = 0

    async def sell(seller: int) -> int:
        taken = 0
        for batch in range(40):
            numbers = range(seller * 10_000 + batch * 10, seller * 10_000 + batch * 10 + 10)
            answer = await reserve(client, *(order(number, (0, 1 + number % 3)) for number in numbers))
            taken += sum(1 + n % 3 for n, outcome in zip(numbers, answer[0].decode(), strict=True) if outcome == "A")
        return taken

    async def adjust() -> int:
        nonlocal adjusted
        for step in range(60):
            state = await commands.read_sale(client, SALE)
            assert state is not None
            to = state.supply[0] + (60 if step % 3 else -20)
            try:
                await commands.adjust(client, **OF_SALE, sku=0, to=to, expect=state.supply[0])
                adjusted += 1
            except commands.Mismatch:  # another was faster, or it is sold
                continue
        return 0

    sold = sum(await asyncio.gather(*(sell(seller) for seller in range(4)), adjust(), adjust()))
    state = await commands.read_sale(client, SALE)
    assert state is not None and adjusted
    assert state.supply[0] - state.available[0] == sold > 100
    assert state.available[0] >= 0


async def last_movement(client: Any) -> Any:
    return decode_entry(*(await client.xrevrange(keys.journal(0), count=1))[0]).movement


async def units(client: Any) -> tuple[tuple[int, ...], int]:
    """What is available, and what shopper 0 has of SKU 2's quota."""
    state = await commands.read_sale(client, SALE)
    assert state is not None
    return state.available, int(await client.hget(keys.quota(0, SALE), quota_field(0, 2)))


async def letter_of(client: Any, number: int) -> tuple[str, int]:
    hold = await commands.find_hold(client, SALE, order_hex(number))
    assert hold is not None
    return hold.letter, hold.number


async def test_one_order_of_a_release_never_fails_another(client: Any) -> None:
    await fill(client)
    assert await units(client) == ((8, 10, 9), 1)
    orders = [
        moved(77, 2, (0, 1)),
        moved(1, 2, (0, 3)),
        moved(6, 2, (0, 1)),
        GIVEN_BACK,
        GIVEN_BACK,
        moved(1, 2, (1, 1)),
        moved(1, 2, (9, 1)),
        moved(1, 3, (0, 1)),
    ]
    outcomes = ["unknown", "beyond", "already", "ok", "already", "beyond", "beyond", "ok"]
    assert await commands.release(client, **OF_MOVEMENT, orders=orders) == outcomes
    assert await units(client) == ((10, 10, 10), 0)
    assert await last_movement(client) == Released(
        NUMBER,
        9,
        (
            ReleasedOrder(order_hex(2), 2, ((0, 1), (2, 1)), True),
            ReleasedOrder(order_hex(1), 3, ((0, 1),), True),
        ),
    )
    before = await contents(client)
    assert set(await commands.release(client, **OF_MOVEMENT, orders=orders)) == {"unknown", "already"}
    assert await contents(client) == before
    assert await commands.release(client, **{**OF_MOVEMENT, "sale_id": "nobody"}, orders=orders[:2]) == ["unknown"] * 2


async def test_the_largest_release_goes_through_whole(client: Any) -> None:
    await client.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": 1})
    made = {"number": NUMBER, "opens_at_ms": 1, "closes_at_ms": FAR_MS}
    await commands.create_sale(client, **OF_SALE, **made, supply=[10**9] * 4000)
    moves = []
    for number in range(200):  # every line another SKU and another shopper's quota
        lines = [(20 * number + place, 1 + place) for place in range(20)]
        quota = [(number.to_bytes(6) + sku.to_bytes(6), units) for sku, units in lines]
        moves.append(MovedOrder(order_hex(number), 2, "e", lines, quota, True))
    hold = pack(Hold("h", bytes(8), 1, 1, 0))
    await client.hset(keys.holds(0, SALE), mapping={used_id(number): hold for number in range(200)})
    taken = {sku: 10**9 - units for each in moves for sku, units in each.lines}
    await client.hset(keys.stock(0, SALE), mapping=taken)
    await client.hset(keys.quota(0, SALE), mapping={field: units + 1 for each in moves for field, units in each.quota})
    assert await commands.release(client, **OF_MOVEMENT, orders=moves) == ["ok"] * 200
    state = await commands.read_sale(client, SALE)
    assert state is not None and state.available == state.supply
    assert set(await client.hvals(keys.quota(0, SALE))) == {b"1"}
    assert len((await last_movement(client)).orders) == 200
    with pytest.raises(ValueError, match="at most 200"):
        await commands.release(client, **OF_MOVEMENT, orders=[*moves, moved(201, 2, (0, 1))])


@pytest.mark.parametrize(
    "order",
    [moved(2, 1, (0, 1)), moved(2, 2**24, (0, 1)), moved(2, 2), moved(2, 2, (0, 0)), moved(2, 2, (0, 1), (2, -1))],
)
async def test_what_no_order_can_be_never_reaches_the_journal(client: Any, order: MovedOrder) -> None:
    await fill(client)
    before = await contents(client)
    with pytest.raises(ValueError, match="order"):
        await commands.release(client, **OF_MOVEMENT, orders=[GIVEN_BACK, order])
    with pytest.raises(ValueError, match="order"):
        await commands.reserve_again(client, **OF_MOVEMENT, order=order)
    with pytest.raises(KeyError):
        await commands.release(client, **OF_MOVEMENT, orders=[GIVEN_BACK._replace(letter="r")])
    with pytest.raises(ValueError, match="limits"):
        await commands.reserve_again(client, **OF_MOVEMENT, order=GIVEN_BACK._replace(limits=()))
    assert await contents(client) == before


async def test_a_part_goes_back_and_then_the_rest(client: Any) -> None:
    await fill(client)
    part = MovedOrder(order_hex(2), 3, "p", [(2, 1)], [(quota_field(0, 2), 1)], False)
    assert await commands.release(client, **OF_MOVEMENT, orders=[part]) == ["ok"]
    assert await units(client) == ((8, 10, 10), 1)
    assert await letter_of(client, 2) == ("p", 3)
    assert (await last_movement(client)).orders[0].quota_back is False
    rest = moved(2, 7, (0, 1))
    assert await commands.release(client, **OF_MOVEMENT, orders=[rest, part]) == ["ok", "already"]
    assert await units(client) == ((9, 10, 10), 1)
    assert await letter_of(client, 2) == ("c", 7)


async def test_a_paid_order_takes_its_units_again_once(client: Any) -> None:
    """Whatever the sale's state: its shopper has paid."""
    await fill(client)
    await commands.set_status(client, **OF_SALE, action="pause")
    await commands.suspend(client, **OF_SALE, sku=0)
    again = moved(6, 4, (0, 1), (2, 1), letter="p")
    assert await commands.reserve_again(client, **OF_MOVEMENT, order=again) == "taken"
    assert await units(client) == ((7, 10, 8), 2)
    assert await letter_of(client, 6) == ("p", 4)
    entry = ReservedAgain(NUMBER, 9, order_hex(6), 4, ((0, 1), (2, 1)), True, True)
    assert await last_movement(client) == entry
    before = await contents(client)
    assert await commands.reserve_again(client, **OF_MOVEMENT, order=again) == "already"
    assert await commands.reserve_again(client, **OF_MOVEMENT, order=moved(77, 2, (0, 1))) == "unknown"
    assert await commands.reserve_again(client, **{**OF_MOVEMENT, "sale_id": "nobody"}, order=again) == "unknown"
    assert await contents(client) == before


@pytest.mark.parametrize("lacking", ["stock", "quota", "sku"])
async def test_units_are_taken_again_all_or_none(client: Any, lacking: str) -> None:
    """What became of it is journalled once, so that the ledger hears of it by the journal alone."""
    await fill(client)
    if lacking == "stock":
        await reserve(client, order(8, (0, 8), shopper=1))
    if lacking == "quota":
        await reserve(client, order(8, (2, 2)))
    lines = ((2, 1), (0, 1), *([(9, 1)] if lacking == "sku" else []))
    before = await units(client)
    again = moved(6, 4, *lines, letter="p")
    assert await commands.reserve_again(client, **OF_MOVEMENT, order=again) == "refused"
    assert await units(client) == before
    assert await letter_of(client, 6) == ("e", 4)
    entry = ReservedAgain(NUMBER, 9, order_hex(6), 4, lines, False, True)
    assert await last_movement(client) == entry
    assert await commands.reserve_again(client, **OF_MOVEMENT, order=again) == "already"
    if lacking == "quota":  # it went back without its quota: none is taken, and none is asked
        free = again._replace(number=5, quota_back=False)
        assert await commands.reserve_again(client, **OF_MOVEMENT, order=free) == "taken"
        assert (await units(client))[1] == before[1]


async def test_a_letter_gives_way_to_a_later_one_and_keeps_its_extension(client: Any) -> None:
    await fill(client)
    for told, shown, changed in (
        ("H", "H", 1), ("H", "H", 0), ("h", "H", 0), ("p", "P", 1), ("e", "P", 0), ("s", "S", 1), ("p", "S", 0),
        ("d", "D", 1), ("u", "D", 0), ("c", "C", 1), ("D", "C", 0),
    ):  # fmt: skip
        assert await commands.mirror_status(client, **OF_ORDERS, letters=[(order_hex(1), told)]) == changed, told
        assert await letter_of(client, 1) == (shown, 0)
    # An extension that is told late, and a movement of units that is.
    several = [(order_hex(2), "p"), (order_hex(2), "H"), (order_hex(2), "s"), (order_hex(78), "s"), (order_hex(1), "h")]
    assert await commands.mirror_status(client, **OF_ORDERS, letters=several) == 1
    assert await commands.release(client, **OF_MOVEMENT, orders=[GIVEN_BACK]) == ["ok"]
    assert await letter_of(client, 2) == ("S", 2)


async def test_a_hold_is_as_python_reads_and_writes_it(client: Any) -> None:
    """The scripts change a letter and a number, and no other byte."""
    await fill(client)
    first = await client.hget(keys.holds(0, SALE), used_id(2))
    assert await commands.release(client, **OF_MOVEMENT, orders=[GIVEN_BACK]) == ["ok"]
    then = await client.hget(keys.holds(0, SALE), used_id(2))
    assert (len(first), len(then)) == (22, 25)
    assert unpack(then) == unpack(first)._replace(letter="e", number=2)
    assert pack(unpack(first)) == first
    assert pack(unpack(then)) == then


async def test_a_sold_out_order_hears_when_units_may_come_back(client: Any) -> None:
    await fill(client)
    now_ms = await commands.clock(client)
    soon, later = now_ms + 60_000, now_ms + 90_000
    of = {"client": client, **OF_ORDERS}

    async def told(*lines: tuple[int, int]) -> list[int]:
        outcomes, details, *_ = await reserve(client, order(9, *lines))
        assert outcomes == b"S"
        return list(details)

    await commands.set_returns(**of, deadlines={})
    assert await told((0, 9), (1, 1)) == [8, 10, 0]
    await commands.set_returns(**of, deadlines={0: later, 1: soon, 2: FAR_MS})
    assert await told((0, 9), (1, 1)) == [8, 10, later]
    assert await told((0, 9), (1, 11)) == [8, 10, soon]
    assert await told((0, 9), (4, 1)) == [8, 0, later]
    await commands.set_returns(**of, deadlines={0: now_ms - 60_000})
    assert now_ms <= (await told((0, 9)))[1] < now_ms + 60_000
    assert await told((1, 11), (0, 1)) == [10, 8, 0]


async def test_what_may_return_is_replaced_whole(client: Any) -> None:
    await fill(client)
    for deadlines in ({sku: FAR_MS - sku for sku in range(10_000)}, {3: 7}, {3: 8}, {4: 8}, {}):
        for _ in range(2):
            await commands.set_returns(client, **OF_ORDERS, deadlines=deadlines)
            found = await client.hgetall(keys.returns(0, SALE))
            assert {int(sku): int(at) for sku, at in found.items()} == deadlines


async def test_an_order_is_found_until_it_is_trimmed(client: Any) -> None:
    await fill(client)
    await reserve(client, order(8, (1, 1)), order(9, (1, 1)))
    for number in (1, 2, 8, 9):
        hold = await commands.find_hold(client, SALE, order_hex(number))
        assert hold is not None and hold.letter == "h"
        record = await commands.find_record(client, order_hex(number), hold)
        assert record == b"%s\t%d\n" % (order_hex(number).encode(), number)
        assert await commands.find_record(client, order_hex(77), hold) is None
    assert await commands.find_hold(client, SALE, order_hex(77)) is None
    await trim_all(client)
    assert await commands.find_record(client, order_hex(9), hold) is None


async def test_the_journal_is_not_trimmed_by_a_mark_of_another_one(client: Any) -> None:
    await fill(client)
    with pytest.raises(commands.Mismatch):
        await commands.trim(client, partition=0, epoch=EPOCH, mark=(FAR_MS, 0), written=10**6)
    assert await client.xlen(keys.journal(0)) == 3


async def test_used_up_memory_refuses_orders_whole_and_still_lets_the_journal_go(client: Any) -> None:
    await fill(client)
    before = await contents(client)
    good = await client.config_get("maxmemory")
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisError, match="maxmemory"):
            await reserve(client, order(8, (1, 1)))
        assert await contents(client) == before
        assert await trim_all(client) == 3
    finally:
        await client.config_set("maxmemory", good["maxmemory"])
    partition = await commands.read_partition(client)
    assert partition is not None and partition.trimmed == partition.written


async def test_a_server_that_will_do_has_no_shortcomings(either_valkey: ValkeyServer, client: Any) -> None:
    assert await server.shortcomings(client, "memory") == []
    assert len(await server.run_id(client)) == 40


async def test_each_shortcoming_is_one_clear_line(client: Any) -> None:
    good = await client.config_get("maxmemory*", "save")
    try:
        for name, value, said in (
            ("maxmemory-policy", "allkeys-lru", "noeviction"),
            ("maxmemory", "0", "maxmemory is 0"),
            ("maxmemory", str(2**28), "BACKLOG_MAX_BYTES"),
            ("save", "60 1", 'save is "60 1"'),
        ):
            await client.config_set(name, value)
            lines = await server.shortcomings(client, "memory", 2**28)
            assert len(lines) == 1 and said in lines[0] and "\n" not in lines[0]
            await client.config_set(name, good[name])
        assert ["appendonly yes" in line for line in await server.shortcomings(client, "fsync")] == [True]
    finally:
        for name in ("maxmemory-policy", "maxmemory", "save"):
            await client.config_set(name, good[name])


async def test_fsync_is_satisfied_by_the_embedded_valkey(valkey: ValkeyServer) -> None:
    client = server.connect(valkey.url)
    try:
        assert await server.shortcomings(client, "fsync", 2**28) == []
        await client.config_set("no-appendfsync-on-rewrite", "yes")
        assert len(await server.shortcomings(client, "fsync")) == 1
        await client.config_set("appendfsync", "everysec")
        assert ["always" in line for line in await server.shortcomings(client, "fsync")] == [True, False]
    finally:
        await client.config_set("appendfsync", "always")
        await client.config_set("no-appendfsync-on-rewrite", "no")
        await client.aclose()
