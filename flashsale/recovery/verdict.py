"""Whether this Valkey is the one that the ledger knows.

Fronts take orders only while the partition's `run_id` in Valkey is that of the running process; `accept` alone sets it,
last of all (the ledger writer takes it away where it finds the ledger older than the journal).
"""

from __future__ import annotations

from typing import NamedTuple

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from flashsale.ledger import partitions, sales
from flashsale.ledger.partitions import Partition
from flashsale.ledger.pool import CONNECTION_LOST, LedgerAway
from flashsale.recovery import before, catalogues
from flashsale.recovery.valkey import answer
from flashsale.reservation import commands, keys, server
from flashsale.reservation.movements import parse_entry_id

OLDER = "the ledger is older than Valkey: is it the right database?"

LOST: tuple[type[BaseException], ...] = (*CONNECTION_LOST, LedgerAway, RedisError, asyncpg.PostgresError)


class Verdict(NamedTuple):
    """What a look at Valkey and ledger said. `shortcomings`: what an operator has to change first. `differs`: why
    Valkey has to be rebuilt, None if it is as the ledger knows it. `doubt`: why not without being told."""

    run_id: str
    epoch: int
    shortcomings: list[str]
    differs: str | None
    doubt: str | None

    @property
    def sound(self) -> bool:
        """Whether the fronts may take orders with it."""
        return self.differs is None and not self.shortcomings


async def verify(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    *,
    durability: str,
    backlog_max_bytes: int = 0,
    partition: int = 0,
) -> Verdict:
    """Compares Valkey with the ledger; changes nothing but making the partition's row where it is absent."""
    known = await partitions.ensure(ledger, partition)
    run_id = await server.run_id(client)
    lacks = await server.shortcomings(client, durability, backlog_max_bytes)
    here = await before.look(client, partition)
    state = here.state
    doubt = None
    differs: str | None
    if here.phase:
        differs = "a rebuild of Valkey was not finished"
    elif state is None:
        differs = "Valkey's partition can't be read" if here.damaged else "Valkey is empty"
    elif state.trimmed > known.mark_bytes:
        # What was cut had been committed: PostgreSQL came back without it, or it is another one.
        differs, doubt = f"the journal is cut {state.trimmed - known.mark_bytes} bytes beyond the ledger's mark", OLDER
    elif state.epoch != known.epoch:
        differs = f"Valkey is of epoch {state.epoch}, the ledger of {known.epoch}"
        if state.epoch > known.epoch:
            doubt = OLDER
    else:
        differs = await _older_than_ledger(client, known, state)
        if differs is None:
            differs = await _unknown_to_ledger(client, ledger, state)
            doubt = OLDER if differs is not None else None
    return Verdict(run_id, known.epoch, lacks, differs, doubt)


async def _older_than_ledger(
    client: redis.asyncio.Redis, known: Partition, state: commands.PartitionState
) -> str | None:
    last = await last_entry(client, known.id)
    if last < known.mark:
        return f"Valkey's journal ends at {last[0]}-{last[1]}, before the ledger's mark {known.mark[0]}-{known.mark[1]}"
    if state.written < max(known.mark_bytes, state.trimmed):
        return f"Valkey wrote {state.written} bytes of journal, the ledger read {known.mark_bytes}"
    if state.version < known.version:
        return f"Valkey's catalogue is version {state.version}, the ledger's {known.version}"
    if not state.version:
        return None
    in_force = await catalogues.from_valkey(client, state.version)
    if in_force is None:
        return f"Valkey has no version {state.version} of the catalogue that can be read"
    for sale in in_force.sales:
        try:
            await commands.read_state(client, sale.id, known.id)
        except (LookupError, ValueError, ResponseError):
            return f"the counters of sale {sale.id} in Valkey can't be read"
    return None


async def _unknown_to_ledger(
    client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], state: commands.PartitionState
) -> str | None:
    """What Valkey sells and the ledger does not know: the journal has it still, and the writer would store orders of a
    sale that is not there."""
    if not state.version:
        return None
    in_force = await catalogues.from_valkey(client, state.version)
    rows = {row.number: row for row in await sales.all_sales(ledger)}
    for sale in in_force.sales if in_force is not None else ():
        row = rows.get(sale.number)
        if row is None or (row.id, row.key) != (sale.id, sale.key):
            return f"Valkey sells {sale.id}, which is no sale of the ledger"
    if state.version not in await catalogues.versions(ledger):
        return f"the ledger lacks version {state.version} of the catalogue, which Valkey has in force"
    return None


async def last_entry(client: redis.asyncio.Redis, partition: int) -> tuple[int, int]:
    """The newest journal id ever given out; (0, 0) where there is no journal."""
    try:
        info = await answer(client.xinfo_stream(keys.journal(partition)))
    except ResponseError:
        return 0, 0
    return parse_entry_id(info["last-generated-id"])


async def accept(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    *,
    durability: str,
    backlog_max_bytes: int = 0,
    partition: int = 0,
) -> Verdict:
    """Lets the fronts take orders with this very process of Valkey if the verdict, which is returned, is sound.

    The mark stands still while it is compared, and a chunk that was read from an earlier process is not stored after.
    """
    await partitions.ensure(ledger, partition)
    async with ledger.transaction():
        await partitions.lock(ledger, partition)
        verdict = await verify(
            client, ledger, durability=durability, backlog_max_bytes=backlog_max_bytes, partition=partition
        )
        if verdict.sound:
            await partitions.set_verified(ledger, partition, verdict.run_id)
    if verdict.sound:
        await answer(client.hset(keys.partition(partition), "run_id", verdict.run_id))
    return verdict
