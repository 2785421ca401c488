"""A reader gets the nearest language, and amounts as it writes them, with ISO 4217's decimals and no digit lost."""

from __future__ import annotations

import re
import unicodedata
from datetime import date

import pytest
from babel.core import get_global
from hypothesis import given
from hypothesis import strategies as st

from flashsale.languages import LANGUAGES
from flashsale.sale.locales import accepted, asked, chain, choose, known, nearest, parse
from flashsale.sale.market import MARKETS
from flashsale.sale.money import AMOUNT_MAX_MINOR, EXPONENTS
from flashsale.sale.writing import day_text, money_text, number_text, time_text
from tests import corpora

EVERY_LOCALE = sorted({market.locale for market in MARKETS.values()} | set(LANGUAGES))
TAGS = st.sampled_from(
    [*EVERY_LOCALE, "zh", "zh-MO", "zh-Hant-MO", "zh-SG", "pt-AO", "nb", "tl", "yue", "x", "zh_TW", "EN-gb"]
)
# A locale with a decimal sign is read back by what Unicode says of each digit, whatever the script.
SIGNS = ".,٫"


def digits(text: str) -> str:
    """The decimal digits of a text in ASCII."""
    return "".join(str(unicodedata.decimal(each)) for each in text if each.isdecimal())


def decimals(text: str) -> int:
    """How many decimals the amount in a text is written with: what follows the last sign, unless three digits that
    are a group. Only for amounts below a thousand."""
    parts = re.split(f"[{SIGNS}](?=\\d)", text)
    return len(digits(parts[-1])) if len(parts) > 1 else 0


# --- who reads what ---


@given(TAGS, st.lists(TAGS, min_size=1, unique=True))
def test_one_of_the_offered_is_chosen_and_the_same_name_always_wins(wanted: str, offered: list[str]) -> None:
    chosen = choose((wanted,), offered)
    assert chosen in offered
    if wanted in offered:
        assert chosen == wanted


@given(TAGS, st.lists(TAGS, min_size=1, unique=True))
def test_a_shared_language_is_never_passed_over_for_english(wanted: str, offered: list[str]) -> None:
    language = parse(wanted)
    if language is None:
        return
    shared = [name for name in offered if (tag := parse(name)) and tag.language == language.language]
    if shared:
        assert choose((wanted,), offered) in shared


@given(st.text(max_size=60))
def test_any_text_is_a_locale_or_none(text: str) -> None:
    tag = parse(text)
    if tag is not None:
        assert parse(str(tag)) == tag
        assert chain(text)
    else:
        assert (chain(text), known(text)) == ((), None)


@given(st.one_of(st.text(max_size=200), st.lists(TAGS, max_size=8).map(",".join)))
def test_any_accept_language_header_is_answered_in_a_language_of_ours(header: str) -> None:
    assert asked(header, LANGUAGES) in LANGUAGES


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("zh-HK", "en zh zh-TW", "zh-TW"),
        ("zh-HK", "zh zh-TW zh-Hant", "zh-Hant"),
        ("zh-HK", "zh-TW zh-HK zh-Hant", "zh-HK"),
        ("zh-MO", "zh zh-TW zh-HK", "zh-HK"),  # CLDR: Macao inherits from Hong Kong
        ("zh-TW", "zh zh-HK", "zh-HK"),
        ("zh-TW", "en zh", "zh"),
        ("zh-SG", "zh-TW zh", "zh"),
        ("zh-CN", "zh-Hant zh-Hans", "zh-Hans"),
        ("zh", "zh-TW zh-CN", "zh-CN"),
        ("yue-HK", "zh-Hans zh-Hant", "zh-Hant"),
        ("en-SG", "en-US en-GB", "en-US"),
        ("pt-AO", "pt-BR pt-PT", "pt-PT"),
        ("es-CO", "es es-419", "es-419"),
        ("tl-PH", "en fil", "fil"),
        ("ms-BN", "id ms", "ms"),
        ("id-ID", "ms en", "en"),  # near, but not the same
        ("th-TH", "zh en", "en"),
        ("th-TH", "zh vi", "zh"),  # whatever is there first
        ("x", "th en", "en"),
    ],
)
def test_the_nearest_language(wanted: str, offered: str, chosen: str) -> None:
    assert choose((wanted,), offered.split()) == chosen


def test_the_next_liked_comes_before_english() -> None:
    assert choose(("ja", "zh-HK"), ("en", "zh")) == "zh"
    assert nearest(("ja", "ko"), ("en", "zh")) is None
    with pytest.raises(ValueError, match="nothing"):
        choose(("en",), ())


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("*", "en"),
        ("zh-HK,zh;q=0.9,en;q=0.8", "zh-Hant"),
        ("zh-CN,zh;q=0.9", "zh-Hans"),
        ("zh", "zh-Hans"),
        ("en;q=0.5, th;q=0.9", "th"),
        ("de, fr;q=0.9, vi;q=0.1", "vi"),
        ("de", "en"),
        ("th;q=0, id", "id"),
        ("th;q=0", "en"),
        ("th;q=2, id;q=0.1", "id"),  # no quality: refused
        ("tl", "fil"),
        ("MS-my", "ms"),
        ("en-GB, th", "en"),
        ("th" + "," * 5000, "th"),
    ],
)
def test_what_a_header_asks_for(header: str, language: str) -> None:
    assert asked(header, LANGUAGES) == language


