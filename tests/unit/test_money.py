"""Money: what people write and minor units are two spellings of one amount, and nothing is rounded on the way."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.market import MARKETS
from flashsale.sale.money import AMOUNT_MAX_MINOR, EXPONENTS, format_amount, parse_amount

currencies = st.sampled_from(sorted(EXPONENTS))
amounts_minor = st.integers(0, AMOUNT_MAX_MINOR)


@given(amounts_minor, currencies)
def test_what_is_written_is_read_back(amount_minor: int, currency: str) -> None:
    assert parse_amount(format_amount(amount_minor, currency), currency) == amount_minor


@given(amounts_minor, currencies)
def test_minor_units_are_the_amount_times_ten_to_the_exponent(amount_minor: int, currency: str) -> None:
    assert Decimal(format_amount(amount_minor, currency)).scaleb(EXPONENTS[currency]) == amount_minor


@given(amounts_minor, currencies)
def test_trailing_zeros_may_be_left_out(amount_minor: int, currency: str) -> None:
    text = format_amount(amount_minor, currency)
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    assert parse_amount(text, currency) == amount_minor


@given(amounts_minor, currencies)
def test_one_decimal_too_many_is_refused(amount_minor: int, currency: str) -> None:
    text = format_amount(amount_minor, currency)
    with pytest.raises(ValueError, match="decimal"):
        parse_amount(text + ("0" if "." in text else ".0"), currency)


@given(st.text(), currencies)
def test_any_text_is_an_amount_within_bounds_or_a_value_error(text: str, currency: str) -> None:
    try:
        amount_minor = parse_amount(text, currency)
    except ValueError as error:
        assert type(error) is ValueError
        assert "\n" not in str(error)
    else:
        assert 0 <= amount_minor <= AMOUNT_MAX_MINOR


@given(st.integers(-AMOUNT_MAX_MINOR, -1), currencies)
def test_a_difference_keeps_its_sign(amount_minor: int, currency: str) -> None:
    assert format_amount(amount_minor, currency) == "-" + format_amount(-amount_minor, currency)


@pytest.mark.parametrize(
    ("text", "currency", "amount_minor"),
    [
        ("899.00", "SGD", 89_900),
        ("18990", "THB", 1_899_000),
        ("899.5", "SGD", 89_950),
        ("0.01", "USD", 1),
        ("32180", "JPY", 32_180),
        ("19000", "VND", 19_000),
        ("19000", "IDR", 1_900_000),
        ("1.234", "KWD", 1_234),
    ],
)
def test_amounts_after_iso_4217(text: str, currency: str, amount_minor: int) -> None:
    assert parse_amount(text, currency) == amount_minor


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "+1",
        "-1",
        "1,000",
        "1e3",
        ".5",
        "1.",
        "01",
        "٣",
        "１",
        "1\n",
        "1_0",
        "NaN",
        "Infinity",
        "0x1",
        "1\0",
    ],
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a decimal amount"):
        parse_amount(text, "SGD")


def test_an_amount_above_the_bound_is_refused() -> None:
    assert parse_amount("10000000000.00", "SGD") == AMOUNT_MAX_MINOR
    for text in ("10000000000.01", "9" * 16):
        with pytest.raises(ValueError, match="above"):
            parse_amount(text, "SGD")
    with pytest.raises(ValueError, match="not a decimal amount"):
        parse_amount("9" * 1_000_000, "SGD")


@pytest.mark.parametrize("currency", ["", "sgd", "XXX", "SG", "DOLLARS" * 100])
def test_an_unknown_currency_is_refused(currency: str) -> None:
    with pytest.raises(ValueError, match="ISO 4217"):
        parse_amount("1", currency)


def test_the_largest_order_fits_a_signed_64_bit_integer() -> None:
    lines, quantity = 20, 10_000
    assert lines * quantity * AMOUNT_MAX_MINOR < 2**63


def test_every_market_has_a_currency_and_a_locale_of_its_country() -> None:
    for code, market in MARKETS.items():
        assert code == market.code
        assert market.currency in EXPONENTS
        assert market.locale.endswith(f"-{code}")
