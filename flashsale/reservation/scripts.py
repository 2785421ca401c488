"""The Lua scripts as files: read once, run by their SHA-1, loaded again when Valkey has forgotten them.

Each script under ``lua/`` opens with its contract (KEYS, ARGV, Answers); this module only finds and runs it. The hot
path sends ``reserve.lua`` over its own connection (``link.py``) and takes the source and SHA-1 from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from importlib.resources import files
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]
import redis.asyncio
from redis.exceptions import NoScriptError

Argument = str | bytes | int


class Refusal(Exception):
    """A script refused, and nothing was written."""


class Fenced(Refusal):
    """The partition is absent from Valkey or of another epoch than the caller verified."""


class Denied(Refusal):
    """Valkey's ACL forbids a command that the script needs; the message names command and key."""


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

    async def run_fenced(
        self, client: redis.asyncio.Redis, keys: Sequence[str | bytes], arguments: Sequence[Argument]
    ) -> Any:
        """The same for a script that writes: KEYS 1 is the partition, ARGV 1 the epoch. Raises Fenced and Denied."""
        answer = await self.run(client, keys, arguments)
        if answer[0] == b"fenced":
            raise Fenced(f"{self.name}: {keys[0]!r} is absent from Valkey or of another epoch than {arguments[0]!r}")
        if answer[0] == b"denied":
            raise Denied(f"{self.name}: Valkey's ACL denies {answer[1].decode()}")
        return answer

    def _evalsha(
        self, client: redis.asyncio.Redis, keys: Sequence[str | bytes], arguments: Sequence[Argument]
    ) -> Awaitable[Any]:
        return client.evalsha(self.sha, len(keys), *keys, *arguments)


def pack(values: list[Any]) -> bytes:
    """MessagePack that Valkey's cmsgpack reads: it refuses the `bin` type."""
    return cast(bytes, msgpack.packb(values, use_bin_type=False))
