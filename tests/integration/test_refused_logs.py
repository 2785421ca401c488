"""A log that Valkey refuses, for whatever reason: moved aside, never deleted; and what its streams hold is there.

`FLASHSALE_FULL=1` tries each damage on each file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from flashsale.aof import MANIFEST
from flashsale.audit import audit
from flashsale.embedded import ValkeyServer
from tests import corpora
from tests.integration.shop import FRIDGE, Shop


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size or 64))


def absent(path: Path) -> None:
    path.unlink()


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 no log of ours\n" * 40)


def directory_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


SAMPLE = [("manifest", empty), ("manifest", absent), ("base", zeroed), ("base", absent), ("increment", foreign)]
DAMAGES = [
    (name, damage)
    for name in ("manifest", "base", "increment")
    for damage in (empty, zeroed, absent, foreign, directory_instead)
    if corpora.FULL or (name, damage) in SAMPLE
]


@pytest.mark.parametrize(
    ("which", "damage"), DAMAGES, ids=lambda each: each if isinstance(each, str) else each.__name__
)
async def test_a_refused_log_is_moved_aside_and_no_answered_order_is_lost(
    own_valkey: Callable[..., ValkeyServer], ledger: str, which: str, damage: Callable[[Path], None]
) -> None:
    valkey = own_valkey("refused")
    valkey.start()
    async with Shop(valkey.url, ledger, "fsync") as shop:
        await shop.open()
        orders = {(await shop.buy(f"early-{number}", (FRIDGE, 1)))[1] for number in range(3)}
        await shop.write()
        await shop.trim()
        late = {(await shop.buy(f"late-{number}", (FRIDGE, 1)))[1] for number in range(3)}
    valkey.kill()
    logs = valkey.directory / "appendonlydir"
    (file,) = {"manifest": [logs / MANIFEST], "base": logs.glob("*.base.*"), "increment": logs.glob("*.incr.aof")}[
        which
    ]
    damage(file)
    valkey.start()
    async with Shop(valkey.url, ledger, "fsync") as shop:
        outcome = await shop.recover()
        assert outcome.ok, outcome
        await shop.write()
        assert (await audit(shop.redis_url, shop.database_url)).faults == []
        rows = {row[0] for row in await shop.ledger.fetch("SELECT id FROM orders")}
        # The increment alone has what the ledger has not: damaged, that is gone, as with any lost disk.
        assert rows == (orders if which == "increment" else orders | late)
    # Of an empty file Valkey thinks nothing: it is loaded.
    assert bool(list(valkey.directory.glob("damaged-*"))) == (damage is not empty or which == "manifest")
    valkey.kill()
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        assert client.exists("{p00}:partition")


def test_a_log_that_is_no_directory_is_moved_aside(own_valkey: Callable[..., ValkeyServer]) -> None:
    valkey = own_valkey("odd")
    valkey.start()
    valkey.kill()
    logs = valkey.directory / "appendonlydir"
    shutil.rmtree(logs)
    logs.write_text("a file")
    valkey.start()
    assert logs.is_dir()
    assert [path.read_text() for path in valkey.directory.glob("damaged-*")] == ["a file"]
