"""A backup taken while orders go on, brought back into any PostgreSQL: nothing of it is missing, nothing is harmed."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from flashsale.audit import audit
from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.ledger import lost_orders
from flashsale.ledger.migrate import migrate
from flashsale.recovery import archive, backup, restore
from tests.integration.shop import FRIDGE, KETTLE, Shop

DEBIAN = Path("/usr/lib/postgresql/15/bin")


def silent(step: str) -> None:
    """Nobody watches."""


class Debian15(PostgresServer):
    """Debian's PostgreSQL 15, started as the engine starts its own."""

    @functools.cached_property
    def _bin(self) -> Path:
        return DEBIAN


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Shop]:
    async with Shop(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


async def sell(shop: Shop, name: str, count: int = 6) -> set[str]:
    sold = set()
    for number in range(count):
        outcome, order = await shop.buy(f"{name}-{number}", (FRIDGE, 1), (KETTLE, 2), key=f"{name}-{number}")
        assert outcome == "A"
        sold.add(order)
    return sold


async def backed_up(shop: Shop, directory: Path) -> archive.Manifest:
    return await backup.back_up(shop.database_url, directory, "s" * 32, silent)


async def brought_back(database_url: str, directory: Path, *, force: bool = False) -> str | None:
    manifest = await asyncio.to_thread(archive.read, directory)
    return await restore.bring_back(database_url, directory, manifest, silent, force=force)


async def rows(url: str) -> dict[str, list[str]]:
    """Every row of every table but the partition's own, as text."""
    ledger = await asyncpg.connect(url)
    try:
        return {
            name: sorted(row[0] for row in await ledger.fetch(f'SELECT t::text FROM "{name}" AS t'))  # noqa: S608
            for name in await backup.tables_in_order(ledger)
            if name != "partition"
        }
    finally:
        await ledger.close()


async def test_a_backup_taken_while_selling_comes_back_whole(shop: Shop, postgres: str, tmp_path: Path) -> None:
    sold = await sell(shop, "before")
    await shop.write()
    selling = asyncio.create_task(sell(shop, "during"))
    manifest = await backed_up(shop, tmp_path / "backup")
    during = await selling
    assert (manifest.orders, manifest.secret) == (6, True)
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    await shop.valkey.flushall()
    assert await brought_back(postgres, tmp_path / "backup") is None
    async with Shop(shop.redis_url, postgres) as after:
        assert (await after.recover()).ok
        assert (await audit(after.redis_url, after.database_url)).faults == []
        assert {row[0] for row in await after.ledger.fetch("SELECT id FROM orders")} == sold
        assert (await after.buy("before-1", (FRIDGE, 1), (KETTLE, 2), key="before-1"))[0] == "R"
        assert (await after.buy("during-1", (FRIDGE, 1), (KETTLE, 2), key="during-1"))[1] in during
        await after.write()
        assert (await audit(after.redis_url, after.database_url)).faults == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["15 to 18", "18 to 15"])
async def test_a_backup_goes_from_postgresql_15_to_18_and_back(
    valkey_memory: ValkeyServer, postgres: str, tmp_path: Path, way: str
) -> None:
    if not (DEBIAN / "postgres").exists():
        pytest.skip("Debian's PostgreSQL 15 is missing: scripts/test installs it where it may")
    old = Debian15(tmp_path / "fifteen")
    old.start()
    try:
        source, target = (old.url, postgres) if way == "15 to 18" else (postgres, old.url)
        await migrate(source)
        async with Shop(valkey_memory.url, source) as shop:
            await shop.open()
            await sell(shop, "any")
            await shop.write()
            manifest = await backed_up(shop, tmp_path / "backup")
            assert manifest.postgres.startswith(way[:2])
            before = await rows(source)
            await shop.valkey.flushall()
        await brought_back(target, tmp_path / "backup")
        assert await rows(target) == before
        async with Shop(valkey_memory.url, target) as shop:
            assert (await shop.recover()).ok
            assert (await audit(shop.redis_url, shop.database_url)).faults == []
    finally:
        old.stop()


async def test_a_damaged_backup_is_refused_before_anything_is_written(
    shop: Shop, postgres: str, tmp_path: Path
) -> None:
    await sell(shop, "any")
    await shop.write()
    await backed_up(shop, tmp_path / "backup")
    orders = archive.file_of(tmp_path / "backup", "orders")
    content = orders.read_bytes()
    for damaged in (content[:-1], content.replace(b"any-1", b"any-2"), b""):
        orders.write_bytes(damaged)
        with pytest.raises(archive.BadArchive, match=r"orders\.copy is damaged"):
            archive.read(tmp_path / "backup")
    orders.unlink()
    with pytest.raises(archive.BadArchive, match=r"orders\.copy"):
        archive.read(tmp_path / "backup")
    (tmp_path / "backup" / archive.MANIFEST).write_text(json.dumps({"format": 1}))
    with pytest.raises(archive.BadArchive, match="damaged"):
        archive.read(tmp_path / "backup")
    with pytest.raises(archive.BadArchive, match="is no backup"):
        archive.read(tmp_path)
    ledger = await asyncpg.connect(postgres)
    assert await ledger.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    await ledger.close()


async def test_a_ledger_that_is_not_empty_is_moved_aside_and_a_newer_valkeys_orders_are_kept(
    shop: Shop, tmp_path: Path
) -> None:
    await sell(shop, "before")
    await shop.write()
    await shop.trim()
    await backed_up(shop, tmp_path / "backup")
    late = await sell(shop, "late", 3)
    await shop.write()
    await shop.trim()
    last = await sell(shop, "last", 2)
    with pytest.raises(restore.RestoreRefused, match="--force"):
        await brought_back(shop.database_url, tmp_path / "backup")
    shop.ledger.terminate()
    await until_alone(shop.database_url)
    moved = await brought_back(shop.database_url, tmp_path / "backup", force=True)
    assert moved is not None
    shop.ledger = await asyncpg.connect(shop.database_url)
    assert await shop.ledger.fetchval(f'SELECT count(*) FROM "{moved}".orders') == 9  # noqa: S608
    assert not (await shop.recover()).ok
    outcome = await shop.recover(force=True, set_aside=tmp_path / "set-aside")
    assert (outcome.ok, outcome.taken) == (True, 2)
    assert {lost.id for lost in await lost_orders.first(shop.ledger, 100)} == late
    assert last <= {row[0] for row in await shop.ledger.fetch("SELECT id FROM orders")}
    assert (await audit(shop.redis_url, shop.database_url)).faults == []


async def until_alone(url: str) -> None:
    ledger = await asyncpg.connect(url)
    alone = (
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'client%'"
    )
    async with asyncio.timeout(10):
        while not await ledger.fetchval(alone):  # noqa: ASYNC110 - PostgreSQL says so
            await asyncio.sleep(0.01)
    await ledger.close()


async def test_a_backup_never_writes_over_anything(shop: Shop, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    with pytest.raises(backup.BackupRefused, match="is not empty"):
        await backed_up(shop, kept)
    assert [path.name for path in kept.iterdir()] == ["file"]
