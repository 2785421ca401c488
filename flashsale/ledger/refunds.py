"""Refunds: money on its way back. A row is made with the change that causes it; the job queue takes it from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgqueuer.queries import Queries

from flashsale.ledger.pool import Connection

JOB = "refund"
"""The job's name in the queue; its payload is the refund's id."""


@dataclass(frozen=True, slots=True)
class RefundRow:
    """A refund; `id` is ours and the provider's key for it, `cause` cancellation, return, late, goodwill or other."""

    id: str
    order_id: str
    amount: int
    currency: str
    cause: str
    status: str
    rank: int
    provider_id: str | None
    failure: str | None
    created_ms: int
    settled_ms: int | None


_COLUMNS = ", ".join(RefundRow.__dataclass_fields__)


async def add(
    connection: Connection, refund_id: str, order_id: str, amount: int, currency: str, cause: str, now_ms: int
) -> None:
    """A new refund and the job that asks the provider for it."""
    await connection.execute(
        "INSERT INTO refund (id, order_id, amount, currency, cause, created_ms) VALUES ($1, $2, $3, $4, $5, $6)",
        refund_id, order_id, amount, currency, cause, now_ms,
    )  # fmt: skip
    await enqueue(connection, refund_id)


async def enqueue(connection: Connection, refund_id: str) -> None:
    """Queues the job; one that is queued already is enough."""
    queue = Queries.from_asyncpg_connection(connection)  # type: ignore[arg-type]  # a pool's proxy does as well
    await queue.enqueue(JOB, refund_id.encode(), dedupe_key=f"{JOB}:{refund_id}", on_conflict="skip")


async def get(connection: Connection, refund_id: str) -> RefundRow | None:
    """The refund of that id."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM refund WHERE id = $1", refund_id)  # noqa: S608
    return None if row is None else RefundRow(*row)


async def of_ids(connection: Connection, refund_ids: Sequence[str]) -> dict[str, RefundRow]:
    """The refunds of these ids, by id."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM refund WHERE id = ANY ($1::text[])",  # noqa: S608
        list(refund_ids),
    )
    return {row[0]: RefundRow(*row) for row in rows}


async def made_since(connection: Connection, since_ms: int, after: str, limit: int) -> list[RefundRow]:
    """Refunds that were made since then, of ids behind `after`, by id."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM refund WHERE created_ms >= $1 AND id > $2 ORDER BY id LIMIT $3",  # noqa: S608
        since_ms,
        after,
        limit,
    )
    return [RefundRow(*row) for row in rows]


async def of_order(connection: Connection, order_id: str) -> list[RefundRow]:
    """The order's refunds, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM refund WHERE order_id = $1 ORDER BY created_ms, id",  # noqa: S608
        order_id,
    )
    return [RefundRow(*row) for row in rows]


async def without_job(connection: Connection, before_ms: int, limit: int) -> list[str]:
    """Refunds that are pending since before a time and that no job sees to: a queue that was emptied by hand, say."""
    rows = await connection.fetch(
        "SELECT id FROM refund WHERE status = 'pending' AND created_ms < $1"
        " AND NOT EXISTS (SELECT FROM pgqueuer AS q WHERE q.dedupe_key = $3 || id) ORDER BY created_ms LIMIT $2",
        before_ms,
        limit,
        f"{JOB}:",
    )
    return [row[0] for row in rows]
