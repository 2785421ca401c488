"""What the rest of the house may ask of a partition, as typed functions: one a script but the hot one (batcher.py).

All but the reading ones take the epoch that the caller verified against the ledger and raise Fenced, having changed
nothing, where Valkey's is another. Redis-py's errors pass through: after one of a changing call the outcome is unknown,
and the same call may be sent again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, cast

import redis.asyncio

from flashsale.reservation import keys
from flashsale.reservation.limits import identity_field
from flashsale.reservation.movements import parse_entry_id

# What is asked about single orders, and the refusals of every script, are read as a part of the commands.
from flashsale.reservation.orders import USED_ID_BYTES as USED_ID_BYTES
from flashsale.reservation.orders import MovedOrder as MovedOrder
from flashsale.reservation.orders import find_hold as find_hold
from flashsale.reservation.orders import find_record as find_record
from flashsale.reservation.orders import mirror_status as mirror_status
from flashsale.reservation.orders import read_entry as read_entry
from flashsale.reservation.orders import release as release
from flashsale.reservation.orders import reserve_again as reserve_again
from flashsale.reservation.orders import set_returns as set_returns
from flashsale.reservation.scripts import Denied as Denied
from flashsale.reservation.scripts import Fenced as Fenced
from flashsale.reservation.scripts import Refusal as Refusal
from flashsale.reservation.scripts import Script, pack
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.identity import person_hash

UNITS_MAX = 10**9
"""Largest supply of a SKU: the contract's bound, far below 2^53, up to which Lua counts exactly."""

CHANNELS_MAX = 255
"""Channels' numbers are 1 to this."""

CAPS_MAX = 1000
"""Guarantees of one move: a millisecond of Valkey."""

FIELDS_A_SCAN = 2000

StatusAction = Literal["open", "pause", "resume", "close"]

_CREATE_SALE = Script("create_sale")
_SET_STATUS = Script("set_status")
_SET_SUSPENDED = Script("set_suspended")
_ADJUST = Script("adjust")
_MOVE_POOL = Script("move_pool")
_SET_GRANT = Script("set_grant")
_PUBLISH = Script("publish")
_TRIM = Script("trim")
_READ_STATE = Script("read_state")


class UnknownSale(Refusal):
    """The partition has no such sale."""


class UnknownSku(Refusal):
    """The sale has no such SKU."""


class Mismatch(Refusal):
    """What is there is not what the caller expected; the message says what is."""


class SaleClosed(Refusal):
    """Closing is final."""


class SaleEnded(Refusal):
    """The sale can't be opened: its window has passed."""


class SupplyMismatch(Mismatch):
    """The supply is not the expected one."""

    def __init__(self, supply: int, available: int) -> None:
        super().__init__(f"the supply is {supply}, of which {supply - available} taken")
        self.supply, self.available = supply, available


class BelowTaken(Mismatch):
    """The new supply is below what is taken already."""

    def __init__(self, supply: int, available: int, guaranteed: int = 0) -> None:
        beside = f", {guaranteed} are guaranteed to channels" if guaranteed else ""
        super().__init__(f"{supply - available} of {supply} are taken{beside}")
        self.supply, self.available, self.guaranteed = supply, available, guaranteed


class PartitionState(NamedTuple):
    """A partition's own hash. `written` and `trimmed` in journal bytes; their difference is the backlog."""

    epoch: int
    version: int
    run_id: str
    written: int
    trimmed: int


class SaleWindow(NamedTuple):
    """A sale's status (open, paused, closed) and window (ms) now; `entry`: journal id, "" if nothing changed."""

    status: str
    opens_at_ms: int
    closes_at_ms: int
    entry: str


class StockLevel(NamedTuple):
    """A SKU's units after a change; `entry`: journal id, "" if nothing changed."""

    supply: int
    available: int
    entry: str


