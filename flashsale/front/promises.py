"""GET /v1/lanes/promises: how many of its last promises each lane kept, by country. For admins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from flashsale.front.answers import answer, rfc3339
from flashsale.front.context import context_of
from flashsale.front.steps import admin, transaction
from flashsale.ledger import promises as ledger_promises
from flashsale.ledger.promises import LanePromise
from flashsale.sale.shipping.promises import LAST


async def promises(request: web.Request) -> web.Response:
    """GET /v1/lanes/promises"""
    admin(request)
    async with transaction(context_of(request)) as connection:
        found = await ledger_promises.overview(connection)
    return answer(request, shown(found))


def shown(found: Sequence[LanePromise]) -> dict[str, Any]:
    """The lanes as the page and the command show them."""
    return {"last": LAST, "promises": [_shown(each) for each in found]}


def _shown(lane: LanePromise) -> dict[str, Any]:
    body: dict[str, Any] = {
        "lane": lane.lane,
        "country": lane.market,
        "deliveries": lane.share.deliveries,
        "on_time": lane.share.on_time,
        "share": round(lane.share.ratio, 4),
        "alert": lane.alert,
    }
    if lane.rule is not None and lane.market in lane.rule.markets:
        body["alert_below"] = lane.rule.below_percent / 100
        body["alert_from"] = lane.rule.deliveries
    if lane.alert_ms is not None:
        body["alert_since"] = rfc3339(lane.alert_ms)
    return body
