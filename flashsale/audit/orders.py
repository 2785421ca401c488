"""Checks of orders: each once (I3), its lines whole (I7), its units back once (I5), its history without a gap.

The second half needs no Valkey: a movement of units is in the ledger or asked for in the outbox, never both, so that
one snapshot of the ledger says exactly where every unit of an order is or is going.
"""

from __future__ import annotations

from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import Snapshot, order_id_of, shown_entry
from flashsale.ledger import dead_letters, lost_orders
from flashsale.ledger.movements import MOVED, NUMBER
from flashsale.sale.lifecycle import UNITS, Units

RELEASED = [status.value for status, units in UNITS.items() if units is Units.RELEASED]
SOLD = [status.value for status, units in UNITS.items() if units is Units.SOLD]


async def check(look: Snapshot) -> None:
    """I3 and I7 of every order, also those that the journal alone has."""
    counts = look.report.counts
    counts.orders_ledger = await look.ledger.fetchval("SELECT count(*) FROM orders")
    counts.backlog = await look.ledger.fetchval("SELECT count(*) FROM backlog")
    counts.orders_lost = await lost_orders.count(look.ledger)
    look.report.lost = [lost.as_dict() for lost in await lost_orders.first(look.ledger, FAULTS_MAX)]
    await _dead_letters(look)
    await _orders_themselves(look)


async def check_lives(look: Snapshot) -> None:
    """What became of the orders that the ledger has: units, numbers, histories, and the counters of what is sold."""
    look.report.counts.orders_paid = await look.ledger.fetchval(
        "SELECT count(*) FROM orders WHERE status = ANY ($1::text[])", SOLD
    )
    await _line_units(look)
    await _units_back(look)
    await _movement_numbers(look)
    await _histories(look)
    await _sold(look)


async def _dead_letters(look: Snapshot) -> None:
    for letter in await dead_letters.first(look.ledger, FAULTS_MAX):
        entry = shown_entry((letter.journal_ms, letter.journal_seq))
        detail = f"a line of journal entry {entry} lies in dead_letter: {letter.error}"
        look.fault("I3", detail, order=order_id_of(letter.record))


async def _orders_themselves(look: Snapshot) -> None:
    """I3: once. I7: every line counted, at its price."""
    names = {sale.number: sale.id for sale in look.sales}
    for row in await look.ledger.fetch(
        "SELECT id, sale, count(*) FROM seen GROUP BY id, sale HAVING count(*) > 1 LIMIT $1", FAULTS_MAX
    ):
        look.fault("I3", f"the ledger has it {row[2]} times", sale=names.get(row[1]), order=row[0])
    for row in await look.ledger.fetch(
        "SELECT id, sale FROM seen WHERE cardinality(skus) = 0 OR cardinality(skus) <> cardinality(quantities)"
        " OR cardinality(skus) <> cardinality(prices) OR 0 >= ANY (quantities) OR 0 > ANY (prices)"
        " OR total <> CASE WHEN cardinality(skus) = 1 THEN quantities[1] * prices[1] ELSE"
        "   (SELECT sum(units * price) FROM unnest(quantities, prices) AS line (units, price)) END"
        "  + CASE WHEN shipping IS NULL THEN 0 ELSE shipping"
        "   + (SELECT coalesce(sum(duty), 0) + coalesce(sum(tax), 0) FROM unnest(duties, taxes) AS of (duty, tax)) END"
        " OR (shipping IS NOT NULL AND (shipping < 0 OR 0 > ANY (duties) OR 0 > ANY (taxes)"
        "  OR cardinality(duties) <> cardinality(skus) OR cardinality(taxes) <> cardinality(skus)))"
        " OR (drawn IS NOT NULL AND (cardinality(drawn) <> cardinality(skus) OR EXISTS ("
        "   SELECT FROM unnest(quantities, drawn) AS line (units, out) WHERE out NOT BETWEEN 0 AND units)))"
        " OR (cardinality(skus) > 1 AND cardinality(skus) <> (SELECT count(DISTINCT sku) FROM unnest(skus) AS sku))"
        " LIMIT $1",
        FAULTS_MAX,
    ):
        look.fault("I7", "its lines, prices and total do not agree", sale=names.get(row[1]), order=row[0])
    for row in await look.ledger.fetch(
        "SELECT id, sale FROM seen WHERE NOT sale = ANY ($1::int4[]) OR left(id, 6) <> lpad(to_hex(sale), 6, '0')"
        " LIMIT $2",
        list(names),
        FAULTS_MAX,
    ):
        look.fault("I3", f"its id is not of sale number {row[1]}", sale=names.get(row[1]), order=row[0])


