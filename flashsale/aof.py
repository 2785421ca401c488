"""Cutting a Valkey append-only log behind its last whole transaction.

Valkey loads a log with a torn tail by itself, but refuses one that ends in zeros or garbage (a power cut on some file
systems), and its wheel brings no repair tool. Reads the multi-part layout (manifest, base, increments) of Redis >= 7.0
and every Valkey. A batch of orders is one MULTI … EXEC: a cut never leaves half of one.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

MANIFEST = "appendonly.aof.manifest"
ARGUMENTS_MAX = 1_048_576  # of one command: Valkey's own bound for multibulk
ARGUMENT_MAX_BYTES = 512 * 1024 * 1024  # proto-max-bulk-len's default
_ANNOTATION_MAX = 1024  # bytes of a line between commands
_NUMBER_MAX = 20  # bytes of a count or length with its line end
_RDB_MAGICS = (b"REDIS", b"VALKEY")


@dataclass(frozen=True, slots=True)
class Scan:
    """How much of a log is whole: bytes up to the end of its last whole transaction, and what comes after."""

    whole_bytes: int
    fault: str | None


@dataclass(frozen=True, slots=True)
class Cut:
    """A repair that was made."""

    file: Path
    copy: Path
    kept_bytes: int
    cut_bytes: int
    reason: str


class Malformed(Exception):
    """Bytes that are no command."""


def scan(data: bytes | mmap.mmap) -> Scan:
    """The length of the leading whole transactions of a RESP log; fault is None if that is all of it."""
    whole = position = 0
    open_transaction = False
    try:
        while position < len(data):
            if data[position : position + 1] == b"#":  # a timestamp annotation
                position = line_end(data, position)
            else:
                name, position = _command(data, position)
                if name == b"MULTI":
                    if open_transaction:
                        raise Malformed(f"MULTI inside a transaction before byte {position}")
                    open_transaction = True
                elif name == b"EXEC":
                    if not open_transaction:
                        raise Malformed(f"EXEC without MULTI before byte {position}")
                    open_transaction = False
            if not open_transaction:
                whole = position
    except Malformed as fault:
        return Scan(whole, str(fault))
    return Scan(whole, "an open transaction at the end" if open_transaction else None)


def line_end(data: bytes | mmap.mmap, position: int) -> int:
    """The position behind the line, an annotation. Raises Malformed where it has no end."""
    end = data.find(b"\r\n", position, position + _ANNOTATION_MAX)
    if end < 0:
        raise Malformed(f"no line end after byte {position}")
    return end + 2


def _command(data: bytes | mmap.mmap, position: int) -> tuple[bytes, int]:
    """(name, position behind) of the command that begins here."""
    found, position = words(data, position, 1)
    return found[0].upper(), position


def words(data: bytes | mmap.mmap, position: int, most: int) -> tuple[list[bytes], int]:
    """(its first words, at most so many; position behind it) of the command that begins here. Raises Malformed."""
    count, position = _number(data, position, b"*", ARGUMENTS_MAX)
    if count == 0:
        raise Malformed(f"a command of no words before byte {position}")
    found: list[bytes] = []
    size = len(data)
    for _ in range(count):
        length, position = _number(data, position, b"$", ARGUMENT_MAX_BYTES)
        end = position + length
        if end + 2 > size or data[end : end + 2] != b"\r\n":
            raise Malformed(f"a word without its end at byte {position}")
        if len(found) < most:
            found.append(data[position:end])
        position = end + 2
    return found, position


def _number(data: bytes | mmap.mmap, position: int, mark: bytes, most: int) -> tuple[int, int]:
    end = data.find(b"\r\n", position, position + _NUMBER_MAX)
    digits = data[position + 1 : end] if end >= 0 else b""
    if data[position : position + 1] != mark or not digits.isdigit() or int(digits) > most:
        raise Malformed(f"no command at byte {position}")
    return int(digits), end + 2


def repair(directory: Path) -> Cut | None:
    """Cut the log in Valkey's append directory behind its last whole transaction; None if it is sound or absent.

    The damaged file is first copied beside the directory. If increments follow the damaged one they are moved there
    too: what came after a hole was decided on state that is no longer there.
    """
    files = list(_files(directory))
    for index, file in enumerate(files):
        result = _scan_file(file)
        if result.fault is None:
            continue
        size = file.stat().st_size
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        copy = directory.parent / f"damaged-{stamp}-{file.name}"
        shutil.copyfile(file, copy)
        copy.chmod(0o600)
        _drop_from_manifest(directory, [later.name for later in files[index + 1 :]])
        for later in files[index + 1 :]:
            later.rename(directory.parent / f"damaged-{stamp}-{later.name}")
        with file.open("r+b") as log:
            log.truncate(result.whole_bytes)
            os.fsync(log.fileno())
        return Cut(file, copy, result.whole_bytes, size - result.whole_bytes, result.fault)
    return None


def set_aside(directory: Path) -> Path:
    """Moves the whole log (or whatever bears its name) out of Valkey's way, beside it; returns where it lies now."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return directory.rename(directory.with_name(f"damaged-{stamp}-{directory.name}"))


def unlisted(directory: Path) -> bool:
    """Whether there is a log whose manifest is gone: Valkey would begin anew over its files."""
    return directory.is_dir() and not (directory / MANIFEST).exists() and any(directory.glob("*.aof"))


def fault(directory: Path) -> str | None:
    """Why Valkey can't load the log as a whole, by its manifest and the files that it names; None: nothing is seen."""
    if not directory.exists():
        return None
    if not directory.is_dir():
        return f"{directory} is no directory"
    manifest = directory / MANIFEST
    try:
        lines = [line.split() for line in manifest.read_text().splitlines()]
        if not lines or any(len(line) < 6 or line[0] != "file" for line in lines):
            return f"{manifest} is no manifest"
        for line in lines:
            if line[5] in ("b", "i"):
                (directory / line[1]).open("rb").close()
            if line[5] == "b" and (why := _scan_file(directory / line[1]).fault) is not None:
                return f"{directory / line[1]}: {why}"
    except (OSError, ValueError) as error:
        return f"{manifest}: {getattr(error, 'strerror', None) or error}"
    return None


def _files(directory: Path) -> Iterator[Path]:
    """The files that the manifest names, in the order in which Valkey loads them."""
    manifest = directory / MANIFEST
    if not manifest.exists():
        return
    for line in manifest.read_text().splitlines():
        words = line.split()
        # "file NAME seq N type b|i|h": base, increments in order; history is never loaded.
        if len(words) == 6 and words[0] == "file" and words[5] in ("b", "i") and (directory / words[1]).exists():
            yield directory / words[1]


def _scan_file(file: Path) -> Scan:
    if file.stat().st_size == 0:
        return Scan(0, None)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6].startswith(_RDB_MAGICS):  # a snapshot with a checksum of its own: whole or useless
            return Scan(len(data), None)
        return scan(data)


def _drop_from_manifest(directory: Path, names: list[str]) -> None:
    if not names:
        return
    manifest = directory / MANIFEST
    kept = [line for line in manifest.read_text().splitlines(keepends=True) if line.split()[1] not in names]
    new = directory / f"temp-{MANIFEST}"
    with new.open("w") as file:
        file.write("".join(kept))
        file.flush()
        os.fsync(file.fileno())
    new.rename(manifest)
