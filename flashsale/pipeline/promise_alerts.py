"""Alerts about lanes that keep too few of their promises: raised and cleared once each, and said in the log.

When that is so is a rule in the lane's own data (sale/shipping/promises.py). What is in force lies in the ledger, so
that neither a worker that takes over nor one that begins again says a thing twice.
"""

from __future__ import annotations

import time

import structlog

from flashsale.ledger import promises
from flashsale.ledger.pool import Connection
from flashsale.pipeline.duty import Duty

log = structlog.get_logger(__name__)

LOOK_S = 10.0  # an alert is raised within this; a lane's share moves by a delivery at a time


class PromiseAlerts(Duty):
    """Compares each lane's share with its rule."""

    name = "promise alerts"
    lock = 0x666C7072

    def __init__(self, database_url: str, *, look_s: float = LOOK_S) -> None:
        super().__init__(database_url)
        self._look_s = look_s

    async def work(self, connection: Connection) -> None:
        while not self.stopping.is_set():
            await look(connection, time.time_ns() // 1_000_000)
            await self.pause(self._look_s)


async def look(connection: Connection, now_ms: int) -> tuple[int, int]:
    """Raises and clears what is to be; returns how many alerts of each."""
    raised = cleared = 0
    for lane in await promises.overview(connection):
        if lane.alert == (lane.alert_ms is not None):
            continue
        said = {
            "lane": lane.lane,
            "country": lane.market,
            "deliveries": lane.share.deliveries,
            "on_time": lane.share.on_time,
            "share": f"{lane.share.ratio:.1%}",
        }
        where = lane.lane_number, lane.market
        if lane.rule is not None and lane.alert:
            if await promises.raise_alert(connection, *where, lane.share, now_ms):
                raised += 1
                log.warning("a lane keeps too few of its promises", below=f"{lane.rule.below_percent}%", **said)
        elif await promises.clear_alert(connection, *where, now_ms):
            cleared += 1
            log.warning("a lane keeps its promises again", **said)
    return raised, cleared
