"""The landed cost of one consignment: what the seller collects with the order, and what is due on delivery.

`Regime.prepare` makes integers of an offer once a catalogue version; `Regime.land` sums them for an order and picks the
branch of the rules. One order is one consignment. customs.py has the regime of most countries, cross_border_retail.py
that of China.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PPM = 1_000_000
"""Rates are integers in parts of this: 7.5 % is 75,000."""


class Landed(NamedTuple):
    """Minor units of the market's currency. `duty` and `tax`: of all units of each line, collected by the seller and a
    part of the total; what freight is taxed with is in the lines' shares. `due_duty`, `due_tax`: an estimate of what is
    collected at the border, outside the total. `ddp`: the terms are DDP (the seller collects whatever is owed, nothing
    is due on delivery), else DAP. `estimated`: a rule of grade C took part.

    Where a personal limit on imports holds: `limit_use` is what the order counts, and `over_limit` whether one order
    may not be as much; else 0 and False."""

    duty: tuple[int, ...]
    tax: tuple[int, ...]
    due_duty: int
    due_tax: int
    ddp: bool
    estimated: bool
    limit_use: int = 0
    over_limit: bool = False


class ImportLimit(NamedTuple):
    """A personal limit on imports, minor units: of one order, of a calendar year (`year`, in the country's zone)."""

    single: int
    annual: int
    year: int


class Prepared(NamedTuple):
    """An offer as `land` needs it. `price` minor units; rates in parts of PPM: `duty` the ordinary one, `flat` the one
    below the country's limit for a flat rate (the ordinary one where none is), `excise` a consumption tax. `heading`:
    the tariff sub-heading, 6 digits. `estimated`: its duty rate is of grade C."""

    price: int
    duty: int
    flat: int
    excise: int
    heading: str
    estimated: bool


class Regime:
    """The rules of one country for goods that ship from one place, between `from_ms` and `until_ms`."""

    __slots__ = ()

    country: str
    currency: str
    from_ms: int
    until_ms: int
    limit: ImportLimit | None

    def prepare(self, price: int, hs_code: str, origin: str) -> Prepared | None:
        """An offer of that unit price (minor units), HS code (4 to 10 digits) and country of origin; None: it can't be
        sold here, for its duty rate is not known."""
        raise NotImplementedError

    def land(self, lines: Sequence[tuple[Prepared, int]], freight: int) -> Landed:
        """The landed cost of (offer, quantity) lines, their freight in minor units."""
        raise NotImplementedError
