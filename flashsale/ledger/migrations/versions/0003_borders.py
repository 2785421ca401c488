"""What an order across a border adds: landed cost, lane, promise, the limits it counts for, where units were drawn."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0003"
down_revision = "0002"

SCHEMA = """
ALTER TABLE orders
    ADD COLUMN agent        text  COLLATE "C",   -- who ordered for the shopper; NULL: the shopper
    ADD COLUMN collected    bool  NOT NULL DEFAULT false,   -- the channel has the money already
    ADD COLUMN shipping     int8,                -- minor units; NULL, with what follows: the sale crosses no border
    ADD COLUMN duties       int8[],              -- of all units of each line, a part of the total
    ADD COLUMN taxes        int8[],
    ADD COLUMN due_duty     int8,                -- estimates of what the border collects, outside the total
    ADD COLUMN due_tax      int8,
    ADD COLUMN ddp          bool,
    ADD COLUMN estimated    bool,
    ADD COLUMN lane_number  int2,                -- the lane whose capacity holds a parcel, and the day: days since 1970
    ADD COLUMN dispatch_day int4,
    ADD COLUMN promised_by  date,                -- as quoted; restated_by: as restated at the payment, NULL: it holds
    ADD COLUMN restated_by  date,
    ADD COLUMN identity     bytea,               -- 10 bytes: whose import limit it counts for, which year, how much
    ADD COLUMN limit_year   int2,
    ADD COLUMN limit_use    int8,
    ADD COLUMN drawn        int4[];              -- of each line the units from its channel's guarantee; NULL: none
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
