"""What a crowd buys: how steeply demand falls from the first SKU to the last, and how many lines an order has.

Pure. The figures are this project's own fit to counts by rank of public retail data sets; the data are not in here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

# demand of the SKU of rank r = (r + shift) ** -slope; least squares on the logarithms of the first 120 ranks:
#   data set (order lines)                                     slope   shift   rms of ln(demand)
#   Olist marketplace, Brazil, sample of 10,000                0.53    1.5     0.04
#   Instacart, sample of 10,000                                0.62    1.0     0.04
#   Taobao user behaviour, sample of 4,300                     0.39    0.5     0.08
#   UCI Online Retail (CC0), all 531,000                       0.35    4.0     0.04
# Olist is taken: a marketplace of many brands in which most orders hold one unit, like a flash sale.
SLOPE = 0.53
SHIFT = 1.5

# Share of Olist's orders with 1, 2, 3 … units. Taken here as lines of an order, so that orders of several lines,
# which are all or nothing, are a tenth of the load (only 3% of Olist's own orders have more than one line).
LINES_SHARE = (0.9036, 0.0732, 0.0132, 0.0055, 0.0045)


class Demand:
    """Draws orders over a list of SKUs, the most wanted first. One seed gives one sequence of draws."""

    def __init__(self, skus: Sequence[str], seed: int) -> None:
        if not skus:
            raise ValueError("a sale without offers has no demand")
        self._skus = list(skus)
        self._random = random.Random(seed)  # noqa: S311 - a load, not a secret
        self._cumulative = list(accumulate((rank + SHIFT) ** -SLOPE for rank in range(1, len(skus) + 1)))
        self._lines = range(1, len(LINES_SHARE) + 1)

    def sku(self) -> str:
        return self._random.choices(self._skus, cum_weights=self._cumulative)[0]

    def lines(self) -> list[tuple[str, int]]:
        """The lines of one order: distinct SKUs with a quantity of one."""
        wanted = min(self._random.choices(self._lines, LINES_SHARE)[0], len(self._skus))
        chosen: dict[str, int] = {}
        while len(chosen) < wanted:
            chosen[self.sku()] = 1
        return list(chosen.items())

    def chance(self, share: float) -> bool:
        return self._random.random() < share
