"""A copy of what Valkey holds, as a file, before anything that nothing else knows is rebuilt away.

MessagePack values one after the other: [key, "hash", {field: value}], [key, "stream", [[id, {field: value}]]] or
[key, "string", value], a big key in several. So it can be read without a server, and years later.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio

from flashsale.recovery.valkey import KEYS_A_SCAN, answer
from flashsale.reservation import keys

SET_ASIDE = "set-aside"  # in DATA_DIR
FIELDS_A_READ = 1000
ENTRIES_A_READ = 100


async def save(client: redis.asyncio.Redis, partition: int, directory: Path) -> Path:
    """Writes the file (0600: sales' keys stand in it) and returns where it lies. Raises OSError where it can't: then
    nothing may be rebuilt."""
    path = _new_path(directory)
    new = path.with_suffix(".part")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for pattern in (f"{keys.tag(partition)}:*", f"{keys.CATALOGUE}*"):
            async for name in client.scan_iter(match=pattern, count=KEYS_A_SCAN):
                async for value in _values(client, name):
                    file.write(msgspec.msgpack.encode([name, *value]))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
    return path


def _new_path(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / f"valkey-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}.msgpack"


async def _values(client: redis.asyncio.Redis, name: bytes) -> AsyncIterator[tuple[str, Any]]:
    kind = await answer(client.type(name))
    if kind == b"hash":
        cursor = 0
        while True:
            cursor, fields = await answer(client.hscan(name, cursor, count=FIELDS_A_READ))
            yield "hash", fields
            if cursor == 0:
                return
    elif kind == b"stream":
        after = "-"
        while entries := await answer(client.xrange(name, min=after, count=ENTRIES_A_READ)):
            yield "stream", entries
            after = f"({entries[-1][0].decode()}"
    elif kind == b"string":
        yield "string", await answer(client.get(name))
