"""The days on which carriers dispatch: every day but a country's public holidays, with exceptions in data.

Days off are worked out when the data is loaded and are then data themselves, so that an engine with another release of
the library of holidays dispatches on the same days.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import cached_property

import holidays
from msgspec import Struct

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


class Calendar(Struct, frozen=True, dict=True):
    """`off`: days off, as days since 1970-01-01, in order."""

    id: str
    off: tuple[int, ...]

    @cached_property
    def _off(self) -> frozenset[int]:
        return frozenset(self.off)

    def works(self, day: int) -> bool:
        """Whether parcels are dispatched on that day (days since 1970-01-01)."""
        return day not in self._off

    def working_day(self, day: int) -> int:
        """That day, or the first working day after it."""
        while day in self._off:
            day += 1
        return day


def calendar(
    name: str, country: str, years: tuple[int, int], closed: Iterable[date] = (), opened: Iterable[date] = ()
) -> Calendar:
    """A calendar of a country's public holidays from the first of `years` to the last; `closed` are more days off,
    `opened` working days whatever they are else. Raises ValueError for a country whose holidays are not known."""
    try:
        public = holidays.country_holidays(country, years=range(years[0], years[1] + 1))
    except NotImplementedError as unknown:
        raise ValueError(f"calendar {name}: the holidays of {country} are not known") from unknown
    off = {*public, *closed} - {*opened}
    return Calendar(name, tuple(sorted(day_number(day) for day in off)))


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return day.toordinal() - EPOCH_ORDINAL


def day_of(number: int) -> date:
    """The day of that number."""
    return date.fromordinal(number + EPOCH_ORDINAL)
