"""`flashsale up`: starts every part of the engine, starts a dead one again, and stops them in order.

Valkey and PostgreSQL are `embedded`'s; the worker and each front end are this program again (`flashsale worker`,
`flashsale serve`). Every process is forked by the main thread (tether.py says why). DATA_DIR/run.json tells the other
commands what runs; the ledger keeps nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TextIO

import structlog

from flashsale import runfile, secret
from flashsale.embedded import REPAIRS_MAX, ServerDied, ServerFault
from flashsale.engine import readiness, stopping
from flashsale.engine.claim import claim
from flashsale.engine.faults import SupervisorFault
from flashsale.engine.parts import Backoff, OwnPart, Part, exited, name_of
from flashsale.engine.roster import Roster
from flashsale.settings import Settings, reachable

log = structlog.get_logger("flashsale.supervisor")

FALSE_STARTS_MAX = 3  # deaths of our own parts before the engine was ever ready: then `up` gives up
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
        await self._start_servers()
        await readiness.migrated(self.settings, self.parts.database_url)
        secret.find_or_make(self.settings)
        shutil.rmtree(self._data_dir / "metrics", ignore_errors=True)
        (self._data_dir / "metrics").mkdir(mode=0o700)
        self._record()
        self.parts.prepare_sandbox()
        for part in self.parts.own():
            self._spawn(part)
            self._keep(part, self._nothing_more)
        if self.parts.valkey is not None:
            self._keep(self.parts.valkey, self._valkey_ready)
        if self.parts.postgres is not None:
            self._keep(self.parts.postgres, self._postgres_ready)
        becoming_ready = asyncio.create_task(
            readiness.become_ready(self.settings, self.parts.redis_url, self.parts.database_url, demo=self._demo)
        )
        await self._first_failure(becoming_ready)
        self._was_ready = True
        async with when_ready():
            await self._first_failure()

    async def _start_servers(self) -> None:
        """Both at once: PostgreSQL's first start and Valkey's loading are the long parts."""
        valkey, postgres = self.parts.valkey, self.parts.postgres
        if postgres is not None:
            await asyncio.to_thread(postgres.prepare)
            self._spawn(postgres)
        if valkey is not None:
            self._spawn(valkey)
        else:
            await readiness.check_given_valkey(self.settings)
        # Alembic takes as long to import as the servers take to start.
        imported = asyncio.to_thread(import_module, "flashsale.ledger.migrate")
        await asyncio.gather(self._valkey_ready(), self._postgres_ready(), imported)

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
        runfile.write(self._data_dir, self.parts.record())

    async def _stop(self, serving: asyncio.Task[None]) -> None:
        """Our own tasks, then every part, in order."""
        began = asyncio.get_running_loop().time()
        for keeper in self._keepers:
            keeper.cancel()
        ended = asyncio.gather(*self._keepers, serving, return_exceptions=True)
        await asyncio.wait({ended}, timeout=CANCELLED_WITHIN_S)
        await stopping.stop_in_order(self.parts, began)
        (self._data_dir / runfile.NAME).unlink(missing_ok=True)
