"""Parcels: which orders get one, what their carriers are to be asked, and the events that carriers tell.

A parcel is made of the history, read in the order of transactions and only where every earlier one has ended
(`carrier_mark`), as for webhooks: parcels and mark move in one transaction, so that a kill loses nothing, and an order
that is being placed or paid does no work for it. Who changes a parcel and its order locks the parcel first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flashsale.ledger import followers
from flashsale.ledger.pool import Connection
from flashsale.sale.tracking import ParcelStatus


@dataclass(frozen=True, slots=True)
class ParcelRow:
    """A parcel. `skus` are offer indices, `quantities` units of each; `attempts`: of what is to be asked now."""

    order_id: str
    lane_number: int
    carrier: str
    skus: list[int]
    quantities: list[int]
    status: str
    waybill: str | None
    attempts: int
    error: str | None
    created_ms: int
    heard_ms: int | None
    due_ms: int | None


class EventRow(NamedTuple):
    """What a carrier told of a parcel."""

    id: str
    code: str
    at_ms: int
    detail: str | None
    country: str | None


class DueParcel(NamedTuple):
    """A parcel that its carrier is to be asked about, and what of its order a booking says."""

    row: ParcelRow
    sale: int
    catalogue_version: int
    market: str
    lane: str | None
    ship_to: str | None  # JSON
    currency: str
    prices: dict[int, int]  # of one unit, by offer index


COLUMNS = ", ".join(ParcelRow.__dataclass_fields__)
_OF_PARCEL = ", ".join(f"p.{name}" for name in ParcelRow.__dataclass_fields__)


# --- which orders get a parcel ---

_TAKE_UP = """
INSERT INTO parcel (order_id, lane_number, carrier, skus, quantities, status, error, created_ms, due_ms)
SELECT DISTINCT ON (o.id) o.id, o.lane_number, coalesce(l.carrier, ''), o.skus, left_over.units,
       CASE WHEN l.carrier IS NULL THEN 'refused' ELSE 'to_book' END,
       CASE WHEN l.carrier IS NULL THEN 'no carrier is known for the lane' END,
       $3::int8, CASE WHEN l.carrier IS NULL THEN NULL ELSE $3::int8 END
  FROM history AS h
  JOIN orders AS o ON o.id = h.order_id
 CROSS JOIN LATERAL (
       SELECT array_agg(u.units - coalesce(u.gone, 0) ORDER BY u.place) AS units
         FROM unnest(o.quantities, o.cancelled) WITH ORDINALITY AS u (units, gone, place)) AS left_over
  LEFT JOIN unnest($4::int2[], $5::text[]) AS l (number, carrier) ON l.number = o.lane_number
 WHERE h.tx >= $1::text::xid8 AND h.tx < $2::text::xid8 AND h.event = 'order.paid'
   AND o.status = 'paid' AND o.lane_number IS NOT NULL AND o.channel <> ALL ($6::text[])
   AND NOT EXISTS (SELECT FROM package AS k WHERE k.order_id = o.id)
ON CONFLICT (order_id) DO NOTHING
"""

# A parcel whose order went another way, or left in a package of its channel's. Where no booking was tried, or its
# carrier does not carry it, nobody has to be told.
_CALL_OFF = """
UPDATE parcel AS p
   SET status = CASE WHEN p.status = 'refused' OR p.status = 'to_book' AND p.attempts = 0
                     THEN 'cancelled' ELSE 'cancelling' END,
       due_ms = CASE WHEN p.status = 'refused' OR p.status = 'to_book' AND p.attempts = 0
                     THEN NULL ELSE $3::int8 END,
       attempts = 0
  FROM history AS h JOIN orders AS o ON o.id = h.order_id
 WHERE h.tx >= $1::text::xid8 AND h.tx < $2::text::xid8 AND h.event IN ('order.cancelled', 'order.shipped')
   AND p.order_id = o.id
   AND (p.status = 'to_book' AND o.status <> 'paid' OR p.status IN ('booked', 'refused') AND o.status = 'cancelled'
        OR p.status = 'booked' AND EXISTS (SELECT FROM package AS k WHERE k.order_id = o.id))
"""


async def take_up(
    connection: Connection, carriers: Mapping[int, str], packed_elsewhere: Sequence[str], *, rows: int, now_ms: int
) -> bool:
    """Makes parcels of the orders that the next `rows` changes or so paid (a transaction is never divided), calls off
    those of the orders that they cancelled, and moves the mark; whether there is more to do at once.

    `carriers`: of each lane by its number. `packed_elsewhere`: the channels that pack and label what they sell.
    """
    async with connection.transaction():
        at = await followers.next_stretch(connection, "carrier_mark", rows)
        if at is None:
            return False
        lanes = [list(carriers), list(carriers.values())]
        await connection.execute(_TAKE_UP, at.mark, at.upto, now_ms, *lanes, list(packed_elsewhere))
        await connection.execute(_CALL_OFF, at.mark, at.upto, now_ms)
        await followers.move(connection, "carrier_mark", at.upto)
        return at.more


# --- what carriers are to be asked ---


async def claim_due(connection: Connection, now_ms: int, limit: int, lease_ms: int) -> list[DueParcel]:
    """Parcels that their carriers are to be asked about now. They are this caller's for `lease_ms`."""
    rows = await connection.fetch(
        "WITH due AS (UPDATE parcel SET due_ms = $1 + $3, attempts = attempts + 1 WHERE order_id IN"  # noqa: S608
        " (SELECT order_id FROM parcel WHERE due_ms <= $1 ORDER BY due_ms LIMIT $2 FOR UPDATE SKIP LOCKED)"
        f" RETURNING {COLUMNS})"
        f" SELECT {_OF_PARCEL}, o.sale, o.catalogue_version, o.market, o.lane, o.ship_to, o.currency,"
        " o.skus AS order_skus, o.prices FROM due AS p JOIN orders AS o ON o.id = p.order_id",
        now_ms, limit, lease_ms,
    )  # fmt: skip
    columns = len(ParcelRow.__dataclass_fields__)
    found = []
    for row in rows:
        *order, skus, prices = row[columns:]
        of_one_unit = dict(zip(skus, prices, strict=True))
        found.append(DueParcel._make([ParcelRow(*row[:columns]), *order, of_one_unit]))
    return found


