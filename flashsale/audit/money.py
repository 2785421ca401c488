"""Checks of money: what was authorised, captured and given back adds up, and none is kept without an order (I6).

All of it lies in the ledger and changes in one transaction with its order, so that its snapshot must be right to the
minor unit at any moment. What the shopper owes says `sale/aftersales.py` here as everywhere.
"""

from __future__ import annotations

from typing import Any

from flashsale.audit.orders import RELEASED, SOLD
from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import Snapshot
from flashsale.sale.aftersales import LineMoney, due
from flashsale.sale.lifecycle import Status

_SUMS = ("authorised", "captured", "released", "refunding", "refunded", "refund_failed", "goodwill")


async def check(look: Snapshot) -> None:
    """All of it."""
    await _amounts(look)
    await _refunds(look)
    await _without_order(look)
    await _collected(look)
    await _late(look)
    await _kept(look)
    await _totals(look)


async def _amounts(look: Snapshot) -> None:
    """authorised = captured + released + open, captured = kept + refunded: no part below 0."""
    await _name(
        look,
        "money",
        "SELECT order_id, sale, format('authorised %s, captured %s, released %s, refunded %s, under way %s, failed %s',"
        " authorised, captured, released, refunded, refunding, refund_failed) FROM payment WHERE"
        " least(authorised, captured, released, refunded, refunding, refund_failed, goodwill) < 0"
        " OR captured + released > authorised OR refunded + refunding + refund_failed > captured"
        " OR (state IN ('captured', 'closed') AND captured + released <> authorised)"
        " OR (state <> 'captured' AND captured <> 0)",
    )


async def _refunds(look: Snapshot) -> None:
    """The payment's sums are those of its refunds."""
    await _name(
        look,
        "money",
        "SELECT order_id, p.sale, format('its refunds are %s succeeded, %s under way, %s failed; its payment says %s,"
        " %s, %s', coalesce(r.refunded, 0), coalesce(r.refunding, 0), coalesce(r.failed, 0), coalesce(p.refunded, 0),"
        " coalesce(p.refunding, 0), coalesce(p.refund_failed, 0)) FROM payment AS p FULL JOIN"
        " (SELECT order_id, sum(amount) FILTER (WHERE status = 'succeeded') AS refunded,"
        "  sum(amount) FILTER (WHERE status = 'pending') AS refunding,"
        "  sum(amount) FILTER (WHERE status = 'failed') AS failed FROM refund GROUP BY order_id) AS r USING (order_id)"
        " WHERE coalesce(r.refunded, 0) <> coalesce(p.refunded, 0)"
        " OR coalesce(r.refunding, 0) <> coalesce(p.refunding, 0)"
        " OR coalesce(r.failed, 0) <> coalesce(p.refund_failed, 0)",
    )


async def _without_order(look: Snapshot) -> None:
    """I6: money of an order that is over goes back; and its mirror, no paid order without money."""
    await _name(
        look,
        "I6",
        "SELECT order_id, p.sale, format('%s of it is authorised, its order is %s, and nothing gives it back',"
        " authorised - captured - released, o.status) FROM payment AS p JOIN orders AS o ON o.id = order_id"
        " WHERE o.status = ANY ($1::text[]) AND authorised > captured + released"
        " AND late IS DISTINCT FROM 'asked' AND todo IS DISTINCT FROM 'release'",
        RELEASED,
    )
    await _name(
        look,
        "I6",
        "SELECT order_id, p.sale, format('%s of it is kept, its order is %s, and nothing gives it back',"
        " captured - p.refunded - refunding - refund_failed, o.status) FROM payment AS p JOIN orders AS o"
        " ON o.id = order_id WHERE o.status = ANY ($1::text[])"
        " AND captured > p.refunded + refunding + refund_failed AND late IS DISTINCT FROM 'asked'"
        " AND coalesce(dispute, 'won') = 'won'",
        RELEASED,
    )
    await _name(
        look,
        "money",
        "SELECT o.id, o.sale, format('it is %s, and nobody paid for it', o.status) FROM orders AS o"
        " LEFT JOIN payment AS p ON p.order_id = o.id WHERE o.status = ANY ($1::text[])"
        " AND coalesce(p.authorised, 0) = 0 AND o.total > 0 AND NOT o.collected",
        SOLD,
    )
    await _name(
        look,
        "I6",
        "SELECT order_id, p.sale, format('a payment of %s of no order', authorised) FROM payment AS p"
        " WHERE NOT EXISTS (SELECT FROM orders AS o WHERE o.id = order_id)",
    )


