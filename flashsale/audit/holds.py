"""Checks of holds: every order has one and every hold its order (I3), and both say the same (I4).

A letter follows its order's status through the outbox, so it may lag: behind a change that was made after the look
began, or that the outbox still had to tell then. All others say exactly what the ledger says.
"""

from __future__ import annotations

from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import Snapshot, hex_entry
from flashsale.ledger.movements import MOVED, NUMBER
from flashsale.ledger.sales import SaleRow
from flashsale.reservation import holds
from flashsale.sale.lifecycle import Status

SAID = {
    "lost": ("I3", "Valkey holds it, neither ledger nor journal has it"),
    "unheld": ("I3", "the ledger has it, Valkey holds nothing for it"),
    "differs": ("I4", "fingerprint or catalogue version differ between its hold and the ledger"),
    "entry": ("I3", "its hold names another journal entry than the ledger"),
    "number": ("I5", "its hold names another movement of its units than the ledger"),
    "letter": ("I4", "its hold says another status, or extension, than the ledger"),
}
LETTERS = [(status, extended, holds.letter_of(status, extended)) for status in Status for extended in (False, True)]

# A hold in hexadecimal: letter 2, fingerprint 16, version 6, journal id 20, and the last movement's number 6 if any.
_QUERY = f"""
WITH held AS (
    SELECT DISTINCT ON (field) field, left(value, 2) AS letter, substr(value, 3, 22) AS head,
        substr(value, 25, 20) AS entry, coalesce(nullif(substr(value, 45), ''), '000000') AS number
    FROM hold WHERE sale = $1 AND (length(value) NOT IN (44, 50) OR substr(value, 25, 20) <= $3) ORDER BY field
), moves AS (
    SELECT order_id, coalesce(max({NUMBER}) FILTER (WHERE (journal_ms, journal_seq) <= ($6::int8, $7::int8)), 0)
        AS least, max({NUMBER}) AS most
    FROM moved WHERE sale = $1 AND {MOVED} GROUP BY order_id
), stored AS (
    SELECT DISTINCT ON (id) right(id, 24) AS field, id, status, extended,
        encode(fingerprint, 'hex') || lpad(to_hex(catalogue_version), 6, '0') AS head,
        lpad(to_hex(journal_ms), 12, '0') || lpad(to_hex(journal_seq), 8, '0') AS entry,
        lpad(to_hex(coalesce(least, 0)), 6, '0') AS least, lpad(to_hex(coalesce(most, 0)), 6, '0') AS most
    FROM seen LEFT JOIN moves ON moves.order_id = seen.id WHERE sale = $1 ORDER BY id
), letters AS (
    SELECT * FROM unnest($8::text[], $9::bool[], $10::text[], $11::int4[]) AS l (status, extended, letter, rank)
), moving AS (
    SELECT id FROM told UNION SELECT order_id FROM history
    WHERE tx >= pg_snapshot_xmin($12::text::pg_snapshot) AND NOT pg_visible_in_snapshot(tx, $12::text::pg_snapshot)
), compared AS (
    SELECT coalesce(id, $5 || held.field) AS id, CASE
        WHEN stored.id IS NULL THEN 'lost'
        WHEN held.field IS NULL THEN CASE WHEN stored.entry <= $2 THEN 'unheld' END
        WHEN held.head <> stored.head THEN 'differs'
        WHEN held.entry <> stored.entry THEN 'entry'
        WHEN held.number NOT BETWEEN stored.least AND stored.most THEN 'number'
        WHEN held.letter <> wanted.letter THEN 'letter' END AS fault,
        held.letter, wanted.rank, stored.status, stored.extended
    FROM held FULL JOIN stored USING (field)
    LEFT JOIN letters AS wanted ON wanted.status = stored.status AND wanted.extended = stored.extended
)
SELECT id, fault FROM compared WHERE fault IS NOT NULL AND NOT (
    fault = 'letter' AND id IN (SELECT id FROM moving) AND EXISTS (
        SELECT FROM letters WHERE letters.letter = compared.letter AND (compared.extended OR NOT letters.extended)
        -- Valkey is the first to know that the units of a late payment were taken again.
        AND letters.rank <= greatest(compared.rank, CASE WHEN compared.status = 'expired' THEN $13::int4 END)))
LIMIT $4
"""  # noqa: S608


async def check(look: Snapshot, sale: SaleRow) -> None:
    """I3, I4 and I5 of one sale's holds; and how many there are."""
    since, until = hex_entry(look.since), hex_entry(look.until)
    rows = await look.ledger.fetch(
        _QUERY,
        sale.number, since, until, FAULTS_MAX, f"{look.partition:02x}{sale.number:04x}", *look.since,
        [status.value for status, _, _ in LETTERS],
        [extended for _, extended, _ in LETTERS],
        [letter.encode("ascii").hex() for _, _, letter in LETTERS],
        [holds.rank(letter) for _, _, letter in LETTERS],
        look.before,
        holds.rank(holds.letter_of(Status.PAID)),
    )  # fmt: skip
    for order, fault in rows:
        invariant, detail = SAID[fault]
        look.fault(invariant, detail, sale=sale.id, order=order)
    look.report.counts.orders_valkey += await look.ledger.fetchval(
        "SELECT (SELECT count(DISTINCT field) FROM hold WHERE sale = $1 AND substr(value, 25, 20) <= $2)"
        " + (SELECT count(*) FROM seen WHERE sale = $1 AND (journal_ms, journal_seq) > ($3::int8, $4::int8))",
        sale.number, since, *look.since,
    )  # fmt: skip