@dataclass(frozen=True, slots=True)
class SaleHead:
    """What holds for the whole sale, in one instant of Valkey's clock. `suspended`: SKU indices; `version`: the
    catalogue's in force."""

    now_ms: int
    number: int
    status: str
    opens_at_ms: int
    closes_at_ms: int
    suspended: frozenset[int]
    version: int

    @property
    def phase(self) -> str:
        """upcoming, open, paused or closed, as an order sent in that instant would find it."""
        if self.status == "closed" or self.now_ms >= self.closes_at_ms:
            return "closed"
        if self.now_ms < self.opens_at_ms:
            return "upcoming"
        return self.status


@dataclass(frozen=True, slots=True)
class SaleReading(SaleHead):
    """The same with all of its units. `supply` and `available` by SKU index, `written` and `trimmed` in bytes of the
    journal. Of what is available `common` is the common pool, `guarantees` what is left of channels' guarantees, by
    (SKU index, channel number)."""

    supply: tuple[int, ...]
    available: tuple[int, ...]
    common: tuple[int, ...]
    guarantees: Mapping[tuple[int, int], int]
    epoch: int
    written: int
    trimmed: int


@dataclass(frozen=True, slots=True)
class SaleState(SaleReading):
    """`last_entry` is the newest journal id ever given out: a ledger whose mark is there has exactly this state."""

    last_entry: tuple[int, int]


async def read_partition(client: redis.asyncio.Redis, partition: int = 0) -> PartitionState | None:
    """The partition's own hash, or None where Valkey has none: never built, or lost."""
    return await read_partition_hash(client, keys.partition(partition))


async def read_partition_hash(client: redis.asyncio.Redis, key: str) -> PartitionState | None:
    """A partition's hash under that key: its own, or the one that a rebuild took away. Raises ValueError where a field
    is no number."""
    fields = ("epoch", "version", "run_id", "written", "trimmed")
    values = await _await(client.hmget(key, *fields))
    epoch, version, run_id, written, trimmed = values
    if epoch is None:
        return None
    return PartitionState(
        int(epoch), int(version or 0), (run_id or b"").decode("ascii"), int(written or 0), int(trimmed or 0)
    )


async def create_sale(
    client: redis.asyncio.Redis,
    *,
    partition: int,
    epoch: int,
    sale_id: str,
    number: int,
    opens_at_ms: int,
    closes_at_ms: int,
    supply: Mapping[int, int] | Sequence[int],
    guarantees: Sequence[tuple[int, int, int]] = (),
) -> int:
    """Makes the sale, or gives an existing one the SKUs it lacks and this window; returns how many SKUs were added.

    `supply`: units by SKU index; `guarantees`: (SKU index, channel number, units), of these units what is a channel's
    guarantee, for SKUs that are added. A closed sale keeps its window. Raises Mismatch where the sale exists under
    another number, ValueError for units out of bounds.
    """
    pairs = supply.items() if isinstance(supply, Mapping) else enumerate(supply)
    flat = list(chain.from_iterable(pairs))
    if not all(0 <= units <= UNITS_MAX for units in flat[1::2]):
        raise ValueError(f"a supply is not within 0 to {UNITS_MAX}")
    _check_guarantees(dict(zip(flat[::2], flat[1::2], strict=True)), guarantees)
    answer = await _CREATE_SALE.run_fenced(
        client,
        [
            keys.partition(partition),
            keys.state(partition, sale_id),
            keys.stock(partition, sale_id),
            keys.supply(partition, sale_id),
            keys.journal(partition),
        ],
        [epoch, number, opens_at_ms, closes_at_ms, pack(flat), pack(list(chain.from_iterable(guarantees)))],
    )
    if answer[0] == b"mismatch":
        raise Mismatch(f"Valkey has sale {sale_id} under number {answer[1]}, not {number}")
    return int(answer[1])


