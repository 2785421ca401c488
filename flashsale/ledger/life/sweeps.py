"""What happens to many orders at once without anybody asking: holds expire, late payments are decided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from flashsale.ledger import history, outbox, payments, set_aside
from flashsale.ledger.history import HistoryRow
from flashsale.ledger.life.beside import beside
from flashsale.ledger.life.change import Change, letter_of, units_of
from flashsale.ledger.life.restating import at_payment
from flashsale.ledger.movements import NUMBER
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import Payment, Status

OUTBOX_ORDERS = 100  # orders of one outbox row, and so of one script call: Valkey is busy with it for a millisecond


_NOT_ASIDE = f"NOT EXISTS (SELECT FROM set_aside AS a WHERE a.kind = '{set_aside.EXPIRY}' AND a.id = o.id)"


class Swept(NamedTuple):
    """`expired` orders, `waiting` ones whose intent must be closed at the provider first; `more`: there was no room for
    all of them; `oldest_ms`: the time of the oldest order that may still expire of those looked at, None: none."""

    expired: int
    waiting: int
    more: bool
    oldest_ms: int | None


async def expire(
    connection: Connection,
    until_ms: int,
    *,
    grace_ms: int,
    limit: int = 1000,
    from_ms: int = 0,
    upto_ms: int | None = None,
    only: str | None = None,
) -> Swept:
    """Expires holds whose deadline is at or before `until_ms` (Valkey's clock), of orders taken from `from_ms` to
    `upto_ms` (None: until now).

    An order whose intent is open is closed at the provider first: it is marked, and expires when the intent is closed
    or, with the provider away, `grace_ms` after its deadline. What somebody else has locked is left for the next sweep,
    and what was set aside for those who retry it. `only`: of one order.
    """
    upto_ms = until_ms if upto_ms is None else upto_ms
    await payments.lock_many(connection)
    plain = await connection.fetch(
        "UPDATE orders SET status = 'expired', changes = changes + 1 WHERE ctid = ANY (ARRAY("  # noqa: S608
        " SELECT ctid FROM orders AS o WHERE status = 'reserved' AND journal_ms BETWEEN $1 AND $2"
        "  AND journal_ms + hold_ms <= $4 AND NOT EXISTS (SELECT FROM payment AS p WHERE p.order_id = o.id)"
        f"  AND o.id = coalesce($5, o.id) AND {_NOT_ASIDE}"
        "  ORDER BY journal_ms LIMIT $3 FOR UPDATE SKIP LOCKED)) AND status = 'reserved'"
        f" RETURNING {_RETURNED}",
        from_ms, upto_ms, limit, until_ms, only,
    )  # fmt: skip
    await _give_back(connection, plain, until_ms)
    if len(plain) == limit:
        return Swept(limit, 0, True, from_ms)
    begun, waiting, more = await _expire_begun(connection, until_ms, grace_ms, limit, from_ms, upto_ms, only)
    # Those that wait for the provider hold the sweep's beginning back: the oldest reserved one is where to look next.
    oldest: int | None = await connection.fetchval(
        "SELECT journal_ms FROM orders WHERE status = 'reserved' AND journal_ms >= $1 ORDER BY journal_ms LIMIT 1",
        from_ms,
    )
    return Swept(len(plain) + begun, waiting, more, oldest)


async def _expire_begun(
    connection: Connection, until_ms: int, grace_ms: int, limit: int, from_ms: int, upto_ms: int, only: str | None
) -> tuple[int, int, bool]:
    """The same for orders whose payment was begun: how many expired, how many wait for the provider, and whether there
    are more."""
    with_payment = await connection.fetch(
        "SELECT o.id, o.journal_ms, o.journal_ms + o.hold_ms, p.rank, p.state, p.todo FROM orders AS o"  # noqa: S608  our own
        " JOIN payment AS p ON p.order_id = o.id"
        " WHERE o.status = 'reserved' AND o.journal_ms BETWEEN $1 AND $2 AND o.journal_ms + o.hold_ms <= $5"
        " AND (p.state = 'closed' OR p.todo IS DISTINCT FROM 'close' OR o.journal_ms + o.hold_ms + $3 <= $5)"
        f" AND o.id = coalesce($6, o.id) AND {_NOT_ASIDE}"
        " ORDER BY o.journal_ms LIMIT $4",
        from_ms, upto_ms, grace_ms, limit, until_ms, only,
    )  # fmt: skip
    ready = [row[0] for row in with_payment if row[4] == "closed" or row[2] + grace_ms <= until_ms]
    closing = [row[0] for row in with_payment if row[0] not in set(ready) and row[3] < 2]
    locked = await connection.fetch(
        "SELECT order_id FROM payment WHERE order_id = ANY ($1::text[]) ORDER BY order_id FOR UPDATE SKIP LOCKED",
        [*ready, *closing],
    )
    ours = [row[0] for row in locked]
    late = await connection.fetch(
        "UPDATE orders SET status = 'expired', changes = changes + 1"  # noqa: S608  our own columns
        " WHERE id = ANY ($1::text[]) AND status = 'reserved' AND journal_ms + hold_ms <= $2"
        f" RETURNING {_RETURNED}",
        [order_id for order_id in ready if order_id in set(ours)],
        until_ms,
    )
    await connection.execute(
        "UPDATE payment SET todo = 'close', todo_amount = NULL, due_ms = $2, tries = 0"
        " WHERE order_id = ANY ($1::text[]) AND rank < 2 AND state <> 'closed' AND todo IS DISTINCT FROM 'close'",
        ours, until_ms,
    )  # fmt: skip
    await _give_back(connection, late, until_ms)
    return len(late), len(closing), len(with_payment) == limit


_RETURNED = (
    "id, sale, partition, changes, shopper, catalogue_version, extended, skus, quantities, cancelled, payment, prices,"
    " channel, drawn, lane_number, dispatch_day, identity, limit_year, limit_use"
)


async def _give_back(connection: Connection, expired: list[Any], now_ms: int) -> None:
    """History and outbox of orders that expired."""
    await history.add(
        connection,
        [HistoryRow(row[0], row[3], now_ms, "order.expired", "expired", row[10], None) for row in expired],
    )
    items: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for order_id, sale, partition, number, shopper, version, extended, skus, quantities, cancelled, _, *more in expired:
        gone = cancelled or [0] * len(skus)
        left = [units - less for units, less in zip(quantities, gone, strict=True)]
        item = {
            "order": order_id,
            "number": number,
            "letter": letter_of(Status.EXPIRED, extended),
            "shopper": shopper,
            "version": version,
            "lines": [[sku, units] for sku, units in zip(skus, left, strict=True) if units],
            "quota": True,
        }
        prices, channel, drawn, lane_number, dispatch_day, *limit = more
        if drawn is not None or lane_number is not None or limit[0] is not None:
            item |= beside(
                channel=channel, skus=skus, quantities=quantities, prices=prices, drawn=drawn,
                lane=(lane_number, dispatch_day), limit=(limit[0], limit[1], limit[2]), before=gone, units=left,
            )  # fmt: skip
        items[partition, sale].append(item)
    for (partition, sale), of_sale in items.items():
        for first in range(0, len(of_sale), OUTBOX_ORDERS):
            await outbox.add(connection, partition, sale, outbox.RELEASE, of_sale[first : first + OUTBOX_ORDERS])


async def settle_again(connection: Connection, now_ms: int, limit: int = 200, without: Sequence[int] = ()) -> int:
    """Ends the first `limit` late payments whose units were asked for again: taken, the order is paid; refused, the
    money goes back. None of the outbox rows `without`. Returns how many."""
    rows = await outbox.answered(connection, limit, without)
    if not rows:
        return 0
    await payments.lock_many(connection)
    for row in rows:
        for item in row.items:
            change = await Change.begin(connection, item["order"], now_ms)
            taken = row.outcome == outbox.TAKEN
            if change.payment is None or change.payment.late != "asked":
                continue
            await change.pay(late=row.outcome)
            if taken and change.status is Status.EXPIRED:
                columns, more = await at_payment(connection, change.order, now_ms)
                columns |= await _taken_again(connection, change.order, item)
                await change.record("order.paid", {"late": True, **more}, Status.PAID, **columns)
                await change.sell((sku, units) for sku, units in item["lines"])
                await change.mirror()
                if Payment(change.order.payment) is Payment.REFUNDED or change.payment.state == "closed":
                    await lapse(change)
            await change.settle("late")
    await outbox.done(connection, [row.number for row in rows])
    return len(rows)


async def _taken_again(connection: Connection, order: OrderRow, item: dict[str, Any]) -> dict[str, Any]:
    """The order's columns that say where its units were drawn now and by what day its parcel leaves, from the movements
    that came of asking. `drawn` counts units that were cancelled before as drawn too: they went back first."""
    if "drawn" not in item and "lane" not in item:
        return {}
    rows = await connection.fetch(
        f"SELECT kind, sku, -units, (detail ->> 'day')::int FROM movement WHERE order_id = $1 AND {NUMBER} = $2"  # noqa: S608
        " AND kind IN ('drawn', 'lane')",
        order.id, item["number"],
    )  # fmt: skip
    drawn = {sku: units for kind, sku, units, _ in rows if kind == "drawn"}
    columns: dict[str, Any] = {}
    if "drawn" in item:
        gone = units_of(order.cancelled, len(order.skus))
        again = [drawn[sku] + less if sku in drawn else 0 for sku, less in zip(order.skus, gone, strict=True)]
        columns["drawn"] = again if any(again) else None
    for kind, _, _, day in rows:
        if kind == "lane":
            columns["dispatch_day"] = day
    return columns


async def lapse(change: Change) -> None:
    """The money is gone (an authorisation that the provider closed): what was not shipped is cancelled."""
    if change.status is not Status.PAID:
        return
    left = change.left()
    sku_units = [(sku, units) for sku, units in zip(change.order.skus, left, strict=True) if units]
    quantities = list(change.order.quantities)
    await change.sell((sku, -units) for sku, units in sku_units)
    number = await change.record(
        "order.cancelled",
        {"reason": "the payment lapsed", "by": "provider"},
        Status.CANCELLED,
        cancelled=quantities,
        refunded=quantities,
    )
    await change.give_back(number, sku_units, quota=True)
