"""What moves beside an order's units adds up, whatever steps they go back in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashsale.ledger.life.beside import beside, limit_share


@st.composite
def _orders(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    """Quantities, prices, units drawn from a guarantee, and the steps in which all units go back."""
    lines = draw(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10**6)), min_size=1, max_size=4))
    quantities, prices = [units for units, _ in lines], [price for _, price in lines]
    drawn = [draw(st.integers(0, units)) for units in quantities]
    steps, left = [], list(quantities)
    while any(left):
        step = [draw(st.integers(0, units)) for units in left]
        if not any(step):
            step = list(left)
        steps.append(step)
        left = [units - less for units, less in zip(left, step, strict=True)]
    return quantities, prices, drawn, steps


@given(_orders(), st.integers(0, 10**12))
def test_every_unit_goes_where_it_was_drawn_and_a_limit_gets_all_of_it_back(
    order: tuple[list[int], list[int], list[int], list[list[int]]], use: int
) -> None:
    quantities, prices, drawn, steps = order
    skus = list(range(10, 10 + len(quantities)))
    before, guaranteed, imported = [0] * len(skus), dict.fromkeys(skus, 0), 0
    for step in steps:
        found = beside(
            channel="c", skus=skus, quantities=quantities, prices=prices, drawn=drawn, lane=(None, None),
            limit=(b"0123456789", 2026, use), before=before, units=step,
        )  # fmt: skip
        for sku, units in found.get("drawn", []):
            assert 0 < units <= step[skus.index(sku)]
            guaranteed[sku] += units
            of = skus.index(sku)
            assert guaranteed[sku] == min(drawn[of], before[of] + step[of])  # the guarantee first
        amount = found.get("limit", [None, None, 0])[2]
        assert amount >= 0
        imported += amount
        before = [a + b for a, b in zip(before, step, strict=True)]
        assert imported == limit_share(use, prices, quantities, before)
    assert list(guaranteed.values()) == drawn
    assert imported == use


def test_an_order_without_any_of_it_says_nothing() -> None:
    found = beside(
        channel="direct", skus=[1], quantities=[2], prices=[3], drawn=None, lane=(None, None),
        limit=(None, None, None), before=[0], units=[2],
    )  # fmt: skip
    assert found == {}