def _check_guarantees(supply: Mapping[int, int], guarantees: Sequence[tuple[int, int, int]]) -> None:
    if len({(sku, channel) for sku, channel, _ in guarantees}) != len(guarantees):
        raise ValueError("a channel has two guarantees of a SKU")
    left = dict(supply)
    for sku, channel, units in guarantees:
        left[sku] = left.get(sku, 0) - units
        if not 1 <= channel <= CHANNELS_MAX or units < 0 or left[sku] < 0:
            raise ValueError(f"SKU {sku} can't have {units} units guaranteed to channel number {channel}")


async def move_pool(
    client: redis.asyncio.Redis, *, partition: int, epoch: int, sale_id: str, caps: Sequence[tuple[int, int, int]]
) -> int:
    """Moves to the common pool what channels' guarantees have beyond a cap, (SKU index, channel number, units that it
    may keep), at most CAPS_MAX of them; returns how many units moved. Raises UnknownSale."""
    if len(caps) > CAPS_MAX:
        raise ValueError(f"{len(caps)} guarantees in one move, at most {CAPS_MAX}")
    names = (keys.state(partition, sale_id), keys.stock(partition, sale_id), keys.journal(partition))
    packed = pack(list(chain.from_iterable(caps)))
    answer = await _MOVE_POOL.run_fenced(client, [keys.partition(partition), *names], [epoch, packed])
    _raise_unknown(answer, sale_id, -1)
    return int(answer[1])


async def grant(
    client: redis.asyncio.Redis, *, partition: int, epoch: int, grant_id: str, recipient: str, agent: str
) -> bool:
    """From here on the agent may order for the recipient, by this grant; False where that was so. It takes the place of
    an earlier grant of the two."""
    return await _set_grant(client, partition, epoch, grant_id, recipient, agent, 1)


async def revoke(
    client: redis.asyncio.Redis, *, partition: int, epoch: int, grant_id: str, recipient: str, agent: str
) -> bool:
    """Ends the grant: no order of the agent for the recipient from here on. False where it was not in force."""
    return await _set_grant(client, partition, epoch, grant_id, recipient, agent, 0)


async def _set_grant(
    client: redis.asyncio.Redis, partition: int, epoch: int, grant_id: str, recipient: str, agent: str, on: int
) -> bool:
    names = [keys.partition(partition), keys.grants(partition), keys.journal(partition)]
    field = grant_field(recipient, agent)
    answer = await _SET_GRANT.run_fenced(client, names, [epoch, field, grant_id, recipient, agent, on])
    return bool(answer[1])


async def is_granted(client: redis.asyncio.Redis, recipient: str, agent: str, partition: int = 0) -> bool:
    """Whether the agent may order for the recipient now."""
    return bool(await _await(client.hexists(keys.grants(partition), cast(str, grant_field(recipient, agent)))))


async def limit_used(client: redis.asyncio.Redis, identity: bytes, year: int, partition: int = 0) -> int:
    """Minor units that a verified identity has imported in a calendar year."""
    return int(await _await(client.hget(keys.limits(partition), identity_field(identity, year))) or 0)


def grant_field(recipient: str, agent: str) -> bytes:
    """The field of the hash of grants that says whether the agent may order for the recipient."""
    return person_hash(recipient) + person_hash(agent)


async def each_field(client: redis.asyncio.Redis, key: str) -> AsyncIterator[tuple[bytes, bytes]]:
    """Every field of a hash with its value, a stretch at a time; a field that moves meanwhile may come twice."""
    cursor = 0
    while True:
        cursor, fields = await _await(client.hscan(key, cursor, count=FIELDS_A_SCAN))
        for each in fields.items():
            yield each
        if cursor == 0:
            return


async def set_status(
    client: redis.asyncio.Redis, *, partition: int, epoch: int, sale_id: str, action: StatusAction
) -> SaleWindow:
    """Opens (now), pauses, resumes or closes the sale. Raises UnknownSale, SaleClosed, SaleEnded."""
    answer = await _SET_STATUS.run_fenced(
        client,
        [keys.partition(partition), keys.state(partition, sale_id), keys.journal(partition)],
        [epoch, action],
    )
    match answer[0]:
        case b"unknown":
            raise UnknownSale(sale_id)
        case b"closed":
            raise SaleClosed(sale_id)
        case b"ended":
            raise SaleEnded(sale_id)
    _, status, opens_at_ms, closes_at_ms, entry = answer
    return SaleWindow(status.decode(), opens_at_ms, closes_at_ms, entry.decode())


