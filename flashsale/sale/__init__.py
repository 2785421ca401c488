"""The domain: sales, offers, money, orders and what may become of them.

Pure: no I/O, no clock, no random numbers, nothing of ours from outside this package. So it tests in milliseconds.
"""
