"""An identity provider of this machine, for development and tests."""
