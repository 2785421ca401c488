"""Metrics over several real processes: any answers for all; the dead leave their counts but not their gauges."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashsale.metrics_files import FILE_BYTES

PROCESS = """
import sys
from pathlib import Path
from flashsale import metrics_files
why = metrics_files.join(Path.cwd())
from flashsale import metrics
metrics.observe_batch(7, 0.003, 0.001, {"accepted": 5, "sold-out": 2})
metrics.set_in_flight(11, 1)
metrics.set_connections(3)
metrics.observe_page("/livez", "GET", 200, 0.001)
metrics.observe_ledger(5, 1, 0.01, 0.2)
print("observed" if why is None else "alone", flush=True)
sys.stdin.read()
"""
EVERYTHING = """
from pathlib import Path
from flashsale import metrics_files
assert metrics_files.join(Path.cwd()) is None
from flashsale import metrics
from flashsale.errors import PROBLEMS
from flashsale.front.app import ROUTES
statuses = {200, 201, 202, 204, 304, 401, *(problem.status for problem in PROBLEMS.values())}
for method, route, _ in ROUTES:
    for status in statuses:
        metrics.observe_page(route, method, status, 0.001)
for problem in PROBLEMS:
    metrics.count_outcomes({problem: 1})
    metrics.count_webhooks(problem, 1)
    metrics.CARRIER_EVENTS.labels(problem).inc()
"""
SHOW = "import sys; from flashsale import metrics; sys.stdout.buffer.write(metrics.exposition())"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(said: str = "observed\n") -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(started)
        assert started.stdout is not None
        assert started.stdout.readline() == said
        return started

    yield start
    for each in running:
        each.kill()
        each.communicate()


def shown(directory: Path) -> dict[str, float]:
    """Every sample that another process shows."""
    text = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_any_process_answers_for_all_and_the_dead_have_nothing_in_flight(
    process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    first, _ = process(), process()
    samples = shown(tmp_path)
    assert samples['flashsale_orders_total{outcome="accepted"}'] == 10
    assert samples["flashsale_batch_orders_count"] == 2
    assert samples["flashsale_orders_in_flight"] == 22
    assert samples["flashsale_ledger_rows_total"] == 10
    assert samples['flashsale_pages_total{method="GET",route="/livez",status="200"}'] == 2

    first.kill()
    first.wait()
    samples = shown(tmp_path)
    assert samples["flashsale_orders_in_flight"] == 11
    assert samples["flashsale_connections"] == 3
    assert samples['flashsale_orders_total{outcome="accepted"}'] == 10


def test_a_part_that_dies_again_and_again_counts_on_in_the_same_files(
    process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    for _ in range(3):
        dying = process()
        dying.kill()
        dying.wait()
        files = sorted(file.name for file in tmp_path.glob("*_0.db"))
    assert len(files) == len(FILE_BYTES)
    assert list(tmp_path.glob("*_1.db")) == []
    assert shown(tmp_path)['flashsale_orders_total{outcome="accepted"}'] == 15


def test_a_part_without_room_for_its_numbers_lives_and_counts_for_itself(
    process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount the small disk that this fills")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=True)
    try:
        alone = process("alone\n")
        assert alone.poll() is None
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_every_route_and_problem_fits_into_the_room_that_was_taken(tmp_path: Path) -> None:
    """A file that grew would have holes, and a hole that can't be filled ends its process."""
    subprocess.run(
        [sys.executable, "-c", EVERYTHING],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        check=True,
    )
    sizes = {file.stem.rpartition("_")[0]: file.stat() for file in tmp_path.glob("*.db")}
    assert {kind: status.st_size for kind, status in sizes.items()} == FILE_BYTES
    assert all(status.st_blocks * 512 >= status.st_size for status in sizes.values())
