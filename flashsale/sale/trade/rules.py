"""The rules of trade as data: dated rules, duty rates and exchange rates, and the regime that they make at a time.

A rule's days are those of the customs zone of its country: it begins at the local midnight of its first day and ends at
the one after its last. load.py reads the packaged data; everything here is a value that MessagePack carries, since the
rules are a part of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TypeVar
from zoneinfo import ZoneInfo

from msgspec import Struct

from flashsale.sale.market import MARKETS
from flashsale.sale.money import EXPONENTS
from flashsale.sale.trade.cross_border_retail import CrossBorderRetail, RetailRules
from flashsale.sale.trade.customs import NEVER, Customs, CustomsRules, Threshold
from flashsale.sale.trade.duty_rates import ANY_COUNTRY, DutyRate, DutyTable
from flashsale.sale.trade.landed import PPM, ImportLimit, Regime
from flashsale.sale.trade.rounding import half_up

FOR_EVER_MS = 2**47
"""After every date that a rule can have; six bytes hold it."""

EXCISE = "excise:"
"""A duty rate of the country "excise:CN" is the rate of consumption tax there."""


class Country(Struct, frozen=True, array_like=True):
    """How a country's customs works. `zone` IANA; `bloc` whose rules hold too ("EU"), or "". `duty_on` "CIF" or "FOB";
    `sale_tax_on` "CIF" or "FOB": whether tax collected at sale is on the freight too. `terms` "DDP": the seller
    collects also what the border asks; "DAP": that is due on delivery. `retail_import`: China's retail regime."""

    code: str
    zone: str
    bloc: str
    duty_on: str
    sale_tax_on: str
    terms: str
    retail_import: bool
    note: str


class Rule(Struct, frozen=True, array_like=True):
    """One dated rule. `value`: minor units of `currency`, or parts of PPM where that is "". `relation` "<=" or "<".
    `collector` "seller" or "border", "" where it is none's. `ships_from`: only for goods from there ("" is anywhere).
    `since`, `to`: first and last day, ISO; None: without end. `grade` A authority, B law firm or carrier, C secondary
    or not seen."""

    country: str
    kind: str
    value: int
    currency: str
    basis: str
    relation: str
    excess: bool
    collector: str
    ships_from: str
    since: str | None
    to: str | None
    source: str
    url: str
    grade: str
    note: str


class ExchangeRate(Struct, frozen=True, array_like=True):
    """One major unit of `base` is `ppm` millionths of a major unit of `quote`, from the day `since` in UTC."""

    base: str
    quote: str
    ppm: int
    since: str
    source: str
    grade: str
    note: str


Dated = TypeVar("Dated", Rule, DutyRate)


@lru_cache(4096)
def midnight_ms(day: str, zone: str, days_later: int = 0) -> int:
    """The midnight that begins the ISO day in the zone, or that many days later: milliseconds since 1970."""
    local = date.fromisoformat(day) + timedelta(days=days_later)
    return int(datetime(local.year, local.month, local.day, tzinfo=ZoneInfo(zone)).timestamp()) * 1000


class NoExchangeRate(LookupError):
    """No rate from the first currency to the second has begun, so a threshold can't be compared."""


class TradeRules(Struct, frozen=True):
    """Every rule, duty rate and exchange rate that the engine knows."""

    countries: tuple[Country, ...] = ()
    rules: tuple[Rule, ...] = ()
    duty_rates: tuple[DutyRate, ...] = ()
    exchange_rates: tuple[ExchangeRate, ...] = ()

    @staticmethod
    def load() -> TradeRules:
        """The packaged ones."""
        from flashsale.sale.trade.load import packaged  # it makes values of this module

        return packaged()

    def regime(self, country: str, ships_from: str, at_ms: int) -> Regime | None:
        """What holds in the country at that time for goods from there; None: nothing is known, so nothing is sold."""
        by_code = {each.code: each for each in self.countries}
        known = by_code.get(country)
        if known is None:
            return None
        origin = by_code.get(ships_from)
        if not known.retail_import and (
            country == ships_from or (origin and origin.bloc and origin.bloc == known.bloc)
        ):
            return _at_home(country)
        span = _Span(at_ms, known.zone)
        rules = {rule.kind: rule for rule in self._holding(span, known, ships_from)}
        duties = DutyTable(span.holding([each for each in self.duty_rates if each.country in _names(known)]))
        if known.retail_import:
            return self._retail(known, span, rules, duties)
        try:
            return self._customs(known, span, rules, duties)
        except NoExchangeRate:
            return None

    def _holding(self, span: _Span, country: Country, ships_from: str) -> list[Rule]:
        """The rules that hold, those for goods from one place behind those for all, so that they win."""
        names = _names(country)
        fitting = [
            rule
            for rule in self.rules
            if rule.country in names and (not rule.ships_from or ships_from in rule.ships_from.split("|"))
        ]
        return sorted(span.holding(fitting), key=lambda rule: rule.ships_from != "")

    def _customs(self, country: Country, span: _Span, rules: dict[str, Rule], duties: DutyTable) -> Regime | None:
        if "tax_rate" not in rules:
            return None
        currency = MARKETS[country.code].currency
        money = _Money(self.exchange_rates, currency, span)
        flat, per_heading = rules.get("flat_duty"), rules.get("duty_per_heading")
        found = CustomsRules(
            tax=rules["tax_rate"].value,
            tax_at_sale=money.threshold(rules.get("tax_at_sale")),
            freight_at_sale=country.sale_tax_on == "CIF",
            duty_relief=money.threshold(rules.get("duty_relief")),
            tax_relief=money.threshold(rules.get("tax_relief")),
            due_relief=money.threshold(rules.get("due_relief")),
            flat=flat.value if flat else None,
            flat_duty=money.threshold(rules.get("flat_duty_limit")) if flat else NEVER,
            per_heading=money.amount(per_heading) if per_heading else 0,
            heading_duty=money.threshold(rules.get("duty_per_heading_limit")) if per_heading else NEVER,
            duty_on_cif=country.duty_on == "CIF",
            fee=rules["fee_rate"].value if "fee_rate" in rules else 0,
            prepaid=country.terms == "DDP",
            estimated=money.estimated or any(rule.grade == "C" for rule in rules.values()),
        )
        return Customs(country.code, currency, span.from_ms, span.until_ms, found, duties)

    def _retail(self, country: Country, span: _Span, rules: dict[str, Rule], duties: DutyTable) -> Regime | None:
        needed = ("tax_rate", "single_limit", "annual_limit", "tariff_rate", "tax_factor")
        if any(kind not in rules for kind in needed):
            return None
        vat, single, annual, tariff, factor = (rules[kind].value for kind in needed)
        year = span.year()
        estimated = any(rules[kind].grade == "C" for kind in needed)
        excise_rates = [each for each in self.duty_rates if each.country == EXCISE + country.code]
        excises = DutyTable(span.holding(excise_rates))
        return CrossBorderRetail(
            country.code,
            MARKETS[country.code].currency,
            span.from_ms,
            span.until_ms,
            RetailRules(vat, tariff, factor, estimated),
            ImportLimit(single, annual, year),
            duties,
            excises,
        )


