"""A hold's bytes and letters, and that numbered movements applied in any company move an order's units once."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.reservation import holds
from flashsale.reservation.holds import HELD, LETTERS, Hold, merged, rank, status_of
from flashsale.sale.lifecycle import STATUS_CHANGES, Status
from tests.model import Model, Move
from tests.model import Order as Batched

both_cases = [case for letter in LETTERS.values() for case in (letter, letter.upper())]
letters = st.sampled_from(both_cases)


@given(
    letter=letters,
    fingerprint=st.binary(min_size=8, max_size=8),
    version=st.integers(0, 2**24 - 1),
    entry_ms=st.integers(0, 2**48 - 1),
    entry_seq=st.integers(0, 2**32 - 1),
    number=st.integers(0, holds.NUMBER_MAX),
)
def test_what_is_packed_is_unpacked(**of_hold: Any) -> None:
    hold = Hold(**of_hold)
    value = holds.pack(hold)
    assert len(value) == (25 if hold.number else 22)
    assert holds.unpack(value) == hold
    assert value[1:12] == holds.pack_head(hold.fingerprint, hold.version)


@pytest.mark.parametrize("size", [0, 1, 21, 23, 24, 26])
def test_other_sizes_are_no_hold(size: int) -> None:
    with pytest.raises(struct.error):
        holds.unpack(b"h" * size)


def test_every_status_has_a_letter_of_its_own() -> None:
    assert set(LETTERS) == set(Status)
    assert len(set(LETTERS.values())) == len(Status)
    for status in Status:
        for extended in (False, True):
            letter = holds.letter_of(status, extended)
            assert (status_of(letter), holds.is_extended(letter)) == (status, extended)


def test_a_rank_rises_with_every_change_of_status() -> None:
    for before, afters in STATUS_CHANGES.items():
        assert all(rank(LETTERS[before]) < rank(LETTERS[after]) for after in afters)


@pytest.mark.parametrize("letter", ["r", "x", "", "hh"])
def test_what_is_no_letter_has_no_rank(letter: str) -> None:
    with pytest.raises(KeyError):
        rank(letter)


@given(told=st.lists(letters, min_size=1, max_size=8), data=st.data())
def test_letters_may_come_in_any_order_and_often(told: list[str], data: st.DataObject) -> None:
    """But for the two of one rank, delivered and undeliverable: the first of them stays."""
    told = [letter for letter in told if letter.lower() != "u"]
    shuffled = data.draw(st.permutations(told + told[:3]))

    def after(heard: list[str]) -> str:
        letter = HELD
        for each in heard:
            letter = merged(letter, each)
        return letter

    assert after(told) == after(shuffled)
    assert after(told).isupper() == any(letter.isupper() for letter in told)
    assert rank(after(told)) == max((rank(letter) for letter in told), default=0)


@given(data=st.data(), quantity=st.integers(1, 6))
def test_movements_repeated_at_any_time_move_units_once(data: st.DataObject, quantity: int) -> None:
    """Each of an order's movements is sent first in the order of its numbers, and then again whenever it likes."""
    model = Model(1, 1)
    model.create(1, 1, 0, 10**13, {0: 10})
    order_hex = "00" * 15
    order = Batched(bytes(12), b"h" + bytes(11), 0, ((0, quantity),), False, b'{"id":"%s","lines":[[0,%d]]}\n' % (
        order_hex.encode(), quantity,
    ))  # fmt: skip
    assert model.reserve(1, 1, [order], {0: 8}, 1) == [("A",)]
    assert model.sale is not None

    moves: list[tuple[str, Move]] = []
    has, number = quantity, 1
    for step in data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6)):
        number += data.draw(st.integers(1, 3))
        kind, units = ("release", min(step, has)) if has else ("again", quantity)
        has += -units if kind == "release" else units
        moves.append((kind, Move(order_hex, number, "p", ((0, units),), (((0, 0), units),), True)))

    def send(kind: str, move: Move) -> str:
        return model.release(1, 9, [move])[0] if kind == "release" else model.reserve_again(1, 9, move, {0: 8})

    for place, (kind, move) in enumerate(moves):
        assert send(kind, move) in ("ok", "taken")
        for late in data.draw(st.lists(st.integers(0, place), max_size=3)):
            assert send(*moves[late]) == "already"
    assert model.sale.available[0] == 10 - has
    assert model.sale.quota_used[0, 0] == has
    model.check()
