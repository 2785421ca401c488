"""Settlement: whose the money of orders is, booked as it moves."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0009"
down_revision = "0008"

SCHEMA = """
-- What a change of an order's money gave a merchant (or the platform), or took. Of an order and merchant the sum is
-- what of the order's kept money is that merchant's.
CREATE TABLE settlement_entry (
    order_id    text   COLLATE "C" NOT NULL,
    number      int4   NOT NULL,                -- of the order's last change that is booked with it
    merchant    text   COLLATE "C" NOT NULL,
    sale        int4   NOT NULL,
    currency    text   COLLATE "C" NOT NULL,
    amount      int8   NOT NULL CHECK (amount <> 0),
    units       int4   NOT NULL,                -- of the merchant's lines that are paid for after it, less those before
    booked_ms   int8   NOT NULL,                -- never earlier than one that was booked before: a past day is over
    PRIMARY KEY (order_id, number, merchant)
);
CREATE INDEX settlement_merchant ON settlement_entry (merchant, booked_ms, order_id, number);

CREATE TABLE settlement_mark (
    one         bool   PRIMARY KEY DEFAULT true CHECK (one),
    tx          xid8   NOT NULL,                -- history of earlier transactions is booked
    booked_ms   int8   NOT NULL
);
INSERT INTO settlement_mark (tx, booked_ms) VALUES ('0'::xid8, 0);
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
