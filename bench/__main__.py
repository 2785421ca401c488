"""scripts/bench: one run of the figures on this machine. See README.md in this folder."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import borders, channels, decision, expiry, growth, ledger, pages, payments, refusals, report, throughput
from bench.bench import Bench
from bench.figures import NAMES
from bench.machine import OTHER_CORE, BenchFault, install_missing, pin, require_two_cores, say

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench-results"

Measure = Callable[[Bench, frozenset[str]], None]
FAMILIES: tuple[tuple[tuple[str, ...], Measure], ...] = (
    (throughput.MEMORY, throughput.measure_memory),
    (throughput.FSYNC, throughput.measure_fsync),
    (refusals.FIGURES, refusals.measure),
    (decision.FIGURES, decision.measure),
    (pages.FIGURES, pages.measure),
    (ledger.FIGURES, ledger.measure),
    (borders.FIGURES, borders.measure),
    (channels.FIGURES, channels.measure),
    (payments.FIGURES, payments.measure),
    (expiry.FIGURES, expiry.measure),
    (growth.GROWTH, growth.measure_growth),
    (growth.MEMORY, growth.measure_memory),
)


def main() -> int:
    options = _options()
    wanted = frozenset(options.only or NAMES)
    install_missing()
    require_two_cores()
    pin([os.getpid()], OTHER_CORE)
    RESULTS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=RESULTS))
    bench = Bench(folder, options.seconds, options.repeat, options.size)
    began = time.monotonic()
    failed = []
    for names, measure in FAMILIES:
        here = wanted & set(names)
        if not here:
            continue
        say(f"{', '.join(name for name in names if name in here)}:")
        try:
            measure(bench, here)
        except (BenchFault, OSError) as fault:
            failed.append(f"{', '.join(sorted(here))}: {fault}")
            say(f"  not measured: {fault}")
    took_s = round(time.monotonic() - began)
    content = report.document(
        bench.samples, bench.raw, seconds=options.seconds, repeat=options.repeat, took_s=took_s, failed=failed
    )
    path = options.json or RESULTS / f"{content['at'].replace(':', '')}.json"
    report.write_json(path, content)
    print(report.table(bench.samples))
    print(
        f"{options.repeat} repeats of {options.seconds:g} s in {took_s} s on {content['machine']['cpu']}; JSON: {path}"
    )
    for line in failed:
        print(f"not measured: {line}")
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures the figures of the README in one run on this machine; ratios within the run count.",
        epilog="example: scripts/bench --only orders-fsync --only front --seconds 5",
    )
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=8, help="length of one load (default 8)")
    parser.add_argument("--repeat", type=int, default=3, help="repeats of each figure, in turn (default 3)")
    parser.add_argument(
        "--size", type=float, default=1, help="share of the fixed sizes, to try the bench itself: 0.01 (default 1)"
    )
    parser.add_argument("--json", type=Path, help="where the JSON goes (default: bench-results/<time>.json)")
    parser.add_argument("--keep", action="store_true", help="keep the servers' folders and logs")
    options = parser.parse_args()
    if options.seconds < 1 or options.repeat < 1 or not 0 < options.size <= 1:
        parser.error("--seconds and --repeat must be at least 1, --size above 0 and at most 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
