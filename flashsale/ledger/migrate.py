"""Brings a database to the newest schema. Relies on Alembic and the plain SQL steps in `migrations/versions`."""

import asyncio
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

CONNECT_TIMEOUT_S = 10.0

_ALEMBIC = asyncio.Lock()  # its context is global to the process: two runs inside one loop would mix


async def migrate(url: str, to: str = "head") -> None:
    """Runs the missing steps, up to revision `to`, in one transaction; several processes may do so at once.

    Raises OSError or asyncpg.PostgresError where the database can't be reached.
    """
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    )
    try:
        async with _ALEMBIC, engine.begin() as connection:
            await connection.run_sync(_upgrade, to)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
