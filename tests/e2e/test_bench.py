"""The bench itself: every figure of the README is made, at a size at which it means nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bench.figures import NAMES

pytestmark = [pytest.mark.load, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def test_every_figure_is_measured(tmp_path: Path) -> None:
    options = ["--size", "0.01", "--seconds", "1", "--repeat", "1", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [ROOT / "scripts" / "bench", *options], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    measured = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert measured.keys() >= set(NAMES)
