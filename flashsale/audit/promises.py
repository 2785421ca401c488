"""Checks of the promise ledger: a row for every parcel that came to its end, and that says what the order says.

PostgreSQL works the day at the destination out once more, by its own zones, and judges once more.
"""

from __future__ import annotations

from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import Snapshot
from flashsale.sale.market import MARKETS

_SHOWN = "lane_number, market, promised_by, restated_by"


async def check(look: Snapshot) -> None:
    """All of it, in the ledger's snapshot."""
    await _rows(look)
    await _restated(look)


async def _rows(look: Snapshot) -> None:
    zones = {market.code: market.zone for market in MARKETS.values()}
    for order, sale, detail in await look.ledger.fetch(
        f"WITH ended AS (SELECT id, sale, status = 'delivered' AS delivered, {_SHOWN} FROM orders"  # noqa: S608
        "  WHERE status IN ('delivered', 'undeliverable') AND lane_number IS NOT NULL AND promised_by IS NOT NULL),"
        " kept AS (SELECT p.*, (timestamptz 'epoch' + p.ended_ms * interval '1 millisecond')"
        "   AT TIME ZONE coalesce(z.zone, 'UTC') AS there"
        "  FROM promise AS p LEFT JOIN unnest($1::text[], $2::text[]) AS z (market, zone) ON z.market = p.market),"
        " compared AS (SELECT coalesce(e.id, k.order_id) AS id, e.sale, CASE"
        "  WHEN k.order_id IS NULL THEN 'its parcel came to its end, and the promise ledger does not know'"
        "  WHEN e.id IS NULL THEN 'the promise ledger has the end of its parcel, the order has none'"
        "  WHEN (k.lane_number, k.market, k.promised_by, k.restated_by, k.delivered) IS DISTINCT FROM"
        "   (e.lane_number, e.market, e.promised_by, e.restated_by, e.delivered)"
        "   THEN 'the promise ledger has another lane, country, promise or end of its parcel than the order'"
        "  WHEN k.ended_on <> k.there::date THEN 'its parcel ended on ' || k.there::date || ' there, the promise ledger"
        " says ' || k.ended_on"
        "  WHEN k.on_time <> (k.delivered AND k.ended_on <= coalesce(k.restated_by, k.promised_by))"
        "   THEN 'its promise was judged wrongly' END AS detail"
        "  FROM ended AS e FULL JOIN kept AS k ON k.order_id = e.id)"
        " SELECT id, sale, detail FROM compared WHERE detail IS NOT NULL LIMIT $3",
        list(zones), list(zones.values()), FAULTS_MAX,
    ):  # fmt: skip
        look.fault("promise", detail, sale=None if sale is None else look.sale_id(sale), order=order)


async def _restated(look: Snapshot) -> None:
    """A promise is made again for a later day, at a payment, and the history of that has it."""
    for order, sale, detail in await look.ledger.fetch(
        "WITH told AS (SELECT order_id, max(detail ->> 'restated_by') AS restated_by FROM history"
        "  WHERE event = 'order.paid' AND detail ? 'restated_by' GROUP BY order_id),"
        " compared AS (SELECT coalesce(o.id, t.order_id) AS id, o.sale, CASE"
        "  WHEN t.restated_by IS DISTINCT FROM to_char(o.restated_by, 'YYYY-MM-DD')"
        "   THEN 'its promise is ' || coalesce(o.restated_by::text, 'not made again') || ', its history says '"
        "    || coalesce(t.restated_by, 'nothing of it')"
        "  WHEN o.promised_by IS NULL OR o.restated_by <= o.promised_by"
        "   THEN 'its promise was made again for no later day' END AS detail"
        "  FROM (SELECT id, sale, promised_by, restated_by FROM orders WHERE restated_by IS NOT NULL) AS o"
        "  FULL JOIN told AS t ON t.order_id = o.id)"
        " SELECT id, sale, detail FROM compared WHERE detail IS NOT NULL LIMIT $1",
        FAULTS_MAX,
    ):
        look.fault("promise", detail, sale=None if sale is None else look.sale_id(sale), order=order)
