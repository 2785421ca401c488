"""The run's outcome: a table for people, JSON for programs, with the machine that it was measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figures import FIGURES, Figure

HEADINGS = ("figure", "reach", "aim", "median", "min–max", "verdict")


def table(samples: Mapping[str, Sequence[float]]) -> str:
    """The figures that have samples, in the order of figures.py."""
    rows = [HEADINGS, *(_row(figure, samples[figure.name]) for figure in FIGURES if samples.get(figure.name))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _row(figure: Figure, samples: Sequence[float]) -> tuple[str, ...]:
    spread = f"{_number(min(samples))}–{_number(max(samples))}"
    return (
        figure.title,
        _number(figure.reach),
        _number(figure.aim),
        _number(statistics.median(samples)),
        spread,
        figure.verdict(samples),
    )


def _number(value: float | None) -> str:
    """Three digits: 1.08, 12.3, 130."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def document(samples: Mapping[str, Sequence[float]], raw: Sequence[object], **run: object) -> dict[str, Any]:
    """Everything that was measured, and where."""
    figures = {
        figure.name: {
            "title": figure.title.strip(),
            "reach": figure.reach,
            "aim": figure.aim,
            "higher_is_better": figure.higher,
            "median": statistics.median(samples[figure.name]),
            "samples": list(samples[figure.name]),
            "verdict": figure.verdict(samples[figure.name]),
        }
        for figure in FIGURES
        if samples.get(figure.name)
    }
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **run,
        "machine": _machine(),
        "figures": figures,
        "raw": list(raw),
    }


def _machine() -> dict[str, object]:
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
