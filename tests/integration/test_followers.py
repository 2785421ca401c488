"""A dump that comes back into a server whose transactions count from less: every follower does what the dump left to be
done, and what came after it, and never again what it had done."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest

from flashsale.ledger import followers

WORLDS = int(os.environ.get("FLASHSALE_DUMPS", "25"))
SEED = int(os.environ.get("FLASHSALE_DUMPS_SEED", str(random.randrange(10**6))))
FUTURE = 5_000_000_000  # beyond 32 bits, too: a server that lived long
ROW = "INSERT INTO history (order_id, number, at_ms, event, status, payment, tx) VALUES ($1, 1, 1, 'e', 's', 'p', "


@pytest.fixture
async def connection(ledger: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(ledger)
    yield made
    await made.close()


async def dump_comes_back(
    connection: asyncpg.Connection, rows: dict[str, int], marks: dict[followers.Mark, int]
) -> None:
    """One transaction, as `pg_restore --single-transaction` makes it."""
    async with connection.transaction():
        await connection.execute("DELETE FROM history")
        await connection.executemany(ROW + "$2::int8::text::xid8)", list(rows.items()))
        for mark, tx in marks.items():
            await followers.move(connection, mark, str(tx))


async def happens(connection: asyncpg.Connection, count: int) -> list[str]:
    """So many changes since then, each in a transaction of its own."""
    names = [f"new-{number}" for number in range(count)]
    for name in names:
        await connection.execute(ROW + "pg_current_xact_id())", name)
    return names


async def deals_with(connection: asyncpg.Connection, mark: followers.Mark) -> list[str]:
    """The orders that come to a follower, in their order, until nothing more does."""
    came: list[str] = []
    while True:
        async with connection.transaction():
            at = await followers.next_stretch(connection, mark, 2)
            if at is None:
                return came
            query = "SELECT order_id FROM history WHERE tx >= $1::text::xid8 AND tx < $2::text::xid8 ORDER BY tx"
            came += [row[0] for row in await connection.fetch(query, at.mark, at.upto)]
            await followers.move(connection, mark, at.upto)


async def test_a_dump_that_came_back_is_gone_on_with_and_nothing_is_done_twice(connection: asyncpg.Connection) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    for _ in range(WORLDS):
        # The old server's whole life: its first transactions have numbers that are this one's past, too.
        numbers = sorted(dice.sample(range(100, 700), 6) + dice.sample(range(FUTURE, FUTURE + 50), 8))
        rows = {f"old-{place}": tx for place, tx in enumerate(numbers)}
        anywhere = [0, 50, *numbers, FUTURE + 50]
        marks: dict[followers.Mark, int] = {mark: dice.choice(anywhere) for mark in followers.MARKS}
        marks[dice.choice(followers.MARKS)] = FUTURE + dice.randrange(51)
        await dump_comes_back(connection, rows, marks)
        new = await happens(connection, dice.randrange(5))
        assert await followers.mend(connection, lambda: None)
        assert not await followers.mend(connection, lambda: None)
        for mark, tx in marks.items():
            left = [name for name, row in rows.items() if row >= tx]
            came = await deals_with(connection, mark)
            assert sorted(came[: len(left)]) == sorted(left), (mark, marks, rows)
            assert came[len(left) :] == new, (mark, marks, rows)
        # And when the server's own transactions have come so far, nothing comes again.
        assert await connection.fetchval("SELECT max(tx) < pg_snapshot_xmax(pg_current_snapshot()) FROM history")


async def test_history_beyond_the_server_whose_marks_are_its_own_comes_next(connection: asyncpg.Connection) -> None:
    """As an earlier release left it, which took the marks back and left the history."""
    present = await connection.fetchval("SELECT pg_current_xact_id()::text::int8")
    await dump_comes_back(connection, {"old": FUTURE}, dict.fromkeys(followers.MARKS, present))
    new = await happens(connection, 2)
    assert await followers.mend(connection, lambda: None)
    for mark in followers.MARKS:
        assert await deals_with(connection, mark) == ["old", *new]
