"""How often an import was taken up, so that one of which workers die does not end them for ever."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0012"
down_revision = "0011"

SCHEMA = """
ALTER TABLE catalogue_import ADD COLUMN attempts int4 NOT NULL DEFAULT 0;  -- of workers that did not come back from it
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
