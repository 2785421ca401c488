"""The outbox: what Valkey has to be told of an order's change, written in the change's own transaction.

One row is one script call. A row that moves units is cleared by the ledger writer, in the transaction that stores the
movement which came of it; a mirrored status by whoever mirrored it. So what is told is told at least once, and what it
did is in the ledger once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flashsale.ledger.partitions import Partition
from flashsale.ledger.pool import Connection

RELEASE, RESERVE_AGAIN, STATUS = "release", "reserve_again", "status"
TAKEN, REFUSED = "taken", "refused"


class OutboxRow(NamedTuple):
    """One call to make. `kind`: release, reserve_again (always of one order) or status; `items`: one an order, with the
    keys "order", "number" and "letter", and where units move "shopper", "version", "lines" ([[offer index, units], …])
    and "quota". `outcome` of a reserve_again, once the journal brought it: taken or refused."""

    number: int
    partition: int
    sale: int
    kind: str
    items: list[dict[str, Any]]
    outcome: str | None


async def add(connection: Connection, partition: int, sale: int, kind: str, items: Sequence[Mapping[str, Any]]) -> int:
    """Adds a row and returns its number. Call it in the transaction that changes the orders."""
    return int(
        await connection.fetchval(
            "INSERT INTO outbox (partition, sale, kind, items) VALUES ($1, $2, $3, $4) RETURNING number",
            partition, sale, kind, json.dumps([dict(item) for item in items]),
        )
    )  # fmt: skip


async def pending(connection: Connection, limit: int, without: Sequence[int] = ()) -> list[OutboxRow]:
    """The oldest rows of which nothing came yet, by number; none of `without`, whose entries are on their way."""
    rows = await connection.fetch(
        "SELECT number, partition, sale, kind, items, outcome FROM outbox"
        " WHERE outcome IS NULL AND number <> ALL ($2::int8[]) ORDER BY number LIMIT $1",
        limit, list(without),
    )  # fmt: skip
    return [_row(row) for row in rows]


async def answered(connection: Connection, limit: int = 1000, without: Sequence[int] = ()) -> list[OutboxRow]:
    """The rows whose outcome is known and waits to be acted on, by number; none of `without`."""
    rows = await connection.fetch(
        "SELECT number, partition, sale, kind, items, outcome FROM outbox WHERE outcome IS NOT NULL"
        " AND number <> ALL ($2::int8[]) ORDER BY number LIMIT $1",
        limit, list(without),
    )  # fmt: skip
    return [_row(row) for row in rows]


async def done(connection: Connection, numbers: Sequence[int]) -> None:
    """Clears rows."""
    await connection.execute("DELETE FROM outbox WHERE number = ANY ($1::int8[])", list(numbers))


async def told(connection: Connection, taken: Mapping[int, bool]) -> None:
    """Notes what the journal brought of rows that asked for units again: whether these were taken."""
    await connection.execute(
        "UPDATE outbox SET outcome = CASE WHEN came.taken THEN $3 ELSE $4 END"
        " FROM unnest($1::int8[], $2::bool[]) AS came (number, taken) WHERE outbox.number = came.number",
        list(taken), list(taken.values()), TAKEN, REFUSED,
    )  # fmt: skip


async def left(connection: Connection, numbers: Sequence[int]) -> set[int]:
    """Which of these rows nothing came of yet."""
    rows = await connection.fetch(
        "SELECT number FROM outbox WHERE outcome IS NULL AND number = ANY ($1::int8[])", list(numbers)
    )
    return {row[0] for row in rows}


async def give_up(connection: Connection, partition: Partition, entry: tuple[int, int], numbers: Sequence[int]) -> int:
    """Ends rows of which the journal will never tell, and returns how many: those that are left though the ledger has
    the journal up to `entry`, in the epoch and of the Valkey that `partition` names. Units asked for again are refused.
    """
    fits = (
        "EXISTS (SELECT FROM partition WHERE id = $2 AND epoch = $3 AND run_id IS NOT DISTINCT FROM $4"
        " AND (mark_ms, mark_seq) >= ($5::int8, $6::int8))"
    )
    of_them = "number = ANY ($1::int8[]) AND outcome IS NULL"
    arguments = (list(numbers), partition.id, partition.epoch, partition.run_id, *entry)
    ended = 0
    for statement in (
        f"DELETE FROM outbox WHERE {of_them} AND kind <> '{RESERVE_AGAIN}' AND {fits}",  # noqa: S608
        f"UPDATE outbox SET outcome = '{REFUSED}' WHERE {of_them} AND kind = '{RESERVE_AGAIN}' AND {fits}",  # noqa: S608
    ):
        status = await connection.execute(statement, *arguments)
        ended += int(status.rpartition(" ")[2])
    return ended


def _row(row: Any) -> OutboxRow:
    number, partition, sale, kind, items, outcome = row
    return OutboxRow(number, partition, sale, kind, json.loads(items), outcome)
