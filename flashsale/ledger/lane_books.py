"""The lanes that the ledger's catalogues know, each version read once: a catalogue is large, its lanes are not."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import Struct

from flashsale.ledger.pool import Connection
from flashsale.sale.shipping.lanes import LaneBook

VERSIONS_KEPT = 16


class _World(Struct):
    lanes: LaneBook = LaneBook()


class _Catalogue(Struct):
    """What is read of a catalogue's document; the rest of it is passed over."""

    world: _World = msgspec.field(default_factory=_World)


_decoder = msgspec.msgpack.Decoder(_Catalogue)

# A version never changes. When it was made tells it from the same version of another database.
_known: dict[tuple[int, datetime], LaneBook] = {}


async def of_version(connection: Connection, version: int) -> LaneBook:
    """The lanes at that version of the catalogue; none where there is no such version."""
    made = await connection.fetchval("SELECT created_at FROM catalogue WHERE version = $1", version)
    return LaneBook() if made is None else await _read(connection, version, made)


async def newest(connection: Connection) -> LaneBook:
    """The lanes at the newest version; none before the first sale."""
    row = await connection.fetchrow("SELECT version, created_at FROM catalogue ORDER BY version DESC LIMIT 1")
    return LaneBook() if row is None else await _read(connection, *row)


async def _read(connection: Connection, version: int, made: datetime) -> LaneBook:
    book = _known.get((version, made))
    if book is None:
        document = await connection.fetchval("SELECT document FROM catalogue WHERE version = $1", version)
        book = _decoder.decode(document).world.lanes
        while len(_known) >= VERSIONS_KEPT:
            _known.pop(next(iter(_known)))
        _known[version, made] = book
    return book
