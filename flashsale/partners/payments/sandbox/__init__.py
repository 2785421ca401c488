"""A payment provider to develop and test against: it answers the part of Stripe's API that the adapter uses.

A separate process with its own state, which Stripe's client can drive. Nothing else in the engine knows of it.
"""
