"""Valkey's log: how long it has become, and the rewriting of it.

What lies behind the log's base is replayed command by command at a start: 25 to 100 MB a second were measured, so that
1.5 million orders took 3.5 s, and 0.8 s from a base that a rewriting had left. Only Valkey's own figures are read;
which log is too long is decided in pipeline/log_rewriting.py.
"""

from __future__ import annotations

from typing import NamedTuple

import redis.asyncio


class LogSize(NamedTuple):
    """Bytes: `total` of the whole log, `base` of what its last rewriting left; `data` in memory, without the server's
    own. `busy`: it is being rewritten; `failed`: the last rewriting did not come to its end."""

    total: int
    base: int
    data: int
    busy: bool
    failed: bool

    @property
    def grown(self) -> int:
        """Bytes to be replayed command by command."""
        return max(0, self.total - self.base)


async def log_size(client: redis.asyncio.Redis) -> LogSize | None:
    """The log as it is now; None where Valkey keeps none. Raises redis-py's errors."""
    found = await client.info("persistence")
    if not found.get("aof_enabled"):
        return None
    memory = await client.info("memory")
    return LogSize(
        total=int(found["aof_current_size"]),
        base=int(found["aof_base_size"]),
        data=int(memory["used_memory_dataset"]),
        busy=bool(found["aof_rewrite_in_progress"]) or bool(found["aof_rewrite_scheduled"]),
        failed=found["aof_last_bgrewrite_status"] != "ok",
    )


async def rewrite(client: redis.asyncio.Redis) -> None:
    """Has the log written anew beside the old one, by a child of Valkey's: answered at once. Raises redis-py's
    NoPermissionError or ResponseError where the server does not let it be asked for."""
    await client.bgrewriteaof()
