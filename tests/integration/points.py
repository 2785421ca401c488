"""Points in the life of a shop to which each of its two servers can be brought back by itself, as by a backup."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from flashsale.reservation import keys
from tests.integration.shop import Shop


@dataclass(slots=True)
class Point:
    """Both servers in one instant: a copy of the database, every key of Valkey; and what had been answered by then."""

    database: str
    valkey: list[tuple[bytes, bytes]]
    answered: set[str] = field(default_factory=set)


class Points:
    """Takes points of a shop and goes back to them. The databases are dropped with their server."""

    def __init__(self, shop: Shop, admin_url: str) -> None:
        self.shop, self._admin_url = shop, admin_url
        self._name = shop.database_url.rpartition("@/")[2].partition("?")[0]
        self.taken: list[Point] = []

    async def take(self, answered: set[str]) -> Point:
        """A point of now."""
        name = f"{self._name}_point_{len(self.taken)}"
        await self._copy(self._name, name)
        valkey = [
            (key, value)
            async for key in self.shop.valkey.scan_iter(count=1000)
            if (value := await _dumped(self.shop, key)) is not None
        ]
        self.taken.append(Point(name, valkey, set(answered)))
        return self.taken[-1]

    async def ledger_back_to(self, point: Point) -> None:
        """The ledger as it was; Valkey goes on."""
        await self._copy(point.database, self._name)

    async def valkey_back_to(self, point: Point) -> None:
        """Valkey as it was, as a process that was never verified."""
        await self.shop.valkey.flushall()
        for key, value in point.valkey:
            await self.shop.valkey.execute_command("RESTORE", key, 0, value)
        await _answer(self.shop.valkey.hdel(keys.partition(0), "run_id"))

    async def drop(self) -> None:
        """Removes the copies."""
        admin = await asyncpg.connect(self._admin_url)
        try:
            for point in self.taken:
                await admin.execute(f"DROP DATABASE IF EXISTS {point.database} WITH (FORCE)")
        finally:
            await admin.close()

    async def _copy(self, template: str, name: str) -> None:
        self.shop.ledger.terminate()
        admin = await asyncpg.connect(self._admin_url)
        try:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", template)
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        finally:
            await admin.close()
        self.shop.ledger = await asyncpg.connect(self.shop.database_url)


async def _dumped(shop: Shop, key: bytes) -> bytes | None:
    value: bytes | None = await shop.valkey.execute_command("DUMP", key)
    return value


async def _answer(reply: Any) -> Any:
    return await reply