async def suspend(client: redis.asyncio.Redis, *, partition: int, epoch: int, sale_id: str, sku: int) -> bool:
    """Takes the SKU (its index) out of the sale; False where it was out. Raises UnknownSale, UnknownSku."""
    return await _set_suspended(client, partition, epoch, sale_id, sku, "suspend")


async def unsuspend(client: redis.asyncio.Redis, *, partition: int, epoch: int, sale_id: str, sku: int) -> bool:
    """Puts the SKU (its index) back; False where it was not out. Raises UnknownSale, UnknownSku."""
    return await _set_suspended(client, partition, epoch, sale_id, sku, "unsuspend")


async def _set_suspended(
    client: redis.asyncio.Redis, partition: int, epoch: int, sale_id: str, sku: int, action: str
) -> bool:
    answer = await _SET_SUSPENDED.run_fenced(
        client,
        [
            keys.partition(partition),
            keys.state(partition, sale_id),
            keys.supply(partition, sale_id),
            keys.journal(partition),
        ],
        [epoch, action, sku],
    )
    _raise_unknown(answer, sale_id, sku)
    return bool(answer[2])


async def adjust(
    client: redis.asyncio.Redis, *, partition: int, epoch: int, sale_id: str, sku: int, to: int, expect: int
) -> StockLevel:
    """Sets the SKU's supply to `to` units if it is `expect`. Raises SupplyMismatch, BelowTaken, UnknownSale,
    UnknownSku, ValueError for `to` out of bounds."""
    if not 0 <= to <= UNITS_MAX:
        raise ValueError(f"a supply is not within 0 to {UNITS_MAX}")
    answer = await _ADJUST.run_fenced(
        client,
        [
            keys.partition(partition),
            keys.state(partition, sale_id),
            keys.stock(partition, sale_id),
            keys.supply(partition, sale_id),
            keys.journal(partition),
        ],
        [epoch, sku, to, expect],
    )
    _raise_unknown(answer, sale_id, sku)
    if answer[0] == b"mismatch":
        raise SupplyMismatch(answer[1], answer[2])
    if answer[0] == b"taken":
        raise BelowTaken(answer[1], answer[2], answer[3])
    return StockLevel(answer[1], answer[2], answer[3].decode())


async def publish(client: redis.asyncio.Redis, *, partition: int, epoch: int, catalogue: Catalogue) -> None:
    """Stores the catalogue's document, then puts its version in force: from then on reserve.lua refuses every batch
    priced at another, so each process obeys it from its next batch on. Raises Mismatch where a newer is in force."""
    await _await(client.hset(keys.CATALOGUE, str(catalogue.version), cast(str, catalogue.encode())))
    answer = await _PUBLISH.run_fenced(
        client, [keys.partition(partition), keys.journal(partition)], [epoch, catalogue.version]
    )
    if answer[0] == b"stale":
        raise Mismatch(f"catalogue version {answer[1]} is in force, newer than {catalogue.version}")


async def load_catalogue(
    client: redis.asyncio.Redis, version: int | None = None, partition: int = 0
) -> Catalogue | None:
    """The catalogue at `version`, by default the one in force in `partition`; None where Valkey has none."""
    if version is None:
        in_force = await _await(client.hget(keys.partition(partition), "version"))
        version = int(in_force or 0)
    document = await _await(client.hget(keys.CATALOGUE, str(version)))
    return None if document is None else Catalogue.decode(document)