def test_a_header_s_list_is_in_the_order_of_liking() -> None:
    assert accepted("zh-HK, zh;q=0.8, en;q=0.9, *;q=0.1, x y;q=2, fr;q=0") == ("zh-HK", "en", "zh")


# --- how it is written ---


@given(st.sampled_from(EVERY_LOCALE), st.sampled_from(sorted(EXPONENTS)), st.integers(0, AMOUNT_MAX_MINOR * 10**5))
def test_no_digit_of_an_amount_is_lost_or_rounded(locale: str, currency: str, amount: int) -> None:
    written = digits(money_text(amount, currency, locale))
    assert written == str(amount).rjust(EXPONENTS[currency] + 1, "0")


@given(st.sampled_from(EVERY_LOCALE), st.integers(0, 10**18))
def test_no_digit_of_a_number_is_lost(locale: str, number: int) -> None:
    assert digits(number_text(number, locale)) == str(number)


@pytest.mark.parametrize("currency", sorted(EXPONENTS))
def test_the_decimals_are_iso_s_in_every_language(currency: str) -> None:
    for locale in EVERY_LOCALE:
        text = money_text(7 * 10 ** EXPONENTS[currency], currency, locale)
        assert decimals(text) == EXPONENTS[currency], (locale, text)


def cldr_digits() -> dict[str, int]:
    """CLDR's decimals by currency: from the corpora where they are, else as Babel carries them."""
    given_there = corpora.load("crossborder/cldr_currency.json")
    if given_there:
        fractions = given_there["fractions"]
        return {code: int(fractions.get(code, fractions["DEFAULT"])["_digits"]) for code in EXPONENTS}
    fractions = get_global("currency_fractions")
    return {code: fractions.get(code, fractions["DEFAULT"])[0] for code in EXPONENTS}


def test_where_cldr_has_other_decimals_iso_s_are_written() -> None:
    others = {code for code, count in cldr_digits().items() if count != EXPONENTS[code]}
    assert {"IQD", "LAK", "MMK"} <= others  # else there is nothing to compare
    assert not others & {"VND", "KRW", "JPY", "IDR"}
    for code in others:
        assert decimals(money_text(5 * 10 ** EXPONENTS[code], code, "en")) == EXPONENTS[code]


@pytest.mark.parametrize(
    ("amount", "currency", "locale", "text"),
    [
        (89900, "SGD", "en-SG", "$899.00"),
        (1899000, "THB", "th-TH", "฿18,990.00"),
        (1250000, "VND", "vi-VN", "1.250.000 ₫"),
        (125000000, "IDR", "id-ID", "Rp 1.250.000,00"),
        (89000, "KRW", "ko-KR", "₩89,000"),
        (12800, "JPY", "ja-JP", "￥12,800"),
        (129900, "MYR", "ms-MY", "RM 1,299.00"),
        (499900, "PHP", "en-PH", "₱4,999.00"),
        (499900, "PHP", "fil", "₱4,999.00"),
        (123456, "KWD", "ar-KW", "123٫456 د.ك."),
        (1234567, "IQD", "en", "IQD 1,234.567"),
        (250000, "LAK", "en", "LAK 2,500.00"),
        (19999, "EUR", "de-DE", "199,99 €"),
        (123456789, "INR", "en-IN", "₹12,34,567.89"),
        (99900, "HKD", "zh-HK", "HK$999.00"),
        (99900, "CNY", "zh-CN", "¥999.00"),
        (5, "USD", "en", "$0.05"),
        (-1050, "USD", "en", "-$10.50"),
        (100, "USD", "nothing", "$1.00"),
    ],
)
def test_an_amount_as_the_locale_writes_it(amount: int, currency: str, locale: str, text: str) -> None:
    written = money_text(amount, currency, locale)
    spaced = "".join(" " if unicodedata.category(each) == "Zs" else each for each in written)
    bare = "".join(each for each in spaced if unicodedata.category(each) != "Cf")  # marks of direction
    assert bare == text


def test_a_currency_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError):
        money_text(1, "XXX", "en")


def test_numbers_and_times_as_the_locale_writes_them() -> None:
    assert [number_text(1234567, locale) for locale in ("en", "id", "vi", "hi")] == [
        "1,234,567",
        "1.234.567",
        "1.234.567",
        "12,34,567",
    ]
    at_ms = 1_794_240_900_123  # 2026-11-09T16:15:00.123Z
    for locale in EVERY_LOCALE:
        text = time_text(at_ms, locale)
        assert "2026" in text or "2026" in digits(text), (locale, text)
        assert "UTC" in text or "TU" in text, (locale, text)
    assert time_text(at_ms, "vi") == "16:15:00 UTC 9 tháng 11, 2026"


def test_days_as_the_locale_writes_them() -> None:
    day = date(2026, 11, 12)
    for locale in EVERY_LOCALE:
        written = digits(day_text(day, locale))
        assert "2026" in written and "12" in written, (locale, written)
    assert [day_text(day, locale) for locale in ("en", "zh-HK", "fil", "x")] == [
        "November 12, 2026",
        "2026年11月12日",
        "Nobyembre 12, 2026",
        "November 12, 2026",
    ]
