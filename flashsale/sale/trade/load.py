"""The packaged rules of trade: CSV files under data/, one row a fact, each with its source, address and grade.

A fault in them is an error with file and line: rules that can't be read right are not guessed at.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import date
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
        countries=tuple(_packaged("countries.csv", country)),
        rules=tuple(each for each in _packaged("import_rules.csv", rule) if each is not None),
        duty_rates=tuple(_packaged("duty_rates.csv", duty_rate)),
        exchange_rates=tuple(_packaged("exchange_rates.csv", exchange_rate)),
    )


def _packaged(name: str, make: Callable[[Row], Made]) -> Iterator[Made]:
    return rows(name, files("flashsale.sale.trade").joinpath("data", name).read_text("utf-8"), make)


def rows(name: str, text: str, make: Callable[[Row], Made]) -> Iterator[Made]:
    """What is made of each row of the CSV text. Raises ValueError with the file's name and the line."""
    reader = csv.DictReader(text.splitlines(), strict=True)
    for row in reader:
        try:
            if None in row or None in row.values():
                raise ValueError("it has another number of fields than the first line")
            yield make(row)
        except (ValueError, ArithmeticError) as problem:
            raise ValueError(f"{name}, line {reader.line_num}: {problem}") from problem


def country(row: Row) -> Country:
    """A row of countries.csv."""
    return Country(
        row["country"], row["zone"], row["bloc"], _one_of(row["duty_on"], "CIF", "FOB"),
        _one_of(row["sale_tax_on"], "CIF", "FOB"), _one_of(row["terms"], "DDP", "DAP"),
        row["regime"] == "retail_import", row["note"],
    )  # fmt: skip


def rule(row: Row) -> Rule | None:
    """A row of import_rules.csv; None: it is noted only."""
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
        _day(row["effective_from"]),
        _day(row["effective_to"]),
        row["source"], row["url"], _one_of(row["grade"], "A", "B", "C"), row["note"],
    )  # fmt: skip


def duty_rate(row: Row) -> DutyRate:
    """A row of duty_rates.csv."""
    return DutyRate(
        row["country"], row["hs_prefix"], row["origin"], parts(row["rate"]) if row["rate"] else None,
        _one_of(row["instead_of_flat"], "", "yes") == "yes", _day(row["effective_from"]), _day(row["effective_to"]),
        row["source"], row["url"], _one_of(row["grade"], "A", "B", "C"), row["note"],
    )  # fmt: skip


def exchange_rate(row: Row) -> ExchangeRate:
    """A row of exchange_rates.csv."""
    return ExchangeRate(
        row["base"], row["quote"], parts(row["rate"]),
        date.fromisoformat(row["effective_from"]).isoformat(), row["source"],
        _one_of(row["grade"], "A", "B", "C"), row["note"],
    )  # fmt: skip


def parts(text: str) -> int:
    """A decimal as parts of PPM: "0.075" is 75,000. Raises ValueError or ArithmeticError for what is no number, too big
    or finer than that."""
    scaled = Decimal(text) * PPM
    if not 0 <= scaled <= RATE_MAX_PPM or scaled != int(scaled):
        raise ValueError(f"{text!r} is not a rate in whole millionths")
    return int(scaled)


def _day(text: str) -> str | None:
    return date.fromisoformat(text).isoformat() if text else None


def _one_of(word: str, *words: str) -> str:
    if word not in words:
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return word
