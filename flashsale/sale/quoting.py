"""What an order across a border costs: goods, shipping, duty and tax in one market, while its rules and lanes hold.

A `QuotedMarket` is made once a span of time, in which no rule, tariff, dispatch day or window of an offer changes; an
order in it is then sums of integers. Quotes and the hot path price with the same one. Pure; relies on trade and
shipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.sale.catalogue import Offer, Sale
from flashsale.sale.shipping.lanes import LaneAt
from flashsale.sale.trade.landed import Landed, Prepared, Regime
from flashsale.sale.world import World

ASK_AGAIN_MS = 3_600_000
"""A market that nothing is known of is looked at again after this: a rule may begin."""


class NotSoldHere(Exception):
    """The offer can't be sold in this market, now or by this channel: its SKU, and a sentence that says why."""

    def __init__(self, sku: str, why: str) -> None:
        super().__init__(sku, why)
        self.sku, self.why = sku, why


class LaneUnavailable(Exception):
    """No lane, or not the one asked for, takes the order. `lanes`: ids of those that do."""

    def __init__(self, lane: str | None, lanes: tuple[str, ...]) -> None:
        super().__init__(lane, lanes)
        self.lane, self.lanes = lane, lanes


class Quoted(NamedTuple):
    """An order's cost by one lane, minor units: `total` is goods, `shipping`, and the duty and tax of `landed`."""

    lane: LaneAt
    shipping: int
    landed: Landed
    total: int


class QuotedOffer:
    """An offer with a price in the market. `prepared` None: it isn't sold there, and `why` says so."""

    __slots__ = ("offer", "prepared", "price", "why")

    def __init__(self, offer: Offer, price: int, prepared: Prepared | None, why: str) -> None:
        self.offer, self.price, self.prepared, self.why = offer, price, prepared, why


class QuotedMarket:
    """One market of a sale that ships across borders: what holds there at `at_ms`, from `from_ms` until `until_ms`.

    `lanes`: the default first. `regime` None: no rule of the country is known, and nothing is sold.
    """

    __slots__ = ("_channels", "code", "from_ms", "lanes", "offers", "regime", "until_ms")

    def __init__(self, sale: Sale, code: str, world: World, at_ms: int) -> None:
        self.code = code
        self.regime = world.trade.regime(code, sale.ships_from, at_ms)
        self.lanes = world.lanes.at(code, sale.ships_from, at_ms)
        self.offers = {
            offer.sku: _offer(offer, code, self.regime, at_ms) for offer in sale.offers if code in offer.prices
        }
        self.from_ms, self.until_ms = _span(self, at_ms)
        self._channels = {channel.id: channel.serves(code) for channel in world.channels}

    def land(self, lines: Sequence[tuple[str, int]], lane_id: str | None, channel: str | None) -> Quoted:
        """The cost of (SKU, quantity) lines by that lane; None: by the first that takes them.

        Raises NotSoldHere, LaneUnavailable, and KeyError for a SKU that has no price in this market.
        """
        offers = self._sold(lines, channel)
        weight_g = sum([offer.offer.weight_g * quantity for offer, (_, quantity) in zip(offers, lines, strict=True)])
        for lane in self.lanes:
            if lane_id is None or lane.id == lane_id:
                shipping = self._shipping(lane, offers, weight_g)
                if shipping is not None:
                    return self._by_lane(lane, shipping, offers, lines)
        open_lanes = (lane.id for lane in self.lanes if self._shipping(lane, offers, weight_g) is not None)
        raise LaneUnavailable(lane_id, tuple(open_lanes))

    def each_lane(self, lines: Sequence[tuple[str, int]], channel: str | None) -> list[Quoted]:
        """The cost by each lane that takes the lines, the default first. Raises NotSoldHere, and KeyError as `land`."""
        offers = self._sold(lines, channel)
        weight_g = sum([offer.offer.weight_g * quantity for offer, (_, quantity) in zip(offers, lines, strict=True)])
        by_lane = [(lane, self._shipping(lane, offers, weight_g)) for lane in self.lanes]
        return [self._by_lane(lane, shipping, offers, lines) for lane, shipping in by_lane if shipping is not None]

    def _sold(self, lines: Sequence[tuple[str, int]], channel: str | None) -> list[QuotedOffer]:
        """The lines' offers, every one of them sold here."""
        offers = [self.offers[sku] for sku, _ in lines]
        if not self._channels.get(channel or "", True):
            raise NotSoldHere(lines[0][0], f"The channel {channel} does not sell in {self.code}.")
        for (sku, _), offer in zip(lines, offers, strict=True):
            if offer.prepared is None:
                raise NotSoldHere(sku, offer.why)
        return offers

    def _shipping(self, lane: LaneAt, offers: Sequence[QuotedOffer], weight_g: int) -> int | None:
        """What the lane asks for a parcel; None: it doesn't take it."""
        return lane.shipping(weight_g) if lane.takes([each.offer for each in offers]) else None

    def _by_lane(
        self, lane: LaneAt, shipping: int, offers: Sequence[QuotedOffer], lines: Sequence[tuple[str, int]]
    ) -> Quoted:
        assert self.regime is not None  # noqa: S101  # an offer is sold only where there is one
        prepared = [
            (each.prepared, quantity)
            for each, (_, quantity) in zip(offers, lines, strict=True)
            if each.prepared is not None
        ]
        landed = self.regime.land(prepared, shipping)
        goods = sum([each.price * quantity for each, (_, quantity) in zip(offers, lines, strict=True)])
        return Quoted(lane, shipping, landed, goods + shipping + sum(landed.duty) + sum(landed.tax))


def _offer(offer: Offer, code: str, regime: Regime | None, at_ms: int) -> QuotedOffer:
    price = offer.prices[code]
    if regime is None:
        return QuotedOffer(offer, price, None, f"The import rules of {code} are not known.")
    window = offer.windows.get(code)
    if window is not None and not window[0] <= at_ms < window[1]:
        return QuotedOffer(offer, price, None, f"It is not the season for it in {code}.")
    prepared = regime.prepare(price, offer.hs_code, offer.origin)
    return QuotedOffer(offer, price, prepared, "" if prepared else f"Its duty rate in {code} is not known.")


def _span(market: QuotedMarket, at_ms: int) -> tuple[int, int]:
    """From when until when nothing of the market changes."""
    froms, untils = [0], [at_ms + ASK_AGAIN_MS] if market.regime is None or not market.lanes else []
    held: list[Regime | LaneAt] = [*market.lanes] if market.regime is None else [market.regime, *market.lanes]
    for each in held:
        froms.append(each.from_ms)
        untils.append(each.until_ms)
    for offer in market.offers.values():
        for edge in offer.offer.windows.get(market.code, ()):
            (froms if edge <= at_ms else untils).append(edge)
    return max(froms), min(untils)
