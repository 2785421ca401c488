"""Lanes: a carrier on a route, what it asks, what it takes, and by when it promises to deliver."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from flashsale.sale.offer import Offer


class LaneAt:
    """A lane to one country, between `from_ms` and `until_ms`: while its next dispatch day, tariff and promise hold.

    `number` 1 to 65,535 names the lane for ever. `capacity` parcels a dispatch day (to all countries together), 0: no
    limit. `dispatch_day` days since 1970-01-01 in the lane's zone. `promised_by` ISO date in the country's zone, `days`
    calendar days from the day of the order.
    """

    number: int
    id: str
    carrier: str
    recommended: bool
    capacity: int
    dispatch_day: int
    promised_by: str
    days: int
    from_ms: int
    until_ms: int

    def takes(self, offers: Sequence[Offer]) -> bool:
        """Whether all of these may go in one parcel of this lane, their weight apart (size, kind of goods)."""
        raise NotImplementedError

    def shipping(self, weight_g: int) -> int | None:
        """What a parcel of that weight costs the shopper, minor units of the country's currency; None: too heavy."""
        raise NotImplementedError


class LaneBook(Struct, frozen=True):
    """Every lane, holiday calendar and shipping campaign that the engine knows."""

    def at(self, country: str, ships_from: str, at_ms: int) -> tuple[LaneAt, ...]:
        """The lanes from there to the country at that time: the default first, as they are recommended."""
        return ()
