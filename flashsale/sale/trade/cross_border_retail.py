"""China's retail imports of cross-border e-commerce: no tariff and seven tenths of the taxes, within personal limits.

The dutiable value is goods and freight. Within the limit of one order the tariff is that of the rule (0) and the tax
(c + v) / (1 - c) x 0.7 of the dutiable value, with v the rate of VAT and c that of consumption tax. Above it, one unit
of one SKU goes with its full tariff and taxes; anything else can't be one order. The seller collects.
Sources: import_rules.csv, kinds single_limit, annual_limit, tax_factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.sale.trade.duty_rates import DutyTable
from flashsale.sale.trade.landed import PPM, ImportLimit, Landed, Prepared, Regime
from flashsale.sale.trade.rounding import half_up


class RetailRules(NamedTuple):
    """Rates in parts of PPM: of VAT, the tariff within the limits, and the factor on the taxes there."""

    vat: int
    tariff: int
    factor: int
    estimated: bool


class CrossBorderRetail(Regime):
    """The rules between two changes of them; a calendar year, which the annual limit is of, is a change too."""

    __slots__ = ("_duties", "_excises", "_single", "country", "currency", "from_ms", "limit", "rules", "until_ms")

    def __init__(
        self,
        country: str,
        currency: str,
        from_ms: int,
        until_ms: int,
        rules: RetailRules,
        limit: ImportLimit,
        duties: DutyTable,
        excises: DutyTable,
    ) -> None:
        self.country, self.currency, self.from_ms, self.until_ms = country, currency, from_ms, until_ms
        self.rules, self._duties, self._excises = rules, duties, excises
        self.limit: ImportLimit | None = limit
        self._single = limit.single

    def prepare(self, price: int, hs_code: str, origin: str) -> Prepared | None:
        """An offer of that unit price (minor units), HS code and origin; None: its duty rate is not known."""
        rate = self._duties.find(hs_code, origin) if hs_code else None
        if rate is None or rate.ppm is None:
            return None
        excise = self._excises.find(hs_code, origin)
        estimated = rate.grade == "C" or (excise is not None and excise.grade == "C")
        return Prepared(price, rate.ppm, rate.ppm, (excise.ppm or 0) if excise else 0, hs_code[:6], estimated)

    def land(self, lines: Sequence[tuple[Prepared, int]], freight: int) -> Landed:
        """The landed cost of (offer, quantity) lines, their freight in minor units."""
        rules = self.rules
        goods = sum([prepared.price * quantity for prepared, quantity in lines])
        dutiable = goods + freight
        within = dutiable <= self._single
        indivisible = len(lines) == 1 and lines[0][1] == 1
        factor = rules.factor if within else PPM
        estimated = rules.estimated
        duty: list[int] = []
        tax: list[int] = []
        for prepared, quantity in lines:
            value, whole = (prepared.price * quantity, goods) if goods else (int(not duty), 1)
            rate = rules.tariff if within else prepared.duty
            line_duty = half_up(value * dutiable * rate, whole * PPM)
            taxed = (value * dutiable + line_duty * whole) * (prepared.excise + rules.vat) * factor
            duty.append(line_duty)
            tax.append(half_up(taxed, whole * (PPM - prepared.excise) * PPM))
            estimated = estimated or (prepared.estimated and (not within or prepared.excise > 0))
        over = not within and not indivisible
        return Landed(tuple(duty), tuple(tax), 0, 0, True, estimated, dutiable, over)
