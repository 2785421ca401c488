"""What channels are told: each change of their orders once and again until it is taken, and what they may sell.

Changes are read from the history in the order of transactions, and only where every earlier one has ended
(`channel_mark`), as for webhooks: pushes and mark move in one transaction, so that a kill loses nothing. Stock is no
event but a state: what a channel took last is kept, and whatever differs from it is still to be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flashsale.ledger import followers
from flashsale.ledger.pool import Connection

PRUNED_AT_ONCE = 10_000  # settled pushes that one call deletes


class EndpointRow(NamedTuple):
    """Where a channel hears. `failures` are those in a row; `next_ms`: nothing is sent before."""

    channel: str
    url: str
    secret: str
    created_ms: int
    failures: int
    next_ms: int


class PushRow(NamedTuple):
    """A change of an order that is to be told; `status` and `payment` are the order's after it."""

    order_id: str
    number: int
    refusals: int
    created_ms: int
    event: str
    at_ms: int
    status: str
    payment: str
    sale: str
    reference: str
    package: int | None  # its number


_ENDPOINT = ", ".join(EndpointRow._fields)


# --- where a channel hears ---


async def set_endpoint(connection: Connection, channel: str, url: str, secret: str, now_ms: int) -> EndpointRow:
    """The channel hears there from now on; a new place is told all of the stock."""
    await connection.execute("DELETE FROM channel_stock WHERE channel = $1", channel)
    row = await connection.fetchrow(
        "INSERT INTO channel_endpoint (channel, url, secret, created_ms) VALUES ($1, $2, $3, $4)"  # noqa: S608
        " ON CONFLICT (channel) DO UPDATE SET url = excluded.url, secret = excluded.secret, failures = 0, next_ms = 0"
        f" RETURNING {_ENDPOINT}",
        *(channel, url, secret, now_ms),
    )
    assert row is not None  # noqa: S101  an INSERT that returns
    return EndpointRow(*row)


async def endpoint(connection: Connection, channel: str) -> EndpointRow | None:
    """Where the channel hears; None: nowhere."""
    row = await connection.fetchrow(f"SELECT {_ENDPOINT} FROM channel_endpoint WHERE channel = $1", channel)  # noqa: S608
    return None if row is None else EndpointRow(*row)


async def heard(connection: Connection) -> list[str]:
    """The channels that hear somewhere."""
    return [row[0] for row in await connection.fetch("SELECT channel FROM channel_endpoint ORDER BY channel")]


async def remove_endpoint(connection: Connection, channel: str, now_ms: int) -> bool:
    """The channel hears nothing any more; what waited is given up. False: it heard nowhere."""
    await connection.execute(
        "UPDATE channel_push SET status = 'given_up', error = 'the endpoint was removed', settled_ms = $2"
        " WHERE channel = $1 AND status = 'pending'",
        *(channel, now_ms),
    )
    await connection.execute("DELETE FROM channel_stock WHERE channel = $1", channel)
    gone = await connection.fetchval("DELETE FROM channel_endpoint WHERE channel = $1 RETURNING true", channel)
    return gone is not None


