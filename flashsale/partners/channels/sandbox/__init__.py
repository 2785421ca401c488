"""A marketplace on this machine that hears what the engine tells its channels, and fails on request."""
