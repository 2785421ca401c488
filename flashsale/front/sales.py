"""GET /v1/sales, /v1/sales/{sale} and its offers: what is sold, when, for how much, and how much of it is left now.

No token needed. Each page reads Valkey's state with the catalogue version in force, and only then the catalogue.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from aiohttp import web

from flashsale.errors import Refused
from flashsale.front.answers import answer, bad_parameter, in_language, limit, money, next_path, parameter, rfc3339
from flashsale.front.context import FrontContext, context_of
from flashsale.front.sharing import SHARED
from flashsale.front.wording import locales, writing
from flashsale.languages import ENGLISH
from flashsale.reservation import commands
from flashsale.reservation.commands import SaleReading
from flashsale.reservation.glance import OfferFields, SaleGlance, glance
from flashsale.sale.catalogue import Offer, Sale
from flashsale.sale.market import MARKETS, Market
from flashsale.sale.world import World
from flashsale.sale.writing import money_text, number_text


class SaleNow(NamedTuple):
    """A sale at the catalogue version that was in force in the instant of `state`, with the offers that were chosen."""

    sale: Sale
    state: SaleGlance
    offers: Sequence[Offer]


CHANGES_MAX = 5  # that a page follows: a catalogue that changes in each of them is changed by somebody without end

REBUILT = "The sale's state is being rebuilt."


async def sale_now(
    context: FrontContext, sale_id: str, choose: Callable[[Sale], Sequence[Offer]] = lambda sale: ()
) -> SaleNow:
    """The sale in one instant, with the units of the offers that `choose` picks and no others: it costs what is shown.

    Raises Refused: unknown-sale; overloaded while Valkey has no state; and what `choose` raises.
    """
    if context.catalogues.current.sale(sale_id) is None:  # or a name out of the air: then no script is worth its time
        await _in_force(context)
        if context.catalogues.current.sale(sale_id) is None:
            raise Refused("unknown-sale", f"There is no sale {sale_id!a}.")
    for _ in range(CHANGES_MAX):
        catalogue = context.catalogues.current
        sale = catalogue.sale(sale_id)
        chosen = choose(sale) if sale is not None else ()
        state = await glance(context.valkey, sale_id, [_fields(offer, catalogue.world) for offer in chosen])
        if state is None or not state.version:
            break
        if state.version == catalogue.version:
            if sale is None or any(offer.index not in state.available for offer in chosen):
                break  # a version is published after its offers have their stock, so only a rebuild shows this
            return SaleNow(sale, state, chosen)
        await context.catalogues.at_least(state.version)
    raise Refused("overloaded", REBUILT, retry_after=1)


async def whole_sale_now(context: FrontContext, sale_id: str) -> tuple[Sale, SaleReading]:
    """The sale with all of its units in one instant. Raises what `sale_now` raises."""
    await sale_now(context, sale_id)
    state = await commands.read_sale(context.valkey, sale_id)
    if state is None or not state.version:
        raise Refused("overloaded", REBUILT, retry_after=1)
    sale = (await context.catalogues.at_least(state.version)).sale(sale_id)
    if sale is None or len(sale.offers) > len(state.supply):
        raise Refused("overloaded", REBUILT, retry_after=1)
    return sale, state


def _fields(offer: Offer, world: World) -> OfferFields:
    channels = (world.channel(name) for name in offer.guarantees)
    return offer.index, tuple(channel.number for channel in channels if channel is not None)


async def _in_force(context: FrontContext) -> None:
    """Loads the catalogue if another version is in force now. Raises Refused("overloaded") while there is none."""
    partition = await commands.read_partition(context.valkey)
    if partition is None:
        raise Refused("overloaded", "The sale's state is being rebuilt.", retry_after=1)
    await context.catalogues.at_least(partition.version)


async def sales(request: web.Request) -> web.Response:
    """GET /v1/sales: in the order in which they were made."""
    return await request.app[SHARED].answer(request, _sales)


async def sale(request: web.Request) -> web.Response:
    """GET /v1/sales/{sale}"""
    return await request.app[SHARED].answer(request, _one_sale)


async def offers(request: web.Request) -> web.Response:
    """GET /v1/sales/{sale}/offers: with ?market= those priced there, `price` and title in its currency and language;
    without it all of them, with `prices` by market. With ?locale= or Accept-Language the title is the nearest to that,
    and each price is there as text as well, as that locale writes it."""
    return await request.app[SHARED].answer(request, _offers)


async def _sales(request: web.Request) -> web.Response:
    size, after = limit(request), parameter(request, "after")
    context = context_of(request)
    await _in_force(context)
    known = context.catalogues.current
    start = 0
    if after is not None:
        last = known.sale(after)
        if last is None:
            raise bad_parameter("after", "names no sale")
        start = known.sales.index(last) + 1
    shown = known.sales[start : start + size]
    page = [_sale(now) for now in await asyncio.gather(*(sale_now(context, sale.id) for sale in shown))]
    body: dict[str, Any] = {"sales": page}
    if start + size < len(known.sales):
        body["next"] = next_path(request, page[-1]["id"])
    return answer(request, body)


async def _one_sale(request: web.Request) -> web.Response:
    now = await sale_now(context_of(request), request.match_info["sale"])
    return answer(request, _sale(now))


def _sale(now: SaleNow) -> dict[str, Any]:
    sale, state, _ = now
    return {
        "id": sale.id,
        "name": sale.name,
        "status": state.phase,
        "opens_at": rfc3339(state.opens_at_ms),
        "closes_at": rfc3339(state.closes_at_ms),
        "hold_seconds": sale.hold_ms // 1000,
        "markets": [_market(MARKETS[code]) for code in sorted(sale.markets)],
        "offers": len(sale.offers),
        "suspended": [sale.offers[index].sku for index in sorted(state.suspended) if index < len(sale.offers)],
        "as_of": rfc3339(state.now_ms),
    }


def _market(market: Market) -> dict[str, str]:
    return {"code": market.code, "country": market.country, "currency": market.currency, "locale": market.locale}


async def _offers(request: web.Request) -> web.Response:
    size, after = limit(request), parameter(request, "after")
    market = _asked_market(request)
    wanted = locales(request)

    def choose(sale: Sale) -> Sequence[Offer]:
        """The page's offers and one more, which says that there is a next page."""
        found = sale.offers if market is None else sale.by_market.get(market.code, ())
        start = 0
        if after is not None:
            last = sale.by_sku.get(after)
            if last is None:
                raise bad_parameter("after", "names no SKU of the sale")
            start = bisect_right(found, last.index, key=attrgetter("index"))
        return found[start : start + size + 1]

    now = await sale_now(context_of(request), request.match_info["sale"], choose)
    body: dict[str, Any] = {
        "offers": [_offer(offer, now.state, market, wanted) for offer in now.offers[:size]],
        "as_of": rfc3339(now.state.now_ms),
    }
    if len(now.offers) > size:
        body["next"] = next_path(request, now.offers[size - 1].sku)
    return in_language(answer(request, body), writing(wanted) or (market.locale if market else ENGLISH))


def _asked_market(request: web.Request) -> Market | None:
    code = parameter(request, "market")
    if code is None:
        return None
    market = MARKETS.get(code)
    if market is None:
        raise bad_parameter("market", "is not the ISO country code of a market, such as SG")
    return market


def _offer(offer: Offer, state: SaleGlance, market: Market | None, wanted: tuple[str, ...]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "sku": offer.sku,
        "title": offer.title_in(*wanted, market.locale if market else ENGLISH),
        "brand": offer.brand,
    }
    locale = writing(wanted)
    if market:
        shown["price"] = money(offer.prices[market.code], market.currency)
        if locale is not None:
            shown["price_text"] = money_text(offer.prices[market.code], market.currency, locale)
    else:
        shown["prices"] = {code: money(amount, MARKETS[code].currency) for code, amount in offer.prices.items()}
        if locale is not None:
            shown["price_texts"] = {
                code: money_text(amount, MARKETS[code].currency, locale) for code, amount in offer.prices.items()
            }
    shown["quota"] = offer.quota
    shown["available"] = state.available[offer.index]
    if locale is not None:
        shown["available_text"] = number_text(shown["available"], locale)
    shown["suspended"] = offer.index in state.suspended
    return shown
