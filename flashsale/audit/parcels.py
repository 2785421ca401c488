"""Checks of parcels: each is of an order, where its carrier's events put it, and its order is where it is.

A parcel with a note (`error`) is one that a person knows of: there carrier and order may say two things.
"""

from __future__ import annotations

from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import Snapshot


async def check(look: Snapshot) -> None:
    """All of it, in the ledger's snapshot."""
    for order, sale, detail in await look.ledger.fetch(
        "WITH told AS (SELECT order_id, bool_or(code = 'delivered') AS there,"
        "  bool_or(code IN ('failed', 'returned')) AS failed FROM parcel_event GROUP BY order_id),"
        " compared AS (SELECT coalesce(p.order_id, t.order_id) AS id, o.sale, CASE"
        "  WHEN p.order_id IS NULL THEN 'a carrier told of its parcel, and it has none'"
        "  WHEN o.id IS NULL THEN 'it has a parcel, and there is no such order'"
        "  WHEN p.waybill IS NULL AND p.status IN ('booked', 'picked_up', 'delivered', 'failed')"
        "   THEN 'its parcel is ' || p.status || ' without a waybill'"
        "  WHEN t.order_id IS NOT NULL AND p.status NOT IN ('picked_up', 'delivered', 'failed')"
        "   THEN 'its parcel is ' || p.status || ', though its carrier has moved it'"
        "  WHEN p.error IS NOT NULL THEN NULL"
        "  WHEN p.status = 'delivered' IS DISTINCT FROM coalesce(t.there, false)"
        "   OR p.status = 'failed' IS DISTINCT FROM coalesce(t.failed, false)"
        "   OR p.status = 'picked_up' AND t.order_id IS NULL"
        "   THEN 'its parcel is ' || p.status || ', which is not what its carrier told'"
        "  WHEN p.status = 'delivered' AND o.status <> 'delivered' OR p.status = 'failed' AND o.status"
        "   <> 'undeliverable' OR p.status = 'picked_up' AND o.status NOT IN ('shipped', 'delivered', 'undeliverable')"
        "   THEN 'its parcel is ' || p.status || ', and the order ' || o.status END AS detail"
        "  FROM parcel AS p FULL JOIN told AS t ON t.order_id = p.order_id LEFT JOIN orders AS o ON o.id = p.order_id)"
        " SELECT id, sale, detail FROM compared WHERE detail IS NOT NULL LIMIT $1",
        FAULTS_MAX,
    ):
        look.fault("parcel", detail, sale=None if sale is None else look.sale_id(sale), order=order)
