"""Sales channels: where orders come from, which markets each serves, and how its guaranteed stock shrinks."""

from __future__ import annotations

from msgspec import Struct


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
