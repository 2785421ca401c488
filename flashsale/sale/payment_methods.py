"""Which payment method is offered where: data, after what Stripe's documentation says of each.

- card: authorised first and captured later (https://docs.stripe.com/payments/place-a-hold-on-a-payment-method), in
  every market's currency (https://docs.stripe.com/currencies).
- alipay: shoppers from China wherever they are; charged in CNY, AUD, CAD, EUR, GBP, HKD, JPY, SGD, MYR, NZD or USD, of
  which a merchant's own country allows some; no manual capture (https://docs.stripe.com/payments/alipay).
- grabpay: shoppers in Singapore and Malaysia, charged in SGD or MYR; no manual capture
  (https://docs.stripe.com/payments/grabpay).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from flashsale.sale.market import MARKETS


class PaymentMethod(NamedTuple):
    """`capture`: `manual` is authorised at checkout and captured at shipment, `automatic` is captured when it is
    confirmed. `currencies` and `markets`: None is all of them."""

    name: str
    capture: Literal["manual", "automatic"]
    currencies: frozenset[str] | None
    markets: frozenset[str] | None


METHODS: Mapping[str, PaymentMethod] = {
    method.name: method
    for method in (
        PaymentMethod("card", "manual", None, None),
        PaymentMethod(
            "alipay",
            "automatic",
            frozenset({"CNY", "AUD", "CAD", "EUR", "GBP", "HKD", "JPY", "SGD", "MYR", "NZD", "USD"}),
            None,
        ),
        PaymentMethod("grabpay", "automatic", frozenset({"SGD", "MYR"}), frozenset({"SG", "MY"})),
    )
}


def _offers(method: PaymentMethod, market_code: str) -> bool:
    allowed = method.markets is None or market_code in method.markets
    return allowed and (method.currencies is None or MARKETS[market_code].currency in method.currencies)


_OFFERED: Mapping[str, tuple[str, ...]] = {
    code: tuple(method.name for method in METHODS.values() if _offers(method, code)) for code in MARKETS
}


def offered(market_code: str) -> tuple[str, ...]:
    """The methods' names that a shopper of this market may choose from. Raises KeyError for an unknown market."""
    return _OFFERED[market_code]
