"""What can be saved of an append-only log that Valkey will not load: the streams' entries, as a small log of their own.

The rest of Valkey is built again from the ledger; what stands in a stream and not yet in the ledger (the journal's
orders, the provider's events) is nowhere else. Reads increments only: a base is a snapshot with a checksum.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from flashsale.aof import MANIFEST, Malformed, line_end, words

_LOG = "appendonly.aof.1.incr.aof"
_WORDS_READ = 6  # XTRIM key MINID = id: whatever stands behind needs no look


def salvage(damaged: Path, directory: Path) -> int:
    """Writes a log of the stream entries in the increments of `damaged` to `directory`, which is made; returns how many
    there were. Entries that were trimmed later are left out. None found: no directory is made."""
    increments = _increments(damaged)
    cut = {key: entry for file in increments for key, entry in _trims(file)}
    found = 0
    new = directory.with_name(f"{directory.name}.new")
    new.mkdir(mode=0o700)
    with os.fdopen(os.open(new / _LOG, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as log:
        for file in increments:
            for key, entry, command in _additions(file):
                if entry >= cut.get(key, (0, 0)):
                    log.write(command)
                    found += 1
        log.flush()
        os.fsync(log.fileno())
    if not found:
        (new / _LOG).unlink()
        new.rmdir()
        return 0
    (new / MANIFEST).write_text(f"file {_LOG} seq 1 type i\n")
    new.rename(directory)
    return found


def _increments(damaged: Path) -> list[Path]:
    """The increments in the order in which they were written, those of an earlier rewrite too: an entry that was
    trimmed is left out wherever it stands."""
    if not damaged.is_dir():
        return []
    numbered = [(path.name.split("."), path) for path in damaged.glob("*.incr.aof") if path.is_file()]
    return [path for _, path in sorted((int(name[-3]), path) for name, path in numbered if name[-3].isdigit())]


def _trims(file: Path) -> Iterator[tuple[bytes, tuple[int, int]]]:
    for command, _ in _commands(file):
        if command[0].upper() == b"XTRIM" and len(command) > 3 and command[2].upper() == b"MINID":
            entry = _entry(command[4] if command[3] in (b"=", b"~") and len(command) > 4 else command[3])
            if entry is not None:
                yield command[1], entry


def _additions(file: Path) -> Iterator[tuple[bytes, tuple[int, int], bytes]]:
    for command, raw in _commands(file):
        if command[0].upper() == b"XADD" and len(command) > 4:
            entry = _entry(command[2])
            if entry is not None:
                yield command[1], entry, raw


def _entry(text: bytes) -> tuple[int, int] | None:
    ms, _, seq = text.partition(b"-")
    return (int(ms), int(seq or b"0")) if ms.isdigit() and (not seq or seq.isdigit()) else None


def _commands(file: Path) -> Iterator[tuple[list[bytes], bytes]]:
    """The first words of each command and its bytes, up to the first damage."""
    if file.stat().st_size == 0:
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = 0
        while position < len(data):
            try:
                if data[position : position + 1] == b"#":
                    position = line_end(data, position)
                    continue
                found, end = words(data, position, _WORDS_READ)
            except Malformed:
                return
            if found[0].upper() in (b"XADD", b"XTRIM"):
                yield found, data[position:end]
            position = end
