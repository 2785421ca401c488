"""What goes wrong at the sandbox on request: POST /sandbox/faults. Shares from 0 to 1, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import Any

DELAY_MAX_MS = 60_000
OVERTAKEN_MS = (300, 2000)  # how much later a reordered webhook is sent


@dataclass
class Faults:
    """`decline`: of the payments tried. `delay_ms`: before each answer of the API. `charge_then_timeout`: of the API's
    changes, done and then not answered: the connection closes, after `hang_ms`. `repeat`, `reorder`, `lose`: of the
    webhooks, sent twice, sent after later ones, not sent."""

    seed: int = 0
    decline: float = 0.0
    delay_ms: int = 0
    charge_then_timeout: float = 0.0
    hang_ms: int = 0
    repeat: float = 0.0
    reorder: float = 0.0
    lose: float = 0.0
    _random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    @classmethod
    def of(cls, given: Any, salt: int = 0) -> Faults:
        """From a JSON object; what it does not name is 0. Raises ValueError, naming the field."""
        if not isinstance(given, dict):
            raise ValueError("faults are a JSON object")
        names = {known.name for known in fields(cls)} - {"_random"}
        for name, value in given.items():
            if name not in names:
                raise ValueError(f"{str(name)[:40]!r} is no fault; known are {', '.join(sorted(names))}")
            whole = name in ("seed", "delay_ms", "hang_ms")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"{name} is {'an integer' if whole else 'a share from 0 to 1'}")
            if name != "seed" and not 0 <= value <= (DELAY_MAX_MS if whole else 1):
                raise ValueError(f"{name} is from 0 to {DELAY_MAX_MS if whole else 1}")
        faults = cls(**given)
        faults._random = random.Random(f"{faults.seed}:{salt}")  # noqa: S311 - faults that can be repeated
        return faults

    def as_json(self) -> dict[str, Any]:
        return {known.name: getattr(self, known.name) for known in fields(self) if known.name != "_random"}

    def _drawn(self, share: float) -> bool:
        return share > 0 and self._random.random() < share

    def declines(self) -> bool:
        return self._drawn(self.decline)

    def at_the_answer(self, changes: bool) -> dict[str, int]:
        """What becomes of an answer: `delay_ms`, or, for one to a change, `hang_ms` before the connection closes."""
        if changes and self._drawn(self.charge_then_timeout):
            return {"hang_ms": self.hang_ms}
        return {"delay_ms": self.delay_ms}

    def deliveries(self) -> list[int]:
        """When an event is sent: milliseconds from now, once for each time."""
        if self._drawn(self.lose):
            return []
        first = self._random.randint(*OVERTAKEN_MS) if self._drawn(self.reorder) else 0
        return [first, self._random.randint(0, OVERTAKEN_MS[1])] if self._drawn(self.repeat) else [first]
