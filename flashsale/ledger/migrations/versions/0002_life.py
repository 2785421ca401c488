"""What becomes of an order: its changes and their history, payments, refunds, returns, the outbox, webhook endpoints.

An order's status changes in place, guarded by the status that it had. The row is its first history entry; `changes`
numbers the later ones, so that a history without a gap is a fact of the row itself.
"""

import asyncpg
from alembic import op
from pgqueuer.queries import Queries
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0002"
down_revision = "0001"

SCHEMA = """
ALTER TABLE orders
    ADD COLUMN changes   int4  NOT NULL DEFAULT 1,      -- entries of its history; the row itself is the first
    ADD COLUMN extended  bool  NOT NULL DEFAULT false,  -- hold_ms holds the sale's extension already
    ADD COLUMN cancelled int4[],                        -- units of each line; NULL: none
    ADD COLUMN shipped   int4[],
    ADD COLUMN returned  int4[],
    ADD COLUMN restocked int4[],                        -- of the returned units those on the shelf again
    ADD COLUMN refunded  int4[];                        -- units whose price went back, or was never taken
DROP INDEX orders_sold;
CREATE INDEX orders_time ON orders (journal_ms);

CREATE TABLE history (
    order_id    text   COLLATE "C" NOT NULL,
    number      int4   NOT NULL,                -- from 2
    at_ms       int8   NOT NULL,
    event       text   COLLATE "C" NOT NULL,    -- its published name: order.paid, refund.failed, ...
    status      text   COLLATE "C" NOT NULL,    -- the order's, after it
    payment     text   COLLATE "C" NOT NULL,
    detail      jsonb,
    tx          xid8   NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX history_order ON history USING hash (order_id);
CREATE INDEX history_tx ON history (tx);
CREATE INDEX history_time ON history USING brin (at_ms);  -- for replays; it costs an insert next to nothing

CREATE TABLE payment (
    order_id    text   COLLATE "C" PRIMARY KEY,
    sale        int4   NOT NULL,
    method      text   COLLATE "C" NOT NULL,    -- the one chosen last
    amount      int8   NOT NULL,                -- what the provider was asked for
    currency    text   COLLATE "C" NOT NULL,
    return_url  text,
    session_id  text   COLLATE "C",             -- the provider's checkout session and intent; NULL until it answered
    provider_id text   COLLATE "C",
    former      text[] COLLATE "C",             -- those of earlier beginnings, closed unpaid: what they tell is over
    pay_url     text,
    state       text   COLLATE "C" NOT NULL DEFAULT 'open',
    rank        int2   NOT NULL DEFAULT 0,
    authorised  int8   NOT NULL DEFAULT 0,      -- authorised = captured + released + still open
    captured    int8   NOT NULL DEFAULT 0,      -- captured = kept + refunded
    released    int8   NOT NULL DEFAULT 0,
    refunding   int8   NOT NULL DEFAULT 0,      -- of the refunds that did not fail, the part that is under way
    refunded    int8   NOT NULL DEFAULT 0,
    refund_failed int8 NOT NULL DEFAULT 0,      -- of the refunds that failed: owed to the shopper, by hand
    goodwill    int8   NOT NULL DEFAULT 0,      -- given back beyond what lines were worth
    capture_before_ms int8,
    late        text   COLLATE "C",             -- paid after expiry: asked (for the units), taken, refused
    dispute     text   COLLATE "C",             -- open, won, lost
    disputes    text[] COLLATE "C",             -- those that are open, and those that are over: a payment may be
    decided     text[] COLLATE "C",             -- disputed again
    failure     text,
    attempt     text   COLLATE "C",             -- the charge that failed last
    declined    text[] COLLATE "C",             -- all that failed: each is told once
    todo        text   COLLATE "C",             -- to ask of the provider: close, release, capture
    todo_amount int8,
    due_ms      int8,                           -- when it is to be asked next; NULL: it need not be
    tries       int4   NOT NULL DEFAULT 0,
    created_ms  int8   NOT NULL,
    heard_ms    int8   NOT NULL                 -- when the provider last said something
) WITH (fillfactor = 70);
CREATE INDEX payment_provider ON payment USING hash (provider_id);
CREATE INDEX payment_due ON payment (due_ms) WHERE due_ms IS NOT NULL;

CREATE TABLE refund (
    id          text   COLLATE "C" PRIMARY KEY, -- ours, the key of every attempt at the provider
    order_id    text   COLLATE "C" NOT NULL,
    amount      int8   NOT NULL CHECK (amount > 0),
    currency    text   COLLATE "C" NOT NULL,
    cause       text   COLLATE "C" NOT NULL,    -- cancellation, return, late, goodwill
    status      text   COLLATE "C" NOT NULL DEFAULT 'pending',
    rank        int2   NOT NULL DEFAULT 0,
    provider_id text   COLLATE "C",
    failure     text,
    created_ms  int8   NOT NULL,
    settled_ms  int8
);
CREATE INDEX refund_order ON refund (order_id);
CREATE INDEX refund_open ON refund (created_ms) WHERE status <> 'succeeded';

CREATE TABLE return_request (
    id          text   COLLATE "C" PRIMARY KEY,
    order_id    text   COLLATE "C" NOT NULL,
    status      text   COLLATE "C" NOT NULL DEFAULT 'requested',
    reason      text   NOT NULL,
    skus        int2[] NOT NULL,                -- offer index and units of each line
    quantities  int4[] NOT NULL,
    received    int4[],                         -- units that arrived, and of these back on the shelf
    restocked   int4[],
    created_ms  int8   NOT NULL,
    changed_ms  int8   NOT NULL
);
CREATE INDEX return_order ON return_request (order_id);

-- Units paid and not given back: kept by the transactions that change them, compared by the audit.
CREATE TABLE sold (
    sale        int4   NOT NULL,
    sku         int2   NOT NULL,
    units       int8   NOT NULL,
    PRIMARY KEY (sale, sku)
) WITH (fillfactor = 50);

-- What Valkey has to be told, in the order of the numbers. One row is one script call.
CREATE TABLE outbox (
    number      int8   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partition   int2   NOT NULL,
    sale        int4   NOT NULL,
    kind        text   COLLATE "C" NOT NULL,    -- release, reserve_again, status
    items       jsonb  NOT NULL,
    outcome     text   COLLATE "C"              -- of a reserve_again, from the journal: taken or refused
);

-- The provider's events that could not be understood or stored, as they came.
CREATE TABLE damaged_event (
    number      int8   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_ms    int8   NOT NULL,                -- its entry in the stream of events, and its place in that, from 0
    event_seq   int8   NOT NULL,
    place       int4   NOT NULL,
    body        bytea  NOT NULL,
    error       text   NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE webhook_endpoint (
    id          text   COLLATE "C" PRIMARY KEY,
    owner       text   COLLATE "C" NOT NULL,
    url         text   NOT NULL,
    events      text[] NOT NULL,                -- published names; "*" is all of them
    secret      text   NOT NULL,
    created_ms  int8   NOT NULL,
    disabled    bool   NOT NULL DEFAULT false,
    failures    int4   NOT NULL DEFAULT 0,      -- in a row
    open_until_ms int8                          -- the circuit: nothing is sent before
);

CREATE TABLE webhook_delivery (
    id          text   COLLATE "C" PRIMARY KEY, -- endpoint, order and number: one delivery of a message an endpoint
    endpoint    text   COLLATE "C" NOT NULL REFERENCES webhook_endpoint,
    order_id    text   COLLATE "C" NOT NULL,    -- with the number the history entry that the message is made of
    number      int4   NOT NULL,
    event       text   COLLATE "C" NOT NULL,
    status      text   COLLATE "C" NOT NULL DEFAULT 'pending',   -- pending, delivered, given_up
    tries       int4   NOT NULL DEFAULT 0,
    http_status int4,
    error       text,
    created_ms  int8   NOT NULL,
    queued_ms   int8   NOT NULL,                -- made, or replayed last: its schedule began then
    tried_ms    int8,
    next_ms     int8   NOT NULL                 -- not tried before; while a try is under way, when that one is lost
);
CREATE INDEX webhook_delivery_time ON webhook_delivery (created_ms);
CREATE INDEX webhook_delivery_next ON webhook_delivery (next_ms) WHERE status = 'pending';

-- Asked for and under way: history of transactions from next_tx to before end_tx goes to an endpoint again.
CREATE TABLE webhook_replay (
    number      int8   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint    text   COLLATE "C" NOT NULL REFERENCES webhook_endpoint,
    since_ms    int8   NOT NULL,
    next_tx     xid8,                           -- NULL: not begun
    end_tx      xid8
);

CREATE TABLE webhook_mark (
    one         bool   PRIMARY KEY DEFAULT true CHECK (one),
    tx          xid8   NOT NULL                 -- history of earlier transactions has been handed to the endpoints
);
INSERT INTO webhook_mark (tx) VALUES (pg_current_xact_id());
"""


async def _extend(driver: "asyncpg.Connection[asyncpg.Record]") -> None:
    await driver.execute(SCHEMA)
    await Queries.from_asyncpg_connection(driver).install()  # the job queue's own tables


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(_extend)


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
