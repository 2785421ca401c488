"""Alembic's entry point: runs the steps on the connection that `ledger/migrate.py` opened, in one transaction."""

from alembic import context
from sqlalchemy import Connection, text

# Two engines that start at once on one database migrate one after the other. Any constant that is ours alone would do.
MIGRATION_LOCK = 0x666C6173

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection)
with context.begin_transaction():
    connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
    context.run_migrations()
