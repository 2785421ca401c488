"""What lives and does nothing is replaced, and nobody who ought to listen can stop the engine by not listening.

FLASHSALE_HUNG_ROUNDS is how often each part is stopped under load (the full size is 10); 0, as in CI, is once, and not
every part.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import FLASHSALE, Engine
from tests.crowd import Crowd, open_sale
from tests.e2e.test_chaos import FLOWING, SEED, came_through, ready_again, stopped_clean
from tests.processes import pids
from tests.wire import ask, get

ROUNDS = int(os.environ.get("FLASHSALE_HUNG_ROUNDS", "0"))
PARTS = ("front 1", "worker", "valkey", "postgres") * ROUNDS or ("front 1", "postgres")
SILENT_S = "3"
LINES = 200  # more than the pipe of a reader that hangs takes

pytestmark = pytest.mark.chaos


async def until_replaced(engine: Engine, name: str, hung: int) -> None:
    deadline = time.monotonic() + 30
    while pids(engine).get(name) in (hung, None):
        assert time.monotonic() < deadline, f"{name} still hangs: {engine.errors.read_text()[-3000:]}"
        await asyncio.sleep(0.05)


async def test_a_part_that_hangs_under_load_is_replaced_and_nothing_is_lost(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine(
        FLASHSALE_PROCESSES="2", FLASHSALE_FRONT_SILENT_S=SILENT_S, FLASHSALE_SILENT_S=SILENT_S
    ).start()
    open_sale(engine, "crowd", tmp_path)
    async with Crowd(engine, "crowd", SEED) as crowd:
        for name in PARTS:
            await crowd.until_accepted(FLOWING)
            hung = pids(engine)[name]
            for process in (psutil.Process(hung), *psutil.Process(hung).children()):
                process.suspend()
            await until_replaced(engine, name, hung)  # a question that the hung front took ends with it, unanswered
            await ready_again(engine, {name: hung})
        await crowd.until_accepted(FLOWING)
    await came_through(engine, crowd)
    stopped_clean(engine)


@pytest.mark.skipif(not ROUNDS, reason="FLASHSALE_HUNG_ROUNDS asks for it")
async def test_a_stop_of_the_whole_engine_is_no_hang_of_its_parts(make_engine: Callable[..., Engine]) -> None:
    """A laptop that sleeps, a debugger, a machine that is moved: nobody is killed for it afterwards."""
    engine = make_engine(FLASHSALE_FRONT_SILENT_S=SILENT_S, FLASHSALE_SILENT_S=SILENT_S).start()
    before = pids(engine)
    assert engine.process is not None
    everything = [psutil.Process(engine.process.pid), *psutil.Process(engine.process.pid).children(recursive=True)]
    for process in everything:
        process.suspend()
    await asyncio.sleep(2 * float(SILENT_S))  # the length of the sleep itself
    for process in reversed(everything):
        process.resume()
    await asyncio.to_thread(engine.wait_until_ready)
    await asyncio.sleep(float(SILENT_S))  # so long as a part might be held to be silent
    assert pids(engine) == before
    stopped_clean(engine)


@pytest.mark.parametrize("reader", ["gone", "hangs"])
async def test_nobody_ends_the_engine_by_not_reading_what_it_says(
    make_engine: Callable[..., Engine], reader: str
) -> None:
    engine = make_engine(FLASHSALE_LOG_LEVEL="debug")
    engine.errors.touch()
    heard, said = os.pipe()
    fcntl.fcntl(said, fcntl.F_SETPIPE_SZ, 4096)
    engine.process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [str(FLASHSALE), "up"], env=engine.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
    )
    os.close(said)
    if reader == "gone":
        os.close(heard)
    try:
        await asyncio.to_thread(engine.wait_until_ready)
        for _ in range(3):
            killed = pids(engine)["front 0"]
            os.kill(killed, signal.SIGKILL)  # it is said that it died, by a supervisor that must go on
            await ready_again(engine, {"front 0": killed})
        for _ in range(LINES):
            (answer,) = await ask(engine.port, get("/livez"))
            assert answer.status == 200
        assert engine.stop() == 0
    finally:
        if reader == "hangs":
            os.close(heard)


def test_a_damaged_run_json_is_told_once_and_written_anew(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.data_dir.mkdir()
    (engine.data_dir / "run.json").write_text('{"boot": "x", "front": null, "worker": 1, "valkey": [], "postgres": {}}')
    process = engine.spawn()
    deadline = time.monotonic() + 30
    while not _whole(engine.data_dir / "run.json"):
        assert process.poll() is None, engine.errors.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert engine.errors.read_text().count("previous.illegible") == 1
    assert engine.stop() == 0
    assert "Traceback" not in engine.errors.read_text()


def _whole(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_bytes())["supervisor"]["pid"])
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return False


@pytest.mark.parametrize("name", ["a,b 'c\"d ünï 100%;e#f?g", *(["x" * 120] if ROUNDS else [])])
def test_an_engine_runs_in_a_directory_of_any_name(make_engine: Callable[..., Engine], name: str) -> None:
    engine = make_engine(name).start()
    assert engine.command("audit", "--json").returncode == 0
    assert engine.stop() == 0


def test_a_directory_that_no_setting_can_name_is_refused_in_one_line(make_engine: Callable[..., Engine]) -> None:
    done = make_engine("a\nb").command("up", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "FLASHSALE_DATA_DIR" in done.stderr


def test_servers_that_are_killed_early_in_the_start_are_started_again(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    process = engine.spawn()
    deadline = time.monotonic() + 30
    for server in ("valkey", "postgres"):
        while not _whole(engine.data_dir / "run.json") or pids(engine)[server] is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(pids(engine)[server] or 0, signal.SIGKILL)
    engine.wait_for_line(f"ready {engine.url}")
    assert process.poll() is None
    assert engine.stop() == 0
