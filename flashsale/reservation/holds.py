"""A hold's 22 bytes: what Valkey keeps of a used order id until its sale is settled.

``reserve.lua`` writes it, ``release.lua`` changes its first byte. With its 12-byte field a hold of at most 22 bytes
stays in the allocator's 48-byte class (56 bytes an order with the table's share; one byte more costs 72). The total
is not kept: it follows from the decoded order, whose fingerprint is kept, priced at the kept catalogue version.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HELD = b"h"
RELEASED = b"r"

_LAYOUT = struct.Struct(">c8s3s6sI")
SIZE = _LAYOUT.size


class Hold(NamedTuple):
    """state ``b"h"`` or ``b"r"``; fingerprint (8 bytes) of the decoded order; journal entry that carries its record."""

    state: bytes
    fingerprint: bytes
    version: int
    entry_ms: int
    entry_seq: int


def pack_head(fingerprint: bytes, version: int) -> bytes:
    """The 11 bytes that the front knows before the decision: fingerprint and catalogue version."""
    return fingerprint + version.to_bytes(3, "big")


def pack(hold: Hold) -> bytes:
    """A whole hold, as a rebuild writes it."""
    return _LAYOUT.pack(
        hold.state, hold.fingerprint, hold.version.to_bytes(3, "big"), hold.entry_ms.to_bytes(6, "big"), hold.entry_seq
    )


def unpack(value: bytes) -> Hold:
    """The hold in *value*. Raises ``struct.error`` where it has not 22 bytes."""
    state, fingerprint, version, entry_ms, entry_seq = _LAYOUT.unpack(value)
    return Hold(state, fingerprint, int.from_bytes(version, "big"), int.from_bytes(entry_ms, "big"), entry_seq)
