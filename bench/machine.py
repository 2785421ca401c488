"""The machine under the figures: its two cores, processes pinned to them, their CPU time, the programs it must have.

Linux: relies on /proc and sched_setaffinity. CPU times are the kernel's utime + stime, in clock ticks of 10 ms, so a
window of several seconds is exact to well below a percent.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

FRONT_CORE = 0  # the server under test: a front process, the ordinary way, nginx
OTHER_CORE = 1  # whatever it talks to: Valkey, PostgreSQL, the ledger writer, and the load generator
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
POLL_S = 0.02  # how often a condition is asked for while it is waited for
STOP_S = 30  # a server told to stop is killed after this

# Debian packages that the bench needs, by the program that each brings.
PROGRAMS = {"wrk": "wrk", "nginx": "nginx-light", "redis-benchmark": "redis-tools"}


class BenchFault(Exception):
    """What was measured is no measurement: wrong answers, lost orders, a server that does not start."""


def say(text: str) -> None:
    """Progress goes to stderr; stdout is the table's and the JSON's."""
    print(text, file=sys.stderr, flush=True)


def install_missing() -> None:
    """Installs the programs that are not there with apt, and says so. Raises BenchFault where that is not possible."""
    missing = sorted({package for program, package in PROGRAMS.items() if program_path(program) is None})
    if not missing:
        return
    if os.geteuid() != 0:
        raise BenchFault(f"not installed: {', '.join(missing)}; as root: apt-get install {' '.join(missing)}")
    say(f"installing {', '.join(missing)} with apt-get: the bench needs them")
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-qq"], stdout=sys.stderr, check=True)
        subprocess.run(command, stdout=sys.stderr, check=True)


def program_path(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def require_two_cores() -> None:
    if not {FRONT_CORE, OTHER_CORE} <= os.sched_getaffinity(0):
        raise BenchFault(f"the bench pins processes to the cores {FRONT_CORE} and {OTHER_CORE}: both must be usable")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Returns once the condition holds; raises BenchFault, naming `what`, when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchFault(f"{what}: not within {seconds:.0f} s")
        time.sleep(POLL_S)


def listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# --- processes -------------------------------------------------------------------------------------------------------


def spawn(command: Iterable[str], core: int, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a program on one core (its children inherit it), its output in a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def pin(pids: Iterable[int], core: int) -> None:
    """Moves processes, with all their threads and living children, to a core."""
    for pid in pids:
        for one in (pid, *children(pid)):
            with suppress(ProcessLookupError, FileNotFoundError):
                for thread in os.listdir(f"/proc/{one}/task"):
                    os.sched_setaffinity(int(thread), {core})


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def cpu_s(pid: int) -> float:
    """User and system time of a process, of its living children, and of those it has waited for, in seconds."""
    total = sum(_stat_times(pid))
    for child in children(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += sum(_stat_times(child))
    return total


def _stat_times(pid: int) -> tuple[float, ...]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return tuple(int(field) * TICK_S for field in fields[11:15])  # utime, stime, cutime, cstime
