"""What a duty could do nothing with: set aside, so that the rest goes on."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0010"
down_revision = "0009"

SCHEMA = """
-- A thing that made its duty fail each time. What it is lies where it always lay; its duty passes it over.
CREATE TABLE set_aside (
    kind        text   COLLATE "C" NOT NULL,    -- whose: settlement, outbox, import
    id          text   COLLATE "C" NOT NULL,    -- of the thing, as that duty names it
    error       text   NOT NULL,
    at_ms       int8   NOT NULL,
    PRIMARY KEY (kind, id)
);
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
