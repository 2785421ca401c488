"""The promise ledger: whether each parcel came when its shopper had been told, the share by lane, alerts about lanes.

A parcel's row is written in the transaction that ends its order's way, so that order and row can't say two things.
Shares are read off the newest rows of a lane and country, never counted along: nothing can drift.
"""

from __future__ import annotations

from typing import NamedTuple

from flashsale.ledger import lane_books
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import Connection
from flashsale.sale.shipping.promises import LAST, AlertRule, Share, day_there, kept


class LaneShare(NamedTuple):
    """What is known of a lane to a country. `alert_ms`: since when there is an alert in force, None: there is none."""

    lane_number: int
    market: str
    share: Share
    alert_ms: int | None


class AlertRow(NamedTuple):
    """An alert in force, with the share that raised it."""

    lane_number: int
    market: str
    raised_ms: int
    share: Share


async def note(connection: Connection, order: OrderRow, delivered: bool, ended_ms: int) -> None:
    """What became of the order's parcel, and when. Of an order that was promised no day nothing is kept."""
    if order.lane_number is None or order.promised_by is None:
        return
    there = day_there(order.market, ended_ms)
    await connection.execute(
        "INSERT INTO promise (order_id, lane_number, market, promised_by, restated_by, delivered, ended_ms, ended_on,"
        " on_time) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        *(order.id, order.lane_number, order.market, order.promised_by, order.restated_by, delivered, ended_ms, there),
        kept(order.promised_by, order.restated_by, there, delivered),
    )


# The lanes and countries that there are: one step in the index each, however many parcels they had.
_SHARES = """
WITH RECURSIVE pair AS (
    (SELECT lane_number, market FROM promise ORDER BY lane_number, market LIMIT 1)
    UNION ALL
    SELECT following.* FROM pair CROSS JOIN LATERAL (
        SELECT p.lane_number, p.market FROM promise AS p
         WHERE (p.lane_number, p.market) > (pair.lane_number, pair.market)
         ORDER BY p.lane_number, p.market LIMIT 1) AS following
)
SELECT pair.lane_number, pair.market, last.deliveries, last.on_time, a.raised_ms
  FROM pair
 CROSS JOIN LATERAL (
    SELECT count(*) AS deliveries, count(*) FILTER (WHERE newest.on_time) AS on_time FROM (
        SELECT p.on_time FROM promise AS p WHERE p.lane_number = pair.lane_number AND p.market = pair.market
         ORDER BY p.ended_ms DESC, p.order_id DESC LIMIT $1) AS newest) AS last
  LEFT JOIN promise_alert AS a
    ON a.lane_number = pair.lane_number AND a.market = pair.market AND a.cleared_ms IS NULL
 ORDER BY pair.lane_number, pair.market
"""


async def shares(connection: Connection) -> list[LaneShare]:
    """Of each lane and country the share of its last deliveries that came on time, by lane and country."""
    rows = await connection.fetch(_SHARES, LAST)
    return [LaneShare(row[0], row[1], Share(row[2], row[3]), row[4]) for row in rows]


async def alerts(connection: Connection) -> list[AlertRow]:
    """The alerts in force, the oldest first."""
    rows = await connection.fetch(
        "SELECT lane_number, market, raised_ms, deliveries, on_time FROM promise_alert WHERE cleared_ms IS NULL"
        " ORDER BY number"
    )
    return [AlertRow(row[0], row[1], row[2], Share(row[3], row[4])) for row in rows]


async def raise_alert(connection: Connection, lane_number: int, market: str, share: Share, now_ms: int) -> bool:
    """Puts an alert in force; False: there was one already."""
    number = await connection.fetchval(
        "INSERT INTO promise_alert (lane_number, market, raised_ms, deliveries, on_time) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (lane_number, market) WHERE cleared_ms IS NULL DO NOTHING RETURNING number",
        lane_number, market, now_ms, share.deliveries, share.on_time,
    )  # fmt: skip
    return number is not None


async def clear_alert(connection: Connection, lane_number: int, market: str, now_ms: int) -> bool:
    """Ends the alert in force; False: there was none."""
    number = await connection.fetchval(
        "UPDATE promise_alert SET cleared_ms = $3 WHERE lane_number = $1 AND market = $2 AND cleared_ms IS NULL"
        " RETURNING number",
        lane_number, market, now_ms,
    )  # fmt: skip
    return number is not None


class LanePromise(NamedTuple):
    """A lane to a country under the names that the newest catalogue gives it. `alert`: its share is too small after
    the lane's rule; `alert_ms`: since when that is known, None: it is not in force (yet)."""

    lane: str
    lane_number: int
    market: str
    share: Share
    rule: AlertRule | None
    alert_ms: int | None

    @property
    def alert(self) -> bool:
        return self.share.alerts(self.rule, self.market)


async def overview(connection: Connection) -> list[LanePromise]:
    """Every lane and country that a parcel came to its end on."""
    book = await lane_books.newest(connection)
    found = []
    for number, market, share, alert_ms in await shares(connection):
        lane = book.by_number(number)  # None: it was taken out of the data since
        name, rule = (f"{number}", None) if lane is None else (lane.id, lane.alert)
        found.append(LanePromise(name, number, market, share, rule, alert_ms))
    return found
