"""What Valkey must be before a sale may rely on it, and how the house connects to it.

Asked at start and on each new run id: every shortcoming is one clear line, and any keeps `/readyz` red. The hot path
has its own connection (link.py); everything else uses the client that connect() makes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, ResponseError

REDIS_AT_LEAST = (7, 0)
"""acl_check_cmd in scripts, XTRIM MINID."""

VALKEY_AT_LEAST = (8, 0)

CONNECT_TIMEOUT_S = 1.0
"""To a server on the same network; one that takes longer is away."""

ANSWER_TIMEOUT_S = 5.0
"""Longest script (10,000 SKUs) takes milliseconds; what takes seconds is a server in trouble."""

POOL_CONNECTIONS = 8
"""A process's low-volume commands: reads of pages, sale commands, the guard. More wait for a free one."""

CANCEL_AGAIN_S = 0.1


def connect(
    url: str,
    *,
    connections: int = POOL_CONNECTIONS,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> redis.asyncio.Redis:
    """A client over a blocking pool, bytes in and out, RESP2, without retries: whoever calls knows whether its call may
    be sent again. A blocking read (XREAD) must block for less than `answer_timeout_s`. Close it with `aclose()`."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=answer_timeout_s,
        socket_timeout=answer_timeout_s,
        socket_connect_timeout=connect_timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
    )
    return redis.asyncio.Redis.from_pool(pool)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancels a task that uses this client and returns when it has ended, however often that takes. Raises nothing.

    redis-py sends through asyncio.wait_for. In Python 3.11 that swallows a cancellation which comes as the send is done
    (python/cpython#86296): the task goes on, and whoever awaits its end waits for ever.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)
    if not task.cancelled():
        task.exception()  # seen: what it was doing is not wanted any more


async def run_id(client: redis.asyncio.Redis) -> str:
    """The id that a Valkey process takes at its start: another one means a restart, whose data must be verified."""
    info = await client.info("server")
    return str(info["run_id"])


async def shortcomings(client: redis.asyncio.Redis, durability: str, backlog_max_bytes: int = 0) -> list[str]:
    """What this server lacks, one clear line each; empty where it will do. `durability`: memory or fsync.
    `backlog_max_bytes`: the journal's bound, which must fit into the server's memory. Raises redis-py's connection
    errors."""
    server = await client.info("server")
    replication = await client.info("replication")
    found = _version(server)
    if replication.get("role") not in ("master", "primary"):
        found.append(f"Valkey is a {replication.get('role')}: connect to the primary")
    try:
        settings = await _settings(client)
    except (NoPermissionError, ResponseError) as error:
        return [*found, f"Valkey's settings can't be verified: CONFIG GET answers {error}"]

    policy = settings["maxmemory-policy"]
    if policy != "noeviction":
        found.append(f"Valkey's maxmemory-policy is {policy}: set it to noeviction, or it deletes holds to make room")
    maxmemory = int(settings["maxmemory"])
    if maxmemory == 0:
        found.append("Valkey's maxmemory is 0: set it, or a full machine ends Valkey instead of refusing orders")
    elif maxmemory <= backlog_max_bytes:
        found.append(f"Valkey's maxmemory is {maxmemory}: it must exceed BACKLOG_MAX_BYTES, {backlog_max_bytes}")
    if settings["save"] != "":
        found.append(f'Valkey\'s save is "{settings["save"]}": set it to "", snapshots stall it during a sale')
    if durability != "memory":
        found += _persistence(settings, durability)
    return found


def _version(server: dict[str, Any]) -> list[str]:
    name, at_least = ("Valkey", VALKEY_AT_LEAST) if "valkey_version" in server else ("Redis", REDIS_AT_LEAST)
    version = str(server.get("valkey_version", server["redis_version"]))
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < at_least:
        return [f"{name} is {version}: {at_least[0]}.{at_least[1]} or newer is needed"]
    return []


def _persistence(settings: dict[str, str], durability: str) -> list[str]:
    found = []
    if settings["appendonly"] != "yes":
        found.append(f"Valkey keeps no append-only file: DURABILITY={durability} needs appendonly yes")
    if settings["appendfsync"] != "always":
        found.append(f"Valkey's appendfsync is {settings['appendfsync']}: DURABILITY={durability} needs always")
    if settings["no-appendfsync-on-rewrite"] != "no":
        found.append("Valkey's no-appendfsync-on-rewrite is yes: set it to no, or a rewrite leaves answers unflushed")
    return found


async def _settings(client: redis.asyncio.Redis) -> dict[str, str]:
    wanted = ("maxmemory-policy", "maxmemory", "save", "appendonly", "appendfsync", "no-appendfsync-on-rewrite")
    answer = await client.config_get(*wanted)
    return {_text(name): _text(value) for name, value in answer.items()}


def _text(value: bytes | str | int | None) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
