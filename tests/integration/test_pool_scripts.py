"""What the scripts promise of guarantees, lanes, import limits and grants: exact, once, all or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import RedisError

from flashsale.embedded import ValkeyServer
from flashsale.reservation import commands, keys, server
from flashsale.reservation.commands import MovedOrder
from flashsale.reservation.holds import Hold, pack
from flashsale.reservation.limits import IdentityYear, LaneDay, identity_field, lane_field
from flashsale.reservation.movements import Created, Granted, PoolMoved, Released, ReservedAgain, decode_entry

EPOCH, NUMBER, SALE, FAR_MS = 3, 7, "sale", 4_000_000_000_000
OF_SALE: dict[str, Any] = {"partition": 0, "epoch": EPOCH, "sale_id": SALE}
OF_MOVEMENT: dict[str, Any] = {"epoch": EPOCH, "sale_id": SALE, "outbox": 9}
ORDER = f"00{NUMBER:04x}{'ab' * 12}"
LAZADA, TMALL = 2, 9
LANE, NEXT = LaneDay(300, 20_000), LaneDay(300, 20_001)
BUYER = IdentityYear(bytes(range(10)), 2026)
GRANT: dict[str, Any] = {"partition": 0, "epoch": EPOCH, "grant_id": "g-1", "recipient": "anna", "agent": "bo"}


@pytest.fixture
async def client(either_valkey: ValkeyServer) -> AsyncIterator[Any]:
    """A sale: SKU 0 with 10 units of which 4 and 1 are guaranteed, SKU 1 with 5 of which all are, SKU 2 with none."""
    connected = server.connect(either_valkey.url)
    await connected.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": 1})
    await make(connected)
    await connected.hset(keys.holds(0, SALE), bytes.fromhex(ORDER)[-12:], pack(Hold("h", bytes(8), 1, 5, 0)))
    yield connected
    await connected.aclose()


async def make(client: Any, *more: int) -> int:
    guarantees = [(0, LAZADA, 4), (0, TMALL, 1), (1, LAZADA, 5)]
    return await commands.create_sale(
        client, **OF_SALE, number=NUMBER, opens_at_ms=1, closes_at_ms=FAR_MS, supply=[10, 5, 10, *more],
        guarantees=[*guarantees, *((3, TMALL, 2) for _ in more)],
    )  # fmt: skip


async def stock(client: Any) -> dict[str, int]:
    return {field.decode(): int(units) for field, units in (await client.hgetall(keys.stock(0, SALE))).items()}


async def limits(client: Any) -> dict[bytes, int]:
    return {field: int(used) for field, used in (await client.hgetall(keys.limits(0))).items()}


async def last_movement(client: Any) -> Any:
    return decode_entry(*(await client.xrevrange(keys.journal(0), count=1))[0]).movement


async def taken(client: Any, **fields: int) -> None:
    """As if orders had taken units and counted in the limits."""
    for name, units in fields.items():
        await client.hset(keys.stock(0, SALE), name.lstrip("s").replace("_", "."), units)
    await client.hset(keys.limits(0), mapping={lane_field(*LANE): 3, identity_field(*BUYER): 900})


def moved(number: int, *lines: tuple[int, int], letter: str = "e", **beside: Any) -> MovedOrder:
    return MovedOrder(ORDER, number, letter, lines, [], False, **beside)


async def test_a_guarantee_is_a_part_of_the_supply(client: Any) -> None:
    assert await stock(client) == {"0": 5, "0.2": 4, "0.9": 1, "1": 0, "1.2": 5, "2": 10}
    made = await last_movement(client)
    assert isinstance(made, Created)
    assert sorted(made.guarantees) == [(0, LAZADA, 4), (0, TMALL, 1), (1, LAZADA, 5)]
    reading = await commands.read_sale(client, SALE)
    assert reading is not None
    assert (reading.supply, reading.available, reading.common) == ((10, 5, 10), (10, 5, 10), (5, 0, 10))
    assert reading.guarantees == {(0, LAZADA): 4, (0, TMALL): 1, (1, LAZADA): 5}


async def test_a_sale_that_gets_more_skus_keeps_the_guarantees_that_are_drawn_on(client: Any) -> None:
    await taken(client, s0_2=1)
    assert await make(client, 8) == 1
    assert await stock(client) == {"0": 5, "0.2": 1, "0.9": 1, "1": 0, "1.2": 5, "2": 10, "3": 6, "3.9": 2}
    assert (await last_movement(client)).guarantees == ((3, TMALL, 2),)
    assert await make(client, 8) == 0


@pytest.mark.parametrize("guarantees", [[(0, 1, 11)], [(0, 1, 6), (0, 2, 5)], [(0, 0, 1)], [(0, 256, 1)], [(9, 1, 1)],
                                        [(0, 1, -1)], [(0, 1, 1), (0, 1, 1)]])  # fmt: skip
async def test_what_no_guarantee_can_be_is_refused(client: Any, guarantees: list[tuple[int, int, int]]) -> None:
    with pytest.raises(ValueError, match="guarantee"):
        await commands.create_sale(
            client, **OF_SALE, number=NUMBER, opens_at_ms=1, closes_at_ms=FAR_MS, supply=[10], guarantees=guarantees
        )


async def test_a_supply_falls_as_far_as_nothing_is_guaranteed(client: Any) -> None:
    with pytest.raises(commands.BelowTaken, match="5 are guaranteed"):
        await commands.adjust(client, **OF_SALE, sku=0, to=4, expect=10)
    level = await commands.adjust(client, **OF_SALE, sku=0, to=5, expect=10)
    assert (level.supply, level.available) == (5, 5)
    assert (await stock(client))["0"] == 0


async def test_what_exceeds_a_cap_goes_to_the_common_pool_once(client: Any) -> None:
    caps = [(0, LAZADA, 1), (0, TMALL, 1), (1, LAZADA, 0), (2, LAZADA, 0)]
    assert await commands.move_pool(client, **OF_SALE, caps=caps) == 8
    assert await stock(client) == {"0": 8, "0.2": 1, "0.9": 1, "1": 5, "1.2": 0, "2": 10}
    assert await last_movement(client) == PoolMoved(NUMBER, ((0, LAZADA, 3), (1, LAZADA, 5)))
    entries = await client.xlen(keys.journal(0))
    assert await commands.move_pool(client, **OF_SALE, caps=caps) == 0
    assert await client.xlen(keys.journal(0)) == entries
    with pytest.raises(commands.UnknownSale):
        await commands.move_pool(client, partition=0, epoch=EPOCH, sale_id="none", caps=caps)


async def test_everything_goes_back_where_it_was_drawn_once(client: Any) -> None:
    await taken(client, s0=3, s0_2=1)
    order = moved(2, (0, 5), (2, 1), drawn=[(0, LAZADA, 3)], lane=LANE, imported=(BUYER, 400))
    await client.hset(keys.stock(0, SALE), "2", 9)
    for outcome in ("ok", "already"):
        assert await commands.release(client, **OF_MOVEMENT, orders=[order]) == [outcome]
        assert await stock(client) == {"0": 5, "0.2": 4, "0.9": 1, "1": 0, "1.2": 5, "2": 10}
        assert await limits(client) == {lane_field(*LANE): 2, identity_field(*BUYER): 500}
    back = await last_movement(client)
    assert isinstance(back, Released)
    (told,) = back.orders
    assert (told.lines, told.drawn) == (((0, 5), (2, 1)), ((0, LAZADA, 3),))
    assert (told.lane, told.limit) == ((300, 20_000), (BUYER.identity.hex(), 2026, 400))


async def test_a_limit_alone_goes_back_and_never_below_nothing(client: Any) -> None:
    await taken(client)
    assert await commands.release(client, **OF_MOVEMENT, orders=[moved(2, imported=(BUYER, 901))]) == ["ok"]
    assert (await limits(client))[identity_field(*BUYER)] == 0
    (told,) = (await last_movement(client)).orders
    assert (told.lines, told.limit) == ((), (BUYER.identity.hex(), 2026, 901))
    with pytest.raises(ValueError, match="no units to move"):
        await commands.release(client, **OF_MOVEMENT, orders=[moved(3)])


async def test_units_are_drawn_again_as_far_as_the_guarantee_has_them(client: Any) -> None:
    await taken(client, s0_2=1)
    order = moved(2, (0, 5), (2, 1), letter="p", drawn=[(0, LAZADA, 3)], lane=NEXT, imported=(BUYER, 100), annual=1000)
    for outcome in ("taken", "already"):
        assert await commands.reserve_again(client, **OF_MOVEMENT, order=order) == outcome
        assert await stock(client) == {"0": 1, "0.2": 0, "0.9": 1, "1": 0, "1.2": 5, "2": 9}
        assert await limits(client) == {lane_field(*LANE): 3, lane_field(*NEXT): 1, identity_field(*BUYER): 1000}
    told = await last_movement(client)
    assert isinstance(told, ReservedAgain)
    assert (told.taken, told.lines, told.drawn) == (True, ((0, 5), (2, 1)), ((0, LAZADA, 1),))
    assert (told.lane, told.limit) == ((300, 20_001), (BUYER.identity.hex(), 2026, 100))


@pytest.mark.parametrize(
    "lacking",
    [
        {"lane": LANE, "capacity": 3},
        {"lane": LANE, "capacity": -1},
        {"imported": (BUYER, 101), "annual": 1000},
        {"drawn": [(0, LAZADA, 1)]},
    ],
)
async def test_units_are_taken_again_all_or_none(client: Any, lacking: dict[str, Any]) -> None:
    await taken(client, s0_2=4)
    before = await stock(client), await limits(client)
    units = 7 if "drawn" in lacking else 5  # one more than the common pool and the drawn one
    order = moved(2, (0, units), letter="p", **lacking)
    assert await commands.reserve_again(client, **OF_MOVEMENT, order=order) == "refused"
    assert (await stock(client), await limits(client)) == before
    told = await last_movement(client)
    assert (told.taken, told.drawn, told.lane, told.limit) == (False, (), None, None)
    assert await commands.reserve_again(client, **OF_MOVEMENT, order=order) == "already"


async def test_a_grant_ends_under_its_own_name_alone(client: Any) -> None:
    field = commands.grant_field("anna", "bo")
    assert await commands.grant(client, **GRANT)
    assert await last_movement(client) == Granted("g-1", "anna", "bo", True)
    assert not await commands.grant(client, **GRANT)
    assert await commands.grant(client, **{**GRANT, "grant_id": "g-2"})
    assert await client.hgetall(keys.grants(0)) == {field: b"g-2"}
    assert not await commands.revoke(client, **GRANT)
    entries = await client.xlen(keys.journal(0))
    assert await commands.revoke(client, **{**GRANT, "grant_id": "g-2"})
    assert await last_movement(client) == Granted("g-2", "anna", "bo", False)
    assert await client.xlen(keys.journal(0)) == entries + 1
    assert await client.hgetall(keys.grants(0)) == {}


CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "create_sale": lambda client: make(client, 8),
    "adjust": lambda client: commands.adjust(client, **OF_SALE, sku=0, to=11, expect=10),
    "move_pool": lambda client: commands.move_pool(client, **OF_SALE, caps=[(0, LAZADA, 1)]),
    "grant": lambda client: commands.grant(client, **GRANT),
    "revoke": lambda client: commands.revoke(client, **{**GRANT, "grant_id": "g-0", "recipient": "carl"}),
    "release": lambda client: commands.release(
        client, **OF_MOVEMENT, orders=[moved(2, (0, 1), drawn=[(0, LAZADA, 1)], lane=LANE, imported=(BUYER, 1))]
    ),
    "reserve_again": lambda client: commands.reserve_again(
        client, **OF_MOVEMENT, order=moved(2, (0, 1), drawn=[(0, LAZADA, 1)], lane=LANE, imported=(BUYER, 1))
    ),
}


@pytest.mark.parametrize("script", CALLS)
@pytest.mark.parametrize("rule", ["-hset", "-xadd", "-hdel", *(f"key {place}" for place in range(8))])
async def test_a_denied_command_or_key_leaves_nothing_or_everything(
    either_valkey: ValkeyServer, client: Any, script: str, rule: str
) -> None:
    await taken(client, s0=4, s0_2=3)
    await commands.grant(client, **{**GRANT, "grant_id": "g-0", "recipient": "carl"})
    names = [keys.partition(0), *(name(0, SALE) for name in (keys.state, keys.stock, keys.supply, keys.holds)),
             keys.journal(0), keys.limits(0), keys.grants(0)]  # fmt: skip
    rules = ["+@all", "~*", rule]
    if rule.startswith("key"):
        read_only = names[int(rule[4:])]
        rules = ["+@all", f"%R~{read_only}", *(f"~{name}" for name in names if name != read_only), "~{p00}:sale:quota"]
    await client.acl_deluser("limited")
    await client.execute_command("ACL", "SETUSER", "limited", "on", ">word", *rules)
    before = await contents(client)
    lesser = server.connect(either_valkey.url.replace("unix://", "unix://limited:word@"))
    try:
        await CALLS[script](lesser)
    except (commands.Denied, RedisError):
        assert await contents(client) == before
    else:
        assert await contents(client) != before
    finally:
        await lesser.aclose()
        await client.acl_deluser("limited")


async def contents(client: Any) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for key in await client.keys("*"):
        is_stream = await client.type(key) == b"stream"
        found[key] = await (client.xrange(key) if is_stream else client.hgetall(key))
    return found
