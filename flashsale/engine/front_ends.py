"""`flashsale serve` with several processes: front ends alone, on servers that somebody else runs."""

from __future__ import annotations

import asyncio
import os
import signal

from flashsale.engine.parts import DRAIN_GRACE_S, Backoff, OwnPart, exited, log, stopped
from flashsale.engine.watch import Watch
from flashsale.settings import ENV_PREFIX, Settings


class FrontEnds:
    """The front ends of one `flashsale serve`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._watch = Watch(lambda _: settings.front_silent_s)
        env = {**os.environ, f"{ENV_PREFIX}PROCESSES": "1", **self._watch.environment(settings.front_silent_s)}
        self._fronts = [OwnPart(f"front {number}", ["serve"], env, None) for number in range(1, settings.processes + 1)]

    async def run(self) -> None:
        """Keep them running until SIGINT or SIGTERM; return when they have drained."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        keepers = [asyncio.create_task(self._keep_running(front)) for front in self._fronts]
        keepers.append(asyncio.create_task(self._watch.run(self._fronts, tuple)))
        await stop.wait()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        drained_at = asyncio.get_running_loop().time() + self._settings.drain_timeout_s + DRAIN_GRACE_S
        await asyncio.gather(*(stopped(front, (signal.SIGTERM, drained_at)) for front in self._fronts))

    async def _keep_running(self, front: OwnPart) -> None:
        backoff = Backoff()
        while True:
            try:
                front.spawn()
                await exited(front)
                log.warning("part.died", name=front.name)
            except OSError as fault:  # no process or no descriptor left: that may pass
                log.error("part.not_started", name=front.name, error=str(fault))
            await backoff.wait()
