"""Which endpoint is told what: deliveries, made from the history once each, and what became of every try.

History is read in the order of transactions, and only where every earlier transaction has ended (`webhook_mark`): no
change is passed over because it committed late. Deliveries, their jobs and the mark move in one transaction. A
delivery's id is made of endpoint, order and number, so that nothing is told twice but by retry or replay, and then
under the same message id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import asyncpg
from pgqueuer.queries import Queries

from flashsale.ledger import followers
from flashsale.ledger.pool import Connection
from flashsale.sale.published import EVENTS, EVERY

ENTRYPOINT = "webhook"
"""The job queue's name for a delivery; the job's payload is the delivery's id."""
PRUNED_AT_ONCE = 10_000  # old deliveries that one call deletes


class Delivery(NamedTuple):
    """One line of the delivery log. `status` is pending, delivered or given_up; times are in ms."""

    id: str
    endpoint: str
    order_id: str
    number: int
    event: str
    status: str
    tries: int
    http_status: int | None
    error: str | None
    created_ms: int
    queued_ms: int
    tried_ms: int | None
    next_ms: int


class Due(NamedTuple):
    """All that one try needs: how the delivery stands, its endpoint, and the change that it tells."""

    id: str
    status: str
    tries: int
    queued_ms: int
    next_ms: int
    endpoint: str
    url: str
    secret: str
    disabled: bool
    open_until_ms: int | None
    event: str
    order_id: str
    number: int
    at_ms: int
    order_status: str
    payment: str
    detail: str | None
    sale: str
    market: str
    channel: str

    @property
    def message_id(self) -> str:
        """The same for every try, replay and endpoint."""
        return f"msg_{self.order_id}_{self.number}"


class Told(NamedTuple):
    """What one step did: how many deliveries it made, and whether there is more to do at once."""

    deliveries: int
    more: bool


_OF_HISTORY = """
    SELECT e.id || '.' || h.order_id || '.' || h.number, e.id, h.order_id, h.number, h.event,
           $3::int8, $3::int8, $3::int8
      FROM history h
      JOIN webhook_endpoint e ON NOT e.disabled AND (h.event = ANY (e.events) OR $4 = ANY (e.events))
     WHERE h.tx >= $1::text::xid8 AND h.tx < $2::text::xid8 AND h.event = ANY ($5::text[])
"""
_MAKE = """
    INSERT INTO webhook_delivery (id, endpoint, order_id, number, event, created_ms, queued_ms, next_ms)
"""


async def tell(connection: Connection, *, rows: int, now_ms: int) -> Told:
    """Makes deliveries of the next `rows` changes or so (a transaction is never divided) and moves the mark."""
    async with connection.transaction():
        at = await followers.next_stretch(connection, "webhook_mark", rows)
        if at is None:
            return Told(0, False)
        heard = await connection.fetchval("SELECT EXISTS (SELECT FROM webhook_endpoint WHERE NOT disabled)")
        made: list[Any] = []
        if heard:
            made = await connection.fetch(
                f"{_MAKE} {_OF_HISTORY} ON CONFLICT (id) DO NOTHING RETURNING id",
                *(at.mark, at.upto, now_ms, EVERY, list(EVENTS)),
            )
            await _enqueue(connection, [row["id"] for row in made])
        await followers.move(connection, "webhook_mark", at.upto)
        return Told(len(made), at.more)


async def ask_replay(connection: Connection, endpoint: str, since_ms: int) -> None:
    """Everything that the endpoint subscribes to and that happened since then is to be sent to it again."""
    await connection.execute("INSERT INTO webhook_replay (endpoint, since_ms) VALUES ($1, $2)", endpoint, since_ms)


async def replay(connection: Connection, *, rows: int, now_ms: int) -> Told:
    """The next `rows` changes or so of the oldest replay: deliveries begin anew, those that never were are made."""
    async with connection.transaction():
        asked = await connection.fetchrow(
            """SELECT number, endpoint, since_ms, next_tx::text, end_tx::text FROM webhook_replay
                ORDER BY number LIMIT 1"""
        )
        if asked is None:
            return Told(0, False)
        number, next_tx, end_tx = asked["number"], asked["next_tx"], asked["end_tx"]
        if next_tx is None:
            # OFFSET 0 keeps the search on the index of times: by the index of transactions it would read all of them.
            [(next_tx, end_tx)] = await connection.fetch(
                """SELECT coalesce(min(since.tx), min(mark.tx))::text, min(mark.tx)::text
                     FROM webhook_mark mark
                     LEFT JOIN (SELECT tx FROM history WHERE at_ms >= $1 OFFSET 0) since ON since.tx < mark.tx""",
                asked["since_ms"],
            )
        last = await connection.fetchval(
            """SELECT tx::text FROM history WHERE tx >= $1::text::xid8 AND tx < $2::text::xid8
                ORDER BY tx OFFSET $3 LIMIT 1""",
            *(next_tx, end_tx, rows - 1),
        )
        upto = _behind(last) if last is not None else end_tx
        made = await connection.fetch(
            f"""{_MAKE} {_OF_HISTORY} AND e.id = $6 AND h.at_ms >= $7
                ON CONFLICT (id) DO UPDATE SET status = 'pending', tries = 0, http_status = NULL, error = NULL,
                                               queued_ms = excluded.queued_ms, next_ms = excluded.next_ms
                RETURNING id""",
            *(next_tx, upto, now_ms, EVERY, list(EVENTS), asked["endpoint"], asked["since_ms"]),
        )
        ids = [row["id"] for row in made]
        await _enqueue(connection, ids)
        await connection.execute(  # the job of one that waits for its next try is there already: it needs wait no more
            """UPDATE pgqueuer SET execute_after = now()
                WHERE dedupe_key = ANY ($1) AND status = 'queued' AND execute_after > now()""",
            [_key(id) for id in ids],
        )
        if last is None:
            await connection.execute("DELETE FROM webhook_replay WHERE number = $1", number)
        else:
            await connection.execute(
                "UPDATE webhook_replay SET next_tx = $2::text::xid8, end_tx = $3::text::xid8 WHERE number = $1",
                *(number, upto, end_tx),
            )
        return Told(len(ids), last is not None)


