"""Stripe's adapter: the provider's interface spoken through the official `stripe` library."""

from flashsale.partners.payments.stripe_facts import facts_of

__all__ = ["facts_of"]
