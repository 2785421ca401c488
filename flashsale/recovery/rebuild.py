"""Valkey built again from the ledger and what survived of the journal.

In this order: the plan, which changes nothing; a copy of what Valkey alone knows; Valkey taken from everybody; what it
alone knows to the ledger; then its keys deleted and written, for they can be. Every step can be repeated: killed
anywhere, the next run does it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncpg
import redis.asyncio
import structlog
from redis.exceptions import RedisError

from flashsale.ledger import movements, partitions, statistics
from flashsale.recovery import aside, before, catalogues
from flashsale.recovery.plan import CannotRebuild, needed, plan
from flashsale.recovery.survey import Kin, Survey, survey
from flashsale.recovery.survivors import save_survivors
from flashsale.recovery.taking import Taken, take_in
from flashsale.recovery.valkey import answer, delete_keys
from flashsale.recovery.writing import Progress, channel_numbers, replayed, write
from flashsale.reservation import keys, server
from flashsale.reservation.movements import EpochSet, encode_movement

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made: the new epoch, sales and orders written to Valkey, entries saved from the old journal.
    `taken`: what the ledger got beside; `copy`: where what Valkey held before lies; `notices`: what it can't mend."""

    epoch: int
    sales: int
    orders: int
    saved: int
    taken: Taken
    copy: Path | None
    notices: list[str]


async def rebuild(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    *,
    partition: int = 0,
    set_aside: Path | None = None,
    told: bool = False,
    progress: Progress | None = None,
) -> Rebuilt:
    """Builds the partition in Valkey from the ledger and what survived of the journal. `accept` then opens the doors.

    `set_aside`: the directory of copies. `told`: also where it takes over or loses what only Valkey knows. Raises
    CannotRebuild, having changed nothing, where it can't be written or was not told to; redis-py's and asyncpg's errors
    where a server is lost; call it again then.
    """
    run_id = await server.run_id(client)
    made = await plan(client, ledger, partition)
    made.refuse(told)
    copy = None
    if made.doubts and set_aside is not None:
        try:
            copy = await aside.save(client, partition, set_aside)
        except OSError as fault:
            raise CannotRebuild(f"what Valkey alone knows can't be kept in {set_aside}: {fault.strerror}") from fault
    # 1. No script of any epoch changes Valkey from here on; 2. no writer of the old epoch commits.
    await before.take_away(client, partition, told)
    epoch = await partitions.raise_epoch(ledger, partition, made.found.state.epoch if made.found.state else 0)
    log.warning("Valkey is being rebuilt from the ledger", partition=partition, epoch=epoch)
    # 3. What was answered and had not reached the ledger.
    saved, taken = 0, Taken()
    if made.found.phase != before.TAKEN:
        found = await survey(client, ledger, partition)
        if found.kin is not Kin.STRANGER and not found.gap:
            found.known, saved = await save_survivors(client, ledger, partition)
        taken = await _to_ledger(client, ledger, found)
        await before.note_taken(client, partition)
    known = await partitions.ensure(ledger, partition)
    # 4. Everything, from the ledger alone.
    await delete_keys(client, partition)
    async with ledger.transaction(isolation="repeatable_read", readonly=True):
        await statistics.whole_tables(ledger)
        made_sales, made_orders = await write(client, ledger, known, progress)
    # 5. A journal whose first entry the writer's mark passes, then the partition itself.
    entry = encode_movement(EpochSet(epoch))
    written = known.mark_bytes + len(entry)
    await answer(
        client.xadd(keys.journal(partition), {"m": entry, "w": str(written)}, id=f"{known.mark[0]}-{known.mark[1] + 1}")
    )
    if await server.run_id(client) != run_id:
        raise RedisError("Valkey was restarted during the rebuild")
    fields = {"epoch": epoch, "version": known.version, "written": written, "trimmed": known.mark_bytes}
    await before.give_back(client, partition, fields)
    log.warning(
        "Valkey is rebuilt", partition=partition, epoch=epoch, orders=made_orders, saved=saved,
        taken=taken.orders, lost=taken.lost, copy=str(copy) if copy else None,
    )  # fmt: skip
    return Rebuilt(epoch, made_sales, made_orders, saved, taken, copy, made.notices)


async def _to_ledger(client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], found: Survey) -> Taken:
    """What only Valkey knows, and what of the catalogue is missing, in one transaction."""
    partition = found.known.id
    async with ledger.transaction():
        await partitions.lock(ledger, partition)
        wanted = await needed(client, ledger, found)
        windows = {
            number: (state.opens_at, state.closes_at)
            for number, state in replayed(await movements.of_sales(ledger, partition)).items()
        }
        await catalogues.settle(client, ledger, wanted, windows)
        channels: dict[str, int] = {}
        for version in sorted(await catalogues.versions(ledger)):
            catalogue = await catalogues.from_ledger(ledger, version)
            if catalogue is not None:
                channels |= channel_numbers({version: catalogue})
        return await take_in(ledger, found, channels, wanted.in_force)
