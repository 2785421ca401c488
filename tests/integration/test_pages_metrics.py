"""Metrics over several real processes: any answers for all; the dead leave their counts but not their gauges."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROCESS = """
import sys
from flashsale import metrics
metrics.observe_batch(7, 0.003, 0.001, {"accepted": 5, "sold-out": 2})
metrics.set_in_flight(11, 1)
metrics.set_connections(3)
metrics.observe_page("/livez", "GET", 200, 0.001)
metrics.observe_ledger(5, 1, 0.01, 0.2)
print("observed", flush=True)
sys.stdin.read()
"""
SHOW = "import sys; from flashsale import metrics; sys.stdout.buffer.write(metrics.exposition())"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(started)
        assert started.stdout is not None
        assert started.stdout.readline() == "observed\n"
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
    process: Callable[[], subprocess.Popen[str]], tmp_path: Path
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