class _Span:
    """The time around an instant in which nothing that was looked at changes."""

    def __init__(self, at_ms: int, zone: str) -> None:
        self.at_ms, self._zone = at_ms, zone
        self.from_ms, self.until_ms = 0, FOR_EVER_MS

    def holding(self, dated: Sequence[Dated]) -> list[Dated]:
        """Those that hold at the instant."""
        return [each for each in dated if self._holds(each)]

    def begins(self, edge_ms: int) -> bool:
        """Whether the edge has come; the span then ends or begins there at the latest."""
        if edge_ms <= self.at_ms:
            self.from_ms = max(self.from_ms, edge_ms)
            return True
        self.until_ms = min(self.until_ms, edge_ms)
        return False

    def year(self) -> int:
        """The calendar year, which ends the span."""
        year = datetime.fromtimestamp(self.at_ms / 1000, UTC).astimezone(ZoneInfo(self._zone)).year
        self.begins(midnight_ms(f"{year}-01-01", self._zone))
        self.begins(midnight_ms(f"{year + 1}-01-01", self._zone))
        return year

    def _holds(self, dated: Rule | DutyRate) -> bool:
        begun = dated.since is None or self.begins(midnight_ms(dated.since, self._zone))
        ended = dated.to is not None and self.begins(midnight_ms(dated.to, self._zone, 1))
        return begun and not ended


class _Money:
    """Amounts of rules in the market's currency. `estimated`: an exchange rate of grade C took part."""

    def __init__(self, rates: Iterable[ExchangeRate], currency: str, span: _Span) -> None:
        self._rates, self._currency, self._span = list(rates), currency, span
        self.estimated = False

    def threshold(self, rule: Rule | None) -> Threshold:
        """What the rule says as a threshold; None: one that nothing is below."""
        if rule is None:
            return NEVER
        numerator, denominator = self._fraction(rule)
        below = rule.relation == "<"
        upto = -(-numerator // denominator) - 1 if below else numerator // denominator
        return Threshold(upto, rule.basis, rule.excess)

    def amount(self, rule: Rule) -> int:
        """The rule's amount."""
        return half_up(*self._fraction(rule))

    def _fraction(self, rule: Rule) -> tuple[int, int]:
        if rule.currency == self._currency:
            return rule.value, 1
        rate = self._rate(rule.currency)
        numerator = rule.value * rate.ppm * 10 ** EXPONENTS[self._currency]
        return numerator, PPM * 10 ** EXPONENTS[rule.currency]

    def _rate(self, base: str) -> ExchangeRate:
        """The newest that has begun. Raises NoExchangeRate where none has."""
        begun = [
            rate
            for rate in self._rates
            if rate.base == base and rate.quote == self._currency and self._span.begins(midnight_ms(rate.since, "UTC"))
        ]
        if not begun:
            raise NoExchangeRate(base, self._currency)
        newest = max(begun, key=lambda rate: rate.since)
        self.estimated = self.estimated or newest.grade == "C"
        return newest


def _names(country: Country) -> tuple[str, ...]:
    """Under which countries its rules and rates are written."""
    return (country.code, country.bloc or country.code, ANY_COUNTRY)


def _at_home(country: str) -> Regime:
    """Goods that cross no border: the price is all, for it includes the country's own tax."""
    free = DutyTable([DutyRate(country, "", "", 0, False, None, None, "", "", "A", "")])
    nothing = CustomsRules(
        0, NEVER, False, NEVER, NEVER, NEVER, None, NEVER, 0, NEVER, False, 0, prepaid=True, estimated=False
    )
    return Customs(country, MARKETS[country].currency, 0, FOR_EVER_MS, nothing, free)
