"""The import rules of a country as most have them: reliefs below a value, tax at sale, duty and tax at the border.

Every threshold is an integer of the market's currency up to which it holds, whatever currency the rule is in and
whether it says `≤` or `<`; so an order compares integers. The rounding rule is rounding.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flashsale.sale.trade.duty_rates import DutyTable
from flashsale.sale.trade.landed import PPM, ImportLimit, Landed, Prepared, Regime
from flashsale.sale.trade.rounding import half_up


class Threshold(NamedTuple):
    """Holds for what is worth `upto` minor units or less by its `basis`: "item" (one unit's price), "FOB" (the
    consignment's goods), "CIF" (goods and freight), "due" (what would have to be paid). `excess`: what is above is
    charged, else the whole value is."""

    upto: int
    basis: str
    excess: bool = False

    def value(self, price: int, goods: int, cif: int) -> int:
        """What is compared."""
        if self.basis == "item":
            return price
        return cif if self.basis == "CIF" else goods


NEVER = Threshold(-1, "FOB")


class CustomsRules(NamedTuple):
    """What holds in a country at one time. Rates in parts of PPM, thresholds and `per_heading` in minor units.

    `tax` the rate of VAT, GST or the like. `tax_at_sale`: up to it the seller collects the tax with the order;
    `freight_at_sale`: the freight is taxed there too. `duty_relief`, `tax_relief`: up to it none is due; `due_relief`:
    up to it what is due is not asked for. `flat_duty`: up to it the flat rate `flat`, which is None where no such rate
    holds. `per_heading` is due for each different sub-heading up to `heading_duty`, and the seller collects it.
    `duty_on_cif`: duty is on goods and freight, else on goods. `fee`: a rate on goods and freight beside the tax.
    `prepaid`: the seller collects also what the border asks. `estimated`: one of them is of grade C.
    """

    tax: int
    tax_at_sale: Threshold
    freight_at_sale: bool
    duty_relief: Threshold
    tax_relief: Threshold
    due_relief: Threshold
    flat: int | None
    flat_duty: Threshold
    per_heading: int
    heading_duty: Threshold
    duty_on_cif: bool
    fee: int
    prepaid: bool
    estimated: bool


class Customs(Regime):
    """A country's customs between two changes of its rules."""

    __slots__ = ("_duties", "country", "currency", "from_ms", "limit", "rules", "until_ms")

    def __init__(
        self, country: str, currency: str, from_ms: int, until_ms: int, rules: CustomsRules, duties: DutyTable
    ) -> None:
        self.country, self.currency, self.from_ms, self.until_ms = country, currency, from_ms, until_ms
        self.rules, self._duties = rules, duties
        self.limit: ImportLimit | None = None

    def prepare(self, price: int, hs_code: str, origin: str) -> Prepared | None:
        """An offer of that unit price (minor units), HS code and origin; None: its duty rate is not known."""
        rate = self._duties.find(hs_code, origin) if hs_code else None
        if rate is None or rate.ppm is None:
            return None
        flat = rate.ppm if self.rules.flat is None or rate.flat_too else self.rules.flat
        return Prepared(price, rate.ppm, flat, 0, hs_code[:6], rate.grade == "C")

    def land(self, lines: Sequence[tuple[Prepared, int]], freight: int) -> Landed:
        """The landed cost of (offer, quantity) lines, their freight in minor units."""
        rules = self.rules
        goods = sum([prepared.price * quantity for prepared, quantity in lines])
        cif = goods + freight
        by_heading = goods <= rules.heading_duty.upto
        flat = goods <= rules.flat_duty.upto
        headings: set[str] = set()
        estimated = rules.estimated
        duty: list[int] = []
        tax: list[int] = []
        due_duty: list[int] = []
        due_tax: list[int] = []
        for prepared, quantity in lines:
            price = prepared.price
            # The line's share of the consignment, goods and freight, is value * cif / goods.
            value, whole = (price * quantity, goods) if goods else (int(not duty), 1)
            at_sale = rules.tax_at_sale.value(price, goods, cif) <= rules.tax_at_sale.upto
            line_duty = 0
            duty_at_sale = False
            if by_heading:
                duty_at_sale = True
                if prepared.heading not in headings:
                    headings.add(prepared.heading)
                    line_duty = rules.per_heading
            else:
                relief = rules.duty_relief
                worth = relief.value(price, goods, cif)
                if worth > relief.upto:
                    charged, of = (worth - relief.upto, worth) if relief.excess else (1, 1)
                    rate = prepared.flat if flat else prepared.duty
                    base = cif if rules.duty_on_cif else goods
                    line_duty = half_up(value * base * charged * rate, whole * of * PPM)
                    estimated = estimated or (prepared.estimated and not (flat and prepared.flat != prepared.duty))
            line_tax = 0
            if at_sale:
                taxed = value * (cif if rules.freight_at_sale else goods) + (line_duty * whole if duty_at_sale else 0)
                line_tax = half_up(taxed * rules.tax, whole * PPM)
            else:
                relief = rules.tax_relief
                worth = relief.value(price, goods, cif)
                if worth > relief.upto:
                    charged, of = (worth - relief.upto, worth) if relief.excess else (1, 1)
                    shipped = value * cif * charged
                    taxed = (shipped + line_duty * whole * of) * rules.tax + shipped * rules.fee
                    line_tax = half_up(taxed, whole * of * PPM)
            duty.append(line_duty if duty_at_sale else 0)
            due_duty.append(0 if duty_at_sale else line_duty)
            tax.append(line_tax if at_sale else 0)
            due_tax.append(0 if at_sale else line_tax)
        border_duty, border_tax = sum(due_duty), sum(due_tax)
        if border_duty + border_tax <= rules.due_relief.upto:
            border_duty = border_tax = 0
        elif rules.prepaid:
            duty = [sold + due for sold, due in zip(duty, due_duty, strict=True)]
            tax = [sold + due for sold, due in zip(tax, due_tax, strict=True)]
            border_duty = border_tax = 0
        ddp = border_duty + border_tax == 0
        return Landed(tuple(duty), tuple(tax), border_duty, border_tax, ddp, estimated)
