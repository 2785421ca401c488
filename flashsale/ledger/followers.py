"""What follows the history by its transactions: parcels, webhooks, channels' pushes, settlement. One way for all.

Each has a mark of its own: history of earlier transactions is dealt with. Rows that a step makes and the mark move in
one transaction, so that a kill loses nothing and does nothing twice; a transaction is never divided, and one that is
under way is waited for (its rows would lie behind the mark).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import structlog

from flashsale.ledger.pool import Connection

Mark = Literal["carrier_mark", "webhook_mark", "channel_mark", "settlement_mark"]

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


async def mend(connection: Connection, mark: Mark, *, from_the_start: bool = False) -> bool:
    """Takes the mark back where the database's transactions count from less than it (a dump was restored into another
    server): else nothing would be done until they caught up. True: it was taken back.

    To the present, or `from_the_start` for whoever may deal with everything again without doing anything twice.
    """
    to = "'0'::xid8" if from_the_start else "pg_snapshot_xmin(pg_current_snapshot())"
    query = f"UPDATE {mark} SET tx = {to} WHERE tx > pg_snapshot_xmax(pg_current_snapshot()) RETURNING true"  # noqa: S608
    mended = await connection.fetchval(query) is not None
    if mended:
        log.warning("a mark was ahead of the database's transactions: it was taken back", mark=mark)
    return mended
