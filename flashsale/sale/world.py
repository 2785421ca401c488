"""The world that sales sell into: rules of trade, lanes, channels. A part of every catalogue version.

So a front loads it only from Valkey, a change of it is a new version, and an order is priced again as it was priced.
"""

from __future__ import annotations

from functools import cache

from msgspec import Struct

from flashsale.sale import channels
from flashsale.sale.channels import Channel
from flashsale.sale.shipping.lanes import LaneBook
from flashsale.sale.trade.rules import TradeRules


class World(Struct, frozen=True, dict=True):
    """All that is no single sale's own."""

    trade: TradeRules = TradeRules()
    lanes: LaneBook = LaneBook()
    channels: tuple[Channel, ...] = ()

    def channel(self, channel_id: str) -> Channel | None:
        """The channel of that id."""
        return next((channel for channel in self.channels if channel.id == channel_id), None)


@cache
def packaged() -> World:
    """The world in the data that this release carries."""
    return World(TradeRules.load(), LaneBook.load(), channels.load())
