"""The outbox: what Valkey has to be told of an order's change, written in the change's own transaction.

One row is one script call. A row that moves units is cleared by the ledger writer, in the transaction that stores the
movement which came of it; a mirrored status by whoever mirrored it. So what is told is told at least once, and what it
did is in the ledger once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    """The oldest rows that nothing came of yet, by number; but those in `without`, whose journal entries are awaited."""
    rows = await connection.fetch(
        "SELECT number, partition, sale, kind, items, outcome FROM outbox"
        " WHERE outcome IS NULL AND number <> ALL ($2::int8[]) ORDER BY number LIMIT $1",
        limit, list(without),
    )  # fmt: skip
    return [_row(row) for row in rows]


async def answered(connection: Connection, limit: int = 1000) -> list[OutboxRow]:
    """The rows whose outcome is known and waits to be acted on, by number."""
    rows = await connection.fetch(
        "SELECT number, partition, sale, kind, items, outcome FROM outbox WHERE outcome IS NOT NULL"
        " ORDER BY number LIMIT $1",
        limit,
    )
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


def _row(row: Any) -> OutboxRow:
    return OutboxRow(*row[:4], json.loads(row[4]), row[5])
