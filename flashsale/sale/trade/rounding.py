"""The one rounding rule of landed cost.

**Each line's duty and each line's tax is rounded once, half up, to the currency's minor unit; nothing else is.**
Freight is shared among the lines by value as an exact fraction, a tax on top of duty takes the rounded duty (what is
collected is what is taxed), and every sum is of rounded parts, so the parts add up to the total.
"""


def half_up(numerator: int, denominator: int) -> int:
    """The fraction (not below 0, denominator above 0) as the nearest integer, a half as the next one up."""
    return (2 * numerator + denominator) // (2 * denominator)
