"""What commands share that work on the running engine's ledger: its address, a connection, and one line for a fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg
import redis.exceptions
import typer

from flashsale import runfile
from flashsale.ledger import pool
from flashsale.merchandising import CommandRefused
from flashsale.settings import load

ANSWER_TIMEOUT_S = 300.0
"""A statement of an import of a million rows takes its time."""

Result = TypeVar("Result")


def run_on_ledger(command: Callable[[pool.Connection], Awaitable[Result]], as_json: bool) -> Result:
    """What the command answers; exits 1 with one line."""

    async def run() -> Result:
        _, database_url = runfile.addresses(load())
        connection = await pool.connect(database_url, command_timeout_s=ANSWER_TIMEOUT_S)
        try:
            return await command(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(run())
    except (CommandRefused, runfile.NoEngine) as fault:
        text = str(fault)
    except redis.exceptions.RedisError as fault:
        text = f"Valkey: {fault or type(fault).__name__}"
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
        text = f"PostgreSQL: {fault or type(fault).__name__}"
    except OSError as fault:
        text = str(fault) or type(fault).__name__
    line = text.splitlines()[0]
    typer.echo(json.dumps({"error": line}, ensure_ascii=False) if as_json else line, err=not as_json)
    raise typer.Exit(1)
