"""A slow reference of landed cost: fractions of major units, dates compared as the country's own calendar has them.

It reads the same rows as the engine and shares no code with it but the rows' types.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from math import floor
from zoneinfo import ZoneInfo

from flashsale.sale.market import MARKETS
from flashsale.sale.money import EXPONENTS
from flashsale.sale.trade.duty_rates import DutyRate
from flashsale.sale.trade.rules import Country, Rule, TradeRules

MILLION = 1_000_000


@dataclass(frozen=True)
class Item:
    """A line: minor units a unit, how many, what and from where."""

    price: int
    quantity: int
    hs_code: str
    origin: str


@dataclass
class Cost:
    """As the engine's Landed, minor units."""

    duty: list[int]
    tax: list[int]
    due_duty: int
    due_tax: int
    limit_use: int = 0
    over_limit: bool = False


class Reference:
    """One country on one moment."""

    def __init__(self, trade: TradeRules, code: str, ships_from: str, at_ms: int) -> None:
        self.trade = trade
        self.country: Country = next(each for each in trade.countries if each.code == code)
        at = datetime.fromtimestamp(at_ms // 1000, UTC)
        self.utc_day = at.date()
        self.day = at.astimezone(ZoneInfo(self.country.zone)).date()
        self.currency = MARKETS[code].currency
        self.ships_from = ships_from

    def rule(self, kind: str) -> Rule | None:
        """The rule of that kind: the one for goods from there, else the one for all."""
        names = {self.country.code, self.country.bloc}
        fitting = [r for r in self.trade.rules if r.kind == kind and r.country in names and self.holds(r)]
        own = [r for r in fitting if r.ships_from and self.ships_from in r.ships_from.split("|")]
        usual = [r for r in fitting if not r.ships_from]
        assert len(own) <= 1 and len(usual) <= 1, f"two rules of one kind at once: {fitting}"
        return (own or usual or [None])[0]

    def holds(self, dated: Rule | DutyRate) -> bool:
        """Whether the day is one of its days."""
        since = date.fromisoformat(dated.since) if dated.since else date.min
        to = date.fromisoformat(dated.to) if dated.to else date.max
        return since <= self.day <= to

    def rate(self, kind: str) -> Fraction:
        """A rate; 0 where there is none."""
        rule = self.rule(kind)
        return Fraction(rule.value, MILLION) if rule else Fraction(0)

    def duty_rate(self, item: Item, country: str = "") -> DutyRate | None:
        """The row that decides the item's duty."""
        names = {country} if country else {self.country.code, self.country.bloc, "*"}
        rows = [
            row
            for row in self.trade.duty_rates
            if row.country in names
            and item.hs_code.startswith(row.prefix)
            and row.origin in ("", item.origin)
            and self.holds(row)
        ]
        return max(rows, key=lambda row: (len(row.prefix), row.origin != ""), default=None)

    def amount(self, rule: Rule) -> Fraction:
        """The rule's amount in the market's major unit."""
        value = Fraction(rule.value, 10 ** EXPONENTS[rule.currency])
        return value * Fraction(self.exchange(rule.currency)[-1][1], MILLION)

    def exchange(self, currency: str) -> list[tuple[str, int]]:
        """The rates from that currency that have begun, oldest first: day and millionths."""
        if currency == self.currency:
            return [("", MILLION)]
        return sorted(
            (each.since, each.ppm)
            for each in self.trade.exchange_rates
            if (each.base, each.quote) == (currency, self.currency) and date.fromisoformat(each.since) <= self.utc_day
        )

    def comparable(self) -> bool:
        """Whether every rule that holds is in a currency that has a rate."""
        names = {self.country.code, self.country.bloc}
        rules = [rule for rule in self.trade.rules if rule.country in names and rule.currency and self.holds(rule)]
        return all(self.exchange(rule.currency) for rule in rules)

    def within(self, kind: str, price: Fraction, goods: Fraction, cif: Fraction) -> tuple[bool, Fraction]:
        """Whether the value is within that threshold; else the share of it that is charged."""
        rule = self.rule(kind)
        if rule is None:
            return False, Fraction(1)
        value = {"item": price, "FOB": goods, "CIF": cif}[rule.basis]
        limit = self.amount(rule)
        if value < limit or (value == limit and rule.relation == "<="):
            return True, Fraction(0)
        return False, (value - limit) / value if rule.excess else Fraction(1)

    def major(self, minor: int) -> Fraction:
        """Minor units as major ones."""
        return Fraction(minor, 10 ** EXPONENTS[self.currency])

    def rounded(self, major: Fraction) -> int:
        """Half up to the minor unit."""
        return floor(major * 10 ** EXPONENTS[self.currency] + Fraction(1, 2))

    def land(self, items: list[Item], freight_minor: int) -> Cost | None:
        """The landed cost; None: not sold there."""
        tariff = [self.duty_rate(item) for item in items]
        if self.rule("tax_rate") is None or not self.comparable():
            return None
        if any(row is None or row.ppm is None for row in tariff):
            return None
        freight = self.major(freight_minor)
        goods = sum((self.major(item.price) * item.quantity for item in items), Fraction(0))
        shares = [
            freight * self.major(item.price) * item.quantity / goods if goods else freight * (place == 0)
            for place, item in enumerate(items)
        ]
        rates = [Fraction(row.ppm or 0, MILLION) for row in tariff if row is not None]
        if self.country.retail_import:
            return self.retail(items, rates, shares, goods + freight)
        return self.customs(items, [row for row in tariff if row is not None], shares, goods, goods + freight)

    def customs(
        self, items: list[Item], tariff: list[DutyRate], shares: list[Fraction], goods: Fraction, cif: Fraction
    ) -> Cost:
        """Ordinary customs."""
        cost = Cost([], [], 0, 0)
        border: list[tuple[int, int]] = []
        met: set[str] = set()
        fee_a_heading = self.rule("duty_per_heading")
        for item, row, share in zip(items, tariff, shares, strict=True):
            price = self.major(item.price)
            value = price * item.quantity
            sold_duty = border_duty = 0
            if fee_a_heading and self.within("duty_per_heading_limit", price, goods, cif)[0]:
                if item.hs_code[:6] not in met:
                    sold_duty = self.rounded(self.amount(fee_a_heading))
                met.add(item.hs_code[:6])
            else:
                free, charged = self.within("duty_relief", price, goods, cif)
                rate = Fraction(row.ppm or 0, MILLION)
                if self.rule("flat_duty") and not row.flat_too and self.within("flat_duty_limit", price, goods, cif)[0]:
                    rate = self.rate("flat_duty")
                base = value + share if self.country.duty_on == "CIF" else value
                border_duty = 0 if free else self.rounded(base * charged * rate)
            sold_tax = border_tax = 0
            if self.within("tax_at_sale", price, goods, cif)[0]:
                base = value + (share if self.country.sale_tax_on == "CIF" else 0) + self.major(sold_duty)
                sold_tax = self.rounded(base * self.rate("tax_rate"))
            else:
                free, charged = self.within("tax_relief", price, goods, cif)
                base = (value + share) * charged
                tax = (base + self.major(sold_duty + border_duty)) * self.rate("tax_rate")
                border_tax = 0 if free else self.rounded(tax + base * self.rate("fee_rate"))
            cost.duty.append(sold_duty)
            cost.tax.append(sold_tax)
            border.append((border_duty, border_tax))
        due = sum(duty + tax for duty, tax in border)
        waived = self.rule("due_relief")
        if waived and (self.major(due) < self.amount(waived) or (waived.relation == "<=" and due == waived.value)):
            return cost
        if self.country.terms == "DDP":
            cost.duty = [sold + asked for sold, (asked, _) in zip(cost.duty, border, strict=True)]
            cost.tax = [sold + asked for sold, (_, asked) in zip(cost.tax, border, strict=True)]
            return cost
        cost.due_duty, cost.due_tax = sum(duty for duty, _ in border), sum(tax for _, tax in border)
        return cost

    def retail(
        self, items: list[Item], rates: list[Fraction], shares: list[Fraction], dutiable: Fraction
    ) -> Cost | None:
        """China's retail imports."""
        if self.rule("single_limit") is None or self.rule("tax_factor") is None:
            return None
        within = self.within("single_limit", dutiable, dutiable, dutiable)[0]
        cost = Cost([], [], 0, 0, self.rounded(dutiable), not within and sum(item.quantity for item in items) > 1)
        for item, rate, share in zip(items, rates, shares, strict=True):
            value = self.major(item.price) * item.quantity + share
            duty = self.rounded(value * (self.rate("tariff_rate") if within else rate))
            row = self.duty_rate(item, "excise:" + self.country.code)
            excise = Fraction((row.ppm or 0) if row else 0, MILLION)
            full = (value + self.major(duty)) * (excise + self.rate("tax_rate")) / (1 - excise)
            cost.duty.append(duty)
            cost.tax.append(self.rounded(full * self.rate("tax_factor") if within else full))
        return cost
