"""Real servers for every test: Valkey and PostgreSQL from the wheels, Debian's Redis 7, and the whole engine.

Servers live as long as the session and are emptied between tests; a test that kills or breaks one asks for its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import redis
import structlog

from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.settings import misspelt

FLASHSALE = Path(sys.executable).with_name("flashsale")
READY_WITHIN_S = 60

# The default shows every local of every frame, which takes seconds for a traceback out of the hot path.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)
REDIS_SERVER = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Temporary files of a session's own, removed at its end. In /tmp/pytest-of-USER, which every session shares, the
    next one's start takes away the ACL entries by which PostgreSQL's account reaches the data of this one."""
    if config.option.basetemp is None:
        own = Path(tempfile.mkdtemp(prefix="flashsale-tests-"))
        config.option.basetemp = str(own / "t")
        config.add_cleanup(lambda: shutil.rmtree(own, ignore_errors=True))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The tests' own variables (sizes, seeds, corpora) are read by now. The engine knows none of them, and would say so
    in every command that a test runs."""
    for name in misspelt(os.environ):
        del os.environ[name]


def _emptied(server: ValkeyServer) -> ValkeyServer:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.script_flush()
        client.function_flush()
    return server


@pytest.fixture(scope="session")
def _valkey_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _valkey_memory_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path_factory.mktemp("valkey-memory"), durability="memory")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _redis7_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    assert REDIS_SERVER, "Redis 7 is missing: scripts/test installs Debian's redis-server"
    server = ValkeyServer(tmp_path_factory.mktemp("redis7"), durability="memory", binary=Path(REDIS_SERVER))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def valkey(_valkey_session: ValkeyServer) -> ValkeyServer:
    """An empty Valkey 9, `appendfsync always`; `.url`, `.pid`."""
    return _emptied(_valkey_session)


@pytest.fixture
def valkey_memory(_valkey_memory_session: ValkeyServer) -> ValkeyServer:
    """An empty Valkey 9 without a log."""
    return _emptied(_valkey_memory_session)


@pytest.fixture
def redis7(_redis7_session: ValkeyServer) -> ValkeyServer:
    """An empty Redis 7 (Debian's), without a log."""
    return _emptied(_redis7_session)


@pytest.fixture(params=["valkey9", "redis7"])
def either_valkey(request: pytest.FixtureRequest) -> ValkeyServer:
    """The test runs twice: on an empty Valkey 9 and on an empty Redis 7, both without a log."""
    return request.getfixturevalue("valkey_memory" if request.param == "valkey9" else "redis7")


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Callable[..., ValkeyServer]]:
    """Makes Valkeys of the test's own, to be killed and broken: `own_valkey("name", durability=…)`, not started."""
    made: list[ValkeyServer] = []

    def make(name: str = "valkey", **settings: object) -> ValkeyServer:
        made.append(ValkeyServer(tmp_path / name, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        server.kill()
        server.tidy()


@pytest.fixture(scope="session")
def _postgres_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path_factory.mktemp("postgres") / "data")
    server.start()
    yield server
    server.stop()


_databases = itertools.count(1)


def _execute(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    # A loop of its own, in a thread of its own: fixtures may run inside the test's loop.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, run()).result()


@pytest.fixture
def postgres(_postgres_session: PostgresServer) -> Iterator[str]:
    """URL of a fresh, empty database."""
    yield from _database(_postgres_session, template="template0")


@pytest.fixture(scope="session")
def _ledger_template(_postgres_session: PostgresServer) -> str:
    from flashsale.ledger.migrate import migrate

    name = "ledger_template"
    _execute(_postgres_session.url, f"CREATE DATABASE {name}")
    outcome = migrate(_database_url(_postgres_session, name))
    if asyncio.iscoroutine(outcome):
        asyncio.run(outcome)
    return name


@pytest.fixture
def ledger(_postgres_session: PostgresServer, _ledger_template: str) -> Iterator[str]:
    """URL of a fresh database with every migration applied."""
    yield from _database(_postgres_session, template=_ledger_template)


def _database(server: PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{next(_databases)}"
    _execute(server.url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _database_url(server, name)
    _execute(server.url, f"DROP DATABASE {name} WITH (FORCE)")


def _database_url(server: PostgresServer, name: str) -> str:
    return server.url.replace("@/flashsale?", f"@/{name}?")


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Callable[..., PostgresServer]]:
    """Makes PostgreSQL servers of the test's own, to be killed: `own_postgres("name")`, not started."""
    made: list[PostgresServer] = []

    def make(name: str = "postgres") -> PostgresServer:
        made.append(PostgresServer(tmp_path / name))
        return made[-1]

    yield make
    for server in made:
        server.kill()
        server.tidy()


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Engine:
    """A `flashsale up` on a data directory and port of its own, driven from outside like any shopper would."""

    def __init__(self, data_dir: Path, port: int | None = None, **environment: str) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data_dir.with_name(data_dir.name + ".out")
        self.errors = data_dir.with_name(data_dir.name + ".err")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")},
            "FLASHSALE_DATA_DIR": str(data_dir),
            "FLASHSALE_PORT": str(self.port),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Engine:
        """Start and wait for the `ready` line."""
        self.spawn()
        self.wait_for_line(f"ready {self.url}")
        return self

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start without waiting."""
        with self.output.open("wb") as output, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(FLASHSALE), "up"], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
        return self.process

    def wait_for_line(self, line: str, within_s: float = READY_WITHIN_S) -> None:
        """Return when `up` has printed this line; fails with its log if it ends before."""
        assert self.process is not None
        deadline = time.monotonic() + within_s
        while line not in self.output.read_text().splitlines():
            assert self.process.poll() is None, f"up ended with {self.process.returncode}: {self.errors.read_text()}"
            assert time.monotonic() < deadline, f"no `{line}` within {within_s} s: {self.errors.read_text()[-4000:]}"
            time.sleep(0.02)

    def wait_until_ready(self, within_s: float = READY_WITHIN_S) -> None:
        """Return when /readyz answers 200."""
        deadline = time.monotonic() + within_s
        while not self.is_ready():
            assert time.monotonic() < deadline, f"not ready within {within_s} s: {self.errors.read_text()[-4000:]}"
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Whether /readyz answers 200 now."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:  # noqa: S310 - our own http URL
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `flashsale …` against this engine."""
        done = subprocess.run(
            [str(FLASHSALE), *arguments], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def token(self, *who: str) -> str:
        """A bearer token: token("shopper", "ann") or token("admin")."""
        return self.command("token", *who).stdout.strip()

    def stop(self, within_s: float = 25) -> int:
        """SIGTERM; the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Makes engines of the test's own: `make_engine("name", FLASHSALE_PROCESSES="4")`, not started."""
    made: list[Engine] = []

    def make(name: str = "engine", port: int | None = None, **environment: str) -> Engine:
        made.append(Engine(tmp_path / name, port, **environment))
        return made[-1]

    yield make
    for engine in made:
        if engine.process is not None and engine.process.poll() is None:
            engine.process.kill()
            engine.process.wait()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One running engine that the session's tests share: make a sale of your own on it, leave `double11` alone."""
    running = Engine(tmp_path_factory.mktemp("shared") / "engine").start()
    yield running
    running.stop()
