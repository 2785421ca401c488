"""A hold's 22 bytes: what Valkey keeps of a used order id until its sale is settled.

``reserve.lua`` writes it, the scripts of ``orders.py`` change its letter. With its 12-byte field a hold of at most 22
bytes stays in the allocator's 48-byte class (56 bytes an order with the table's share; one byte more costs 72). So an
order that is paid, shipped and delivered keeps its 22 bytes; three more, the number of the last movement applied, come
with the first units that move again: only orders that expire, are cancelled or come back pay for them. The total is not
kept: it follows from the decoded order, whose fingerprint is kept, priced at the kept catalogue version.

The letter says what became of the order, for replays; an upper-case one says too that its hold was extended: it ends at
the entry's time, the hold and the sale's extension. Whether a movement was applied says the number alone.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from flashsale.sale.lifecycle import LETTERS, Status

HELD = LETTERS[Status.RESERVED]
NUMBER_MAX = 2**24 - 1
"""Three bytes: no order changes that often."""

_STATUSES = {letter: status for status, letter in LETTERS.items()}
# Where an order's way may lead from one letter to another, the rank rises: what comes late never takes it back. The
# scripts know this order as RANK.
_RANKS = {"h": 0, "e": 1, "p": 2, "s": 3, "d": 4, "u": 4, "c": 5}
_LAYOUT = struct.Struct(">c8s3s6sI")
SIZE = _LAYOUT.size
SIZE_MOVED = SIZE + 3


class Hold(NamedTuple):
    """One of LETTERS (upper case: extended); fingerprint (8 bytes) of the decoded order; catalogue version; journal
    entry that carries its record; number of the last movement of its units, 0: none since the order."""

    letter: str
    fingerprint: bytes
    version: int
    entry_ms: int
    entry_seq: int
    number: int = 0


def pack_head(fingerprint: bytes, version: int) -> bytes:
    """The 11 bytes that the front knows before the decision: fingerprint and catalogue version."""
    return fingerprint + version.to_bytes(3, "big")


def pack(hold: Hold) -> bytes:
    """A whole hold, as a rebuild writes it."""
    value = _LAYOUT.pack(
        hold.letter.encode("ascii"),
        hold.fingerprint,
        hold.version.to_bytes(3, "big"),
        hold.entry_ms.to_bytes(6, "big"),
        hold.entry_seq,
    )
    return value + hold.number.to_bytes(3, "big") if hold.number else value


def unpack(value: bytes) -> Hold:
    """The hold in *value*. Raises ``struct.error`` where it has neither 22 nor 25 bytes."""
    if len(value) == SIZE_MOVED:
        number = int.from_bytes(value[SIZE:], "big")
        value = value[:SIZE]
    else:
        number = 0
    letter, fingerprint, version, entry_ms, entry_seq = _LAYOUT.unpack(value)
    return Hold(
        chr(letter[0]), fingerprint, int.from_bytes(version, "big"), int.from_bytes(entry_ms, "big"), entry_seq, number
    )


def letter_of(status: Status, extended: bool = False) -> str:
    """The letter of an order in that status."""
    letter = LETTERS[status]
    return letter.upper() if extended else letter


def status_of(letter: str) -> Status:
    """The status that a letter of either case stands for. Raises KeyError for any other."""
    return _STATUSES[letter.lower()]


def is_extended(letter: str) -> bool:
    """Whether the hold's deadline was moved out by the sale's extension."""
    return letter.isupper()


def rank(letter: str) -> int:
    """0 to 5: a letter gives way to one of a higher rank. Raises KeyError for what is no letter."""
    return _RANKS[letter.lower()]


def merged(before: str, after: str) -> str:
    """The letter of a hold that is `before` and hears of `after`, as the scripts do it: the higher rank stays, and what
    was extended stays extended."""
    letter = after if rank(after) > rank(before) else before
    return letter.upper() if before.isupper() or after.isupper() else letter
