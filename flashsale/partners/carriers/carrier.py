"""A carrier as the house talks to it: parcels are booked under our reference, cancelled, and asked about.

What carriers tell of themselves comes to POST /v1/carriers/{carrier}/events. `HttpCarriers` (http.py) speaks for all
carriers of one account; a carrier with an API of its own gets another class with the same three methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from flashsale.sale.tracking import Code


class Goods(NamedTuple):
    """A line of what lies in a parcel, as its customs paper has it. `price`: of one unit, minor units."""

    sku: str
    title: str
    units: int
    price: int
    hs_code: str
    origin: str


class Parcel(NamedTuple):
    """A parcel to be booked. `reference` is ours: the same one is the same parcel, however often it is booked. `to`:
    the address, as far as the shopper gave one."""

    reference: str
    carrier: str
    lane: str
    ships_from: str
    country: str
    to: dict[str, str]
    weight_g: int
    currency: str
    goods: Sequence[Goods]


class TrackingEvent(NamedTuple):
    """Something that happened to a parcel. `id` is the carrier's: one that was told before changes nothing again.
    `country`: where, ISO 3166, and `detail`: for people; both where known."""

    id: str
    waybill: str
    code: Code
    at_ms: int
    detail: str | None = None
    country: str | None = None


class ParcelState(NamedTuple):
    """What a carrier knows of a parcel. `cancelled`: it will not carry it; `events`: all so far."""

    cancelled: bool
    events: Sequence[TrackingEvent]


class CarrierAway(Exception):
    """No answer, or none that says anything: it is not known whether it was done. Ask again later."""


class CarrierRefused(Exception):
    """The carrier will not do this, now or later: `code` in its own words, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code


PICKED_UP = "picked-up"
"""The refusal's code where a parcel is on its way, and can't be cancelled any more."""
UNKNOWN = "unknown-waybill"
"""The refusal's code where the carrier knows no such parcel."""


class Carriers(Protocol):
    """What carriers can be asked. Each method raises CarrierAway and CarrierRefused."""

    async def book(self, parcel: Parcel) -> str:
        """The parcel's waybill number. The same reference again is the same waybill; CarrierRefused where another
        parcel was booked under it."""
        ...

    async def cancel(self, waybill: str) -> None:
        """The parcel is not carried; also where it was cancelled before. CarrierRefused(PICKED_UP) from then on."""
        ...

    async def look(self, waybill: str) -> ParcelState:
        """What the carrier knows of the parcel: so that an event that was lost is heard."""
        ...
