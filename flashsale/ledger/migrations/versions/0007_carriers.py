"""Parcels that carriers are to carry, and what they tell of them."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0007"
down_revision = "0006"

SCHEMA = """
-- One parcel an order: of the orders with a lane that are paid, those that no marketplace packs.
CREATE TABLE parcel (
    order_id    text   COLLATE "C" PRIMARY KEY, -- the reference that it is booked under
    lane_number int2   NOT NULL,
    carrier     text   COLLATE "C" NOT NULL,
    skus        int2[] NOT NULL,                -- offer index and units of each line when it was taken up: a booking
    quantities  int4[] NOT NULL,                -- says the same however often it is tried
    status      text   COLLATE "C" NOT NULL DEFAULT 'to_book',  -- see sale/tracking.py
    waybill     text   COLLATE "C",             -- NULL until the carrier gave one
    attempts    int4   NOT NULL DEFAULT 0,      -- of what is to be asked now
    error       text,                           -- why it is refused, or what does not fit
    created_ms  int8   NOT NULL,
    heard_ms    int8,                           -- when the carrier last told something of it
    due_ms      int8                            -- when the carrier is to be asked next; NULL: it need not be
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX parcel_waybill ON parcel (waybill, carrier) WHERE waybill IS NOT NULL;
CREATE INDEX parcel_due ON parcel (due_ms) WHERE due_ms IS NOT NULL;

CREATE TABLE parcel_event (
    carrier     text   COLLATE "C" NOT NULL,
    id          text   COLLATE "C" NOT NULL,    -- the carrier's own
    order_id    text   COLLATE "C" NOT NULL,
    code        text   COLLATE "C" NOT NULL,
    at_ms       int8   NOT NULL,                -- when it happened, after the carrier
    detail      text,
    country     text   COLLATE "C",
    heard_ms    int8   NOT NULL,
    PRIMARY KEY (carrier, id)
);
CREATE INDEX parcel_event_order ON parcel_event USING hash (order_id);

CREATE TABLE carrier_mark (
    one         bool   PRIMARY KEY DEFAULT true CHECK (one),
    tx          xid8   NOT NULL                 -- history of earlier transactions has been looked through
);
INSERT INTO carrier_mark (tx) VALUES (pg_current_xact_id());
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
