"""An order goes only where its table lets it, and its units are where its status says."""

from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale.lifecycle import (
    PAYMENT_CHANGES,
    STATUS_CHANGES,
    UNITS,
    Payment,
    Status,
    Units,
    may_become,
    sources,
)

TABLES = [STATUS_CHANGES, PAYMENT_CHANGES]


@given(st.lists(st.sampled_from(Status), max_size=12))
def test_units_are_released_and_taken_again_only_by_a_late_payment(wishes: list[Status]) -> None:
    walk = [Status.RESERVED]
    for new in wishes:
        if may_become(walk[-1], new, STATUS_CHANGES):
            walk.append(new)
    for old, new in pairwise(walk):
        if UNITS[old] is Units.RELEASED and UNITS[new] is not Units.RELEASED:
            assert (old, new) == (Status.EXPIRED, Status.PAID)


@pytest.mark.parametrize("changes", TABLES, ids=["status", "payment"])
def test_a_guarded_update_takes_exactly_the_permitted_changes(changes: Mapping[StrEnum, frozenset[StrEnum]]) -> None:
    for old, new in product(changes, changes):
        assert (old in sources(new, changes)) == may_become(old, new, changes)


@pytest.mark.parametrize("changes", TABLES, ids=["status", "payment"])
def test_the_table_knows_every_state_and_none_changes_into_itself(
    changes: Mapping[StrEnum, frozenset[StrEnum]],
) -> None:
    assert set(changes) == set(type(next(iter(changes))))
    assert not any(may_become(state, state, changes) for state in changes)


def test_status_changes_are_the_design_s() -> None:
    assert {(old.value, new.value) for old, permitted in STATUS_CHANGES.items() for new in permitted} == {
        ("reserved", "paid"),
        ("reserved", "expired"),
        ("reserved", "cancelled"),
        ("expired", "paid"),
        ("paid", "shipped"),
        ("paid", "cancelled"),
        ("shipped", "delivered"),
        ("shipped", "undeliverable"),
    }


def test_money_goes_back_only_after_it_was_taken_or_authorised() -> None:
    backs = {Payment.PART_REFUNDED, Payment.REFUNDED}
    assert set(sources(Payment.PART_REFUNDED, PAYMENT_CHANGES)) <= {Payment.CAPTURED, *backs}
    assert set(sources(Payment.REFUNDED, PAYMENT_CHANGES)) <= {Payment.AUTHORISED, Payment.CAPTURED, *backs}


def test_every_status_says_where_the_units_are() -> None:
    assert set(UNITS) == set(Status)
    assert [status for status in Status if UNITS[status] is Units.HELD] == [Status.RESERVED]
