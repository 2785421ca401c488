"""What moves beside an order's units: its channel's guarantee, its lane's parcel, its identity's import limit.

Units go back to the guarantee first. An import limit gets back its share by what the units were worth, computed from
the sums before and after, so that whatever steps an order goes in, the steps add up to what it counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def drawn_back(
    skus: Sequence[int], drawn: Sequence[int] | None, before: Sequence[int], units: Sequence[int]
) -> list[list[int]]:
    """[offer index, units] that go back to the guarantee when of each line `units` more go back than `before`."""
    if drawn is None:
        return []
    lines = zip(skus, drawn, before, units, strict=True)
    back = [[sku, min(out, gone + more) - min(out, gone)] for sku, out, gone, more in lines]
    return [line for line in back if line[1]]


def limit_share(limit_use: int, prices: Sequence[int], quantities: Sequence[int], back: Sequence[int]) -> int:
    """The part of what an order counts in an import limit that `back` units of its lines carry, rounded down."""
    if not any(prices):
        prices = [1] * len(quantities)
    whole = sum(price * units for price, units in zip(prices, quantities, strict=True))
    return limit_use * sum(price * units for price, units in zip(prices, back, strict=True)) // whole


def beside(
    *,
    channel: str,
    skus: Sequence[int],
    quantities: Sequence[int],
    prices: Sequence[int],
    drawn: Sequence[int] | None,
    lane: tuple[int | None, int | None],
    limit: tuple[bytes | None, int | None, int | None],
    before: Sequence[int],
    units: Sequence[int],
    imported: tuple[Sequence[int], Sequence[int]] | None = None,
) -> dict[str, Any]:
    """What the outbox's item says beside the units: nothing for an order that has none of it.

    `units` of each line go back, where `before` them others went; `imported`: the same two of the import limit, where
    it gets back others. `lane`: number and dispatch day if the parcel goes back, else None twice. `limit`: identity,
    year, what the order counts.
    """
    found: dict[str, Any] = {}
    if lines := drawn_back(skus, drawn, before, units):
        found["channel"], found["drawn"] = channel, lines
    if lane[0] is not None:
        found["lane"] = list(lane)
    identity, year, use = limit
    if identity is not None and use:
        gone, more = imported or (before, units)
        after = [a + b for a, b in zip(gone, more, strict=True)]
        amount = limit_share(use, prices, quantities, after) - limit_share(use, prices, quantities, gone)
        if amount:
            found["limit"] = [identity.hex(), year, amount]
    return found
