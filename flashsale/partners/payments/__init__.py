"""Payment providers: the interface (provider.py), Stripe's adapter, and a sandbox that answers as Stripe does."""
