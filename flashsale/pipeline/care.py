"""Each duty of a worker by itself: one that fails is begun anew, alone, and says so; the others never hear of it.

A server that is lost is a duty's own affair (duty.py): it waits. What comes here is everything else: an exception that
nobody foresaw, or an end that nobody asked for. The duty is made again from nothing, after a pause that grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from flashsale import metrics
from flashsale.pipeline.duty import Duty

log = structlog.get_logger(__name__)

AGAIN_S = (0.5, 60.0)  # first and longest pause before a duty that failed is begun anew
SOUND_S = 60.0  # one that has worked for so long since then is sound again
CANCELLED_WITHIN_S = 1.0  # what does not end when it is asked is cancelled; redis-py may swallow one cancellation
REASON_MAX = 200
LOOK_S = 1.0  # a duty that hangs is noticed within this of its time
LET_GO_S = 5.0  # and has this to end when it is cancelled


class Work(Protocol):
    """What a worker runs side by side: it ends soon after stop()."""

    async def run(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(slots=True)
class Health:
    """How a duty fares. `reason`: why it failed last, None while it is sound; `failures`: since it was."""

    failures: int = 0
    reason: str | None = None
    failed_at: float = 0.0


class EndedEarly(Exception):
    """A duty has come to its end unasked."""


class Hung(Exception):
    """A duty gave no sign of life for longer than a step of it may take."""


class Care:
    """Runs duties side by side until stop(). `duties` makes each, by its name, as often as it has to begin anew."""

    def __init__(
        self,
        duties: Mapping[str, Callable[[], Work]],
        again_s: tuple[float, float] = AGAIN_S,
        let_go_s: float = LET_GO_S,
    ) -> None:
        self._let_go_s = let_go_s
        self._duties = dict(duties)
        self._again_s = again_s
        self._running: dict[str, Work] = {}
        self._stopping = asyncio.Event()
        self._health = {name: Health() for name in duties}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._stuck: set[asyncio.Task[None]] = set()

    def alive(self) -> bool:
        """What the worker's sign of life stands for: no duty hangs beyond help. One that fails, waits or is begun anew
        goes on; one that was cancelled and does not end holds what it holds until the process ends."""
        self._stuck = {task for task in self._stuck if not task.done()}
        return not self._stuck

    def failing(self) -> dict[str, str]:
        """The duties that failed and have not worked soundly since, each with the reason."""
        now = time.monotonic()
        for health in self._health.values():
            if health.reason is not None and now - health.failed_at > SOUND_S + self._again_s[1]:
                health.failures, health.reason = 0, None
        return {name: health.reason for name, health in self._health.items() if health.reason is not None}

    def work_of(self, name: str) -> Work | None:
        """What is at work for that duty now."""
        return self._running.get(name)

    def stop(self) -> None:
        """Ends run(): every duty is asked to end."""
        self._stopping.set()
        for work in list(self._running.values()):
            work.stop()

    async def run(self, end_within_s: float) -> list[str]:
        """Runs every duty until stop(), then for `end_within_s` at most; returns those that did not end of themselves
        (they are cancelled), for a log line."""
        tasks = {name: asyncio.create_task(self._keep(name), name=name) for name in self._duties}
        await self._stopping.wait()
        _, late = await asyncio.wait(tasks.values(), timeout=end_within_s)
        cut = sorted(task.get_name() for task in late)
        deadline = time.monotonic() + CANCELLED_WITHIN_S
        while late and time.monotonic() < deadline:
            for task in late:
                if (life := self._lives.get(task.get_name())) is not None:
                    life.cancel()
            _, late = await asyncio.wait(late, timeout=CANCELLED_WITHIN_S / 5)
        return cut

    async def _keep(self, name: str) -> None:
        health = self._health[name]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                work = self._running[name] = self._duties[name]()
                await self._live(name, work)
                if self._stopping.is_set():
                    return
                raise EndedEarly(f"{name} has ended unasked")
            except Exception as fault:
                if self._stopping.is_set():
                    log.warning("a duty failed as it ended", duty=name, reason=reason_of(fault))
                    return
                if time.monotonic() - began > SOUND_S:
                    health.failures = 0
                pause_s = min(self._again_s[0] * 2 ** min(health.failures, 16), self._again_s[1])
                health.failures += 1
                health.reason, health.failed_at = reason_of(fault), time.monotonic()
                metrics.DUTY_FAILURES.labels(name).inc()
                log.error("a duty failed and begins anew", duty=name, again_s=pause_s, exc_info=fault)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    async def _live(self, name: str, work: Work) -> None:
        """One life of a duty. Raises what it raised, Hung where it gave no sign of life and was cancelled for it."""
        task = self._lives[name] = asyncio.create_task(work.run(), name=name)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=LOOK_S)
                silent_s = time.monotonic() - work.beat_at if isinstance(work, Duty) else 0.0
                if not task.done() and isinstance(work, Duty) and silent_s > work.silent_s:
                    raise Hung(f"{name} gave no sign of life for {silent_s:.0f} s")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=self._let_go_s)
                if not task.done():
                    self._stuck.add(task)
        if task.cancelled():
            if self._stopping.is_set():
                return
            raise EndedEarly(f"{name} was cancelled from within")
        task.result()


def reason_of(fault: BaseException) -> str:
    """An exception in a line that may be shown to whoever runs the engine."""
    words = " ".join(str(fault).split())
    return f"{type(fault).__name__}: {words}"[:REASON_MAX]


async def each_alone(things: Mapping[Any, Callable[[], Awaitable[None]]]) -> None:
    """Does each of a round's things, the later ones too where an earlier one fails; then raises the first failure."""
    first: Exception | None = None
    for thing, do in things.items():
        try:
            await do()
        except Exception as fault:
            log.warning("one of a round failed: the others go on", thing=str(thing), reason=reason_of(fault))
            first = first or fault
    if first is not None:
        raise first