async def _line_units(look: Snapshot) -> None:
    """I7: what became of a line's units is never more than there are."""
    for row in await look.ledger.fetch(
        "SELECT DISTINCT id, sale FROM orders, unnest(quantities, cancelled, shipped, returned, restocked, refunded)"
        " AS line (units, cancelled, shipped, returned, restocked, refunded)"
        " WHERE (orders.cancelled IS NOT NULL OR orders.shipped IS NOT NULL OR orders.returned IS NOT NULL"
        "  OR orders.restocked IS NOT NULL OR orders.refunded IS NOT NULL)"
        " AND NOT coalesce(line.units >= coalesce(line.cancelled, 0) + coalesce(line.shipped, 0)"
        "  AND coalesce(line.cancelled, 0) >= 0"
        "  AND coalesce(line.shipped, 0) >= coalesce(line.returned, 0)"
        "  AND coalesce(line.returned, 0) >= coalesce(line.restocked, 0) AND coalesce(line.restocked, 0) >= 0"
        "  AND coalesce(line.refunded, 0) BETWEEN 0 AND line.units, false) LIMIT $1",
        FAULTS_MAX,
    ):
        detail = "more units of a line are cancelled, shipped, returned, restocked or refunded than there can be"
        look.fault("I7", detail, sale=look.sale_id(row[1]), order=row[0])


async def _units_back(look: Snapshot) -> None:
    """I5: units went back, or the outbox asks for it, exactly as the order's status and lines say."""
    for row in await look.ledger.fetch(
        "WITH moves AS (SELECT order_id, sale, sku, units::int8 FROM movement"  # noqa: S608
        f"  WHERE {MOVED} AND sku IS NOT NULL"
        " UNION ALL SELECT item ->> 'order', sale, (line ->> 0)::int2, (line ->> 1)::int8"
        "  FROM outbox CROSS JOIN jsonb_array_elements(items) AS item"
        "  CROSS JOIN jsonb_array_elements(item -> 'lines') AS line"
        # Taken again, and the order is called paid in a moment: until then it is one whose units are back.
        "  WHERE kind = 'release' OR (kind = 'reserve_again' AND outcome = 'taken')),"
        " back AS (SELECT order_id, sku, max(sale) AS sale, sum(units) AS units FROM moves GROUP BY order_id, sku),"
        " wanted AS (SELECT id AS order_id, line.sku, max(sale) AS sale,"
        "  sum(CASE WHEN status = ANY ($1::text[]) THEN line.units"
        "   ELSE coalesce(line.cancelled, 0) + coalesce(line.restocked, 0) END) AS units, max(status) AS status"
        "  FROM orders, unnest(skus, quantities, cancelled, restocked) AS line (sku, units, cancelled, restocked)"
        "  WHERE status = ANY ($1::text[]) OR orders.cancelled IS NOT NULL OR orders.restocked IS NOT NULL"
        "  GROUP BY id, line.sku)"
        " SELECT order_id, sku, coalesce(wanted.sale, back.sale), coalesce(back.units, 0), coalesce(wanted.units, 0)"
        " FROM wanted FULL JOIN back USING (order_id, sku)"
        " WHERE coalesce(wanted.units, 0) <> coalesce(back.units, 0) LIMIT $2",
        RELEASED,
        FAULTS_MAX,
    ):
        order, sku, sale, back, wanted = row
        detail = f"{back} units went back or are about to, {wanted} of the order have to"
        look.fault("I5", detail, sale=look.sale_id(sale), sku=look.sku(sale, sku), order=order)


