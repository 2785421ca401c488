"""GET /v1/markets and /v1/lanes: where goods can be sent now, under whose rules, and by whom. No token needed."""

from __future__ import annotations

import re
from typing import Any, cast

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, bad_parameter, money, parameter, rfc3339
from flashsale.front.context import FrontContext, context_of
from flashsale.reservation import commands
from flashsale.sale.market import MARKETS, Market
from flashsale.sale.shipping.lanes import LaneAt
from flashsale.sale.world import World

SHIPS_FROM = "CN"
"""Where goods ship from if nothing else is asked."""

_COUNTRY = re.compile("[A-Z]{2}")


async def markets(request: web.Request) -> web.Response:
    """GET /v1/markets: those whose import rules are known."""
    ships_from = _ships_from(request)
    world, now_ms = await _world_now(context_of(request))
    found = [_market(market, ships_from, world, now_ms) for market in MARKETS.values()]
    shown = [market for market in found if market is not None]
    return answer(request, {"ships_from": ships_from, "markets": shown, "as_of": rfc3339(now_ms)})


async def lanes(request: web.Request) -> web.Response:
    """GET /v1/lanes?market=: the default first."""
    ships_from, code = _ships_from(request), parameter(request, "market")
    if code not in MARKETS:
        raise bad_parameter("market", "is the ISO country code of a market, such as SG")
    world, now_ms = await _world_now(context_of(request))
    found = [_lane(lane) for lane in world.lanes.at(code, ships_from, now_ms)]
    return answer(request, {"ships_from": ships_from, "market": code, "lanes": found, "as_of": rfc3339(now_ms)})


def _ships_from(request: web.Request) -> str:
    code = parameter(request, "ships_from") or SHIPS_FROM
    if not _COUNTRY.fullmatch(code):
        raise bad_parameter("ships_from", "is no ISO country code, such as CN")
    return code


async def _world_now(context: FrontContext) -> tuple[World, int]:
    """The world in force, and Valkey's time in ms. Raises Refused("overloaded") while there is none."""
    partition = await commands.read_partition(context.valkey)
    if partition is None or not partition.version:
        raise Refused("overloaded", "The catalogue is being rebuilt.", retry_after=1)
    catalogue = await context.catalogues.at_least(partition.version)
    seconds, microseconds = await cast("Any", context.valkey.time())
    return catalogue.world, seconds * 1000 + microseconds // 1000


def _market(market: Market, ships_from: str, world: World, now_ms: int) -> dict[str, Any] | None:
    regime = world.trade.regime(market.code, ships_from, now_ms)
    if regime is None:
        return None
    shown: dict[str, Any] = {
        "code": market.code,
        "country": market.country,
        "currency": market.currency,
        "locale": market.locale,
        "zone": market.zone,
        "rules_until": rfc3339(regime.until_ms) if regime.until_ms < _YEAR_9999_MS else None,
    }
    if regime.limit is not None:
        shown["import_limit"] = {
            "order": money(regime.limit.single, market.currency),
            "annual": money(regime.limit.annual, market.currency),
            "year": regime.limit.year,
        }
    return shown


_YEAR_9999_MS = 253_370_764_800_000  # what ends later than that has no end


def _lane(lane: LaneAt) -> dict[str, Any]:
    return {
        "lane": lane.id,
        "carrier": lane.carrier,
        "recommended": lane.recommended,
        "capacity": lane.capacity or None,
        "promise": {"days": lane.days, "by": lane.promised_by},
        "holds_until": rfc3339(lane.until_ms),
    }