async def unlease(connection: Connection, now_ms: int) -> None:
    """What is to be booked or cancelled is due now, also where somebody who is gone had it under way."""
    await connection.execute(
        "UPDATE parcel SET due_ms = $1 WHERE due_ms > $1 AND status IN ('to_book', 'cancelling')", now_ms
    )


async def booked(connection: Connection, order_id: str, waybill: str, ask_ms: int) -> None:
    """The carrier has the parcel; it is asked at `ask_ms` unless it tells something before. One that was called off
    meanwhile is cancelled next. Raises asyncpg.UniqueViolationError where another parcel has the waybill."""
    await connection.execute(
        "UPDATE parcel SET waybill = $2, error = NULL, attempts = 0,"
        " status = CASE WHEN status = 'to_book' THEN 'booked' ELSE status END,"
        " due_ms = CASE WHEN status = 'to_book' THEN $3 ELSE due_ms END"
        " WHERE order_id = $1 AND waybill IS NULL AND status IN ('to_book', 'cancelling')",
        *(order_id, waybill, ask_ms),
    )


async def settle(
    connection: Connection, row: ParcelRow, status: ParcelStatus, error: str | None, due_ms: int | None = None
) -> None:
    """What became of a parcel's booking or cancellation; nothing where it was told of, or called off, meanwhile."""
    await connection.execute(
        "UPDATE parcel SET status = $3, error = $4, due_ms = $5, attempts = 0 WHERE order_id = $1 AND status = $2",
        *(row.order_id, row.status, status.value, error, due_ms),
    )


async def ask_again(connection: Connection, row: ParcelRow, due_ms: int, error: str | None) -> None:
    """The carrier did not answer, or told nothing new: it is asked again then."""
    await connection.execute(
        "UPDATE parcel SET due_ms = $3, error = coalesce($4, error) WHERE order_id = $1 AND status = $2",
        *(row.order_id, row.status, due_ms, error),
    )


async def book_again(connection: Connection, order_id: str, now_ms: int) -> bool:
    """A parcel that was refused is booked once more, if its order still waits for it; whether it is."""
    done = await connection.fetchval(
        "UPDATE parcel AS p SET status = 'to_book', attempts = 1, error = NULL, due_ms = $2 FROM orders AS o"
        " WHERE p.order_id = $1 AND o.id = p.order_id AND p.status = 'refused' AND p.waybill IS NULL"
        " AND p.carrier <> '' AND o.status = 'paid' RETURNING true",
        *(order_id, now_ms),
    )
    return done is not None


# --- and what they are read for ---


async def listed(connection: Connection, status: str | None, limit: int) -> list[ParcelRow]:
    """The newest parcels of that status; None: of those that a person has to see to. Reads the whole table."""
    rows = await connection.fetch(
        f"SELECT {COLUMNS} FROM parcel WHERE CASE WHEN $1::text IS NULL"  # noqa: S608
        "  THEN status = 'refused' OR error IS NOT NULL AND status NOT IN ('to_book', 'cancelling', 'cancelled')"
        "  ELSE status = $1 END ORDER BY created_ms DESC, order_id LIMIT $2",
        *(status, limit),
    )
    return [ParcelRow(*row) for row in rows]


async def of_order(connection: Connection, order_id: str) -> ParcelRow | None:
    """The order's parcel."""
    row = await connection.fetchrow(f"SELECT {COLUMNS} FROM parcel WHERE order_id = $1", order_id)  # noqa: S608
    return None if row is None else ParcelRow(*row)


async def waybill_of(connection: Connection, order_id: str) -> str | None:
    """The number that the order's parcel travels under, or will; None where it has none."""
    waybill: str | None = await connection.fetchval(
        "SELECT waybill FROM parcel WHERE order_id = $1 AND status NOT IN ('cancelling', 'cancelled', 'refused')",
        order_id,
    )
    return waybill


async def lock(connection: Connection, carrier: str, waybill: str) -> ParcelRow | None:
    """The carrier's parcel of that waybill; nobody else changes it until this transaction ends."""
    row = await connection.fetchrow(
        f"SELECT {COLUMNS} FROM parcel WHERE waybill = $1 AND carrier = $2 FOR UPDATE",  # noqa: S608
        *(waybill, carrier),
    )
    return None if row is None else ParcelRow(*row)


async def events_of(connection: Connection, order_id: str) -> list[EventRow]:
    """What the carrier told of the order's parcel, by the times that it gave."""
    rows = await connection.fetch(
        "SELECT id, code, at_ms, detail, country FROM parcel_event WHERE order_id = $1 ORDER BY at_ms, id", order_id
    )
    return [EventRow(*row) for row in rows]
