"""`flashsale up`: starts every part of the engine, starts a dead one again, and stops them in order.

Valkey and PostgreSQL are `embedded`'s; the worker and each front end are this program again (`flashsale worker`,
`flashsale serve`). Every process is forked by the main thread (tether.py says why). DATA_DIR/run.json tells the other
commands what runs; the ledger keeps nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine
from importlib import import_module
from typing import TextIO

import structlog

from flashsale import metrics_files, runfile, secret
from flashsale.embedded import REPAIRS_MAX, ServerDied
from flashsale.embedded.server import Server
from flashsale.engine import readiness, service_account, stopping
from flashsale.engine.claim import claim
from flashsale.engine.faults import SupervisorFault
from flashsale.engine.parts import Backoff, OwnPart, Part, exited, name_of, pid_of, status_of
from flashsale.engine.roster import Roster
from flashsale.engine.watch import Watch
from flashsale.settings import Settings, reachable

log = structlog.get_logger("flashsale.supervisor")

FALSE_STARTS_MAX = 3  # parts that ended before they began, while the engine was never ready: then `up` gives up
RECORD_AGAIN_S = 1.0  # a run.json that could not be written is tried again
ROOM_LOOK_S = 1.0  # a server that its full disk ended waits for room
CANCELLED_WITHIN_S = 0.5  # our own tasks at the end; what they hang on is stopped next


class Supervisor:
    """One engine on one data directory and one port."""

    def __init__(
        self, settings: Settings, say: Callable[[str], None], parts_log: TextIO | None = None, *, demo: bool
    ) -> None:
        """say: prints a line for whoever started us. parts_log: where the parts log to; None: our stderr. demo: whether
        there is to be a demo sale."""
        self._demo = demo
        self.settings = settings
        self.url = f"http://{reachable(settings.host)}:{settings.port}"
        self.parts = Roster(settings, parts_log)
        self._say = say
        self._data_dir = settings.data_dir
        self._watch = Watch(self._silent_s)
        self._answering: set[Server] = set()  # servers that were ready since they were started
        self._recorded = True
        self._held: list[object] = []  # the locks on directory and port: open as long as we live
        self._stopping = False
        self._was_ready = False
        self._false_starts = 0
        self._keepers: list[asyncio.Task[None]] = []

    # -- the life of an engine, in its order ---------------------------------------------------------------------------

    async def run(self, when_ready: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> int:
        """Start everything, keep it running until SIGINT, SIGTERM or SIGHUP, stop it. The exit status.

        when_ready: entered once /readyz is 200, left before anything is stopped (announcement, live status).
        Raises SupervisorFault, ServerFault and the like where the engine can't start; nothing is left running then.
        """
        self._held += claim(self.settings)
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
            ending = asyncio.create_task(self._stop(serving))
            await asyncio.wait({ending, asked_again}, return_when=asyncio.FIRST_COMPLETED)
            at_once = not ending.done()
            if at_once:
                stopping.kill_all(self.parts)
            asked.cancel()
            asked_again.cancel()
            ending.cancel()
            await asyncio.gather(ending, serving, asked, asked_again, return_exceptions=True)
        if not serving.cancelled() and (fault := serving.exception()) is not None:
            raise fault
        return 1 if at_once else 0

    async def _serve(self, when_ready: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> None:
        try:
            owner = await asyncio.to_thread(service_account.found, self.settings)
            if owner is not None:
                self.parts.run_as(owner)
        except service_account.NoServiceAccount as fault:
            log.warning("parts.run_as_root", why=str(fault))
        await self._start_servers()
        self._keepers.append(asyncio.create_task(self._look_around()))
        await self._unless_a_keeper_fails(readiness.migrated(self.parts.database_url, self.parts.postgres))
        secret.find_or_make(self.settings)
        self.parts.prepare()
        self._record()
        for part in self.parts.own():
            part.tell(self._watch.environment(self._silent_s(part)))
            self._spawn(part)
            self._keep(part, self._nothing_more)
        await self._unless_a_keeper_fails(
            readiness.become_ready(self.settings, self.parts.redis_url, self.parts.database_url, demo=self._demo)
        )
        self._was_ready = True
        async with when_ready():
            await self._unless_a_keeper_fails()

    async def _start_servers(self) -> None:
        """Both at once: PostgreSQL's first start and Valkey's loading are the long parts."""
        valkey, postgres = self.parts.valkey, self.parts.postgres
        if valkey is None:
            await readiness.check_given_valkey(self.settings)
        if postgres is not None:
            await asyncio.to_thread(postgres.prepare)
        ready = []
        for server, until_ready in ((postgres, self._postgres_ready), (valkey, self._valkey_ready)):
            if server is not None:
                self._spawn(server)
                ready.append(self._keep(server, until_ready))

        async def all_ready() -> None:
            # Alembic takes as long to import as the servers take to start.
            await asyncio.to_thread(import_module, "flashsale.ledger.migrate")
            for each in ready:
                await each.wait()

        await self._unless_a_keeper_fails(all_ready())

    async def _valkey_ready(self) -> None:
        """Wait until Valkey answers; a log that it refuses is repaired and loaded again."""
        valkey = self.parts.valkey
        if valkey is None:
            return
        for _ in range(REPAIRS_MAX):
            try:
                return await asyncio.to_thread(valkey.wait_ready)
            except ServerDied:
                if self._stopping or not await asyncio.to_thread(valkey.repair):
                    raise
                self._spawn(valkey)
        await asyncio.to_thread(valkey.wait_ready)

    async def _postgres_ready(self) -> None:
        if self.parts.postgres is not None:
            await asyncio.to_thread(self.parts.postgres.wait_ready)

    async def _nothing_more(self) -> None:
        """A part of our own says by /readyz when it is ready."""

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _spawn(self, part: Part) -> None:
        part.spawn()
        assert part.process is not None  # noqa: S101 - spawn() made it
        log.info("part.started", name=name_of(part), pid=part.process.pid)
        self._record()

    def _keep(self, part: Part, until_ready: Callable[[], Awaitable[None]]) -> asyncio.Event:
        """Keep a part running that was started; the answer is set when it is ready for the first time."""
        was_ready = asyncio.Event()
        self._keepers.append(asyncio.create_task(self._keep_running(part, until_ready, was_ready)))
        return was_ready

    async def _keep_running(
        self, part: Part, until_ready: Callable[[], Awaitable[None]], was_ready: asyncio.Event
    ) -> None:
        """Start the part again whenever it dies, for ever; before the engine was ever ready, a few times.

        Whatever stands in the way (a full disk, no process or descriptor left) may pass: it is said, and tried again.
        """
        backoff = Backoff()
        while True:
            fault: Exception | None = None
            try:
                await until_ready()
                if isinstance(part, Server):
                    self._answering.add(part)
                was_ready.set()
                await exited(part)
                log.warning("part.died", name=name_of(part), pid=pid_of(part), status=status_of(part))
            except Exception as error:  # see above
                log.error("part.not_started", name=name_of(part), error=str(error) or type(error).__name__)
                fault = error
            self._count_false_start(part, fault)
            if isinstance(part, Server):
                self._answering.discard(part)
            self._record()
            await backoff.wait()
            await self._start_again(part, backoff)

    async def _start_again(self, part: Part, backoff: Backoff) -> None:
        """Return when the part's process is started."""
        while True:
            try:
                if isinstance(part, Server):
                    await self._room(part)
                return self._spawn(part)
            except Exception as fault:  # nothing of what a start needs is there for certain
                log.error("part.not_started", name=name_of(part), error=str(fault) or type(fault).__name__)
                self._count_false_start(part, fault)
            await backoff.wait()

    async def _room(self, server: Server) -> None:
        """Return when the server's files can grow: it would take orders only to leave them without an answer."""
        said = False
        while (why := await asyncio.to_thread(server.no_room)) is not None:
            if not said:
                log.error("server.waits_for_room", name=name_of(server), directory=str(server.directory), error=why)
                said = True
            await asyncio.sleep(ROOM_LOOK_S)

    def _count_false_start(self, part: Part, fault: Exception | None) -> None:
        begun = self._watch.begun(part) if isinstance(part, OwnPart) else part in self._answering
        if self._was_ready or begun:
            return
        self._false_starts += 1
        if self._false_starts >= FALSE_STARTS_MAX:
            if fault is not None:
                raise fault
            raise SupervisorFault(
                f"{name_of(part)} ended with status {status_of(part)} before the engine was ready: see its log"
            )

    async def _unless_a_keeper_fails(self, work: Coroutine[None, None, None] | None = None) -> None:
        """Return when `work` is done; raise what it or a keeper raised. Without it: keep on until cancelled."""
        until = None if work is None else asyncio.create_task(work)
        waiting = {*self._keepers, *([until] if until else [])}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            if until is not None and not until.done():
                until.cancel()

    async def _look_around(self) -> None:
        """Replace what hangs, and write what could not be written, for ever."""
        watching = asyncio.create_task(self._watch.run(tuple(self.parts.own()), lambda: tuple(self._answering)))
        try:
            while True:
                done, _ = await asyncio.wait({watching}, timeout=RECORD_AGAIN_S)
                if not self._recorded:
                    self._record()
                for task in done:
                    task.result()
        finally:
            watching.cancel()

    def _silent_s(self, part: Part) -> float:
        return self.settings.front_silent_s if part in self.parts.fronts else self.settings.silent_s

    def _record(self) -> None:
        """Write run.json: what runs now. Where that can't be (a full disk, say) the engine goes on, and tries again."""
        try:
            runfile.write(self._data_dir, self.parts.record())
            self._recorded = True
        except Exception as fault:  # what is only said ends nothing
            if self._recorded:
                log.warning("run_json.not_written", error=str(fault) or type(fault).__name__)
            self._recorded = False

    async def _stop(self, serving: asyncio.Task[None]) -> None:
        """Our own tasks, then every part, in order."""
        began = asyncio.get_running_loop().time()
        for keeper in self._keepers:
            keeper.cancel()
        ended = asyncio.gather(*self._keepers, serving, return_exceptions=True)
        await asyncio.wait({ended}, timeout=CANCELLED_WITHIN_S)
        await stopping.stop_in_order(self.parts, began)
        metrics_files.remove(self._data_dir)
        with contextlib.suppress(OSError):
            (self._data_dir / runfile.NAME).unlink(missing_ok=True)
