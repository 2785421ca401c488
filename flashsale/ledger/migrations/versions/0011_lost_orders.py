"""Orders that were answered and that no ledger has: what a rebuild found in Valkey alone, named one by one."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0011"
down_revision = "0010"

SCHEMA = """
CREATE TABLE lost_order (
    id          text   COLLATE "C" NOT NULL,
    sale        int4   NOT NULL,
    sale_id     text   COLLATE "C" NOT NULL,
    status      text   COLLATE "C" NOT NULL,    -- what Valkey called it
    known       bool   NOT NULL,                -- the ledger has the order: what is lost is what became of it
    units       json,                           -- by SKU, of all lost orders of its sale together: a hold names none
    journal_ms  int8   NOT NULL,
    journal_seq int8   NOT NULL,
    noticed_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, known)
);
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
