"""The journal as its readers see it: an entry is either a batch of accepted orders or one movement.

Every script that changes something adds one entry, in the instant of the change: `o` <COPY lines> or `m` <JSON>, and
`w` <journal bytes ever written, this entry's payload included>. The scripts write the JSON; this module alone reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec


class _Movement(msgspec.Struct, frozen=True, tag_field="kind"):
    """A movement's `kind` chooses its class; unknown fields of later versions are ignored."""


class Created(_Movement, frozen=True, tag="create"):
    """A sale was made, or got SKUs or another window. `supply`: SKU index -> units added; times in ms. `guarantees`: of
    those units what went to a channel's guarantee, (SKU index, channel number, units)."""

    sale: int
    supply: dict[int, int]
    opens_at: int
    closes_at: int
    guarantees: tuple[tuple[int, int, int], ...] = ()


class Adjusted(_Movement, frozen=True, tag="adjust"):
    """A SKU's supply was set: `delta` units were added (or taken away), `supply` is the new one."""

    sale: int
    sku: int
    delta: int
    supply: int


class ReleasedOrder(msgspec.Struct, frozen=True):
    """One order of a release. `order`: its id; `number`: of the change of the order that it follows from. `lines`: (SKU
    index, units given back). `quota_back`: whether the shopper may take them again, or the quota stays used. `drawn`:
    of these units those that went back to a channel's guarantee, (SKU index, channel number, units). `lane`: (lane,
    dispatch day) whose parcel was given back; `limit`: (identity in hex, year, minor units) given back."""

    order: str
    number: int
    lines: tuple[tuple[int, int], ...]
    quota_back: bool
    drawn: tuple[tuple[int, int, int], ...] = ()
    lane: tuple[int, int] | None = None
    limit: tuple[str, int, int] | None = None


class Released(_Movement, frozen=True, tag="release"):
    """Units of orders of one sale went back, each order's once. `outbox`: the row that asked for it."""

    sale: int
    outbox: int
    orders: tuple[ReleasedOrder, ...]


class ReservedAgain(_Movement, frozen=True, tag="reserve_again"):
    """An order whose units had gone back asked for them again. `taken`: it has them now, else nothing has moved.
    `lines`: (SKU index, units) asked for; `quota`: whether the shopper's quota was to be taken again too. `drawn`,
    `lane` and `limit` as in ReleasedOrder, of what was taken."""

    sale: int
    outbox: int
    order: str
    number: int
    lines: tuple[tuple[int, int], ...]
    taken: bool
    quota: bool
    drawn: tuple[tuple[int, int, int], ...] = ()
    lane: tuple[int, int] | None = None
    limit: tuple[str, int, int] | None = None


class PoolMoved(_Movement, frozen=True, tag="move"):
    """Units went from channels' guarantees to the common pool: (SKU index, channel number, units); below 0: the other
    way."""

    sale: int
    moves: tuple[tuple[int, int, int], ...]


class Granted(_Movement, frozen=True, tag="grant"):
    """From here on (`on`), or no more, the agent may order for the recipient."""

    grant: str
    recipient: str
    agent: str
    on: bool


class StatusSet(_Movement, frozen=True, tag="status"):
    """The sale's status (open, paused, closed) and window (ms) from here on."""

    sale: int
    status: str
    opens_at: int
    closes_at: int


class Suspended(_Movement, frozen=True, tag="suspend"):
    """No orders of this SKU from here on."""

    sale: int
    sku: int


class Unsuspended(_Movement, frozen=True, tag="unsuspend"):
    """Orders of this SKU again."""

    sale: int
    sku: int


class VersionSet(_Movement, frozen=True, tag="version"):
    """The catalogue version in force from here on."""

    version: int


class EpochSet(_Movement, frozen=True, tag="epoch"):
    """The first entry of a rebuilt journal."""

    epoch: int


Movement = (
    Created
    | Adjusted
    | Released
    | ReservedAgain
    | PoolMoved
    | Granted
    | StatusSet
    | Suspended
    | Unsuspended
    | VersionSet
    | EpochSet
)

_DECODER: msgspec.json.Decoder[Movement] = msgspec.json.Decoder(Movement)
_ENCODER = msgspec.json.Encoder()


class Entry(NamedTuple):
    """One journal entry. `records`: COPY lines, each ending in a newline, b"" for a movement. `written`: field w."""

    ms: int
    seq: int
    records: bytes
    movement: Movement | None
    written: int

    @property
    def id(self) -> str:
        """The id as Valkey writes it."""
        return f"{self.ms}-{self.seq}"


def parse_entry_id(text: bytes | str) -> tuple[int, int]:
    """(ms, sequence) of a stream id such as b"1762790400123-0". Raises ValueError for anything else."""
    if isinstance(text, bytes):
        text = text.decode("ascii")
    ms, separator, seq = text.partition("-")
    if not separator:
        raise ValueError(f"not a journal id: {text!r}")
    return int(ms), int(seq)


def encode_movement(movement: Movement) -> bytes:
    """The JSON of a movement that no script writes: a rebuild's `epoch` entry."""
    return _ENCODER.encode(movement)


def decode_movement(payload: bytes) -> Movement:
    """The movement in field m. Raises ValueError where it is none that this version knows."""
    return _DECODER.decode(payload)


def decode_entry(entry_id: bytes, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> Entry:
    """An entry of XRANGE or XREAD; `fields` as a mapping or as the flat list of the wire. Raises ValueError where the
    entry is not one that the scripts write."""
    if not isinstance(fields, Mapping):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    ms, seq = parse_entry_id(entry_id)
    try:
        written = int(fields[b"w"])
        records = fields.get(b"o")
        movement = None if records is not None else decode_movement(fields[b"m"])
    except KeyError as absent:
        raise ValueError(f"journal entry {ms}-{seq} lacks field {absent.args[0].decode()}") from None
    return Entry(ms, seq, records or b"", movement, written)
