"""The workers' signs of life: each tells Valkey, every other second, that it lives and which of its duties fail.

A front shows them in `/readyz`: it may be on another machine, and the ledger may be away. A sign is old after
SIGN_STALE_S; whose is old is gone, and the next sign of any worker sweeps it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import redis.asyncio
import structlog
from msgspec import Struct
from redis.exceptions import RedisError

from flashsale.reservation import commands, keys

log = structlog.get_logger(__name__)

SIGN_S = 2.0
SIGN_STALE_S = 10.0
KEPT_S = 120  # the hash goes when nobody writes to it any more
WORKERS_SHOWN = 20


class Sign(Struct, frozen=True):
    """When a worker gave its sign (Valkey's clock, ms), and its failing duties, each with the reason. `asks`: why
    it does not accept this Valkey, and the command that helps; "" where it does."""

    at_ms: int
    failing: dict[str, str]
    asks: str = ""


_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Sign)


async def give(client: redis.asyncio.Redis, worker: str, failing: dict[str, str], asks: str = "") -> None:
    """Gives this worker's sign, and sweeps out those of workers that are gone."""
    now_ms = await commands.clock(client)
    gone = [name for name, sign in (await _all(client)).items() if now_ms - sign.at_ms > 1000 * KEPT_S]
    async with client.pipeline(transaction=False) as calls:
        calls.hset(keys.WORKERS, worker, cast(str, _encoder.encode(Sign(now_ms, failing, asks))))
        if gone:
            calls.hdel(keys.WORKERS, *gone)
        calls.expire(keys.WORKERS, KEPT_S)
        await calls.execute()


async def withdraw(client: redis.asyncio.Redis, worker: str) -> None:
    """This worker ends as it was asked to."""
    await cast(Awaitable[Any], client.hdel(keys.WORKERS, worker))


async def warnings(client: redis.asyncio.Redis) -> list[str]:
    """What `/readyz` is to say of the workers. Raises redis-py's errors."""
    now_ms = await commands.clock(client)
    living = {name: sign for name, sign in (await _all(client)).items() if now_ms - sign.at_ms < 1000 * SIGN_STALE_S}
    if not living:
        return ["no worker gives a sign of life: orders are taken, and nothing brings them to the ledger"]
    shown = sorted(living.items())[:WORKERS_SHOWN]
    return [
        *(f"worker {name}: {sign.asks}" for name, sign in shown if sign.asks),
        *(
            f"worker {name}: {duty} fails and is begun anew ({reason})"
            for name, sign in shown
            for duty, reason in sign.failing.items()
        ),
    ]


async def _all(client: redis.asyncio.Redis) -> dict[str, Sign]:
    """Every sign; one that can't be read is none."""
    found: dict[bytes, bytes] = await cast(Awaitable[Any], client.hgetall(keys.WORKERS))
    signs = {}
    for name, packed in found.items():
        try:
            signs[name.decode(errors="replace")] = _decoder.decode(packed)
        except msgspec.DecodeError:
            signs[name.decode(errors="replace")] = Sign(0, {})
    return signs


async def keep_giving(
    client: redis.asyncio.Redis,
    worker: str,
    failing: Callable[[], dict[str, str]],
    stopping: asyncio.Event,
    asks: Callable[[], str] = str,
) -> None:
    """Gives a sign every SIGN_S until `stopping`; a Valkey that is away hears none."""
    told = True
    while not stopping.is_set():
        try:
            await give(client, worker, failing(), asks())
            told = True
        except (RedisError, OSError, TimeoutError) as fault:
            if told:
                log.warning("no sign of life could be given", reason=f"{type(fault).__name__}: {fault}")
            told = False
        try:
            async with asyncio.timeout(SIGN_S):
                await stopping.wait()
        except TimeoutError:
            continue
    try:
        async with asyncio.timeout(SIGN_S):
            await withdraw(client, worker)
    except (RedisError, OSError, TimeoutError):
        log.debug("the sign of life was left to grow old")
