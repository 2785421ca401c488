"""The fields of the hash of limits: 13 bytes each, of a lane's dispatch day or an identity's year."""

from __future__ import annotations

import struct
from typing import NamedTuple

FIELD_BYTES = 13
_LANE = struct.Struct(">cHI6x")
_IDENTITY = struct.Struct(">c10sH")


class LaneDay(NamedTuple):
    """A lane (its number) on one dispatch day (days since 1970-01-01)."""

    lane: int
    day: int


class IdentityYear(NamedTuple):
    """A verified identity (10 bytes) in one calendar year."""

    identity: bytes
    year: int


def lane_field(lane: int, day: int) -> bytes:
    """Parcels held of a lane's dispatch day."""
    return _LANE.pack(b"L", lane, day)


def identity_field(identity: bytes, year: int) -> bytes:
    """Minor units that an identity imported in a year."""
    return _IDENTITY.pack(b"I", identity, year)


def parse(field: bytes) -> LaneDay | IdentityYear:
    """What a field stands for. Raises ValueError for what is none."""
    if len(field) == FIELD_BYTES and field[:1] == b"L":
        return LaneDay(*_LANE.unpack(field)[1:])
    if len(field) == FIELD_BYTES and field[:1] == b"I":
        return IdentityYear(*_IDENTITY.unpack(field)[1:])
    raise ValueError(f"not a field of the limits: {field!r}")