async def trim(client: redis.asyncio.Redis, *, partition: int, epoch: int, mark: tuple[int, int], written: int) -> int:
    """Cuts the journal up to and with the entry `mark`, whose field w is `written`; returns how many entries went.
    Raises Mismatch where that many bytes were never written."""
    keep_from = f"{mark[0]}-{mark[1] + 1}"
    answer = await _TRIM.run_fenced(
        client, [keys.partition(partition), keys.journal(partition)], [epoch, keep_from, written]
    )
    if answer[0] == b"beyond":
        raise Mismatch(f"the journal has {answer[1]} bytes, the ledger's mark stands at {written}")
    return int(answer[1])


async def read_sale(client: redis.asyncio.Redis, sale_id: str, partition: int = 0) -> SaleReading | None:
    """The sale in one instant, None where the partition has none of that id. For pages: it leaves the journal alone."""
    answer = await _READ_STATE.run(client, _state_keys(partition, sale_id), [])
    return SaleReading(**_state(answer)) if answer[6] else None


async def read_state(client: redis.asyncio.Redis, sale_id: str, partition: int = 0) -> SaleState | None:
    """The sale in one instant and the journal id that led to it, None where the partition has none of that id. For the
    audit: the id costs Valkey as much again as all the rest."""
    answer = await _READ_STATE.run(client, [*_state_keys(partition, sale_id), keys.journal(partition)], [])
    return SaleState(**_state(answer), last_entry=parse_entry_id(answer[5])) if answer[6] else None


def _state_keys(partition: int, sale_id: str) -> list[str]:
    names = (keys.state, keys.stock, keys.supply)
    return [keys.partition(partition), *(name(partition, sale_id) for name in names)]


def _state(answer: Sequence[Any]) -> dict[str, Any]:
    """The fields of a SaleReading from the script's answer."""
    epoch, version, written, trimmed, now_ms, _, *sale, supply, stock = answer
    number, status, opens_at, closes_at, suspended = sale
    return {
        "now_ms": now_ms,
        "number": int(number),
        "status": status.decode(),
        "opens_at_ms": int(opens_at),
        "closes_at_ms": int(closes_at),
        "suspended": frozenset(int(index) for index in suspended.split(b",") if index),
        "supply": _by_index(supply),
        **_pools(stock),
        "epoch": int(epoch or 0),
        "version": int(version or 0),
        "written": int(written or 0),
        "trimmed": int(trimmed or 0),
    }


async def clock(client: redis.asyncio.Redis) -> int:
    """Valkey's clock, ms: the one that holds and windows are measured by."""
    seconds, microseconds = await _await(client.time())
    return int(seconds) * 1000 + int(microseconds) // 1000


def _by_index(flat: Sequence[bytes]) -> tuple[int, ...]:
    """HGETALL's flat answer, index -> units, as units by index. SKU indices are 0 to n-1 without a gap."""
    values = {int(index): int(units) for index, units in zip(flat[::2], flat[1::2], strict=True)}
    return tuple(values[index] for index in range(len(values)))


def _pools(flat: Sequence[bytes]) -> dict[str, Any]:
    """What HGETALL says of a sale's stock, pool by pool and together."""
    fields = [field for field in flat[::2] if b"." in field]
    if not fields:  # a sale without guarantees
        common = _by_index(flat)
        return {"available": common, "common": common, "guarantees": {}}
    values = dict(zip(flat[::2], flat[1::2], strict=True))
    guarantees: dict[tuple[int, int], int] = {}
    for field in fields:
        index, _, channel = field.partition(b".")
        guarantees[int(index), int(channel)] = int(values.pop(field))
    common = _by_index(list(chain.from_iterable(values.items())))
    available = list(common)
    for (sku, _), units in guarantees.items():
        available[sku] += units
    return {"available": tuple(available), "common": common, "guarantees": guarantees}


def _raise_unknown(answer: Sequence[Any], sale_id: str, sku: int) -> None:
    if answer[0] == b"unknown":
        raise UnknownSale(sale_id)
    if answer[0] == b"unknown-sku":
        raise UnknownSku(f"{sale_id}: {sku}")


async def _await(reply: Any) -> Any:
    """Redis-py types its commands as awaitable or not, since both of its clients share them."""
    return await reply
