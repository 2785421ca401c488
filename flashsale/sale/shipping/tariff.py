"""What a carrier asks for a parcel: a price for the first part of its weight, and one for each step beyond it."""

from __future__ import annotations

from msgspec import Struct


class Tariff(Struct, frozen=True):
    """`first` minor units for a parcel of at most `first_g`, and `step` for each `step_g` begun beyond that."""

    first: int
    first_g: int
    step: int
    step_g: int

    def price(self, weight_g: int, first_free: bool = False) -> int:
        """A parcel of that weight; with `first_free` only what is beyond the first part."""
        beyond = max(0, weight_g - self.first_g)
        return (0 if first_free else self.first) + -(-beyond // self.step_g) * self.step
