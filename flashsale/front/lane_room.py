"""What is told to an order whose lane takes no more parcels for its day: which lanes have room, and on which days.

The script refused it; the days are read afterwards, from Valkey's counters alone, so that taking orders waits for
nothing. What is told may be gone when the shopper comes back: then the script refuses again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any, cast

import redis.asyncio
import structlog

from flashsale.errors import Refused
from flashsale.front.verdicts import Answers
from flashsale.reservation import keys
from flashsale.reservation.limits import lane_field
from flashsale.sale.priced import Order
from flashsale.sale.shipping.lanes import LaneAt

DAYS = 3
"""Dispatch days of each lane that are looked at, beginning with the one that an order would get now."""

_EPOCH = date(1970, 1, 1)

log = structlog.get_logger(__name__)


class LaneRoom:
    """Answers orders whose lane is full. `answers` writes them."""

    def __init__(self, answers: Answers, valkey: redis.asyncio.Redis) -> None:
        self._answers, self._valkey = answers, valkey
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, order: Order, now_ms: int, deliver: Callable[[Order, bytes], None]) -> None:
        """409 `lane-full`, with `lanes`: each that takes the order and has room, and its days (ISO dates)."""
        task = asyncio.get_running_loop().create_task(self._answer(order, now_ms, deliver))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, order: Order, now_ms: int, deliver: Callable[[Order, bytes], None]) -> None:
        members: dict[str, Any] = {"id": order.id}
        try:
            members["lane"] = order.terms.crossed.lane if order.terms.crossed is not None else None
            members["lanes"] = await self._lanes(order, now_ms)
        except Exception as error:  # it is refused all the same: only what it could do instead is not known
            log.warning("the lanes' room could not be read", order=order.id, error=repr(error))
        deliver(order, self._answers.problem(Refused("lane-full", **members)))

    async def _lanes(self, order: Order, now_ms: int) -> list[dict[str, Any]]:
        days = order.sale.dispatch_days(order.request, now_ms, DAYS)
        if not days:
            return []
        fields = [lane_field(lane.number, lane.dispatch_day) for lane in days]
        found = await cast("Any", self._valkey.hmget(keys.limits(order.sale.partition), fields))
        room: dict[str, list[str]] = {}
        for lane, held in zip(days, found, strict=True):
            if not lane.capacity or int(held or 0) < lane.capacity:
                room.setdefault(lane.id, []).append(_date(lane))
        return [{"lane": lane, "days": when} for lane, when in room.items()]


def _date(lane: LaneAt) -> str:
    return (_EPOCH + timedelta(days=lane.dispatch_day)).isoformat()
