"""`flashsale up`: starts every part of the engine, starts a dead one again, and stops them in order.

Valkey and PostgreSQL are embedded.py's; the worker and each front end are this program again (`flashsale worker`,
`flashsale serve`). Every process is forked by the main thread (tether.py says why). DATA_DIR/run.json tells the other
commands what runs; the ledger keeps nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Literal, TextIO

import structlog

from flashsale import runfile, secret, tether
from flashsale.embedded import REPAIRS_MAX, PostgresServer, ServerDied, ServerFault, ValkeyServer
from flashsale.parts import (
    DRAIN_GRACE_S,
    KILLED_WITHIN_S,
    Backoff,
    OwnPart,
    Part,
    exited,
    living,
    name_of,
    reachable,
    stopped,
)
from flashsale.payments_sandbox import PaymentsSandbox
from flashsale.settings import ENV_PREFIX, Settings

log = structlog.get_logger("flashsale.supervisor")

FALSE_STARTS_MAX = 3  # deaths of our own parts before the engine was ever ready: then `up` gives up
READY_POLL_S = 0.02
READY_ANSWERS_A_FRONT = 4  # /readyz in a row, each on a new connection: the kernel spreads them over the front ends
NOT_READY_REPORT_S = 10.0
HTTP_TIMEOUT_S = 2.0
LEFTOVER_WITHIN_S = 3.0

# Stopping may take 20 s. Each part's end is counted from the signal, not from the end of the part before it, so that
# whatever hangs, they are not added up: PostgreSQL, the last, is asked in any case. 2 s are a busy machine's.
CANCELLED_WITHIN_S = 0.5  # our own tasks; what they hang on is stopped next
PATIENCE_S = 2.5  # with worker and Valkey, once asked
WORKER_GONE_BY_S = 13.0
VALKEY_GONE_BY_S = 15.0
POSTGRES_FAST_BY_S = 16.5  # its checkpoint; then it must replay its log at the next start
POSTGRES_GONE_BY_S = 17.5


class SupervisorFault(Exception):
    """The engine can't run; one line that says why."""


