"""The account that PostgreSQL runs as when the engine is started by root, and its way to its files.

PostgreSQL refuses to run as root. The account gets *search* permission, as a POSIX ACL entry for it alone, on those
parent directories that shut it out; nothing is opened to everybody. Relies on Linux file systems with ACLs.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
import struct
import subprocess
from pathlib import Path

ACCOUNT = "flashsale"
_FALLBACKS = ("postgres", "nobody")  # where there is no useradd
SHELL = ("--shell", "/usr/sbin/nologin")
_USERADD_SECONDS = 30

# linux/posix_acl_xattr.h: a little-endian version, then (tag, permissions, id) entries ordered by tag and id.
_XATTR = "system.posix_acl_access"
_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_SEARCH = 0o1

Entry = tuple[int, int, int]


class UnprivilegedFault(Exception):
    """No account to run as, or no way to let it in; one line that says what to do."""


def account(wanted: str = ACCOUNT) -> pwd.struct_passwd:
    """The system account of that name, made once; else an existing unprivileged one. Root only.

    Raises UnprivilegedFault if there is none and none can be made.
    """
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if _find(wanted) is None and useradd is not None:
        # Fails if another engine makes it at this moment, or if /etc is read-only: what exists afterwards decides.
        subprocess.run(  # noqa: S603 - a constant command
            [*f"{useradd} --system --user-group --no-create-home --home-dir /nonexistent".split(), *SHELL, wanted],
            capture_output=True,
            timeout=_USERADD_SECONDS,
            check=False,
        )
    for name in (wanted, *_FALLBACKS):
        entry = _find(name)
        if entry is not None and entry.pw_uid != 0:
            return entry
    raise UnprivilegedFault(
        f"there is no account to run as: run `useradd --system {wanted}`, or start the engine as an ordinary user"
    )


def _find(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def let_in(directory: Path, uid: int, gid: int) -> None:
    """Give the account search permission on directory and each of its parents that lacks it.

    Raises UnprivilegedFault where the file system takes no ACL.
    """
    directory = Path(os.path.realpath(directory))
    for place in (*reversed(directory.parents), directory):
        entries = _read(place)
        if _may_search(entries, place.stat(), uid, gid):
            continue
        try:
            os.setxattr(place, _XATTR, _encode(_with_search(entries, uid)))
        except OSError as fault:
            raise UnprivilegedFault(
                f"the account {pwd.getpwuid(uid).pw_name} may not enter {place} "
                f"({os.strerror(fault.errno or 0)}): use another FLASHSALE_DATA_DIR, or `chmod o+x {place}`"
            ) from fault


def hand_over(place: Path, uid: int, gid: int) -> None:
    """The directory and all in it belong to the account."""
    for directory, _, names in os.walk(place):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            os.chown(path, uid, gid, follow_symlinks=False)


def _read(place: Path) -> list[Entry]:
    """The directory's ACL; the three entries that its mode stands for if it has none."""
    try:
        raw = os.getxattr(place, _XATTR)
    except OSError as fault:
        if fault.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
        mode = stat.S_IMODE(place.stat().st_mode)
        return [
            (_USER_OBJ, mode >> 6 & 7, _NO_ID),
            (_GROUP_OBJ, mode >> 3 & 7, _NO_ID),
            (_OTHER, mode & 7, _NO_ID),
        ]
    return [struct.unpack_from("<HHI", raw, at) for at in range(4, len(raw), 8)]


def _may_search(entries: list[Entry], status: os.stat_result, uid: int, gid: int) -> bool:
    """What acl(5) would decide for an account whose only group is gid."""
    mask = next((permissions for tag, permissions, _ in entries if tag == _MASK), 7)
    in_group = False
    for tag, permissions, owner in entries:
        if tag == _USER_OBJ and status.st_uid == uid:
            return bool(permissions & _SEARCH)
        if tag == _USER and owner == uid:
            return bool(permissions & mask & _SEARCH)
        if (tag == _GROUP_OBJ and status.st_gid == gid) or (tag == _GROUP and owner == gid):
            in_group = True
            if permissions & mask & _SEARCH:
                return True
        if tag == _OTHER:
            return not in_group and bool(permissions & _SEARCH)
    return False


def _with_search(entries: list[Entry], uid: int) -> list[Entry]:
    """The same ACL with search for one user more.

    A mask that shuts everything out (after a chmod, say) is raised by the search bit; the owning group and other named
    entries are cut to what the old mask left them, so that nobody else gains by it.
    """
    mask = next((permissions for tag, permissions, _ in entries if tag == _MASK), None)
    kept = []
    for tag, permissions, owner in entries:
        if tag == _MASK or (tag == _USER and owner == uid):
            continue
        if mask is not None and tag in (_USER, _GROUP_OBJ, _GROUP):
            permissions &= mask
        kept.append((tag, permissions, owner))
    kept.append((_USER, _SEARCH, uid))
    wide = _SEARCH
    for tag, permissions, _ in kept:
        if tag in (_USER, _GROUP_OBJ, _GROUP):
            wide |= permissions
    kept.append((_MASK, wide, _NO_ID))
    return sorted(kept, key=lambda entry: (entry[0], entry[2]))


def _encode(entries: list[Entry]) -> bytes:
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
