"""Other worlds for a running engine: rules and lanes that change when a test says, by the clock that decides orders.

A world is a part of the catalogue, so a change of it goes where every change of the catalogue goes: to the ledger, and
from there to Valkey. Rules begin at midnights, which a test can't wait for; a zone of its own brings one near.
"""

from __future__ import annotations

import asyncio
import struct
import zoneinfo
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import redis.asyncio
from msgspec.structs import replace

from flashsale import merchandising, runfile
from flashsale.ledger import sales
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.world import World, packaged
from tests.conftest import Engine

DAY_S = 86_400
QUIET_S = 60  # so far from every midnight of the lanes' zones, so that it is not one of them that a test sees


@asynccontextmanager
async def servers(engine: Engine) -> AsyncIterator[tuple[redis.asyncio.Redis, asyncpg.Connection]]:
    """The engine's own Valkey and ledger."""
    running = runfile.read(engine.data_dir)
    assert running is not None
    valkey = redis.asyncio.Redis.from_url(running["valkey"]["address"])
    ledger = await asyncpg.connect(running["postgres"]["address"])
    try:
        yield valkey, ledger
    finally:
        await ledger.close()
        await valkey.aclose()


async def clock_ms(valkey: redis.asyncio.Redis) -> int:
    """Valkey's clock, by which orders are decided."""
    seconds, microseconds = await valkey.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


async def until_ms(valkey: redis.asyncio.Redis, at_ms: int) -> None:
    """Returns when Valkey's clock shows that time."""
    while (left := at_ms - await clock_ms(valkey)) > 0:  # noqa: ASYNC110  a clock tells nobody
        await asyncio.sleep(left / 1000)


async def away_from_midnight(valkey: redis.asyncio.Redis) -> None:
    """Returns when none of the lanes' days, all of zones at whole hours, is about to end."""
    left_s = 3600 - await clock_ms(valkey) // 1000 % 3600
    if left_s < QUIET_S:
        await asyncio.sleep(left_s)


async def change_world(engine: Engine, make: Callable[[World], World]) -> None:
    """From when this returns the engine sells into another world, made from the packaged one."""
    async with servers(engine) as (valkey, ledger):
        async with ledger.transaction():
            await sales.lock_catalogue(ledger)
            newest = await sales.newest_catalogue(ledger)
            assert newest is not None
            changed = Catalogue.decode(newest[1]).with_world(make(_every_day(packaged())))
            await sales.insert_catalogue(ledger, changed.version, changed.encode())
        await merchandising.carry_over(valkey, ledger, changed.sales[0].id)


def _every_day(world: World) -> World:
    """Without days off, which would move what a test expects, and with campaigns that last for ever."""
    calendars = tuple(replace(each, off=()) for each in world.lanes.calendars)
    campaigns = tuple(replace(each, from_ms=0, until_ms=2**47) for each in world.lanes.campaigns)
    return replace(world, lanes=replace(world.lanes, calendars=calendars, campaigns=campaigns))


def zone_path(directory: Path) -> str:
    """The environment's PYTHONTZPATH for an engine that finds zones in that directory too."""
    return ":".join([str(directory), *zoneinfo.TZPATH])


def write_zone(directory: Path, name: str, offset_s: int) -> None:
    """A zone so many seconds east of UTC, for ever: a TZif file (RFC 9636) of one local time type."""
    # Version 1; counts of UTC and standard indicators, leap seconds, transitions, types and designation bytes.
    header = struct.pack(">4s16x6l", b"TZif", 0, 0, 0, 0, 1, 4)
    (directory / name).write_bytes(header + struct.pack(">lBB", offset_s, 0, 0) + b"ONE\0")
