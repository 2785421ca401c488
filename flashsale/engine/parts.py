"""The parts of a running engine as processes: started, watched, started again and stopped.

A part is whatever has a child process: a server of `embedded`, or this program again with another command. Every
process is forked by the main thread (tether.py says why).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Protocol, TextIO

import structlog

from flashsale import tether

log = structlog.get_logger("flashsale.supervisor")

RESTART_FIRST_S = 0.1  # before a part that died is started again; doubles with each early death
RESTART_MOST_S = 5.0
STEADY_AFTER_S = 3.0  # a part that lived this long did not fail at its start: it starts over at RESTART_FIRST_S
DRAIN_GRACE_S = 1.0  # beyond drain_timeout_s, which is 10 at most: front ends are killed at 11 s at the latest
EXIT_POLL_S = 0.2
KILLED_WITHIN_S = 0.5  # a killed process gives its memory back


class Part(Protocol):
    """Whatever has a child process: a server of `embedded` or a part of our own."""

    process: subprocess.Popen[bytes] | None

    def spawn(self) -> None: ...


class Backoff:
    """How long a part that died waits before it is started again: longer each time it dies early."""

    def __init__(self) -> None:
        self._delay_s = RESTART_FIRST_S
        self._began = time.monotonic()

    async def wait(self) -> None:
        """Call when the part has died or could not be started; returns when it may be started."""
        if time.monotonic() - self._began > STEADY_AFTER_S:
            self._delay_s = RESTART_FIRST_S
        await asyncio.sleep(self._delay_s)
        self._delay_s = min(2 * self._delay_s, RESTART_MOST_S)
        self._began = time.monotonic()


class OwnPart:
    """A front end or the worker: this program again, with another command."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], output: TextIO | None) -> None:
        """command: its words behind `flashsale`. output: where its log goes; None: our stderr."""
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self._command = command
        self._env = env
        self._output = output
        self.owner: tuple[int, int] | None = None  # (uid, gid) to run as; None: as ourselves

    def tell(self, environment: Mapping[str, str]) -> None:
        """Give its next process these variables, too."""
        self._env = {**self._env, **environment}

    def spawn(self) -> None:
        """Start it. Main thread only."""
        self.process = tether.spawn(
            [sys.executable, "-P", "-m", "flashsale", *self._command],
            death_signal=signal.SIGKILL,
            output=(self._output or sys.stderr).fileno(),
            env=self._env,
            owner=self.owner,
        )


def name_of(part: Part) -> str:
    return part.name if isinstance(part, OwnPart) else type(part).__name__.removesuffix("Server").lower()


def pid_of(part: Part) -> int | None:
    """Of the process that was started last."""
    return None if part.process is None else part.process.pid


def status_of(part: Part) -> int | None:
    """With which its last process ended; None while it lives."""
    return None if part.process is None else part.process.returncode


def living(part: Part) -> list[tuple[int, int]]:
    """(pid, start ticks) of the part's process, if it lives."""
    if part.process is None or part.process.poll() is not None:
        return []
    started = tether.start_ticks(part.process.pid)
    return [] if started is None else [(part.process.pid, started)]


async def exited(part: Part) -> None:
    """Return when the part's process has ended; it is reaped."""
    process = part.process
    if process is None or process.poll() is not None:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        handle = os.pidfd_open(process.pid)  # readable when the process ends
    except OSError:  # no descriptor left, say
        while process.poll() is None:  # noqa: ASYNC110 - the kernel has no other way to tell without a descriptor
            await asyncio.sleep(EXIT_POLL_S)
        return
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    process.wait()


async def stopped(part: Part, *asked: tuple[signal.Signals, float]) -> None:
    """Ask the part to end by each signal in turn, waiting until its time of the loop's clock, at last by SIGKILL."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for sig, until in (*asked, (signal.SIGKILL, None)):
        if part.process is None or part.process.poll() is not None:
            return
        if until is None:
            log.warning("part.killed", name=name_of(part), pid=part.process.pid, after_s=round(clock() - began, 1))
        part.process.send_signal(sig)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(clock() + KILLED_WITHIN_S if until is None else until):
                await exited(part)
