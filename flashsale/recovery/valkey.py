"""How a rebuild speaks with Valkey: many fields in long commands, deletions in bounded steps."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

import redis.asyncio

from flashsale.reservation import keys

FIELDS = 500  # hash fields a command: keeps each write to Valkey's log short
COMMANDS = 20  # commands a round trip of the rebuild
KEYS_A_SCAN = 500


class HashWriter:
    """Gathers fields of many hashes and writes them in long commands, several a round trip."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._fields: dict[str, dict[Any, Any]] = {}
        self._pipeline = client.pipeline(transaction=False)

    async def put(self, key: str, name: str | bytes | int, value: str | bytes | int) -> None:
        fields = self._fields.setdefault(key, {})
        fields[name] = value
        if len(fields) >= FIELDS:
            self._pipeline.hset(key, mapping=self._fields.pop(key))
            if len(self._pipeline) >= COMMANDS:
                await self._pipeline.execute()

    async def flush(self) -> None:
        for key, fields in self._fields.items():
            self._pipeline.hset(key, mapping=fields)
        self._fields.clear()
        await self._pipeline.execute()


async def delete_keys(client: redis.asyncio.Redis, partition: int) -> None:
    kept = keys.rebuilding(partition).encode()
    names = [
        name async for name in client.scan_iter(match=f"{keys.tag(partition)}:*", count=KEYS_A_SCAN) if name != kept
    ]
    for first in range(0, len(names), KEYS_A_SCAN):
        await answer(client.unlink(*names[first : first + KEYS_A_SCAN]))
    await answer(client.unlink(keys.CATALOGUE))


async def answer(reply: Awaitable[Any] | Any) -> Any:
    """Redis-py types its commands as awaitable or not, since both of its clients share them."""
    return await cast(Awaitable[Any], reply)
