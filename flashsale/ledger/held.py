"""What orders hold beside units of the common pool: channels' guarantees, lanes' parcels, import limits; and grants.

Each is a sum over changes: what an order took when it was accepted (its row), and what the movements gave back and took
again since. The row of an order whose units were taken again says where they are now, so that what it took at first is
read from what went back before: all of it had. The tables' names are given, for the audit looks at views of the same
shape that know the journal too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from flashsale.ledger.movements import NUMBER
from flashsale.ledger.pool import Connection

_PREFETCH = 5000  # rows a round trip of a stream

_AGAIN = (
    f"SELECT order_id AS id, max({NUMBER}) AS number FROM public.movement"  # noqa: S608
    " WHERE kind = 'reserve_again' AND sku IS NOT NULL GROUP BY order_id"
)
_UNTIL = "partition = $1 AND (journal_ms, journal_seq) <= ($2::int8, $3::int8)"


def guarantee_changes(orders: str = "orders", movement: str = "movement") -> str:
    """SQL: sale, channel (number), sku, units (below 0: drawn), and the journal's place of each change of a guarantee.
    $4 and $5 are the names and numbers of the channels."""
    return (
        "SELECT sale, (detail ->> 'channel')::int AS channel, sku, CASE kind WHEN 'move' THEN -units ELSE units END"  # noqa: S608
        f"  AS units, partition, journal_ms, journal_seq FROM {movement} WHERE kind IN ('move', 'drawn')"
        " UNION ALL SELECT o.sale, n.number, line.sku, -line.out::int8, o.partition, o.journal_ms, o.journal_seq"
        f"  FROM {orders} AS o JOIN unnest($4::text[], $5::int4[]) AS n (name, number) ON n.name = o.channel"
        "  CROSS JOIN unnest(o.skus, o.drawn) AS line (sku, out)"
        f"  WHERE o.drawn IS NOT NULL AND line.out > 0 AND NOT EXISTS (SELECT FROM ({_AGAIN}) AS a WHERE a.id = o.id)"
        " UNION ALL SELECT o.sale, (detail ->> 'channel')::int, m.sku, -m.units, o.partition, o.journal_ms,"
        f"  o.journal_seq FROM ({_AGAIN}) AS a JOIN public.movement AS m ON m.order_id = a.id AND m.kind = 'drawn'"
        f"  AND {NUMBER} < a.number JOIN {orders} AS o ON o.id = a.id"
    )


def lane_changes(orders: str = "orders", movement: str = "movement") -> str:
    """SQL: lane, day, units (parcels taken; below 0: given back), and the journal's place of each change."""
    return (
        "SELECT (detail ->> 'lane')::int AS lane, (detail ->> 'day')::int AS day, -units AS units, partition,"  # noqa: S608
        f"  journal_ms, journal_seq FROM {movement} WHERE kind = 'lane'"
        " UNION ALL SELECT o.lane_number, o.dispatch_day, 1, o.partition, o.journal_ms, o.journal_seq"
        f"  FROM {orders} AS o"
        f"  WHERE o.lane_number IS NOT NULL AND NOT EXISTS (SELECT FROM ({_AGAIN}) AS a WHERE a.id = o.id)"
        " UNION ALL SELECT (detail ->> 'lane')::int, (detail ->> 'day')::int, m.units, o.partition, o.journal_ms,"
        f"  o.journal_seq FROM ({_AGAIN}) AS a JOIN public.movement AS m ON m.order_id = a.id AND m.kind = 'lane'"
        f"  AND {NUMBER} < a.number JOIN {orders} AS o ON o.id = a.id"
    )


def import_changes(orders: str = "orders", movement: str = "movement") -> str:
    """SQL: identity (hexadecimal), year, units (minor units imported; below 0: given back), and the journal's place."""
    return (
        "SELECT detail ->> 'identity' AS identity, (detail ->> 'year')::int AS year, -units AS units, partition,"  # noqa: S608
        f"  journal_ms, journal_seq FROM {movement} WHERE kind = 'limit'"
        " UNION ALL SELECT encode(identity, 'hex'), limit_year, limit_use, partition, journal_ms, journal_seq"
        f"  FROM {orders} WHERE identity IS NOT NULL"
    )


async def guarantees_left(
    connection: Connection,
    partition: int,
    until: tuple[int, int],
    channels: Mapping[str, int],
    *,
    orders: str = "orders",
    movement: str = "movement",
) -> dict[int, dict[tuple[int, int], int]]:
    """What is left of each guarantee at a journal id: by sale number, then (offer index, channel number)."""
    rows = await connection.fetch(
        "SELECT sale, sku, channel, sum(units)::int8"  # noqa: S608
        f" FROM ({guarantee_changes(orders, movement)}) AS changes WHERE {_UNTIL} GROUP BY sale, sku, channel",
        partition, *until, list(channels), list(channels.values()),
    )  # fmt: skip
    left: dict[int, dict[tuple[int, int], int]] = {}
    for sale, sku, channel, units in rows:
        left.setdefault(sale, {})[sku, channel] = units
    return left


async def lane_days(connection: Connection, partition: int, until: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Parcels held at a journal id, by (lane, dispatch day); those that hold none are left out."""
    rows = await connection.fetch(
        f"SELECT lane, day, sum(units)::int8 FROM ({lane_changes()}) AS changes WHERE {_UNTIL}"  # noqa: S608
        " GROUP BY lane, day HAVING sum(units) <> 0",
        partition, *until,
    )  # fmt: skip
    return {(lane, day): parcels for lane, day, parcels in rows}


async def each_import(
    connection: Connection, partition: int, until: tuple[int, int]
) -> AsyncIterator[tuple[bytes, int, int]]:
    """(identity, year, minor units) imported at a journal id. Streams: call it in a transaction."""
    cursor = connection.cursor(
        f"SELECT identity, year, sum(units)::int8 FROM ({import_changes()}) AS changes WHERE {_UNTIL}"  # noqa: S608
        " GROUP BY identity, year HAVING sum(units) <> 0",
        partition, *until, prefetch=_PREFETCH,
    )  # fmt: skip
    async for identity, year, amount in cursor:
        yield bytes.fromhex(identity), year, amount


async def grants(
    connection: Connection, partition: int, until: tuple[int, int], *, movement: str = "movement"
) -> dict[tuple[str, str], str]:
    """The grants in force at a journal id, by (recipient, agent)."""
    rows = await connection.fetch(
        "SELECT recipient, agent, id FROM (SELECT DISTINCT ON (1, 2) detail ->> 'recipient' AS recipient,"  # noqa: S608
        f" detail ->> 'agent' AS agent, detail ->> 'grant' AS id, (detail ->> 'on')::bool AS holds FROM {movement}"
        f" WHERE kind = 'grant' AND {_UNTIL} ORDER BY 1, 2, journal_ms DESC, journal_seq DESC) AS last WHERE holds",
        partition, *until,
    )  # fmt: skip
    return {(recipient, agent): grant for recipient, agent, grant in rows}