class Supervisor:
    """One engine on one data directory and one port."""

    def __init__(self, settings: Settings, say: Callable[[str], None], parts_log: TextIO | None = None) -> None:
        """say: prints a line for whoever started us. parts_log: where the parts log to; None: our stderr."""
        self.settings = settings
        self.url = f"http://{reachable(settings.host)}:{settings.port}"
        self._say = say
        self._data_dir = settings.data_dir
        self._held: list[object] = []  # the locks on directory and port: open as long as we live
        self._stopping = False
        self._was_ready = False
        self._false_starts = 0
        self._keepers: list[asyncio.Task[None]] = []
        self.valkey = (
            ValkeyServer(self._data_dir / "valkey", _embedded_durability(settings), settings.maxmemory_mb)
            if settings.redis_url is None
            else None
        )
        self.postgres = PostgresServer(self._data_dir / "postgres") if settings.database_url is None else None
        env = self._env = self._environment()
        self.sandbox = PaymentsSandbox(settings, env, parts_log) if settings.payments_url is None else None
        self.worker = OwnPart("worker", ["worker", "--rebuild"], env, parts_log)
        self.fronts = [
            OwnPart(f"front {number}", ["serve"], env, parts_log) for number in range(1, settings.processes + 1)
        ]

    def _environment(self) -> dict[str, str]:
        """What our own parts read their settings from: ours, with what the command line changed."""
        settings = self.settings
        changed = {
            "port": settings.port,
            "host": settings.host,
            "data_dir": settings.data_dir,
            "processes": 1,
            "durability": settings.durability,
        }
        return {
            **os.environ,
            **{f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in changed.items()},
            "PROMETHEUS_MULTIPROC_DIR": str(self._data_dir / "metrics"),
        }

    @property
    def redis_url(self) -> str:
        """Where Valkey listens."""
        return self.settings.redis_url or (self.valkey.url if self.valkey else "")

    @property
    def database_url(self) -> str:
        """Where PostgreSQL listens; carries its password."""
        return self.settings.database_url or (self.postgres.url if self.postgres else "")

    # -- the life of an engine, in its order ---------------------------------------------------------------------------

    async def run(self, when_ready: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> int:
        """Start everything, keep it running until SIGINT, SIGTERM or SIGHUP, stop it. The exit status.

        when_ready: entered once /readyz is 200, left before anything is stopped (announcement, live status).
        Raises SupervisorFault, ServerFault and the like where the engine can't start; nothing is left running then.
        """
        self._claim()
        signals = asyncio.Queue[int]()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup's wish
            loop.add_signal_handler(number, signals.put_nowait, number)
        serving = asyncio.create_task(self._serve(when_ready))
        asked = asyncio.create_task(signals.get())
        try:
            await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping = True
            serving.cancel()
            asked_again = asyncio.create_task(signals.get())
            stopping = asyncio.create_task(self._stop(serving))
            await asyncio.wait({stopping, asked_again}, return_when=asyncio.FIRST_COMPLETED)
            at_once = not stopping.done()
            if at_once:
                self._kill_all()
            asked.cancel()
            asked_again.cancel()
            stopping.cancel()
            await asyncio.gather(stopping, serving, asked, asked_again, return_exceptions=True)
        if not serving.cancelled() and (fault := serving.exception()) is not None:
            raise fault
        return 1 if at_once else 0

    def _claim(self) -> None:
        """The data directory and the port are ours alone from here on, and nothing of an earlier engine runs."""
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Held open for life: the lock goes with the process, however it ends.
            lock = (self._data_dir / "lock").open("a")
        except OSError as fault:
            raise SupervisorFault(f"the data directory {self._data_dir} can't be used: {fault.strerror}") from fault
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            lock.close()
            raise SupervisorFault(
                f"another engine runs on {self._data_dir}: stop it, or set FLASHSALE_DATA_DIR to another directory"
            ) from fault
        self._held.append(lock)
        self._end_previous()
        self._held.append(_claim_port(self.settings.host, self.settings.port))

    def _end_previous(self) -> None:
        """End what the last engine's run.json still names: pid and start time must both be those."""
        old = runfile.read(self._data_dir)
        if old is None or old["boot"] != tether.boot_id():
            return
        named: list[tuple[int | None, int | None, signal.Signals]] = [
            *((part["pid"], part["started"], signal.SIGTERM) for part in (*old["front"], *old["worker"])),
            *([(sandbox["pid"], sandbox["started"], signal.SIGTERM)] if (sandbox := old["payments_sandbox"]) else []),
            (old["valkey"]["pid"], old["valkey"]["started"], signal.SIGTERM),
            (old["postgres"]["pid"], old["postgres"]["started"], signal.SIGQUIT),
        ]
        for pid, started, sig in named:
            if pid is None or started is None or tether.start_ticks(pid) != started:
                continue
            log.warning("previous.ended", pid=pid)
            try:
                tether.end(pid, started, sig, LEFTOVER_WITHIN_S)
            except PermissionError as fault:
                raise SupervisorFault(
                    f"process {pid} of an earlier engine on {self._data_dir} still runs as another user: stop it first"
                ) from fault

    async def _serve(self, when_ready: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> None:
        await self._start_servers()
        await self._migrate()
        secret.find_or_make(self.settings)
        shutil.rmtree(self._data_dir / "metrics", ignore_errors=True)
        (self._data_dir / "metrics").mkdir(mode=0o700)
        self._record()
        if self.sandbox is not None:
            self._env |= self.sandbox.prepare()
        for part in filter(None, (self.sandbox, self.worker, *self.fronts)):
            self._spawn(part)
            self._keep(part, self._nothing_more)
        if self.valkey is not None:
            self._keep(self.valkey, self._valkey_ready)
        if self.postgres is not None:
            self._keep(self.postgres, self._postgres_ready)
        becoming_ready = asyncio.create_task(self._become_ready())
        await self._first_failure(becoming_ready)
        self._was_ready = True
        async with when_ready():
            await self._first_failure()

    async def _start_servers(self) -> None:
        """Both at once: PostgreSQL's first start and Valkey's loading are the long parts."""
        if self.postgres is not None:
            await asyncio.to_thread(self.postgres.prepare)
            self._spawn(self.postgres)
        if self.valkey is not None:
            self._spawn(self.valkey)
        else:
            await self._check_given_valkey()
        # Alembic takes as long to import as the servers take to start.
        imported = asyncio.to_thread(import_module, "flashsale.ledger.migrate")
        await asyncio.gather(self._valkey_ready(), self._postgres_ready(), imported)

    async def _check_given_valkey(self) -> None:
        """One that would evict holds, or forget answered orders, is refused before anything starts on it."""
        from redis.exceptions import RedisError

        from flashsale.reservation import server

        client = server.connect(self.redis_url)
        try:
            lacking = await server.shortcomings(client, self.settings.durability, self.settings.backlog_max_bytes)
        except (RedisError, OSError) as fault:
            raise SupervisorFault(f"the Valkey of FLASHSALE_REDIS_URL can't be reached: {fault}") from fault
        finally:
            await client.aclose()
        if lacking:
            raise SupervisorFault("the Valkey of FLASHSALE_REDIS_URL is refused: " + "; ".join(lacking))

    async def _valkey_ready(self) -> None:
        """Wait until Valkey answers; a log that it refuses is repaired and loaded again."""
        if self.valkey is None:
            return
        for _ in range(REPAIRS_MAX):
            try:
                return await asyncio.to_thread(self.valkey.wait_ready)
            except ServerDied:
                if self._stopping or not await asyncio.to_thread(self.valkey.repair):
                    raise
                self._spawn(self.valkey)
        await asyncio.to_thread(self.valkey.wait_ready)

    async def _postgres_ready(self) -> None:
        if self.postgres is not None:
            await asyncio.to_thread(self.postgres.wait_ready)

    async def _nothing_more(self) -> None:
        """A part of our own says by /readyz when it is ready."""

    async def _migrate(self) -> None:
        from flashsale.ledger.migrate import migrate

        try:
            await migrate(self.database_url)
        except Exception as fault:
            text = " ".join(str(fault).split())
            raise SupervisorFault(f"the ledger can't be migrated: {type(fault).__name__}: {text}") from fault

    async def _become_ready(self) -> None:
        """The demo sale is there and every front end takes orders. No time limit: a rebuild may run for minutes."""
        await self._make_demo_sale()
        wanted = READY_ANSWERS_A_FRONT * self.settings.processes if self.settings.processes > 1 else 1
        in_a_row = 0
        report_at = time.monotonic() + NOT_READY_REPORT_S
        while in_a_row < wanted:
            status, body = await _get(self.settings.host, self.settings.port, "/readyz")
            in_a_row = in_a_row + 1 if status == 200 else 0
            if status != 200:
                if time.monotonic() > report_at:
                    log.warning("up.not_ready", status=status, answer=body[:1000])
                    report_at += NOT_READY_REPORT_S
                await asyncio.sleep(READY_POLL_S)

    async def _make_demo_sale(self) -> None:
        """As soon as the worker has verified Valkey against the ledger; a part that is away for a moment comes back."""
        from redis.exceptions import RedisError

        from flashsale.ledger.pool import connect
        from flashsale.merchandising import CommandRefused, ensure_demo_sale
        from flashsale.reservation import server

        client = server.connect(self.redis_url)
        report_at = time.monotonic() + NOT_READY_REPORT_S
        try:
            while True:
                try:
                    ledger = await connect(self.database_url)
                    try:
                        if await ensure_demo_sale(client, ledger):
                            log.info("demo_sale.made")
                        return
                    finally:
                        await ledger.close()
                except (CommandRefused, RedisError, OSError) as fault:
                    if time.monotonic() > report_at:
                        log.warning("up.not_ready", reason=str(fault))
                        report_at += NOT_READY_REPORT_S
                await asyncio.sleep(READY_POLL_S)
        finally:
            await client.aclose()

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _spawn(self, part: Part) -> None:
        part.spawn()
        assert part.process is not None  # noqa: S101 - spawn() made it
        log.info("part.started", name=name_of(part), pid=part.process.pid)
        self._record()

    def _keep(self, part: Part, ready: Callable[[], Awaitable[None]]) -> None:
        self._keepers.append(asyncio.create_task(self._keep_running(part, ready)))

    async def _keep_running(self, part: Part, ready: Callable[[], Awaitable[None]]) -> None:
        """Start the part again whenever it dies, for ever; before the engine was ever ready, a few times."""
        backoff = Backoff()
        while True:
            await exited(part)
            assert part.process is not None  # noqa: S101 - it has exited
            log.warning("part.died", name=name_of(part), pid=part.process.pid, status=part.process.returncode)
            self._record()
            self._count_false_start(part)
            await backoff.wait()
            try:
                self._spawn(part)
                await ready()
            except (ServerFault, OSError) as fault:
                log.error("part.not_started", name=name_of(part), error=str(fault))

    def _count_false_start(self, part: Part) -> None:
        if self._was_ready or not isinstance(part, OwnPart) or part.process is None:
            return
        self._false_starts += 1
        if self._false_starts >= FALSE_STARTS_MAX:
            raise SupervisorFault(
                f"{part.name} ended with status {part.process.returncode} before the engine was ready: see its log"
            )

    async def _first_failure(self, until: asyncio.Task[None] | None = None) -> None:
        """Return when `until` is done; raise what it or a keeper raised. Without it: keep on until cancelled."""
        waiting = {*self._keepers, *([until] if until else [])}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            if until is not None and not until.done():
                until.cancel()

    def _record(self) -> None:
        """Write run.json: what runs now."""
        runfile.write(
            self._data_dir,
            {
                "boot": tether.boot_id(),
                "supervisor": {"pid": os.getpid(), "started": tether.start_ticks(os.getpid()) or 0},
                "front": [
                    {"pid": pid, "started": started, "port": self.settings.port}
                    for part in self.fronts
                    for pid, started in living(part)
                ],
                "worker": [
                    {"pid": pid, "started": started, "name": self.worker.name} for pid, started in living(self.worker)
                ],
                "valkey": _server_record(self.valkey, self.redis_url),
                "postgres": _server_record(self.postgres, self.database_url),
                "payments_sandbox": self.sandbox.record() if self.sandbox is not None else None,
            },
        )

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _stop(self, serving: asyncio.Task[None]) -> None:
        """Front ends (they drain), worker, sandbox, Valkey, PostgreSQL: each is gone before the next is asked."""
        clock = asyncio.get_running_loop().time
        began = clock()
        for keeper in self._keepers:
            keeper.cancel()
        ended = asyncio.gather(*self._keepers, serving, return_exceptions=True)
        await asyncio.wait({ended}, timeout=CANCELLED_WITHIN_S)
        drained_at = began + self.settings.drain_timeout_s + DRAIN_GRACE_S
        await asyncio.gather(*(stopped(front, (signal.SIGTERM, drained_at)) for front in self.fronts))
        for part in filter(None, (self.worker, self.sandbox)):
            await stopped(part, (signal.SIGTERM, min(clock() + PATIENCE_S, began + WORKER_GONE_BY_S)))
        if self.valkey is not None:
            await stopped(self.valkey, (signal.SIGTERM, min(clock() + PATIENCE_S, began + VALKEY_GONE_BY_S)))
        if self.postgres is not None:
            fast, at_once = (signal.SIGINT, began + POSTGRES_FAST_BY_S), (signal.SIGQUIT, began + POSTGRES_GONE_BY_S)
            await stopped(self.postgres, fast, at_once)
            self._end_orphans(self.postgres)
        for server in (self.valkey, self.postgres):
            if server is not None:
                server.tidy()
        (self._data_dir / runfile.NAME).unlink(missing_ok=True)

    def _kill_all(self) -> None:
        """A second signal: nobody waits any more. PostgreSQL gets its immediate shutdown, so that its children go."""
        for part in (*self.fronts, self.worker, self.sandbox, self.valkey):
            if part is not None and part.process is not None and part.process.poll() is None:
                part.process.kill()
                part.process.wait()
        if self.postgres is not None and self.postgres.process is not None and self.postgres.process.poll() is None:
            self.postgres.process.send_signal(signal.SIGQUIT)
            try:
                self.postgres.process.wait(KILLED_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.postgres.process.kill()
                self.postgres.process.wait()
            self._end_orphans(self.postgres)

    def _end_orphans(self, postgres: PostgresServer) -> None:
        """PostgreSQL's own processes end with it, unless they hang."""
        for pid, started in tether.living_in(postgres.directory, postgres.program):
            log.warning("part.killed", name="postgres", pid=pid)
            tether.send(pid, started, signal.SIGKILL)


def _server_record(server: Part | None, address: str) -> runfile.Server:
    pid, started = next(iter(living(server)), (None, None)) if server is not None else (None, None)
    return {"pid": pid, "started": started, "address": address}


def _embedded_durability(settings: Settings) -> Literal["memory", "fsync"]:
    return "memory" if settings.durability == "memory" else "fsync"


def _claim_port(host: str, port: int) -> socket.socket:
    """Prove that the port is free and keep other engines off it; hold on to the answer.

    The front ends share the port by SO_REUSEPORT, so they would join anybody's: one bind without it tells. Between that
    bind and theirs a name in the kernel's abstract namespace, which dies with us, keeps a second engine out.
    """
    elsewhere = "or set FLASHSALE_PORT to another port"
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0flashsale-port-{port}")
    except OSError as fault:
        claim.close()
        raise SupervisorFault(f"another engine runs on port {port}: stop it, {elsewhere}") from fault
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as fault:
        raise SupervisorFault(f"the host {host} can't be listened on: {fault.strerror}; see FLASHSALE_HOST") from fault
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last engine may linger
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as fault:
                if fault.errno == errno.EADDRINUSE:
                    raise SupervisorFault(f"port {port} is in use: stop the other program, {elsewhere}") from fault
                raise SupervisorFault(f"{host}:{port} can't be listened on: {fault.strerror}") from fault
    return claim


async def _get(host: str, port: int, path: str) -> tuple[int, str]:
    """(status, body) of a GET on a connection of its own; status 0 where nobody answers."""
    try:
        async with asyncio.timeout(HTTP_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(reachable(host).strip("[]"), port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {reachable(host)}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read(64 * 1024)
            finally:
                writer.close()
    except (OSError, TimeoutError) as fault:
        return 0, str(fault) or type(fault).__name__
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 2 and words[1].isdigit() else 0
    return status, body.decode("utf-8", "replace")
