"""The scanner of append-only logs, on bytes written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashsale import aof


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


SELECT = command(b"SELECT", b"0")
# A value that looks like the log's own marks must not be taken for one.
BATCH = command(b"MULTI") + command(b"HSET", b"k", b"f", b"*1\r\n$4\r\nEXEC\r\n") + command(b"EXEC")


def test_a_sound_log_is_whole() -> None:
    log = b"#TS:1700000000\r\n" + SELECT + BATCH + BATCH
    assert aof.scan(log) == aof.Scan(len(log), None)
    assert aof.scan(b"") == aof.Scan(0, None)


def test_every_cut_keeps_the_transactions_before_it() -> None:
    log = SELECT + BATCH + BATCH
    ends = [0, len(SELECT), len(SELECT + BATCH), len(log)]
    for length in range(len(log)):
        result = aof.scan(log[:length])
        assert result.whole_bytes == max(end for end in ends if end <= length), length
        assert (result.fault is None) == (length in ends), length


@pytest.mark.parametrize(
    "tail",
    [
        bytes(512),
        b"\xff" * 40,
        b"*0\r\n",
        b"*-1\r\n",
        b"*1\r\n$-1\r\n",
        b"*99999999999999\r\n",
        b"*1\r\n$4\r\nEXEC\r\n",
        b"PING\r\n",
        b"\r\n",
    ],
)
def test_garbage_behind_the_last_transaction_is_cut(tail: bytes) -> None:
    log = SELECT + BATCH
    result = aof.scan(log + tail)
    assert result.whole_bytes == len(log)
    assert result.fault


def test_a_damaged_increment_takes_those_after_it_out(tmp_path: Path) -> None:
    directory = tmp_path / "appendonlydir"
    directory.mkdir()
    (directory / "a.1.base.rdb").write_bytes(b"VALKEY080" + bytes(20))
    (directory / "a.1.incr.aof").write_bytes(SELECT + BATCH + bytes(512))
    (directory / "a.2.incr.aof").write_bytes(SELECT + BATCH)
    lines = [f"file a.1.base.rdb seq 1 type b{chr(10)}"]
    lines += [f"file a.{number}.incr.aof seq {number} type i{chr(10)}" for number in (1, 2)]
    (directory / aof.MANIFEST).write_text("".join(lines))

    cut = aof.repair(directory)

    assert cut is not None
    assert (cut.kept_bytes, cut.cut_bytes) == (len(SELECT + BATCH), 512)
    assert (directory / "a.1.incr.aof").read_bytes() == SELECT + BATCH
    assert cut.copy.read_bytes() == SELECT + BATCH + bytes(512)
    assert (directory / aof.MANIFEST).read_text() == "".join(lines[:2])
    assert [path.name.split("-", 2)[2] for path in sorted(tmp_path.glob("damaged-*-a.2*"))] == ["a.2.incr.aof"]
    assert aof.repair(directory) is None


def test_no_log_is_no_damage(tmp_path: Path) -> None:
    assert aof.repair(tmp_path / "appendonlydir") is None
