"""Who an order is: the keyed hashes that make its id, its place in the quota table and the fingerprint of what it asks.

An order id is 30 hex digits: partition (1 byte), sale number (2 bytes), digest (12 bytes) of shopper and
Idempotency-Key under the sale's secret key. So a retry finds its own hold, nobody can guess another's id, and any
process can route an id without asking. Pure: hashlib only.
"""

from __future__ import annotations

from hashlib import blake2s
from typing import NamedTuple

DIGEST_BYTES = 12  # 96 bits: among 10^9 orders of a sale two collide with a chance below 10^-11
FINGERPRINT_BYTES = 8  # decides only whether a shopper's own retry is the same order
SHOPPER_HASH_BYTES = 10  # with the SKU index 12 bytes: what the allocator's smallest class for a quota entry holds
ORDER_ID_DIGITS = 30


_FINGERPRINT = blake2s(digest_size=FINGERPRINT_BYTES)  # a copy is made in half the time of a new one


class OrderId(NamedTuple):
    """An order id taken apart: partition, sale number, digest (the id's last 12 bytes, its field among the holds)."""

    partition: int
    sale: int
    digest: bytes


class SaleIdentity:
    """The hashes of one sale, their keyed states prepared once."""

    __slots__ = ("_keyed", "prefix")

    def __init__(self, partition: int, number: int, key: bytes) -> None:
        self._keyed = blake2s(
            b"order", key=key, digest_size=DIGEST_BYTES
        )  # the first byte after the key makes it done with
        self.prefix = (partition.to_bytes(1, "big") + number.to_bytes(2, "big")).hex()

    def hashes(self, shopper: str, idempotency_key: str, agent: str | None = None) -> tuple[bytes, bytes]:
        """The shopper's 10 bytes and the order's 12, from one pass. NUL parts the names: none may hold one. A key is
        its agent's own where an agent orders for the shopper."""
        state = self._keyed.copy()
        state.update(shopper.encode() + b"\0")
        of_shopper = state.digest()[:SHOPPER_HASH_BYTES]
        if agent is not None:
            state.update(agent.encode() + b"\0")
        state.update(idempotency_key.encode())
        return of_shopper, state.digest()

    def shopper_hash(self, shopper: str) -> bytes:
        """The shopper's 10 bytes in every quota field of this sale."""
        state = self._keyed.copy()
        state.update(shopper.encode() + b"\0")
        return state.digest()[:SHOPPER_HASH_BYTES]

    def quota_field(self, shopper: str, sku_index: int) -> bytes:
        """The shopper's field for one SKU in the sale's quota hash."""
        return self.shopper_hash(shopper) + sku_index.to_bytes(2, "big")

    def order_id(self, digest: bytes) -> str:
        """The id that the shopper sees."""
        return self.prefix + digest.hex()


def parse_order_id(order_id: str) -> OrderId | None:
    """The id's parts; None for what can't be one of ours (only lower-case hex is)."""
    if len(order_id) != ORDER_ID_DIGITS or not set(order_id) <= set("0123456789abcdef"):
        return None
    raw = bytes.fromhex(order_id)
    return OrderId(raw[0], int.from_bytes(raw[1:3], "big"), raw[3:])


def fingerprint(order_part: bytes) -> bytes:
    """8 bytes of a decoded order as its record writes it (market to quantities), whatever encoding it came in."""
    state = _FINGERPRINT.copy()
    state.update(order_part)
    return state.digest()


def person_hash(name: str) -> bytes:
    """10 bytes of a shopper or agent, the same in every sale."""
    return blake2s(name.encode(), digest_size=SHOPPER_HASH_BYTES, person=b"person").digest()
