"""Duty rates by HS code and origin: which one holds for an offer.

The longest prefix wins, whatever origin it names; of the same prefix, the row of the offer's origin wins over that of
any. A row without a rate says that the goods are dutiable and the rate is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

ANY_COUNTRY = "*"


class DutyRate(Struct, frozen=True, array_like=True):
    """`prefix` of the HS code ("" is every code), `origin` ISO 3166 ("" is any), `ppm` the rate (None: not known).

    `since` and `to`: first and last day, ISO, local to the country; None: without end. `flat_too`: where the country
    has a flat rate for small consignments, these goods keep their own.
    """

    country: str
    prefix: str
    origin: str
    ppm: int | None
    flat_too: bool
    since: str | None
    to: str | None
    source: str
    url: str
    grade: str
    note: str


class DutyTable:
    """The duty rates of one country at one time."""

    __slots__ = ("_by_prefix",)

    def __init__(self, rates: Iterable[DutyRate]) -> None:
        self._by_prefix = {(rate.prefix, rate.origin): rate for rate in rates}

    def find(self, hs_code: str, origin: str) -> DutyRate | None:
        """The rate of goods of that HS code and origin; None: not known."""
        for length in range(len(hs_code), -1, -1):
            prefix = hs_code[:length]
            rate = self._by_prefix.get((prefix, origin)) or self._by_prefix.get((prefix, ""))
            if rate is not None:
                return rate if rate.ppm is not None else None
        return None
