"""What Valkey is asked and told about single orders: their holds and records, and every movement of their units.

A movement of an order bears the number of the change that it follows from (the ledger's); the hold keeps the last one
that was applied. So a call may be sent again, early or late, and its units move once. Callers see this module through
``commands.py``, which says what its functions raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import redis.asyncio

from flashsale.reservation import keys
from flashsale.reservation.holds import NUMBER_MAX, Hold, rank, unpack
from flashsale.reservation.limits import IdentityYear, LaneDay, identity_field, lane_field
from flashsale.reservation.movements import Entry, decode_entry
from flashsale.reservation.scripts import Script, pack

USED_ID_BYTES = 12
"""The end of an order id that is its field in the holds' hash."""

ORDERS_MAX = 200
"""Orders of one release: 8 µs of Valkey and 90 bytes of journal each with one line, 30 µs and 220 bytes with twenty."""

_RELEASE = Script("release")
_RESERVE_AGAIN = Script("reserve_again")
_MIRROR_STATUS = Script("mirror_status")
_SET_RETURNS = Script("set_returns")


class MovedOrder(NamedTuple):
    """Units of one order that go back or are taken again. `number`: of the order's change that asks for it, from 2;
    `letter`: the hold's after it (see holds.py). `lines`: (SKU index, units), no SKU twice. `quota`: (quota field,
    units) of the lines that have a quota; it moves only where `quota_back` is true. `limits`: each of these fields'
    quota, for `reserve_again` alone.

    `drawn`: (SKU index, channel number, units), of the units those of a channel's guarantee. `lane`: whose parcel goes
    back (or is taken). `imported`: an identity's year and the minor units that it has imported less (or more). For
    `reserve_again` alone: `capacity` parcels of that lane's day, 0: no limit, below 0: none goes; `annual` minor units
    of that year, 0: no limit. Without lines only `imported` goes back."""

    order_id: str
    number: int
    letter: str
    lines: Sequence[tuple[int, int]]
    quota: Sequence[tuple[bytes, int]]
    quota_back: bool
    limits: Sequence[int] = ()
    drawn: Sequence[tuple[int, int, int]] = ()
    lane: LaneDay | None = None
    imported: tuple[IdentityYear, int] | None = None
    capacity: int = 0
    annual: int = 0


async def release(
    client: redis.asyncio.Redis,
    *,
    epoch: int,
    sale_id: str,
    outbox: int,
    orders: Sequence[MovedOrder],
    partition: int = 0,
) -> list[str]:
    """Gives units of at most ORDERS_MAX orders of the sale back, each order's movement once; what became of each:

    `ok`; `already` (a movement of that number or a later one was applied, and is journalled); `unknown` (no such sale
    or no such hold); `beyond` (more would be available than was supplied: these aren't the order's units). One journal
    entry names those that were `ok`, if any. Raises ValueError for what no order can be.
    """
    if len(orders) > ORDERS_MAX:
        raise ValueError(f"{len(orders)} orders in one release, at most {ORDERS_MAX}")
    for order in orders:
        _check(order)
    moved = [[*_named(order), _flat(order.lines), _quota(order), order.quota_back, *_beside(order)] for order in orders]
    answer = await _RELEASE.run_fenced(client, _moving_keys(partition, sale_id), [epoch, outbox, pack(moved)])
    return [outcome.decode("ascii") for outcome in answer[1]]


async def reserve_again(
    client: redis.asyncio.Redis,
    *,
    epoch: int,
    sale_id: str,
    outbox: int,
    order: MovedOrder,
    partition: int = 0,
) -> str:
    """Takes units and quota of an order again that had gone back, whatever the sale's window, status or suspensions.

    `taken`; `refused` (stock, quota, lane or import limit do not suffice: nothing moved); `already` (it was decided
    before: the journal says how); `unknown` (no such sale or no such hold). The first two are journalled, once for each
    number. Raises ValueError for what no order can be.
    """
    _check(order)
    if order.quota_back and len(order.limits) != len(order.quota):
        raise ValueError(f"order {order.order_id}: {len(order.quota)} quota fields, {len(order.limits)} limits")
    limits = list(order.limits) if order.quota_back else []
    drawn, lane, imported = _beside(order) or [False] * 3
    again = [
        *_named(order), _flat(order.lines), _quota(order), limits, order.quota_back, drawn,
        lane and [*lane, order.capacity], imported and [*imported, order.annual],
    ]  # fmt: skip
    answer = await _RESERVE_AGAIN.run_fenced(client, _moving_keys(partition, sale_id), [epoch, outbox, pack(again)])
    return cast(str, answer[0].decode("ascii"))


