"""What became of promises: one row for every parcel that was delivered, or could not be; and alerts about lanes."""

import asyncpg
from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

from flashsale.sale.market import MARKETS

revision = "0006"
down_revision = "0005"

SCHEMA = """
CREATE TABLE promise (
    order_id    text   COLLATE "C" PRIMARY KEY,
    lane_number int2   NOT NULL,
    market      text   COLLATE "C" NOT NULL,    -- the country that the parcel went to
    promised_by date   NOT NULL,                -- with the order
    restated_by date,                           -- at the payment; NULL: the first one held
    delivered   bool   NOT NULL,                -- false: it could not be
    ended_ms    int8   NOT NULL,
    ended_on    date   NOT NULL,                -- the day that it was there
    on_time     bool   NOT NULL
);
-- The last so many of a lane and country, without a look at the table.
CREATE INDEX promise_lane ON promise (lane_number, market, ended_ms DESC, order_id DESC) INCLUDE (on_time);

-- A time during which too few of a lane's parcels came to a country on time.
CREATE TABLE promise_alert (
    number      int8   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane_number int2   NOT NULL,
    market      text   COLLATE "C" NOT NULL,
    raised_ms   int8   NOT NULL,
    deliveries  int4   NOT NULL,                -- those that it was raised about, and how many of them were on time
    on_time     int4   NOT NULL,
    cleared_ms  int8                            -- NULL: it is in force
);
CREATE UNIQUE INDEX promise_alert_in_force ON promise_alert (lane_number, market) WHERE cleared_ms IS NULL;
"""

# Parcels that came to their end before there was a promise ledger.
EARLIER = """
INSERT INTO promise (order_id, lane_number, market, promised_by, restated_by, delivered, ended_ms, ended_on, on_time)
SELECT o.id, o.lane_number, o.market, o.promised_by, o.restated_by, o.status = 'delivered', h.at_ms, there.ended_on,
       o.status = 'delivered' AND there.ended_on <= coalesce(o.restated_by, o.promised_by)
  FROM orders AS o
  JOIN history AS h ON h.order_id = o.id AND h.event IN ('order.delivered', 'order.undeliverable')
  LEFT JOIN unnest($1::text[], $2::text[]) AS z (market, zone) ON z.market = o.market
 CROSS JOIN LATERAL (
    SELECT ((timestamptz 'epoch' + h.at_ms * interval '1 millisecond') AT TIME ZONE coalesce(z.zone, 'UTC'))::date
        AS ended_on) AS there
 WHERE o.status IN ('delivered', 'undeliverable') AND o.lane_number IS NOT NULL AND o.promised_by IS NOT NULL
"""


async def _keep(driver: "asyncpg.Connection[asyncpg.Record]") -> None:
    await driver.execute(SCHEMA)
    await driver.execute(EARLIER, list(MARKETS), [market.zone for market in MARKETS.values()])


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(_keep)


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
