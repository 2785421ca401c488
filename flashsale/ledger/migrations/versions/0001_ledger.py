"""The first ledger: partitions and their marks, sales, the catalogue's versions, orders, movements, dead letters.

Orders carry two hash indexes and no unique key. Measured at 10^6 rows: bare COPY 2.5 µs of CPU a row, with two hash
indexes 4.3, with two B-trees 5.9 and rising (random keys split random pages). What keeps an order single is the mark,
which moves in the order's own transaction; the audit proves it.
"""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0001"
down_revision = None

SCHEMA = """
CREATE TABLE partition (
    id          int2   PRIMARY KEY,
    epoch       int8   NOT NULL DEFAULT 1,
    mark_ms     int8   NOT NULL DEFAULT 0,      -- journal id of the last entry that is in the ledger
    mark_seq    int8   NOT NULL DEFAULT 0,
    mark_bytes  int8   NOT NULL DEFAULT 0,      -- journal bytes written up to that entry
    version     int4   NOT NULL DEFAULT 0,      -- catalogue version in force at the mark; 0: none was published yet
    run_id      text,                           -- the Valkey that was verified last
    verified_at timestamptz
);

CREATE TABLE sale (
    number      int4   PRIMARY KEY CHECK (number BETWEEN 1 AND 65535),
    id          text   COLLATE "C" NOT NULL UNIQUE,
    key         bytea  NOT NULL CHECK (length(key) = 32),
    file        text   NOT NULL,                -- the sale file as it was given
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE offer (
    sale        int4   NOT NULL REFERENCES sale,
    index       int2   NOT NULL,                -- the number under which reservation and ledger know the SKU
    sku         text   COLLATE "C" NOT NULL,
    PRIMARY KEY (sale, index),
    UNIQUE (sale, sku)
);

CREATE TABLE catalogue (
    version     int4   PRIMARY KEY,
    document    bytea  NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE orders (
    id                text   COLLATE "C" NOT NULL,
    sale              int4   NOT NULL,
    shopper           text   COLLATE "C" NOT NULL,
    idempotency_key   text   COLLATE "C" NOT NULL,
    market            text   COLLATE "C" NOT NULL,
    channel           text   COLLATE "C" NOT NULL,
    lane              text   COLLATE "C",
    ship_to           json,
    skus              int2[] NOT NULL,          -- offer index, quantity and unit price (minor units) of each line
    quantities        int4[] NOT NULL,
    prices            int8[] NOT NULL,
    total             int8   NOT NULL,
    currency          text   COLLATE "C" NOT NULL,
    catalogue_version int4   NOT NULL,
    fingerprint       bytea  NOT NULL,
    hold_ms           int8   NOT NULL,
    partition         int2   NOT NULL,
    journal_ms        int8   NOT NULL,          -- the journal entry; its milliseconds are the order's time
    journal_seq       int8   NOT NULL,
    status            text   COLLATE "C" NOT NULL DEFAULT 'reserved',
    payment           text   COLLATE "C" NOT NULL DEFAULT 'none'
);
CREATE INDEX orders_id ON orders USING hash (id);
CREATE INDEX orders_shopper ON orders USING hash (shopper);
-- Empty while nothing is paid: it costs COPY a comparison a row.
CREATE INDEX orders_sold ON orders (sale) WHERE status IN ('paid', 'shipped', 'delivered', 'undeliverable');

CREATE TABLE movement (
    partition   int2   NOT NULL,
    journal_ms  int8   NOT NULL,
    journal_seq int8   NOT NULL,
    kind        text   COLLATE "C" NOT NULL,
    sale        int4,
    sku         int2,                           -- offer index, where units move
    units       int8,                           -- create, adjust: change of supply; release: units given back
    order_id    text   COLLATE "C",
    detail      jsonb  NOT NULL
);
CREATE INDEX movement_journal ON movement (partition, journal_ms, journal_seq);
CREATE INDEX movement_sale ON movement (sale, kind);
CREATE INDEX movement_order ON movement (order_id) WHERE order_id IS NOT NULL;

CREATE TABLE dead_letter (
    number      int8   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partition   int2   NOT NULL,
    journal_ms  int8   NOT NULL,
    journal_seq int8   NOT NULL,
    line        int4   NOT NULL,                -- which of the entry's lines, from 0
    record      bytea  NOT NULL,                -- the line as the journal had it
    error       text   NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
