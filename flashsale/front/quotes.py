"""POST /v1/quotes: what an order would cost now, with each lane that would take it; nothing is reserved by it.

Priced with the same QuotedMarket as orders are, by Valkey's clock, so an order sent before `valid_until` costs just
that. Stock, quotas, import limits and the room of a lane are not asked here: they are decided with the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import JSON, MESSAGEPACK, answer, money, rfc3339, who
from flashsale.front.context import context_of
from flashsale.front.sales import SaleNow, sale_now
from flashsale.sale.decoding import InvalidBody, MalformedBody
from flashsale.sale.market import MARKETS
from flashsale.sale.order import OrderRequest, from_json, from_msgpack
from flashsale.sale.quoting import LaneUnavailable, NotSoldHere, Quoted, QuotedMarket
from flashsale.sale.trade.landed import ImportLimit
from flashsale.sale.world import World

KEPT_MAX = 64  # markets that stay quoted, of all sales: one of 10,000 offers takes about 2 MB


class QuotedMarkets:
    """The markets that were quoted last, each for as long as its rules and lanes hold."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[int, QuotedMarket]] = {}

    def of(self, now: SaleNow, code: str, world: World) -> QuotedMarket:
        """The market of the sale at the version and the time of `now`."""
        version, market = self._kept.pop((now.sale.id, code), (0, None))
        at_ms = now.state.now_ms
        if market is None or version != now.state.version or not market.from_ms <= at_ms < market.until_ms:
            market = QuotedMarket(now.sale, code, world, at_ms)
        self._kept[now.sale.id, code] = now.state.version, market
        while len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        return market


QUOTED = web.AppKey("quoted", QuotedMarkets)


async def quote(request: web.Request) -> web.Response:
    """POST /v1/quotes: the body of an order, without a key. A token may be sent, and is checked if it is."""
    if "Authorization" in request.headers and who(request).role not in ("shopper", "agent", "admin"):
        raise Refused("forbidden", "A quote is for shoppers and their agents, or anybody without a token.")
    wanted = await _wanted(request)
    context = context_of(request)
    now = await sale_now(context, wanted.sale)
    _check_known(wanted, now)
    if not now.sale.ships_from:
        return answer(request, _plain(wanted, now))
    catalogue = await context.catalogues.at_least(now.state.version)
    market = request.app[QUOTED].of(now, wanted.market, catalogue.world)
    lines = [(line.sku, line.quantity) for line in wanted.lines]
    try:
        by_lane = market.each_lane(lines, wanted.channel)
        quoted = market.land(lines, wanted.lane, wanted.channel)
    except NotSoldHere as refusal:
        raise Refused("not-sold-here", refusal.why, sku=refusal.sku) from None
    except LaneUnavailable as refusal:
        raise Refused("lane-unavailable", lane=refusal.lane, lanes=list(refusal.lanes)) from None
    return answer(request, _landed(wanted, market, quoted, by_lane))


async def _wanted(request: web.Request) -> OrderRequest:
    body = await request.read()
    media_type = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
    compressed = request.headers.get("Content-Encoding", "identity").lower() not in ("identity", "")
    if compressed or media_type not in (JSON, *MESSAGEPACK):
        raise Refused("unsupported-media-type", "An order is application/json or application/msgpack, as it is.")
    try:
        return from_json(body) if media_type == JSON else from_msgpack(body)
    except MalformedBody as fault:
        raise Refused("malformed", f"The body can't be decoded: {fault}") from None
    except InvalidBody as fault:
        raise Refused("invalid-order", fields=fault.fields) from None


def _check_known(wanted: OrderRequest, now: SaleNow) -> None:
    """Market and SKUs, as an order's are checked."""
    if wanted.market not in now.sale.markets:
        raise Refused("invalid-order", fields={"market": f"the sale sells nothing in {wanted.market!r}"})
    for line in wanted.lines:
        offer = now.sale.by_sku.get(line.sku)
        if offer is None or wanted.market not in offer.prices:
            raise Refused("unknown-sku", sku=line.sku)


def _plain(wanted: OrderRequest, now: SaleNow) -> dict[str, Any]:
    """A sale that crosses no border: its prices are all that is paid."""
    nothing = [0] * len(wanted.lines)
    prices = [now.sale.by_sku[line.sku].prices[wanted.market] for line in wanted.lines]
    total = sum(price * line.quantity for price, line in zip(prices, wanted.lines, strict=True))
    currency = MARKETS[wanted.market].currency
    return {
        "lines": _lines(wanted, prices, nothing, nothing),
        **{name: money(0, currency) for name in ("shipping", "duty", "tax")},
        "total": money(total, currency),
        "due_on_delivery": {"duty": money(0, currency), "tax": money(0, currency)},
        "terms": "DDP",
        "estimated": False,
        "lane": None,
        "lanes": [],
        "valid_until": rfc3339(now.state.closes_at_ms),
    }


def _landed(wanted: OrderRequest, market: QuotedMarket, quoted: Quoted, by_lane: Sequence[Quoted]) -> dict[str, Any]:
    currency, landed = MARKETS[wanted.market].currency, quoted.landed
    prices = [market.offers[line.sku].price for line in wanted.lines]
    body = {
        "lines": _lines(wanted, prices, landed.duty, landed.tax),
        "shipping": money(quoted.shipping, currency),
        "duty": money(sum(landed.duty), currency),
        "tax": money(sum(landed.tax), currency),
        "total": money(quoted.total, currency),
        "due_on_delivery": {"duty": money(landed.due_duty, currency), "tax": money(landed.due_tax, currency)},
        "terms": "DDP" if landed.ddp else "DAP",
        "estimated": landed.estimated,
        "lane": quoted.lane.id,
        "lanes": [_lane(each, currency) for each in by_lane],
        "valid_until": rfc3339(market.until_ms),
    }
    if market.regime is not None and market.regime.limit is not None:
        body["import_limit"] = _limit(market.regime.limit, landed.limit_use, currency)
    return body


def _lines(
    wanted: OrderRequest, prices: Sequence[int], duty: Sequence[int], tax: Sequence[int]
) -> list[dict[str, Any]]:
    currency = MARKETS[wanted.market].currency
    return [
        {
            "sku": line.sku,
            "quantity": line.quantity,
            "price": money(prices[place], currency),
            "duty": money(duty[place], currency),
            "tax": money(tax[place], currency),
        }
        for place, line in enumerate(wanted.lines)
    ]


def _lane(quoted: Quoted, currency: str) -> dict[str, Any]:
    lane = quoted.lane
    return {
        "lane": lane.id,
        "carrier": lane.carrier,
        "recommended": lane.recommended,
        "shipping": money(quoted.shipping, currency),
        "total": money(quoted.total, currency),
        "promise": {"days": lane.days, "by": lane.promised_by},
    }


def _limit(limit: ImportLimit, counts: int, currency: str) -> dict[str, Any]:
    return {
        "order": money(limit.single, currency),
        "annual": money(limit.annual, currency),
        "year": limit.year,
        "counts": money(counts, currency),
    }
