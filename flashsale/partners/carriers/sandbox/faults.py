"""What goes wrong at the carriers' sandbox on request: POST /sandbox/faults."""

from __future__ import annotations

import random
from typing import Annotated

from msgspec import Meta, Struct

OVERTAKEN_MS = (300, 2000)  # how much later a reordered webhook is sent
Share = Annotated[float, Meta(ge=0, le=1)]


class Faults(Struct, forbid_unknown_fields=True):
    """`away`: of the requests to the API, so many next ones are answered `status`; `unanswered`: so many are done, and
    then the connection closes. `repeat`, `reorder`, `lose`: shares of the webhooks that are sent twice, sent after
    later ones, not sent."""

    away: Annotated[int, Meta(ge=0)] = 0
    status: Annotated[int, Meta(ge=400, le=599)] = 503
    unanswered: Annotated[int, Meta(ge=0)] = 0
    repeat: Share = 0.0
    reorder: Share = 0.0
    lose: Share = 0.0

    def deliveries(self) -> list[int]:
        """When an event is sent: milliseconds from now, once for each time."""
        if random.random() < self.lose:  # noqa: S311  it hides nothing
            return []
        first = random.randint(*OVERTAKEN_MS) if random.random() < self.reorder else 0  # noqa: S311
        again = [random.randint(0, OVERTAKEN_MS[1])] if random.random() < self.repeat else []  # noqa: S311
        return [first, *again]
