"""Carriers of this machine: they book, carry and tell as carriers do, and fail on request."""