async def find_lost(connection: Connection, *, before_ms: int, limit: int) -> int:
    """Gives a job again to deliveries that should have been tried before `before_ms` and have none: the queue drops a
    job whose worker was told to stop in the middle of it."""
    async with connection.transaction():
        lost = await connection.fetch(
            """SELECT id FROM webhook_delivery d
                WHERE status = 'pending' AND next_ms < $1
                  AND NOT EXISTS (SELECT FROM pgqueuer q
                                   WHERE q.dedupe_key = 'webhook:' || d.id AND q.status IN ('queued', 'picked'))
                ORDER BY next_ms LIMIT $2""",
            *(before_ms, limit),
        )
        await _enqueue(connection, [row["id"] for row in lost])
        return len(lost)


async def prune(connection: Connection, *, before_ms: int) -> int:
    """Deletes settled deliveries that were made before; at most PRUNED_AT_ONCE. A replay makes them again."""
    done: str = await connection.execute(
        """DELETE FROM webhook_delivery WHERE id IN (
               SELECT id FROM webhook_delivery WHERE created_ms < $1 AND queued_ms < $1 AND status <> 'pending'
                ORDER BY created_ms LIMIT $2)""",
        *(before_ms, PRUNED_AT_ONCE),
    )
    return int(done.rpartition(" ")[2])


async def due(connection: Connection, id: str) -> Due | None:
    """A delivery with all that a try of it needs."""
    row = await connection.fetchrow(
        """SELECT d.id, d.status, d.tries, d.queued_ms, d.next_ms, e.id, e.url, e.secret, e.disabled, e.open_until_ms,
                  h.event, h.order_id, h.number, h.at_ms, h.status, h.payment, h.detail, s.id, o.market, o.channel
             FROM webhook_delivery d
             JOIN webhook_endpoint e ON e.id = d.endpoint
             JOIN history h ON h.order_id = d.order_id AND h.number = d.number
             JOIN orders o ON o.id = d.order_id
             JOIN sale s ON s.number = o.sale
            WHERE d.id = $1""",
        id,
    )
    return None if row is None else Due(*row)


async def begin(connection: Connection, due: Due, *, now_ms: int, lease_ms: int) -> bool:
    """Counts a try and keeps others away for `lease_ms`. False: somebody else has begun one, or it is settled."""
    return (
        await connection.fetchval(
            """UPDATE webhook_delivery SET tries = tries + 1, tried_ms = $3, next_ms = $4
            WHERE id = $1 AND status = 'pending' AND tries = $2 AND next_ms = $5 RETURNING true""",
            *(due.id, due.tries, now_ms, now_ms + lease_ms, due.next_ms),
        )
        is not None
    )


async def postpone(connection: Connection, due: Due, next_ms: int) -> None:
    """It waits without a try."""
    await connection.execute(
        "UPDATE webhook_delivery SET next_ms = $3 WHERE id = $1 AND tries = $2 AND status = 'pending'",
        *(due.id, due.tries, next_ms),
    )


async def settle(
    connection: Connection,
    id: str,
    status: str,
    *,
    tries: int,
    http_status: int | None = None,
    error: str | None = None,
    next_ms: int | None = None,
) -> None:
    """The end of a delivery, or of a try that another follows (`pending`, with its `next_ms`). `tries`: those that
    were counted when this one began; after a replay in between it says nothing any more."""
    await connection.execute(
        """UPDATE webhook_delivery
              SET status = $3, http_status = $4, error = $5, next_ms = coalesce($6, next_ms)
            WHERE id = $1 AND tries = $2 AND status = 'pending'""",
        *(id, tries, status, http_status, error, next_ms),
    )


async def log_of(
    connection: Connection, *, endpoint: str | None = None, status: str | None = None, limit: int = 50
) -> list[Delivery]:
    """The newest deliveries, of one endpoint and status or of all."""
    rows = await connection.fetch(
        f"""SELECT {", ".join(Delivery._fields)} FROM webhook_delivery
             WHERE ($1::text IS NULL OR endpoint = $1) AND ($2::text IS NULL OR status = $2)
             ORDER BY created_ms DESC LIMIT $3""",  # noqa: S608
        *(endpoint, status, limit),
    )
    return [Delivery(*row) for row in rows]


def _behind(tx: str) -> str:
    return str(int(tx) + 1)


def _key(id: str) -> str:
    return f"{ENTRYPOINT}:{id}"


async def _enqueue(connection: Connection, ids: Sequence[str]) -> None:
    if not ids:
        return
    queries = Queries.from_asyncpg_connection(cast("asyncpg.Connection[Any]", connection))
    await queries.enqueue(
        [ENTRYPOINT] * len(ids),
        [id.encode() for id in ids],
        [0] * len(ids),
        dedupe_key=[_key(id) for id in ids],
        on_conflict="skip",
    )
