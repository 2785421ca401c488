"""Valkey built again from the ledger and what survived of the journal.

Every step can be repeated: killed anywhere, the next run does it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg
import redis.asyncio
import structlog
from redis.exceptions import RedisError

from flashsale.ledger import partitions
from flashsale.recovery.survivors import save_survivors
from flashsale.recovery.valkey import answer, delete_keys
from flashsale.recovery.writing import Progress, write
from flashsale.reservation import commands, keys, server
from flashsale.reservation.movements import EpochSet, encode_movement

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made: the new epoch, sales and orders written to Valkey, entries saved from the old journal."""

    epoch: int
    sales: int
    orders: int
    saved: int


async def rebuild(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    *,
    partition: int = 0,
    progress: Progress | None = None,
) -> Rebuilt:
    """Builds the partition in Valkey from the ledger and what survived of the journal. `accept` then opens the doors.

    Raises redis-py's and asyncpg's errors where a server is lost; call it again then.
    """
    run_id = await server.run_id(client)
    state = await commands.read_partition(client, partition)
    # 1. No writer of the old epoch commits from here on; 2. no script of any epoch changes Valkey.
    await partitions.ensure(ledger, partition)
    epoch = await partitions.raise_epoch(ledger, partition, state.epoch if state is not None else 0)
    log.warning("Valkey is being rebuilt from the ledger", partition=partition, epoch=epoch)
    await answer(client.delete(keys.partition(partition)))
    # 3. What was answered and had not reached the ledger.
    known, saved = await save_survivors(client, ledger, partition)
    # 4. Everything, from the ledger alone.
    await delete_keys(client, partition)
    async with ledger.transaction(isolation="repeatable_read", readonly=True):
        made_sales, made_orders = await write(client, ledger, known, progress)
    # 5. A journal whose first entry the writer's mark passes, then the partition itself.
    entry = encode_movement(EpochSet(epoch))
    written = known.mark_bytes + len(entry)
    await answer(
        client.xadd(keys.journal(partition), {"m": entry, "w": str(written)}, id=f"{known.mark[0]}-{known.mark[1] + 1}")
    )
    if await server.run_id(client) != run_id:
        raise RedisError("Valkey was restarted during the rebuild")
    await answer(
        client.hset(
            keys.partition(partition),
            mapping={"epoch": epoch, "version": known.version, "written": written, "trimmed": known.mark_bytes},
        )
    )
    log.warning("Valkey is rebuilt", partition=partition, epoch=epoch, orders=made_orders, saved=saved)
    return Rebuilt(epoch, made_sales, made_orders, saved)
