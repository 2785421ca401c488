"""The load test itself, at a small size: it follows its shape, is green on a sound engine and red on a broken one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from loadtests.crowd import Crowd, read_counts

pytestmark = pytest.mark.load

ROOT = Path(__file__).parents[2]
LOCUST = Path(sys.executable).with_name("locust")
SMALL_CROWD = "minute,requests\n0,30\n1,60\n2,120\n3,240\n4,90\n5,20\n"
HOLDS = "{p00}:load-*:holds"
HEIGHT, SPEED = 200, 60  # 200 requests/s in the highest minute; a minute takes a second


@pytest.fixture
def small_crowd(tmp_path: Path) -> Path:
    counts = tmp_path / "counts.csv"
    counts.write_text(SMALL_CROWD)
    return counts


def begin(engine: Any, counts: Path, *more: str) -> subprocess.Popen[str]:
    """The locustfile on an engine, as `scripts/load` starts it."""
    options = ["--counts", str(counts), "--height", str(HEIGHT), "--speed", str(SPEED), "--connections", "16"]
    return subprocess.Popen(
        [str(LOCUST), "-f", "loadtests/locustfile.py", "--headless", "--host", engine.url, *options, *more],
        cwd=ROOT,
        env=engine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(locust: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and verdict of a run."""
    try:
        stdout, stderr = locust.communicate(timeout=120)
    finally:
        locust.kill()
    verdicts = [line for line in stdout.splitlines() if line.startswith('{"ok"')]
    assert verdicts, stdout + stderr
    return locust.returncode, json.loads(verdicts[-1])


def storm(engine: Any, counts: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Runs the locustfile on an engine: exit code and verdict."""
    return end(begin(engine, counts, *more))


def wait_for_orders(engine: Any, locust: subprocess.Popen[str]) -> None:
    """Until the crowd of this run has its first orders in Valkey."""
    valkey = json.loads((engine.data_dir / "run.json").read_text())["valkey"]["address"]
    deadline = time.monotonic() + 60
    with redis.Redis.from_url(valkey) as client:
        # A sale is named after the process that leads its run: this one, or its child.
        while not any(
            int(key.split(b":")[1].rsplit(b"-", 1)[1]) >= locust.pid for key in client.scan_iter(match=HOLDS)
        ):
            assert time.monotonic() < deadline, "no order came"
            time.sleep(0.05)


def test_a_crowd_from_two_processes_follows_its_shape_and_every_order_is_found(engine: Any, small_crowd: Path) -> None:
    status, verdict = storm(engine, small_crowd, "--processes", "2")
    crowd = Crowd(read_counts(small_crowd), HEIGHT, SPEED)
    assert verdict["audit"]["faults"] == []
    assert (status, verdict["ok"]) == (0, True), verdict
    assert verdict["sent"] == crowd.total
    assert crowd.deviations(verdict["sent_each_minute"]) == []
    assert verdict["accepted"] > crowd.total / 2


def test_a_unit_that_appears_from_nowhere_fails_the_run(make_engine: Callable[..., Any], small_crowd: Path) -> None:
    engine = make_engine().start()
    valkey = json.loads((engine.data_dir / "run.json").read_text())["valkey"]["address"]
    with redis.Redis.from_url(valkey) as client:
        client.hincrby("{p00}:double11:stock", "3", 1)
    status, verdict = storm(engine, small_crowd)
    engine.stop()
    assert (status, verdict["ok"]) == (1, False)
    assert [fault["invariant"] for fault in verdict["audit"]["faults"]] == ["I1"]


def test_wrong_answers_fail_the_run_and_locusts_own_tables_count_the_same(
    make_engine: Callable[..., Any], small_crowd: Path, tmp_path: Path
) -> None:
    engine = make_engine().start()
    locust = begin(engine, small_crowd, "--csv", str(tmp_path / "seen"))
    wait_for_orders(engine, locust)
    for front in json.loads((engine.data_dir / "run.json").read_text())["front"]:
        os.kill(front["pid"], signal.SIGKILL)
    status, verdict = end(locust)
    engine.stop()
    with (tmp_path / "seen_stats.csv").open(newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert (status, verdict["ok"]) == (1, False)
    assert verdict["audit"]["faults"] == []  # what broke is the connections: nothing that was answered is lost
    assert int(rows["Aggregated"]["Failure Count"]) == verdict["wrong_answers"] > 0


def test_a_generating_process_that_dies_ends_the_run_and_fails_it(engine: Any, small_crowd: Path) -> None:
    locust = begin(engine, small_crowd, "--processes", "2")
    wait_for_orders(engine, locust)
    os.kill(psutil.Process(locust.pid).children()[0].pid, signal.SIGKILL)
    status, verdict = end(locust)
    assert (status, verdict["failure"]) == (1, "a generating process has died")
