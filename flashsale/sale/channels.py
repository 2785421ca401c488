"""Sales channels: where orders come from, which markets each serves, and how its guaranteed stock shrinks.

The channels themselves are data (channels.toml). A channel's shoppers are a namespace of its own: inside the house
their ids carry the channel's, divided by a character that no token can hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from flashsale.sale.offer import Offer

NUMBER_MAX = 255  # the number is one byte of every hold
KINDS = frozenset({"web", "marketplace", "import"})
SHOPPER_DIVIDER = "\x1f"


class Channel(Struct, frozen=True):
    """A channel. `number` 1 to 255 names it for ever. `markets`: those it sells in; none named: all. `kind`: web,
    marketplace or import. `shrink_share`: over the last such share of a sale's window what is left of its guarantee
    falls to nothing, the rest going to the common pool; 0: it never does."""

    id: str
    number: int
    name: str
    kind: str
    markets: tuple[str, ...] = ()
    shrink_share: float = 0.2

    def serves(self, market: str) -> bool:
        """Whether orders of this channel may go to the market."""
        return not self.markets or market in self.markets

    def guarantee_left(self, initial: int, opens_at_ms: int, closes_at_ms: int, now_ms: int) -> int:
        """What the channel may still keep to itself of `initial` units: floor(initial * share of the last
        `shrink_share` of the window that is left)."""
        span = int((closes_at_ms - opens_at_ms) * self.shrink_share)
        left = closes_at_ms - now_ms
        if span <= 0 or left >= span:
            return initial
        return max(0, initial * left // span)

    def sells(self, offer: Offer, now_ms: int) -> bool:
        """Whether the channel sells the offer anywhere now: it is priced in one of its markets, in season there."""
        return any(
            self.serves(market) and (market not in offer.windows or _within(offer.windows[market], now_ms))
            for market in offer.prices
        )

    def sellable(
        self,
        offers: Iterable[Offer],
        common: Sequence[int],
        guaranteed: Mapping[int, int],
        suspended: frozenset[int],
        now_ms: int,
    ) -> dict[int, int]:
        """Units of each offer, by index, that an order of the channel would find now in an open sale: what is left of
        its guarantee (`guaranteed`) and the common pool. Offers that are priced in none of its markets are left out."""
        units = {}
        for offer in offers:
            if not any(self.serves(market) for market in offer.prices):
                continue
            sold = offer.index not in suspended and self.sells(offer, now_ms)
            units[offer.index] = common[offer.index] + guaranteed.get(offer.index, 0) if sold else 0
        return units


class _File(Struct, forbid_unknown_fields=True):
    channels: tuple[Channel, ...]


@cache
def load() -> tuple[Channel, ...]:
    """The channels of channels.toml. Raises ValueError where two share an id or a number, or one has no such kind."""
    return parse(files("flashsale.sale").joinpath("channels.toml").read_bytes())


def parse(text: bytes) -> tuple[Channel, ...]:
    """The channels that a file of that form names. Raises ValueError (msgspec.DecodeError is one) for another."""
    channels = msgspec.toml.decode(text, type=_File).channels
    for name in ("id", "number"):
        values = [getattr(channel, name) for channel in channels]
        if len(set(values)) != len(values):
            raise ValueError(f"two channels have the same {name}")
    for channel in channels:
        if not 1 <= channel.number <= NUMBER_MAX:
            raise ValueError(f"channel {channel.id!r}: its number is outside 1..{NUMBER_MAX}")
        if channel.kind not in KINDS:
            raise ValueError(f"channel {channel.id!r}: its kind is none of {', '.join(sorted(KINDS))}")
        if not 0 <= channel.shrink_share <= 1:
            raise ValueError(f"channel {channel.id!r}: its shrink_share is a share, 0 to 1")
        if not channel.id or SHOPPER_DIVIDER in channel.id:
            raise ValueError("a channel has an id without control characters")
    return channels


def shopper_of(channel: str, own_id: str) -> str:
    """How the house knows a channel's shopper: nobody else's id can be this."""
    return f"{channel}{SHOPPER_DIVIDER}{own_id}"


def own_shopper(channel: str, shopper: str) -> str:
    """The shopper's id as the channel knows it."""
    return shopper.removeprefix(f"{channel}{SHOPPER_DIVIDER}")


def _within(window: tuple[int, int], now_ms: int) -> bool:
    return window[0] <= now_ms < window[1]
