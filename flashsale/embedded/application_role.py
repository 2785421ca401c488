"""The role by which front ends, worker and commands use the embedded ledger: it owns the ledger's tables and nothing
else. Who takes it over can't read the server's files, start programs or change other databases, as a superuser could.
"""

from __future__ import annotations

import asyncpg

NAME = "flashsale_app"

_OWN = """
DO $$
DECLARE each record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
        CREATE ROLE {name} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
    ALTER SCHEMA public OWNER TO {name};
    -- A ledger that was made before there was this role. A sequence of a column goes with its table.
    FOR each IN
        SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                            ELSE 'TABLE' END AS kind, oid::regclass::text AS name
        FROM pg_class AS c
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
            AND relowner <> '{name}'::regrole
            AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND classid = 'pg_class'::regclass
                            AND deptype IN ('a', 'i', 'e') AND relkind = 'S')
        UNION ALL
        SELECT 'ROUTINE', oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proowner <> '{name}'::regrole
        UNION ALL
        SELECT 'TYPE', oid::regtype::text FROM pg_type
        WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd') AND typowner <> '{name}'::regrole
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO {name}', each.kind, each.name);
    END LOOP;
END $$;
ALTER ROLE {name} PASSWORD '{password}';
"""


async def ensure(superuser_url: str, password: str) -> None:
    """The role exists, has this password (hexadecimal) and owns the ledger. Raises OSError or asyncpg.PostgresError."""
    connection = await asyncpg.connect(superuser_url, timeout=10)
    try:
        await connection.execute(_OWN.format(name=NAME, password=password))
    finally:
        await connection.close()