async def waiting(connection: Connection, channel: str) -> int:
    """How many pushes wait for the channel."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM channel_push WHERE channel = $1 AND status = 'pending'", channel
    )
    return found


async def answered(connection: Connection, channel: str) -> None:
    """The endpoint answers."""
    await connection.execute(
        "UPDATE channel_endpoint SET failures = 0, next_ms = 0 WHERE channel = $1 AND failures > 0", channel
    )


async def failed(connection: Connection, channel: str, failures: int, next_ms: int) -> None:
    """The endpoint did not answer; `failures` in a row now."""
    await connection.execute(
        "UPDATE channel_endpoint SET failures = $2, next_ms = $3 WHERE channel = $1", *(channel, failures, next_ms)
    )


# --- what becomes of orders ---


async def tell(connection: Connection, *, rows: int, now_ms: int) -> bool:
    """Makes pushes of the next `rows` changes or so (a transaction is never divided) and moves the mark; whether there
    is more to do at once."""
    async with connection.transaction():
        at = await followers.next_stretch(connection, "channel_mark", rows)
        if at is None:
            return False
        heard = await connection.fetchval("SELECT EXISTS (SELECT FROM channel_endpoint)")
        if heard:
            await connection.execute(
                """INSERT INTO channel_push (channel, order_id, number, created_ms, next_ms)
                   SELECT o.channel, h.order_id, h.number, $3::int8, $3::int8
                     FROM history h JOIN orders o ON o.id = h.order_id
                     JOIN channel_endpoint e ON e.channel = o.channel
                    WHERE h.tx >= $1::text::xid8 AND h.tx < $2::text::xid8
                   ON CONFLICT DO NOTHING""",
                *(at.mark, at.upto, now_ms),
            )
        await followers.move(connection, "channel_mark", at.upto)
        return at.more


async def due(connection: Connection, channel: str, limit: int, now_ms: int) -> list[PushRow]:
    """The channel's next changes to be told, those of one order in their order."""
    rows = await connection.fetch(
        """SELECT p.order_id, p.number, p.refusals, p.created_ms, h.event, h.at_ms, h.status, h.payment, s.id,
                  o.idempotency_key, k.number
             FROM (SELECT * FROM channel_push WHERE channel = $1 AND status = 'pending' AND next_ms <= $2
                    ORDER BY next_ms, order_id, number LIMIT $3) p
             JOIN history h ON h.order_id = p.order_id AND h.number = p.number
             JOIN orders o ON o.id = p.order_id
             JOIN sale s ON s.number = o.sale
             LEFT JOIN package k ON k.order_id = p.order_id
            ORDER BY p.next_ms, p.order_id, p.number""",
        *(channel, now_ms, limit),
    )
    return [PushRow(*row) for row in rows]


async def delivered(connection: Connection, pushes: Sequence[PushRow], now_ms: int) -> None:
    """The channel took them."""
    await connection.execute(
        """UPDATE channel_push p SET status = 'delivered', error = NULL, settled_ms = $3
             FROM unnest($1::text[], $2::int4[]) AS told (order_id, number)
            WHERE p.order_id = told.order_id AND p.number = told.number AND p.status = 'pending'""",
        *([push.order_id for push in pushes], [push.number for push in pushes], now_ms),
    )


async def refused(connection: Connection, push: PushRow, error: str, next_ms: int) -> None:
    """The channel answered that it takes no such thing; it is asked again alone."""
    await connection.execute(
        "UPDATE channel_push SET refusals = refusals + 1, error = $3, next_ms = $4"
        " WHERE order_id = $1 AND number = $2 AND status = 'pending'",
        *(push.order_id, push.number, error, next_ms),
    )


async def give_up(connection: Connection, *, before_ms: int, now_ms: int) -> int:
    """Gives up what was made before `before_ms` and not taken yet; how many those were."""
    done = await connection.execute(
        "UPDATE channel_push SET status = 'given_up', error = coalesce(error, 'the endpoint was not reachable'),"
        " settled_ms = $2 WHERE status = 'pending' AND created_ms < $1",
        *(before_ms, now_ms),
    )
    return int(done.rpartition(" ")[2])


async def prune(connection: Connection, *, before_ms: int) -> None:
    """Deletes what was settled before then."""
    await connection.execute(
        "DELETE FROM channel_push WHERE ctid = ANY"
        " (ARRAY(SELECT ctid FROM channel_push WHERE settled_ms < $1 LIMIT $2))",
        *(before_ms, PRUNED_AT_ONCE),
    )


# --- what a channel may sell ---


async def stock_told(connection: Connection, channel: str) -> dict[tuple[int, int], int]:
    """What the channel was told last, and took: units by sale number and offer index."""
    rows = await connection.fetch("SELECT sale, sku, units FROM channel_stock WHERE channel = $1", channel)
    return {(row[0], row[1]): row[2] for row in rows}


async def stock_taken(connection: Connection, channel: str, units: Mapping[tuple[int, int], int]) -> None:
    """The channel took these. Not kept where its endpoint was removed meanwhile."""
    await connection.execute(
        """INSERT INTO channel_stock (channel, sale, sku, units)
           SELECT $1, told.* FROM unnest($2::int4[], $3::int2[], $4::int8[]) AS told
            WHERE EXISTS (SELECT FROM channel_endpoint WHERE channel = $1)
           ON CONFLICT (channel, sale, sku) DO UPDATE SET units = excluded.units""",
        *(channel, [sale for sale, _ in units], [sku for _, sku in units], list(units.values())),
    )
