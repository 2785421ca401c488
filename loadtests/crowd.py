"""The shape of a crowd: a table of requests a minute, scaled to a height and a speed, turned into moments of arrival.

Pure: no clock, no network. The locustfile beside it sends a request at each moment that this module names.
The arrivals are an open loop: they do not wait for answers, as a crowd does not.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

EVENING = Path(__file__).with_name("crowd-1998-06-30.csv")

# What was sent in a minute may differ from the shape by this share of it, or by ALLOWED_COUNT requests if that is more:
# a request that falls due in the last instant of a minute is sent in the next one.
ALLOWED_SHARE = 0.05
ALLOWED_COUNT = 3


def read_counts(path: Path) -> list[int]:
    """The requests of each minute, in order, from a CSV with a column `requests`; lines that begin with # are comments.

    Raises ValueError, with the file's name, where that column is missing, is not a whole number, or is zero throughout.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        try:
            counts = [int(row["requests"]) for row in rows]
        except (KeyError, TypeError, ValueError) as fault:
            raise ValueError(f"{path}: every row needs a whole number in the column 'requests' ({fault})") from None
    if not counts or min(counts) < 0 or max(counts) == 0:
        raise ValueError(f"{path}: no requests in it")
    return counts


@dataclass(frozen=True)
class Crowd:
    """A table of requests a minute, played at `height` requests/s in its highest minute and `speed` times as fast."""

    counts: Sequence[int]
    height: float
    speed: float

    def __post_init__(self) -> None:
        if self.height <= 0 or self.speed <= 0:
            raise ValueError("height (requests/s) and speed (times as fast) must be above 0")

    @property
    def minute_s(self) -> float:
        """How long a minute of the table takes when played, in seconds."""
        return 60 / self.speed

    @property
    def duration_s(self) -> float:
        return self.minute_s * len(self.counts)

    def expected(self) -> list[float]:
        """The requests of each played minute: the highest one has height * minute_s."""
        scale = self.height * self.minute_s / max(self.counts)
        return [count * scale for count in self.counts]

    @property
    def total(self) -> int:
        """How many requests are sent in all."""
        return int(sum(self.expected()))

    def arrivals(self) -> Iterator[float]:
        """The moment of each request, in seconds from the start, ascending: `total` of them, even within a minute."""
        minute_s = self.minute_s
        before = 0.0
        number = 1
        total = self.total
        for minute, count in enumerate(self.expected()):
            while number <= min(before + count, total):
                yield minute_s * (minute + (number - before) / count)
                number += 1
            before += count
        if number == total:  # the sum above ended a hair below a whole number
            yield self.duration_s

    def minute_of(self, seconds: float) -> int:
        """The played minute in which a moment lies; what is later than the last one belongs to the last one."""
        return min(int(seconds / self.minute_s), len(self.counts) - 1)

    def deviations(self, sent: Iterable[int]) -> list[tuple[int, int, float]]:
        """Minutes in which what was sent is off the shape by more than is allowed: (minute, sent, expected)."""
        return [
            (minute, count, expected)
            for minute, (count, expected) in enumerate(zip(sent, self.expected(), strict=True))
            if abs(count - expected) > max(ALLOWED_COUNT, ALLOWED_SHARE * expected)
        ]
