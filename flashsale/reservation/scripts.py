"""The Lua scripts as files: read once, run by their SHA-1, loaded again when Valkey has forgotten them.

Each script under ``lua/`` opens with its contract (KEYS, ARGV, Answers); this module only finds and runs it. The hot
path sends ``reserve.lua`` over its own connection (``link.py``) and takes the source and SHA-1 from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from importlib.resources import files
from typing import Any

import redis.asyncio
from redis.exceptions import NoScriptError

Argument = str | bytes | int


class Script:
    """One Lua script of ``flashsale/reservation/lua``, named without its suffix."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = files("flashsale.reservation").joinpath("lua", f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    async def run(self, client: redis.asyncio.Redis, keys: Sequence[str | bytes], arguments: Sequence[Argument]) -> Any:
        """The script's answer as redis-py decodes it. Raises redis-py's errors; never leaves a script half-loaded."""
        try:
            return await self._evalsha(client, keys, arguments)
        except NoScriptError:  # Valkey was restarted or its scripts flushed; nothing has run
            await client.script_load(self.source)
            return await self._evalsha(client, keys, arguments)

    def _evalsha(
        self, client: redis.asyncio.Redis, keys: Sequence[str | bytes], arguments: Sequence[Argument]
    ) -> Awaitable[Any]:
        return client.evalsha(self.sha, len(keys), *keys, *arguments)
