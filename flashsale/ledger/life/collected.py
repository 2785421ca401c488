"""Orders whose money their channel has: paid as they come into the ledger, in the transaction that stores them.

No provider is asked, now or later: what is given back the channel gives back. Such an order never waits for a payment,
so it never expires.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from flashsale.ledger import history, outbox
from flashsale.ledger.history import HistoryRow
from flashsale.ledger.life.change import add_sold, letter_of
from flashsale.ledger.life.sweeps import OUTBOX_ORDERS
from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import Payment, Status


async def pay_collected(connection: Connection, partition: int, after: tuple[int, int], upto: tuple[int, int]) -> int:
    """Pays the orders of the partition's journal behind `after` and up to `upto` that their channels collected, at the
    time of the order; returns how many. Done again it pays none."""
    rows = await connection.fetch(
        "UPDATE orders SET status = 'paid', payment = 'captured', changes = changes + 1"
        " WHERE journal_ms BETWEEN $2 AND $4 AND partition = $1 AND collected AND status = 'reserved' AND changes = 1"
        " AND (journal_ms, journal_seq) > ($2, $3::int8) AND (journal_ms, journal_seq) <= ($4, $5::int8)"
        " RETURNING id, sale, changes, skus, quantities, extended, channel, journal_ms",
        partition, *after, *upto,
    )  # fmt: skip
    if not rows:
        return 0
    entries = []
    sold: Counter[tuple[int, int]] = Counter()
    letters: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for order_id, sale, number, skus, quantities, extended, channel, at_ms in rows:
        detail = {"collected_by": "channel", "channel": channel}
        entries.append(
            HistoryRow(
                order_id, number, at_ms, "order.paid", Status.PAID.value, Payment.CAPTURED.value, detail
            )
        )  # fmt: skip
        for sku, units in zip(skus, quantities, strict=True):
            sold[sale, sku] += units
        letters[sale].append({"order": order_id, "letter": letter_of(Status.PAID, extended)})
    await history.add(connection, entries)
    await add_sold(connection, sold)
    for sale, items in letters.items():
        for first in range(0, len(items), OUTBOX_ORDERS):
            await outbox.add(connection, partition, sale, outbox.STATUS, items[first : first + OUTBOX_ORDERS])
    return len(rows)
