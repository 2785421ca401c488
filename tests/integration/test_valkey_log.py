"""A real append-only log, cut and soiled: Valkey comes back with every whole transaction and never half of one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from flashsale import aof
from flashsale.embedded import ServerFault, ValkeyServer

BATCHES = 40
TAIL = 512  # bytes: what a torn page may take

# Two keys that one script always changes together.
_SCRIPT = """
redis.call('HSET', KEYS[1], ARGV[1], string.rep('x', 5))
redis.call('XADD', KEYS[2], '*', 'o', string.rep('y', 10) .. ARGV[1])
"""


@pytest.fixture
def log(own_valkey: Callable[..., ValkeyServer]) -> Path:
    """The increment file of a killed Valkey that ran BATCHES transactions."""
    server = own_valkey("origin")
    server.start()
    with redis.Redis.from_url(server.url) as client:
        script = client.register_script(_SCRIPT)
        for number in range(BATCHES):
            script(keys=["holds", "journal"], args=[number])
    server.kill()
    (file,) = (server.directory / "appendonlydir").glob("*.incr.aof")
    return file


def start_on(log: Path, server: ValkeyServer, content: bytes) -> tuple[int, int]:
    """(holds, journal entries) after a start on this content of the log."""
    shutil.copytree(log.parent, server.directory / "appendonlydir", dirs_exist_ok=True)
    (server.directory / "appendonlydir" / log.name).write_bytes(content)
    server.start()
    with redis.Redis.from_url(server.url) as client:
        return client.hlen("holds"), client.xlen("journal")


def test_a_log_cut_anywhere_at_its_end_scans_to_whole_transactions(log: Path) -> None:
    whole = log.read_bytes()
    assert aof.scan(whole) == aof.Scan(len(whole), None)
    last = len(whole)
    for cut in range(1, TAIL + 1):
        result = aof.scan(whole[: len(whole) - cut])
        assert result.whole_bytes <= last
        assert aof.scan(whole[: result.whole_bytes]) == aof.Scan(result.whole_bytes, None)
        assert whole[: result.whole_bytes].endswith(b"$4\r\nEXEC\r\n")
        last = result.whole_bytes


@pytest.mark.parametrize("cut", [1, 3, 60, 200, TAIL])
def test_valkey_starts_on_a_cut_log(log: Path, own_valkey: Callable[..., ValkeyServer], cut: int) -> None:
    holds, entries = start_on(log, own_valkey(), log.read_bytes()[:-cut])
    assert holds == entries
    assert BATCHES - 10 < holds < BATCHES


@pytest.mark.parametrize("tail", [bytes(TAIL), b"\x00", b"*3\r\n$-7\r\n", b"garbage" * 9])
def test_valkey_starts_on_a_soiled_log(log: Path, own_valkey: Callable[..., ValkeyServer], tail: bytes) -> None:
    server = own_valkey()
    assert start_on(log, server, log.read_bytes() + tail) == (BATCHES, BATCHES)
    (copy,) = server.directory.glob("damaged-*")
    assert copy.read_bytes() == log.read_bytes() + tail


def test_valkey_that_fails_for_another_reason_is_not_repaired(own_valkey: Callable[..., ValkeyServer]) -> None:
    server = own_valkey(maxmemory_mb=-1)
    with pytest.raises(ServerFault, match=r"valkey-server in .* ended with status 1") as refused:
        server.start()
    assert "\n" not in str(refused.value)
