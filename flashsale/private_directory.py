"""A private directory under a short and plain path for what can't lie in a data directory itself: sockets whose path
the kernel would not take, and memory that is shared by files."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


class NotPrivate(Exception):
    """Somebody else holds that name; one line that says so."""


def path_of(directory: Path, base: Path) -> Path:
    """Where it is, below base: its name follows from the directory that it serves, so a later start finds it again."""
    digest = hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()
    return base / f"flashsale-{os.geteuid()}-{digest}"


def made(directory: Path, base: Path) -> Path:
    """The same, made if absent. Raises NotPrivate where it is not ours alone, OSError where it can't be made."""
    place = path_of(directory, base)
    place.mkdir(mode=0o700, exist_ok=True)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o027:
        raise NotPrivate(f"{place} is not a private directory of ours: remove it, or use another FLASHSALE_DATA_DIR")
    return place
