"""The amount due: parts add up to the minor unit, whatever order they come in."""

from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.aftersales import LineMoney, due, payment_shown, worth
from flashsale.sale.lifecycle import Payment, Status

amounts = st.integers(0, 10**12)


@given(amounts, st.integers(1, 10_000), st.data())
def test_the_steps_of_a_line_add_up_to_its_amount(amount: int, units: int, data: st.DataObject) -> None:
    given_back, refunded = 0, 0
    while refunded < units:
        more = data.draw(st.integers(1, units - refunded))
        given_back += worth(LineMoney(amount, units, refunded), more)
        refunded += more
    assert given_back == amount


@st.composite
def orders(draw: st.DrawFn) -> tuple[int, list[LineMoney]]:
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        units = draw(st.integers(1, 50))
        lines.append(LineMoney(draw(amounts), units, draw(st.integers(0, units))))
    return sum(line.amount for line in lines) + draw(st.integers(0, 10**6)), lines


@given(orders(), st.integers(0, 10**6), st.booleans())
def test_due_is_never_negative_nor_above_the_total(
    order: tuple[int, list[LineMoney]], goodwill: int, shipped: bool
) -> None:
    total, lines = order
    owed = due(Status.PAID, total, lines, goodwill=goodwill, shipped=shipped)
    assert 0 <= owed <= total
    nothing_remains = all(line.refunded == line.units for line in lines)
    shipping = total - sum(line.amount for line in lines)
    if nothing_remains and not goodwill:
        assert owed == (shipping if shipped else 0)
    if not any(line.refunded for line in lines) and not goodwill:
        assert owed == total


@given(orders())
def test_an_order_that_is_over_owes_nothing(order: tuple[int, list[LineMoney]]) -> None:
    for status in (Status.EXPIRED, Status.CANCELLED):
        assert due(status, *order) == 0


def test_where_the_money_is() -> None:
    assert payment_shown(0, 0, 0, 0, False) is Payment.NONE
    assert payment_shown(0, 0, 0, 0, True) is Payment.FAILED
    assert payment_shown(100, 0, 0, 0, True) is Payment.AUTHORISED
    assert payment_shown(100, 0, 100, 0, False) is Payment.REFUNDED
    assert payment_shown(100, 60, 40, 0, False) is Payment.CAPTURED
    assert payment_shown(100, 60, 40, 10, False) is Payment.PART_REFUNDED
    assert payment_shown(100, 60, 40, 60, False) is Payment.REFUNDED
