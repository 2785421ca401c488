"""Stripe's digits against ISO 4217's: the engine counts in minor units, Stripe mostly does, and this is the rest.

Source: https://docs.stripe.com/currencies, sections "Zero-decimal currencies", "Three-decimal currencies" and "Special
cases". ISK and UGX have no minor unit, yet Stripe takes them with two decimals that must be 00. MGA has a fifth as its
minor unit (two decimals in ISO 4217), yet Stripe takes whole ariary. Of three-decimal currencies the last digit
must be 0. HUF and TWD are charged with two decimals like any other (they are special in payouts only).
"""

from flashsale.sale.money import EXPONENTS

_CODES_BY_EXPONENT = {
    0: "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
}
_STRIPE_EXPONENTS = {code: exponent for exponent, codes in _CODES_BY_EXPONENT.items() for code in codes.split()}


def _stripe_exponent(currency: str) -> int:
    return _STRIPE_EXPONENTS.get(currency, 2)


# currency -> what one of our minor units is at Stripe's: (multiply, divide)
_FACTORS: dict[str, tuple[int, int]] = {
    code: (10 ** max(0, _stripe_exponent(code) - exponent), 10 ** max(0, exponent - _stripe_exponent(code)))
    for code, exponent in EXPONENTS.items()
}
_DIFFERENT = {code: factors for code, factors in _FACTORS.items() if factors != (1, 1)}


def to_provider(amount_minor: int, currency: str) -> int:
    """Our minor units as Stripe's integer: (5, "ISK") -> 500, (500, "MGA") -> 5, (89900, "SGD") -> 89900.

    Raises ValueError for an amount that Stripe has no integer for: (1234, "MGA"), (1001, "KWD"), an unknown currency.
    """
    factors = _FACTORS.get(currency)
    if factors is None:
        raise ValueError(f"{currency[:8]!r} is not an ISO 4217 currency")
    multiply, divide = factors
    amount, rest = divmod(amount_minor * multiply, divide)
    if rest or (_stripe_exponent(currency) == 3 and amount % 10):
        raise ValueError(f"Stripe can't be asked for {amount_minor} minor units of {currency}")
    return amount


def from_provider(amount: int, currency: str) -> int:
    """Stripe's integer as our minor units; currency in upper case. Raises ValueError for a fraction of a minor unit."""
    factors = _DIFFERENT.get(currency)
    if factors is None:
        return amount
    multiply, divide = factors
    amount_minor, rest = divmod(amount * divide, multiply)
    if rest:
        raise ValueError(f"{amount} at Stripe is no whole minor unit of {currency}")
    return amount_minor
