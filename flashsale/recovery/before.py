"""How a rebuild takes Valkey from everybody and gives it back: killed anywhere, the next one knows how far it was.

The partition's hash is renamed: without it every script is fenced, and what it said is kept until the rebuild is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import redis.asyncio

from flashsale.recovery.valkey import answer
from flashsale.reservation import commands, keys

BEGUN, TAKEN = "begun", "taken"


class Before(NamedTuple):
    """A partition's hash in Valkey, None where there is none that can be read. `phase` of a rebuild that was not
    finished: begun, taken (the ledger has what Valkey alone knew), or "". `told`: it was by hand."""

    state: commands.PartitionState | None
    phase: str
    told: bool
    damaged: bool


async def look(client: redis.asyncio.Redis, partition: int) -> Before:
    """What there is of the partition, taken away by a rebuild or not."""
    state, damaged = await _state(client, keys.partition(partition))
    if state is not None:
        return Before(state, "", False, damaged)
    phase, told = await answer(client.hmget(keys.rebuilding(partition), "phase", "told"))
    state, damaged_before = await _state(client, keys.rebuilding(partition))
    return Before(state, (phase or b"").decode(), told == b"1", damaged or damaged_before)


async def _state(client: redis.asyncio.Redis, key: str) -> tuple[commands.PartitionState | None, bool]:
    try:
        return await commands.read_partition_hash(client, key), False
    except (ValueError, redis.ResponseError):  # a field that is no number, a key that is no hash
        return None, True


async def take_away(client: redis.asyncio.Redis, partition: int, told: bool) -> None:
    """From here on no script of any epoch changes the partition. `told`: this rebuild was asked for by hand."""
    found = await look(client, partition)
    async with client.pipeline(transaction=True) as steps:
        if await answer(client.exists(keys.partition(partition))):
            if await answer(client.type(keys.partition(partition))) == b"hash":
                steps.rename(keys.partition(partition), keys.rebuilding(partition))
            else:
                steps.unlink(keys.partition(partition))
        steps.hset(
            keys.rebuilding(partition),
            mapping={"phase": found.phase or BEGUN, "told": int(told or found.told)},
        )
        await steps.execute()


async def note_taken(client: redis.asyncio.Redis, partition: int) -> None:
    """The ledger has what only Valkey knew: from here on what is in Valkey is not looked at any more."""
    await answer(client.hset(keys.rebuilding(partition), "phase", TAKEN))


async def give_back(client: redis.asyncio.Redis, partition: int, fields: Mapping[str, int]) -> None:
    """The rebuild is whole: the partition's hash is there, and what was kept of the one before is not."""
    async with client.pipeline(transaction=True) as steps:
        steps.unlink(keys.rebuilding(partition))
        steps.hset(keys.partition(partition), mapping={name: str(value) for name, value in fields.items()})
        await steps.execute()
