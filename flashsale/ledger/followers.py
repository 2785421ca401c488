"""What follows the history by its transactions: parcels, webhooks, channels' pushes, settlement. One way for all.

Each has a mark of its own: history of earlier transactions is dealt with. Rows that a step makes and the mark move in
one transaction, so that a kill loses nothing and does nothing twice; a transaction is never divided, and one that is
under way is waited for (its rows would lie behind the mark).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast, get_args

import structlog

from flashsale.ledger.pool import Connection

Mark = Literal["carrier_mark", "webhook_mark", "channel_mark", "settlement_mark"]

MARKS: tuple[str, ...] = get_args(Mark)
BEGINNING = 3  # PostgreSQL's first transaction: what has its number came before everything
AT_ONCE = 20_000  # rows of history brought in at once: a second's work

log = structlog.get_logger(__name__)


class Stretch(NamedTuple):
    """History to be dealt with: transactions from `mark` on, before `upto`; `more`: there is some behind it already."""

    mark: str
    upto: str
    more: bool


async def next_stretch(connection: Connection, mark: Mark, rows: int) -> Stretch | None:
    """The next `rows` changes or so, None where there are none. In the transaction that deals with them, which holds
    the mark until it ends; `move` ends it."""
    at = await connection.fetchrow(
        f"""WITH range AS (SELECT tx AS mark, pg_snapshot_xmin(pg_current_snapshot()) AS upto FROM {mark} FOR UPDATE)
           SELECT mark::text, upto::text,
                  (SELECT tx::text FROM history WHERE tx >= mark AND tx < upto ORDER BY tx OFFSET $1 LIMIT 1) AS last,
                  EXISTS (SELECT FROM history WHERE tx >= mark AND tx < upto) AS found
             FROM range""",  # noqa: S608  one of four names of ours
        rows - 1,
    )
    if at is None or not at["found"]:
        return None
    if at["last"] is None:
        return Stretch(at["mark"], at["upto"], False)
    return Stretch(at["mark"], str(int(at["last"]) + 1), True)


async def move(connection: Connection, mark: Mark, upto: str) -> None:
    """History of transactions before `upto` is dealt with."""
    await connection.execute(f"UPDATE {mark} SET tx = $1::text::xid8", upto)  # noqa: S608


async def mend(connection: Connection, beat: Callable[[], None]) -> bool:
    """Brings marks and history into a database whose transactions count from less than they do (a dump was restored
    into another server): else nothing of either would be dealt with until it caught up, and then all of it again. True:
    that was so. Call it before the first stretch; `beat` is called between steps, of which there may be many.

    What every follower had dealt with gets the number of no transaction. The rest keeps its place between the marks,
    all of it before whatever was written since the dump came back. What a follower did since then it does once more.
    """
    if not await connection.fetchval(_IS_AHEAD):
        return False
    while await connection.fetchval(_PASSED, BEGINNING, AT_ONCE):
        beat()
    async with connection.transaction():
        await connection.execute("LOCK TABLE history IN SHARE ROW EXCLUSIVE MODE")
        marks: dict[str, int] = {}
        brought = []
        for mark in MARKS:
            [(tx, ahead, written)] = await connection.fetch(_A_MARK.format(mark=mark))
            marks[mark] = int(tx)
            if ahead:  # it has not moved since the dump came back, in the transaction that wrote it
                brought.append(int(written))
        places = sorted(set(marks.values()))
        if brought:
            back = min(brought)
            first = back - len(places)
            await connection.execute(_PLACED, [str(place) for place in places], first, back)
            for mark, tx_of in marks.items():
                await move(connection, cast(Mark, mark), str(first + places.index(tx_of)))
        else:  # every mark is of this server: what is beyond it comes next
            await connection.execute(_NEXT, max(places[-1], BEGINNING))
        # Replays that were under way begin anew.
        await connection.execute("UPDATE webhook_replay SET next_tx = NULL, end_tx = NULL")
    log.warning("history was ahead of the database's transactions (a dump came back): it was brought into them")
    return True


# What lies before the first mark and is of the future: with the number of no transaction no follower comes to it again.
# A row that was written here is never beyond the snapshot in which it is seen.
_PASSED = """
WITH passed AS (
    SELECT ctid FROM history
     WHERE tx > pg_snapshot_xmax(pg_current_snapshot())
       AND tx < (SELECT min(tx) FROM (SELECT tx FROM carrier_mark UNION ALL SELECT tx FROM channel_mark
                                      UNION ALL SELECT tx FROM settlement_mark UNION ALL SELECT tx FROM webhook_mark) m)
     ORDER BY tx LIMIT $2),
gone AS (UPDATE history SET tx = $1::int8::text::xid8 WHERE ctid IN (SELECT ctid FROM passed) RETURNING 1)
SELECT EXISTS (SELECT FROM gone)
"""
_IS_AHEAD = """
SELECT EXISTS (SELECT FROM history WHERE tx > pg_snapshot_xmax(pg_current_snapshot()))
    OR EXISTS (SELECT FROM (SELECT tx FROM carrier_mark UNION ALL SELECT tx FROM channel_mark
                            UNION ALL SELECT tx FROM settlement_mark UNION ALL SELECT tx FROM webhook_mark) m
                WHERE tx > pg_snapshot_xmax(pg_current_snapshot()))
"""
# `written`: the transaction that wrote the row, with the 32 bits that xmin leaves out. They are the present ones, or
# those before where it would lie in the future.
_A_MARK = """
SELECT tx::text, tx > now.xid AS ahead,
       CASE WHEN low <= now.xid::text::int8 & 4294967295 THEN now.xid::text::int8 & ~4294967295::int8
            ELSE (now.xid::text::int8 & ~4294967295::int8) - 4294967296 END + low AS written
  FROM (SELECT tx, xmin::text::int8 AS low FROM {mark} FOR UPDATE) of_mark,
       (SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xid) now
"""
_NEXT = "UPDATE history SET tx = $1::int8::text::xid8 WHERE tx > pg_snapshot_xmax(pg_current_snapshot())"
# A row that came with the dump: its number is beyond those of this server, or no later than the dump's coming.
_PLACED = """
UPDATE history SET tx = ($2::int8 - 1 + c.behind)::text::xid8
  FROM (SELECT h.ctid AS row, (SELECT count(*) FROM unnest($1::text[]) place WHERE place::xid8 <= h.tx) AS behind
          FROM history h
         WHERE h.tx > pg_snapshot_xmax(pg_current_snapshot()) OR h.tx <= $3::int8::text::xid8
               AND h.tx >= least($2::int8::text::xid8, ($1::text[])[1]::xid8)) c
 WHERE history.ctid = c.row
"""
