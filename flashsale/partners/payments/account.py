"""The account with a payment provider that the settings name: one place that knows which adapter it is."""

from __future__ import annotations

from flashsale.partners.payments.provider import PaymentProvider
from flashsale.partners.payments.stripe import StripeProvider
from flashsale.settings import Settings


def open_account(settings: Settings) -> PaymentProvider | None:
    """A connection to the provider, its caller's to close; None where payments are not set up."""
    if settings.payments_api_key is None:
        return None
    return StripeProvider(
        settings.payments_api_key.get_secret_value(),
        settings.payments_url,
        timeout_s=settings.payments_timeout_s,
        return_url=settings.shop_url or f"{settings.public_address}/",
    )