async def mirror_status(
    client: redis.asyncio.Redis,
    *,
    epoch: int,
    sale_id: str,
    letters: Sequence[tuple[str, str]],
    partition: int = 0,
) -> int:
    """Tells holds what became of their orders: (order id, letter), an upper-case letter for an extended one. A letter
    replaces only one of a lower rank, what is extended stays so, unknown orders are passed over; returns how many holds
    changed. Nothing is journalled: the ledger knows it already."""
    told: list[Any] = []
    for order_id, letter in letters:
        rank(letter)
        told += _split(order_id)[1], letter
    names = [keys.partition(partition), keys.holds(partition, sale_id)]
    answer = await _MIRROR_STATUS.run_fenced(client, names, [epoch, pack(told)])
    return int(answer[1])


async def set_returns(
    client: redis.asyncio.Redis, *, epoch: int, sale_id: str, deadlines: Mapping[int, int], partition: int = 0
) -> None:
    """Says which SKUs (by index) may get units back, and at what time (ms) the first; replaces what was said before."""
    names = [keys.partition(partition), keys.returns(partition, sale_id)]
    await _SET_RETURNS.run_fenced(client, names, [epoch, pack(_flat(list(deadlines.items())))])


async def find_hold(client: redis.asyncio.Redis, sale_id: str, order_id: str) -> Hold | None:
    """What Valkey keeps of a used order id; None where it was never accepted here or its sale is settled."""
    partition, used_id = _split(order_id)
    value = await _await(client.hget(keys.holds(partition, sale_id), cast(str, used_id)))
    return None if value is None else unpack(value)


async def find_record(client: redis.asyncio.Redis, order_id: str, hold: Hold) -> bytes | None:
    """The order's record (COPY line with its newline) from the journal; None where it was trimmed to the ledger."""
    partition, _ = _split(order_id)
    entry = await read_entry(client, partition, (hold.entry_ms, hold.entry_seq))
    if entry is None:
        return None
    start = order_id.encode("ascii") + b"\t"
    records = entry.records
    at = 0 if records.startswith(start) else records.find(b"\n" + start) + 1
    if at == 0 and not records.startswith(start):
        return None
    return records[at : records.index(b"\n", at) + 1]


async def read_entry(client: redis.asyncio.Redis, partition: int, entry_id: tuple[int, int]) -> Entry | None:
    """The journal entry of that id; None where it was trimmed."""
    name = f"{entry_id[0]}-{entry_id[1]}"
    found = await _await(client.xrange(keys.journal(partition), name, name))
    return decode_entry(*found[0]) if found else None


def _split(order_id: str) -> tuple[int, bytes]:
    """(partition, the id's last 12 bytes). Raises ValueError where the id is not hexadecimal."""
    raw = bytes.fromhex(order_id)
    return raw[0], raw[-USED_ID_BYTES:]


def _check(order: MovedOrder) -> None:
    """The border to Valkey: what a script can't be asked. A poisoned journal entry would stop the ledger writer."""
    rank(order.letter)
    if not 2 <= order.number <= NUMBER_MAX:
        raise ValueError(f"order {order.order_id}: a movement's number is 2 to {NUMBER_MAX}, not {order.number}")
    if not (order.lines or order.imported) or not all(units > 0 for _, units in order.lines):
        raise ValueError(f"order {order.order_id}: no units to move in {order.lines!r}")

    units_of = dict(order.lines)
    if len({sku for sku, _, _ in order.drawn}) != len(order.drawn) or not all(
        0 < units <= units_of.get(sku, 0) for sku, _, units in order.drawn
    ):
        raise ValueError(f"order {order.order_id}: {order.drawn!r} can't be of the units {order.lines!r}")
    if order.imported is not None and order.imported[1] < 0:
        raise ValueError(f"order {order.order_id}: imports of {order.imported[1]}")


def _beside(order: MovedOrder) -> list[Any]:
    """What moves beside the units of the common pool, False for what does not; nothing where none does."""
    if not order.drawn and order.lane is None and order.imported is None:
        return []
    lane: list[Any] | bool = False
    if order.lane is not None:
        lane = [lane_field(*order.lane), *order.lane]
    imported: list[Any] | bool = False
    if order.imported is not None:
        year, amount = order.imported
        imported = [identity_field(*year), year.identity.hex(), year.year, amount]
    return [list(chain.from_iterable(order.drawn)) or False, lane, imported]


def _named(order: MovedOrder) -> list[Any]:
    return [order.order_id, _split(order.order_id)[1], order.number, order.letter]


def _quota(order: MovedOrder) -> list[Any]:
    return _flat(order.quota) if order.quota_back else []


def _flat(pairs: Sequence[tuple[Any, int]]) -> list[Any]:
    return list(chain.from_iterable(pairs))


def _moving_keys(partition: int, sale_id: str) -> list[str]:
    of_sale = (keys.state, keys.stock, keys.supply, keys.quota, keys.holds)
    shared = (keys.journal(partition), keys.limits(partition))
    return [keys.partition(partition), *(name(partition, sale_id) for name in of_sale), *shared]


async def _await(reply: Any) -> Any:
    """Redis-py types its commands as awaitable or not, since both of its clients share them."""
    return await reply
