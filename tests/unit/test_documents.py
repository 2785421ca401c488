"""Numbers of identity documents: one way to write each, one identity a person, and no number in any message."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.documents import COUNTRIES, IDENTITY_BYTES, identity_of, normalised

KEY = bytes(range(32))
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999


def chinese(birth: date, serial: int) -> str:
    """A number of a Beijing resident, with the check digit that GB 11643-1999 gives it."""
    digits = f"110105{birth:%Y%m%d}{serial:03d}"
    return digits + "10X98765432"[sum(int(d) * w for d, w in zip(digits, _WEIGHTS, strict=True)) % 11]


numbers = st.builds(chinese, st.dates(date(1930, 1, 1), date(2005, 12, 31)), st.integers(1, 999))


def test_the_standards_own_example_is_valid() -> None:
    assert chinese(date(1949, 12, 31), 2) == "11010519491231002X"
    assert normalised("CN", "11010519491231002X") == "11010519491231002X"


@given(numbers, st.data())
def test_ways_of_writing_a_number_are_one_identity(number: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(number)))
    wide = "".join(chr(ord(character) + 0xFEE0) for character in number)
    for written in (number.lower(), f" {number[:cut]}  {number[cut:]}\t", wide):
        assert normalised("CN", written) == number
    assert len(identity_of(KEY, "CN", number)) == IDENTITY_BYTES


@given(numbers, st.integers(0, 17), st.integers(1, 9))
def test_one_wrong_digit_is_noticed_and_not_repeated(number: str, place: int, change: int) -> None:
    old = number[place]
    wrong = number[:place] + str((int(old) + change) % 10 if old.isdigit() else change) + number[place + 1 :]
    with pytest.raises(ValueError, match="not a number") as refused:
        normalised("CN", wrong)
    assert wrong not in str(refused.value)


@given(st.sampled_from(COUNTRIES), st.text(max_size=64))
def test_any_text_is_a_number_in_its_normal_form_or_refused(country: str, text: str) -> None:
    try:
        found = normalised(country, text)
    except ValueError as refused:
        with pytest.raises(ValueError, match="not a") as of_nothing:
            normalised(country, "")
        assert text not in str(refused) or text in str(of_nothing.value)  # its words are no part of a number
    else:
        assert normalised(country, found) == found


@given(numbers, numbers)
def test_identities_differ_as_people_countries_and_keys_do(one: str, other: str) -> None:
    assert (identity_of(KEY, "CN", one) == identity_of(KEY, "CN", other)) == (one == other)
    assert identity_of(KEY, "CN", one) != identity_of(KEY, "KR", one)
    assert identity_of(KEY, "CN", one) != identity_of(bytes(32), "CN", one)


def test_a_country_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="countries are known"):
        normalised("XX", "1")
