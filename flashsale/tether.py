"""Starting a process that dies with its parent, and ending one that an earlier engine left behind.

Every part of the engine is spawned here: in a session of its own (so that Ctrl-C on the terminal reaches only the
supervisor), with a parent-death signal (so that `kill -9` of the supervisor leaves nothing running). Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

KILLED = signal.SIGKILL  # for what must not outlive us
_PR_SET_PDEATHSIG = 1
_ORPHANED = 113  # exit status of a child whose parent died before the signal was armed
_POLL_S = 0.01

# Loaded before any fork: a child of a threaded process must not touch the dynamic linker.
_libc = ctypes.CDLL(None, use_errno=True)


def tie(death_signal: signal.Signals) -> Callable[[], None]:
    """For subprocess's preexec_fn: the child gets death_signal when the thread that forked it ends.

    fork_exec calls it after setsid and after the change of user, which would have cleared the signal. Safe in the
    forked child of a threaded process: it calls only prctl and getppid, both loaded before.
    """
    parent = os.getpid()

    def arm() -> None:
        if _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(_ORPHANED)

    return arm


def spawn(
    argv: Sequence[str],
    *,
    death_signal: signal.Signals,
    output: IO[bytes] | int | None,
    env: Mapping[str, str] | None = None,
    owner: tuple[int, int] | None = None,
) -> subprocess.Popen[bytes]:
    """Start argv tied to this process: when it dies, however it dies, the child gets death_signal.

    output: where stdout and stderr go (None: inherited). owner: (uid, gid) to run as; None: as ourselves.
    Call from the main thread: the kernel sends the signal when the *thread* that forked ends.
    Raises OSError where the program can't be started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn from the main thread: a parent-death signal is tied to the thread that forked")
    uid, gid = owner or (None, None)
    return subprocess.Popen(  # noqa: S603 - argv is ours
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=None if env is None else dict(env),
        user=uid,
        group=gid,
        extra_groups=None if owner is None else [],
        umask=0o077,
        cwd="/",
        start_new_session=True,
        preexec_fn=tie(death_signal),
    )


def start_ticks(pid: int) -> int | None:
    """When a live process began, in clock ticks since boot; None for one that is gone or a zombie.

    With the pid it names one process of this boot and no other.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    """The kernel's name of this boot: start ticks of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def send(pid: int, started: int, sig: signal.Signals) -> bool:
    """Signal the process that has this pid and start; False if it is gone. Never hits a pid's next owner."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if start_ticks(pid) != started:
            return False
        signal.pidfd_send_signal(handle, sig)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def end(pid: int, started: int, sig: signal.Signals, within_s: float) -> None:
    """End one process that is not our child: sig, then SIGKILL after within_s. Returns when it is gone.

    Raises PermissionError if it is another user's.
    """
    end_all([(pid, started)], sig, within_s)


def end_all(processes: Sequence[tuple[int, int]], sig: signal.Signals, within_s: float) -> None:
    """End processes (pid, start ticks) that are not our children: all are asked at once, and share within_s."""
    left = [(pid, started) for pid, started in processes if send(pid, started, sig)]
    deadline = time.monotonic() + within_s
    while left := [(pid, started) for pid, started in left if start_ticks(pid) == started]:
        if time.monotonic() > deadline:
            for pid, started in left:
                send(pid, started, signal.SIGKILL)
            deadline = time.monotonic() + within_s
        time.sleep(_POLL_S)


def living_in(directory: Path, program: str) -> list[tuple[int, int]]:
    """(pid, start ticks) of every process named program whose working directory is this one.

    Valkey and PostgreSQL (each of its processes) live in their data directory: so a stray one is found without any
    record of it. Processes that we may not look into are another user's, and not in our directory.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if Path(os.readlink(entry / "cwd")) != directory or Path(os.readlink(entry / "exe")).name != program:
                continue
        except OSError:
            continue
        started = start_ticks(int(entry.name))
        if started is not None:
            found.append((int(entry.name), started))
    return found
