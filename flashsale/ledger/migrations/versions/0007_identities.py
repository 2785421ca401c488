"""Verified identities."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0007"
down_revision = "0006"

SCHEMA = """
SELECT 1;
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