async def _collected(look: Snapshot) -> None:
    """What a channel collected is paid from the first, and asks no provider of ours for anything."""
    await _name(
        look,
        "money",
        "SELECT o.id, o.sale, 'its channel has the money, and it is ' || o.status || ' with payment ' || o.payment"
        " FROM orders AS o WHERE o.collected AND (o.status IN ('reserved', 'expired') OR o.payment = 'none')",
    )
    await _name(
        look,
        "money",
        "SELECT p.order_id, p.sale, 'its channel has the money, and a provider was asked for it too' FROM payment AS p"
        " JOIN orders AS o ON o.id = p.order_id WHERE o.collected",
    )


async def _late(look: Snapshot) -> None:
    """I6: a late payment waits for its units only while Valkey is asked for them."""
    await _name(
        look,
        "I6",
        "SELECT p.order_id, p.sale, 'it was paid late, and nobody asks for its units' FROM payment AS p"
        " WHERE late = 'asked' AND NOT EXISTS (SELECT FROM outbox WHERE kind = 'reserve_again'"
        "  AND items -> 0 ->> 'order' = p.order_id)",
    )


async def _kept(look: Snapshot) -> None:
    """What is kept, and is not on its way back, is what the shopper owes."""
    found = 0
    async for row in look.ledger.cursor(
        "SELECT o.id, o.sale, o.status, o.total, o.quantities, o.prices, o.duties, o.taxes, o.refunded, o.shipped,"
        " p.goodwill,"
        " p.captured - p.refunded - p.refunding - p.refund_failed AS kept FROM payment AS p"
        " JOIN orders AS o ON o.id = p.order_id WHERE p.captured > 0 AND p.late IS DISTINCT FROM 'asked'"
        " AND coalesce(p.dispute, 'won') = 'won' AND o.status <> ALL ($1::text[])"
        # The common case is compared at once.
        " AND (o.refunded IS NOT NULL OR p.goodwill <> 0 OR o.status = 'reserved'"
        "  OR p.captured - p.refunded - p.refunding - p.refund_failed <> o.total)",
        RELEASED,
        prefetch=1000,
    ):
        owed = _owed(row)
        if row["kept"] != owed:
            detail = f"{row['kept']} of the money is kept, {owed} is due"
            look.fault("money", detail, sale=look.sale_id(row["sale"]), order=row["id"])
            found += 1
            if found == FAULTS_MAX:
                return


def _owed(row: Any) -> int:
    if row["status"] == Status.RESERVED:
        return 0  # captured, and the order not paid: less came than was asked for, and all of it goes back
    refunded, duties, taxes = (row[name] or [0] * len(row["quantities"]) for name in ("refunded", "duties", "taxes"))
    lines = [
        LineMoney(price * units + duty + tax, units, back)
        for price, units, duty, tax, back in zip(row["prices"], row["quantities"], duties, taxes, refunded, strict=True)
    ]
    return due(Status(row["status"]), row["total"], lines, goodwill=row["goodwill"], shipped=row["shipped"] is not None)


async def _totals(look: Snapshot) -> None:
    """The sums, by currency; and that a payment's currency is its order's."""
    counts = look.report.counts
    columns = ", ".join(f"coalesce(sum({name}), 0)::int8 AS {name}" for name in _SUMS)
    for row in await look.ledger.fetch(f"SELECT currency, count(*), {columns} FROM payment GROUP BY currency"):  # noqa: S608
        sums = {name: row[name] for name in _SUMS}
        sums["open"] = row["authorised"] - row["captured"] - row["released"]
        sums["kept"] = row["captured"] - row["refunded"]
        counts.money[row["currency"]] = sums
        counts.payments += row["count"]
    await _name(
        look,
        "money",
        "SELECT order_id, p.sale, format('it is paid in %s, its order is in %s', p.currency, o.currency)"
        " FROM payment AS p JOIN orders AS o ON o.id = order_id WHERE p.currency <> o.currency",
    )


async def _name(look: Snapshot, invariant: str, query: str, *arguments: Any) -> None:
    """Notes what a query finds: (order, sale's number, detail)."""
    for order, sale, detail in await look.ledger.fetch(f"{query} LIMIT {FAULTS_MAX:d}", *arguments):
        look.fault(invariant, detail, sale=look.sale_id(sale), order=order)
