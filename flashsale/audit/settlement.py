"""Checks of the settlement book: of every order whose history is booked, it has what is kept of the order's money."""

from __future__ import annotations

from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import Snapshot


async def check(look: Snapshot) -> None:
    """All of it, in the ledger's snapshot. What a channel collected has no payment: there the order's own total bounds
    what is booked."""
    for order, sale, detail in await look.ledger.fetch(
        "WITH booked AS (SELECT order_id, sum(amount) AS amount FROM settlement_entry GROUP BY order_id),"
        " behind AS (SELECT DISTINCT order_id FROM history WHERE tx >= (SELECT tx FROM settlement_mark)),"
        " compared AS (SELECT coalesce(p.order_id, b.order_id) AS id, CASE"
        "  WHEN p.order_id IS NULL AND NOT o.collected THEN 'is settled without a payment'"
        "  WHEN p.order_id IS NULL AND b.amount NOT BETWEEN 0 AND o.total"
        "   THEN 'its merchants are settled ' || b.amount || ' of ' || o.total"
        "  WHEN p.order_id IS NOT NULL AND coalesce(b.amount, 0) <> p.captured - p.refunded THEN"
        "   'its merchants and the platform are settled ' || coalesce(b.amount, 0) || ', its payment keeps '"
        "    || p.captured - p.refunded END AS detail"
        "  FROM (SELECT * FROM payment WHERE captured > 0) AS p FULL JOIN booked AS b ON b.order_id = p.order_id"
        "  LEFT JOIN orders AS o ON o.id = b.order_id)"
        " SELECT c.id, o.sale, c.detail FROM compared AS c LEFT JOIN orders AS o ON o.id = c.id"
        " WHERE c.detail IS NOT NULL AND NOT EXISTS (SELECT FROM behind WHERE behind.order_id = c.id) LIMIT $1",
        FAULTS_MAX,
    ):
        look.fault("settlement", detail, sale=None if sale is None else look.sale_id(sale), order=order)
