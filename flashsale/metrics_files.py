"""Where the processes of an engine share their metrics, so that any of them answers for all.

prometheus-client maps files into memory: a page that can't be had when it is first touched ends the process by SIGBUS.
So the files lie in memory (/dev/shm), whole from the beginning: what a disk does is nothing to them. Each process takes
a slot, the first that no living process holds, and goes on counting where the last holder stopped: however often a part
dies, the files are as many as processes ever lived at once. A process that finds no room counts for itself alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from flashsale import private_directory

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
MEMORY = Path("/dev/shm")  # noqa: S108 - a private directory in it
SLOTS_MAX = 1024  # 256 front ends, workers, and as many of another host's that share the directory by mistake
KIB = 1024
# What each kind of metric may come to, with every route, method and status: a file that grew would have holes.
FILE_BYTES = {"counter": 1024 * KIB, "histogram": 1024 * KIB, "gauge_livesum": 64 * KIB, "gauge_livemax": 64 * KIB}

_held: list[int] = []  # the slot's lock: open as long as we live


def directory_of(data_dir: Path) -> Path:
    """Where the engine on data_dir keeps them: in memory, or beside its other files where the system has no such place.

    Raises OSError, NotPrivate.
    """
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK):
        return private_directory.made(data_dir, MEMORY)
    place = data_dir / "metrics"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def emptied(data_dir: Path, owner: tuple[int, int] | None) -> Path | None:
    """The directory with nothing in it of an earlier engine; None where it can't be had.

    owner: (uid, gid) of who counts there; None: ourselves.
    """
    try:
        remove(data_dir)
        place = directory_of(data_dir)
        for file in place.iterdir():
            file.unlink()
        if owner is not None:
            os.chown(place, *owner)
    except (OSError, private_directory.NotPrivate):
        return None
    return place


def remove(data_dir: Path) -> None:
    """At an engine's end: memory is given back."""
    shutil.rmtree(private_directory.path_of(data_dir, MEMORY), ignore_errors=True)


def join(data_dir: Path) -> str | None:
    """Count together with the engine's other processes. Once, before flashsale.metrics is first imported.

    Answers why that can't be, in one line; then this process counts for itself.
    """
    try:
        place = Path(os.environ.get(VARIABLE) or directory_of(data_dir))
        slot = _take_slot(place)
        for kind, size in FILE_BYTES.items():
            _make(place / f"{kind}_{slot}.db", size)
    except (OSError, private_directory.NotPrivate) as fault:
        os.environ.pop(VARIABLE, None)
        return str(fault)
    os.environ[VARIABLE] = str(place)
    from prometheus_client import values

    # The library's own way to name a process by something else than its pid.
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
    return None


def _take_slot(place: Path) -> int:
    for slot in range(SLOTS_MAX):
        handle = os.open(_lock(place, slot), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        _held.append(handle)
        return slot
    raise OSError(f"{SLOTS_MAX} processes share {place} already")


def _lock(place: Path, slot: int) -> Path:
    return place / f"{slot}.lock"


def _make(file: Path, size: int) -> None:
    """The file, every byte of it allocated; what an earlier process counted stays, what it had in flight does not."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if file.name.startswith("gauge") or os.fstat(handle).st_size != size:
            os.ftruncate(handle, 0)
        os.posix_fallocate(handle, 0, size)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def forget_the_dead(place: Path) -> None:
    """Remove the gauges of processes that are gone: what they counted stays true for ever, what they had in flight does
    not. Whoever takes the slot at this moment takes another."""
    for file in place.glob("gauge_live*_*.db"):
        slot = file.stem.rpartition("_")[2]
        if not slot.isdigit():
            continue
        handle = os.open(_lock(place, int(slot)), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
