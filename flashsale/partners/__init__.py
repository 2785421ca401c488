"""The outside world behind small interfaces: each partner with its sandbox."""
