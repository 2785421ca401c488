"""The packaged rules of trade: CSV files under data/, one row a fact, each with its source, address and grade.

A fault in them is an error with file and line: rules that can't be read right are not guessed at.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import lru_cache
from importlib.resources import files
from typing import TypeVar

from flashsale.sale.money import parse_amount
from flashsale.sale.trade.duty_rates import DutyRate
from flashsale.sale.trade.landed import PPM
from flashsale.sale.trade.rules import Country, ExchangeRate, Rule, TradeRules

KINDS = frozenset({
    "tax_rate", "tax_at_sale", "tax_relief", "duty_relief", "due_relief", "flat_duty", "flat_duty_limit",
    "duty_per_heading", "duty_per_heading_limit", "fee_rate",
    "single_limit", "annual_limit", "tariff_rate", "tax_factor",
})  # fmt: skip
"""What the regimes know. A row of the kind "noted" is a fact with its source that no order's cost turns on here."""

RATE_MAX_PPM = 10**12
"""A million of one currency for one of another."""

Row = dict[str, str]
Made = TypeVar("Made")


@lru_cache(1)
def packaged() -> TradeRules:
    """Every packaged rule, rate and country. Raises ValueError with file and line for a row that can't be right."""
    return TradeRules(
        countries=tuple(_rows("countries.csv", _country)),
        rules=tuple(_rows("import_rules.csv", _rule)),
        duty_rates=tuple(_rows("duty_rates.csv", _duty_rate)),
        exchange_rates=tuple(_rows("exchange_rates.csv", _exchange_rate)),
    )


def _rows(name: str, make: Callable[[Row], Made | None]) -> Iterator[Made]:
    text = files("flashsale.sale.trade").joinpath("data", name).read_text("utf-8")
    reader = csv.DictReader(text.splitlines(), strict=True)
    for row in reader:
        try:
            made = make(row)
        except (ValueError, ArithmeticError) as problem:
            raise ValueError(f"{name}, line {reader.line_num}: {problem}") from problem
        if made is not None:
            yield made


def _country(row: Row) -> Country:
    return Country(
        row["country"], row["zone"], row["bloc"], _one_of(row["duty_on"], "CIF", "FOB"),
        _one_of(row["sale_tax_on"], "CIF", "FOB"), _one_of(row["terms"], "DDP", "DAP"),
        row["regime"] == "retail_import", row["note"],
    )  # fmt: skip


def _rule(row: Row) -> Rule | None:
    if row["kind"] == "noted":
        return None
    currency = row["currency"]
    return Rule(
        row["country"],
        _one_of(row["kind"], *sorted(KINDS)),
        parse_amount(row["value"], currency) if currency else parts(row["value"]),
        currency,
        _one_of(row["basis"], "", "item", "FOB", "CIF", "due", "heading"),
        _one_of(row["relation"], "", "<=", "<"),
        _one_of(row["extent"], "", "whole", "excess") == "excess",
        _one_of(row["collector"], "", "seller", "border"),
        row["ships_from"],
        row["effective_from"] or None,
        row["effective_to"] or None,
        row["source"], row["url"], _one_of(row["grade"], "A", "B", "C"), row["note"],
    )  # fmt: skip


def _duty_rate(row: Row) -> DutyRate:
    return DutyRate(
        row["country"], row["hs_prefix"], row["origin"], parts(row["rate"]) if row["rate"] else None,
        _one_of(row["instead_of_flat"], "", "yes") == "yes", row["effective_from"] or None, row["effective_to"] or None,
        row["source"], row["url"], _one_of(row["grade"], "A", "B", "C"), row["note"],
    )  # fmt: skip


def _exchange_rate(row: Row) -> ExchangeRate:
    return ExchangeRate(
        row["base"], row["quote"], parts(row["rate"]), row["effective_from"], row["source"],
        _one_of(row["grade"], "A", "B", "C"), row["note"],
    )  # fmt: skip


def parts(text: str) -> int:
    """A decimal as parts of PPM: "0.075" is 75,000. Raises ValueError or ArithmeticError for what is no number, too big
    or finer than that."""
    scaled = Decimal(text) * PPM
    if not 0 <= scaled <= RATE_MAX_PPM or scaled != int(scaled):
        raise ValueError(f"{text!r} is not a rate in whole millionths")
    return int(scaled)


def _one_of(word: str, *words: str) -> str:
    if word not in words:
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return word
