"""Whose an order's money is: the parts add up to it, whatever was given back; a day begins at Beijing's midnight."""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.aftersales import LineMoney, due
from flashsale.sale.lifecycle import Status
from flashsale.sale.settlement import PLATFORM, SoldLine, allocate, day_of, day_span_ms, split

lines = st.lists(
    st.builds(
        lambda merchant, price, customs, units, back: SoldLine(
            merchant, price * units, customs, units, min(units, back)
        ),
        st.sampled_from(("lux", "dim", "house")), st.integers(1, 10**6), st.integers(0, 10**5), st.integers(1, 9),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


def total_of(sold: list[SoldLine], shipping: int) -> int:
    return shipping + sum(line.goods + line.customs for line in sold)


@given(lines, st.integers(0, 10**5), st.data())
def test_the_parts_add_up_to_what_is_kept(sold: list[SoldLine], shipping: int, data: st.DataObject) -> None:
    total = total_of(sold, shipping)
    kept = data.draw(st.integers(0, total))
    parts = split(total, kept, sold)
    assert sum(parts.values()) == kept
    assert min(parts.values()) >= 0
    assert parts.keys() == {PLATFORM, *(line.merchant for line in sold)}


@given(lines, st.integers(0, 10**5))
def test_what_is_due_is_split_by_the_lines_themselves(sold: list[SoldLine], shipping: int) -> None:
    """As the payment's own rule has it (sale/aftersales.py): goods to their merchants, the rest to the platform."""
    total = total_of(sold, shipping)
    money = [LineMoney(line.goods + line.customs, line.units, line.refunded) for line in sold]
    owed = due(Status.PAID, total, money)
    parts = split(total, owed, sold)
    if not owed:
        assert not any(parts.values())
        return
    for merchant in {line.merchant for line in sold}:
        goods = sum(line.goods - line.goods * line.refunded // line.units for line in sold if line.merchant == merchant)
        of_lines = sum(1 for line in sold if line.merchant == merchant)
        assert goods - of_lines <= parts[merchant] <= goods  # a rounded unit of customs may be missing, never more


def test_a_refund_is_taken_from_whom_the_goods_were_bought() -> None:
    sold = [SoldLine("lux", 1000, 90, 2, 0), SoldLine("dim", 500, 45, 1, 0)]
    assert split(1735, 1735, sold) == {"lux": 1000, "dim": 500, PLATFORM: 235}
    back = [sold[0]._replace(refunded=1), sold[1]]
    assert split(1735, 1735 - 545, back) == {"lux": 500, "dim": 500, PLATFORM: 190}


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_an_allocation_adds_up_and_is_fair(total: int, weights: list[int]) -> None:
    whole = sum(weights)
    if not whole:
        if total:
            with pytest.raises(ValueError, match="split"):
                allocate(total, weights)
        return
    parts = allocate(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert 0 <= part - total * weight // whole <= 1
    assert allocate(whole, weights) == weights


def test_a_day_is_beijing_s_and_every_moment_is_of_one() -> None:
    begins, ends = day_span_ms(date(2026, 11, 11))
    assert datetime.fromtimestamp(begins / 1000, UTC) == datetime(2026, 11, 10, 16, tzinfo=UTC)
    assert (day_of(begins - 1), day_of(begins), day_of(ends - 1), day_of(ends)) == (
        date(2026, 11, 10), date(2026, 11, 11), date(2026, 11, 11), date(2026, 11, 12),
    )  # fmt: skip
