"""What PostgreSQL knows of the ledger for its plans. A restored dump has no statistics until autovacuum comes by, and a
plan made without them may take minutes for what takes a second."""

from flashsale.ledger.pool import Connection

_LARGE = ("orders", "movement", "history", "payment", "outbox")
"""The tables that grow with orders: what is wrong of the others costs nothing."""


async def ensure(connection: Connection) -> bool:
    """Makes the statistics of tables that have rows and none (a second for a million orders); whether it had to. A role
    that may not is no reason to stop: the queries that read everything do without luck."""
    names = await connection.fetch(
        "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relname = ANY ($1::text[]) AND c.relkind = 'r'"
        " AND c.relnamespace = 'public'::regnamespace AND c.reltuples < 0 AND pg_relation_size(c.oid) > 0",
        list(_LARGE),
    )
    for (name,) in names:
        await connection.execute(f"ANALYZE {name}")
    return bool(names)


async def whole_tables(connection: Connection) -> None:
    """For the rest of this transaction joins are made by hashing: right for what reads whole tables, whatever the
    statistics say. Behind a wrong estimate a nested loop over unmaterialised rows runs for minutes."""
    await connection.execute("SET LOCAL enable_nestloop = off")
