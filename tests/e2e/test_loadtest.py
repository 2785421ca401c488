"""The load test itself, at a small size: it follows its shape, is green on a sound engine and red on a broken one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from loadtests.crowd import Crowd, read_counts

pytestmark = pytest.mark.load

ROOT = Path(__file__).parents[2]
LOCUST = Path(sys.executable).with_name("locust")
SMALL_CROWD = "minute,requests\n0,30\n1,60\n2,120\n3,240\n4,90\n5,20\n"
HEIGHT, SPEED = 200, 60  # 200 requests/s in the highest minute; a minute takes a second


@pytest.fixture
def small_crowd(tmp_path: Path) -> Path:
    counts = tmp_path / "counts.csv"
    counts.write_text(SMALL_CROWD)
    return counts


def storm(engine: Any, counts: Path) -> tuple[int, dict[str, Any]]:
    """Runs the locustfile on an engine: exit code and verdict."""
    options = ["--counts", str(counts), "--height", str(HEIGHT), "--speed", str(SPEED), "--connections", "16"]
    done = subprocess.run(
        [str(LOCUST), "-f", "loadtests/locustfile.py", "--headless", "--host", engine.url, *options],
        cwd=ROOT,
        env=engine.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    verdicts = [line for line in done.stdout.splitlines() if line.startswith('{"ok"')]
    assert verdicts, done.stdout + done.stderr
    return done.returncode, json.loads(verdicts[-1])


def test_the_crowd_follows_its_shape_and_every_order_is_found(engine: Any, small_crowd: Path) -> None:
    status, verdict = storm(engine, small_crowd)
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
