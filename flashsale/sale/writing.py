"""Money, numbers and dates as a locale writes them, for people's eyes. Programs get minor units and RFC 3339.

Pure: Babel brings the CLDR's patterns, digits and signs. How many decimals a currency has is ISO 4217's answer, not
CLDR's: CLDR drops what cash no longer knows (IQD, LAK, MMK have none there), and a price is not to lose its cents.
"""

import copy
import unicodedata
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache

from babel.core import Locale
from babel.dates import format_date, format_datetime
from babel.numbers import NumberPattern, format_decimal, get_currency_symbol

from flashsale.sale.locales import LAST_RESORT, known
from flashsale.sale.money import EXPONENTS


@lru_cache(maxsize=16_384)  # a page of offers writes the same prices for every reader: 20 us each, else
def money_text(amount_minor: int, currency: str, locale: str) -> str:
    """Minor units as the locale writes an amount: (1899000, "THB", "th") -> "฿18,990.00". Raises KeyError for a
    currency that ISO 4217 doesn't know. A locale that CLDR doesn't know is written as English is."""
    exponent = EXPONENTS[currency]
    written = _known(locale)
    amount = Decimal(amount_minor).scaleb(-exponent)
    text: str = _pattern(written, exponent).apply(
        amount, Locale.parse(written), currency=currency, currency_digits=False, numbering_system="default"
    )
    return _spaced(text, get_currency_symbol(currency, written))


def number_text(number: int, locale: str) -> str:
    """A number as the locale groups it: (12500, "id") -> "12.500"."""
    return format_decimal(number, locale=_known(locale), numbering_system="default")


def time_text(at_ms: int, locale: str) -> str:
    """Milliseconds since the epoch as the locale writes an instant, in UTC and saying so: a market may have many zones,
    and the reader's is not known."""
    return format_datetime(datetime.fromtimestamp(at_ms // 1000, UTC), "long", locale=_known(locale))


def day_text(day: date, locale: str) -> str:
    """A day as the locale writes it: (12 November 2026, "vi") -> "12 tháng 11, 2026"."""
    return format_date(day, "long", locale=_known(locale))


def _known(locale: str) -> str:
    return known(locale) or LAST_RESORT


def _spaced(text: str, symbol: str) -> str:
    """A no-break space between a digit and letters that stand for the currency: "SGD 50.00", "Rp 50,00", but "$50.00".
    Source: LDML, part 3, currencySpacing, whose root values every locale of ours has; Babel does without."""
    before, found, after = text.partition(symbol)
    if not found:
        return text
    if after[:1].isdecimal() and _is_word(symbol[-1]):
        found += "\xa0"
    if before[-1:].isdecimal() and _is_word(symbol[0]):
        found = "\xa0" + found
    return before + found + after


def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] not in "SZ"


@lru_cache(maxsize=256)
def _pattern(locale: str, exponent: int) -> NumberPattern:
    """The locale's way to write an amount, with as many decimals as are asked for."""
    pattern: NumberPattern = copy.copy(Locale.parse(locale).currency_formats["standard"])
    pattern.frac_prec = (exponent, exponent)
    return pattern
