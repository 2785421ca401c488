"""The processes of a running engine as the kernel knows them: by name, as a tree, and whether they are gone."""

from __future__ import annotations

import json
import time

import psutil

from tests.conftest import Engine

GONE_WITHIN_S = 5


def pids(engine: Engine) -> dict[str, int]:
    """Every part's pid by its name, from run.json; None for a server that is away or not the engine's own."""
    running = json.loads((engine.data_dir / "run.json").read_text())
    return {
        **{f"front {number}": front["pid"] for number, front in enumerate(running["front"])},
        **{worker["name"]: worker["pid"] for worker in running["worker"]},
        "valkey": running["valkey"]["pid"],
        "postgres": running["postgres"]["pid"],
    }


def tree(engine: Engine) -> list[psutil.Process]:
    """The supervisor's processes, PostgreSQL's children among them."""
    assert engine.process is not None
    return psutil.Process(engine.process.pid).children(recursive=True)


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are more than a zombie that nobody has reaped yet."""

    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if lives(process)]


def wait_until_gone(processes: list[psutil.Process], within_s: float = GONE_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while left := still_running(processes):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