async def _movement_numbers(look: Snapshot) -> None:
    """I5: each change of an order moves its units once, and only changes that there were."""
    for row in await look.ledger.fetch(
        f"SELECT order_id, {NUMBER}, max(m.sale), count(DISTINCT (journal_ms, journal_seq)) FROM movement AS m"  # noqa: S608
        f" WHERE {MOVED} GROUP BY 1, 2 HAVING count(DISTINCT (journal_ms, journal_seq)) > 1 LIMIT $1",
        FAULTS_MAX,
    ):
        detail = f"its change {row[1]} moved units {row[3]} times"
        look.fault("I5", detail, sale=look.sale_id(row[2]), order=row[0])
    for row in await look.ledger.fetch(
        f"SELECT DISTINCT m.order_id, {NUMBER}, m.sale FROM movement AS m JOIN orders AS o ON o.id = m.order_id"  # noqa: S608
        f" WHERE {MOVED} AND coalesce({NUMBER} NOT BETWEEN 2 AND o.changes, true) LIMIT $1",
        FAULTS_MAX,
    ):
        detail = f"units moved for its change {row[1]}, which there was not"
        look.fault("I5", detail, sale=look.sale_id(row[2]), order=row[0])


async def _histories(look: Snapshot) -> None:
    """Every history without a gap: the order's row, then each number up to `changes` once; the last is how it is."""
    for row in await look.ledger.fetch(
        "SELECT coalesce(o.id, h.order_id), o.sale, o.changes, h.entries FROM"
        " (SELECT id, sale, changes FROM orders) AS o FULL JOIN"
        " (SELECT order_id, count(*) AS entries, count(DISTINCT number) AS numbers, min(number) AS first,"
        "  max(number) AS last FROM history GROUP BY order_id) AS h ON h.order_id = o.id"
        " WHERE o.id IS NULL OR coalesce(h.entries, 0) <> o.changes - 1 OR h.numbers <> h.entries OR h.first <> 2"
        "  OR h.last <> o.changes LIMIT $1",
        FAULTS_MAX,
    ):
        order, sale, changes, entries = row
        if changes is None:
            detail = f"{entries} entries of its history, but no order"
        else:
            detail = f"{entries or 0} entries of its history are not its changes 2 to {changes}, once each"
        look.fault("history", detail, sale=look.sale_id(sale), order=order)
    for row in await look.ledger.fetch(
        "SELECT o.id, o.sale, h.status, h.payment, o.status, o.payment FROM orders AS o"
        " JOIN history AS h ON h.order_id = o.id AND h.number = o.changes"
        " WHERE h.status <> o.status OR h.payment <> o.payment LIMIT $1",
        FAULTS_MAX,
    ):
        detail = f"its history ends with {row[2]} and payment {row[3]}, it is {row[4]} with payment {row[5]}"
        look.fault("history", detail, sale=look.sale_id(row[1]), order=row[0])


async def _sold(look: Snapshot) -> None:
    """I1: the counters of sold units are the sums over orders that are paid."""
    for row in await look.ledger.fetch(
        "SELECT sale, sku, coalesce(sold.units, 0), coalesce(counted.units, 0) FROM sold FULL JOIN"
        " (SELECT sale, line.sku, sum(line.units - coalesce(line.cancelled, 0) - coalesce(line.restocked, 0))::int8"
        "  AS units FROM orders, unnest(skus, quantities, cancelled, restocked)"
        "  AS line (sku, units, cancelled, restocked) WHERE status = ANY ($1::text[]) GROUP BY sale, line.sku)"
        " AS counted USING (sale, sku) WHERE coalesce(sold.units, 0) <> coalesce(counted.units, 0) LIMIT $2",
        SOLD,
        FAULTS_MAX,
    ):
        detail = f"{row[2]} units are counted as sold, {row[3]} by the orders"
        look.fault("I1", detail, sale=look.sale_id(row[0]), sku=look.sku(row[0], row[1]))
