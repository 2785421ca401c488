"""Books whose the money of orders is, behind their history; one worker does it."""

from __future__ import annotations

import time

from flashsale.ledger import followers, settlement
from flashsale.ledger.pool import Connection
from flashsale.pipeline.duty import Duty

POLL_S = 1.0
HISTORY_ROWS = 500  # changes booked in one transaction


class Settlements(Duty):
    """The worker's part in settlement. Rests as long as each step took: orders and payments come first."""

    name = "settlements"
    lock = 0x666C7365

    async def work(self, connection: Connection) -> None:
        merchants = settlement.Merchants()
        await followers.mend(connection, self.beat)
        while not self.stopping.is_set():
            began = time.monotonic()
            more = await settlement.book(connection, merchants, rows=HISTORY_ROWS, now_ms=time.time_ns() // 1_000_000)
            await self.pause(time.monotonic() - began if more else POLL_S)
