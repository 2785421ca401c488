"""Fulfilment as marketplaces do it: packages, reverse orders, pushes."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0004"
down_revision = "0003"

SCHEMA = """
-- The orders of a channel, oldest first: what it asks for a window of time and a page at a time.
CREATE INDEX orders_channel ON orders (channel, journal_ms, journal_seq, id) WHERE channel <> 'direct';

-- What a channel packed: one parcel an order. The tracking number is made of the row's own number.
CREATE TABLE package (
    number      int8   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    text   COLLATE "C" NOT NULL UNIQUE,
    channel     text   COLLATE "C" NOT NULL,
    skus        int2[] NOT NULL,                -- offer index and units of each line
    quantities  int4[] NOT NULL,
    packed_ms   int8   NOT NULL
);

-- Where a channel hears what becomes of its orders and what it may sell.
CREATE TABLE channel_endpoint (
    channel     text   COLLATE "C" PRIMARY KEY,
    url         text   NOT NULL,
    secret      text   NOT NULL,
    created_ms  int8   NOT NULL,
    failures    int4   NOT NULL DEFAULT 0,      -- in a row
    next_ms     int8   NOT NULL DEFAULT 0       -- nothing is sent before
);

-- One change of one order's history, to be told to its channel.
CREATE TABLE channel_push (
    channel     text   COLLATE "C" NOT NULL,
    order_id    text   COLLATE "C" NOT NULL,
    number      int4   NOT NULL,
    status      text   COLLATE "C" NOT NULL DEFAULT 'pending',   -- pending, delivered, given_up
    refusals    int4   NOT NULL DEFAULT 0,      -- answers that refused it for what it says
    error       text,
    created_ms  int8   NOT NULL,
    settled_ms  int8,
    next_ms     int8   NOT NULL,
    PRIMARY KEY (order_id, number)
);
CREATE INDEX channel_push_next ON channel_push (channel, next_ms, order_id, number) WHERE status = 'pending';
CREATE INDEX channel_push_settled ON channel_push (settled_ms) WHERE settled_ms IS NOT NULL;

-- What a channel was told, and took, that it may sell of a SKU.
CREATE TABLE channel_stock (
    channel     text   COLLATE "C" NOT NULL,
    sale        int4   NOT NULL,
    sku         int2   NOT NULL,
    units       int8   NOT NULL,
    PRIMARY KEY (channel, sale, sku)
) WITH (fillfactor = 50);

CREATE TABLE channel_mark (
    one         bool   PRIMARY KEY DEFAULT true CHECK (one),
    tx          xid8   NOT NULL                 -- history of earlier transactions has been handed to the channels
);
INSERT INTO channel_mark (tx) VALUES (pg_current_xact_id());
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
