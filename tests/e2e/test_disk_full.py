"""A disk fills up under a running engine: orders are refused, none that was answered is lost, and when there is room
again all is well within seconds, without anybody's hands.

The disks are small file systems in memory, which root alone can mount. FLASHSALE_DISK_ROUNDS is how often each case
fills (the full size is 20; 0, as in CI, is all of them at once, twice), FLASHSALE_CHAOS_SEED repeats a run's dice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from flashsale.embedded import PostgresServer
from tests.conftest import Engine
from tests.crowd import Crowd, open_sale
from tests.e2e.test_chaos import FLOWING, SEED, came_through, stopped_clean
from tests.wire import ask, get

ROUNDS = int(os.environ.get("FLASHSALE_DISK_ROUNDS", "0"))
BACK_WITHIN_S = 10.0  # of room
FULL_WITHIN_S = 30.0
DISK_MIB = 160
CHUNK = b"\0" * 65536

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the small disks that this fills"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Puts a small disk under a directory, whose content stays: `disk(directory)`; taken away at the end."""
    mounted: list[Path] = []

    def mount(directory: Path) -> None:
        before = directory.with_name(directory.name + ".before")
        if directory.exists():
            directory.rename(before)
        directory.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "tmpfs", directory], check=True)
        mounted.append(directory)
        if before.exists():
            subprocess.run(["cp", "-a", f"{before}/.", directory], check=True)

    yield mount
    for directory in reversed(mounted):
        subprocess.run(["umount", "--lazy", directory], check=True)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not one byte is left on the disk; what took the room goes at the end."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(CHUNK)
    try:
        yield
    finally:
        filler.unlink()


async def until(condition: Callable[[], bool], what: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def all_is_well(engine: Engine) -> bool:
    with contextlib.suppress(OSError, IndexError):
        (answer,) = await ask(engine.port, get("/readyz"))
        return answer.status == 200 and "ledger is away" not in str(answer.json()["warnings"])
    return False


async def next_log_segment(url: str) -> None:
    """PostgreSQL goes on in a new file, for which there is no room."""
    with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
        connection = await asyncpg.connect(url, timeout=5)
        try:
            await connection.execute("SELECT pg_switch_wal()", timeout=5)
        finally:
            connection.terminate()


@pytest.mark.parametrize("full", ["everything", *(["valkey", "postgres"] if ROUNDS else [])])
async def test_a_full_disk_loses_no_order_and_room_alone_makes_all_well(
    make_engine: Callable[..., Engine], disk: Callable[[Path], None], tmp_path: Path, full: str
) -> None:
    """`everything`: both servers' files, every log (also those of the parts) and run.json."""
    home = tmp_path / "disk"
    if full == "everything":
        disk(home)
    home.mkdir(exist_ok=True)
    engine = make_engine("disk/engine", FLASHSALE_BACKLOG_MAX_BYTES="200000")
    place = home if full == "everything" else engine.data_dir / full
    if full != "everything":
        engine.start()
        assert engine.stop() == 0
        disk(place)
    engine.start()
    open_sale(engine, "crowd", tmp_path)
    slowest_s = 0.0
    async with Crowd(engine, "crowd", SEED) as crowd:
        for _ in range(ROUNDS or 2):
            await crowd.until_accepted(FLOWING)
            began = time.monotonic()
            with filled(place):
                if full != "valkey":
                    await next_log_segment(PostgresServer(engine.data_dir / "postgres").url)
                await until(
                    lambda began=began: crowd.statuses(began).get(503, 0) > 0,  # type: ignore[misc]
                    f"no order was refused: {crowd.statuses(began)}",
                    FULL_WITHIN_S,
                )
                assert engine.process is not None
                assert engine.process.poll() is None
            room = time.monotonic()
            accepted = len(crowd.accepted)
            while not (len(crowd.accepted) > accepted and await all_is_well(engine)):
                assert time.monotonic() - room < BACK_WITHIN_S, engine.errors.read_text()[-4000:]
                await asyncio.sleep(0.05)
            slowest_s = max(slowest_s, time.monotonic() - room)
        await crowd.until_accepted(FLOWING)
    print(f"{full}: {len(crowd.accepted)} orders, back within {slowest_s:.1f} s of room")
    assert crowd.statuses().keys() <= {0, 201, 409, 503, 504}
    await came_through(engine, crowd)
    stopped_clean(engine)
