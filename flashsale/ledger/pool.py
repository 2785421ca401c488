"""Connections to the ledger: a pool that needs no server to start, and one word for every way to lose it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

# What asyncpg raises where the server is gone, going, not up yet or full. Everything else is a statement's own fault.
CONNECTION_LOST: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # so asyncpg says that a connection was cut in the middle of a COPY
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.UndefinedTableError,  # not migrated yet
    asyncpg.ReadOnlySQLTransactionError,
)


REFUSED: tuple[type[Exception], ...] = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.PLPGSQLError,
)
"""What PostgreSQL says of a row that it will never take, a trigger's own words among it. What else it says (disk full,
no table) is no row's fault: tried again."""

ROLLED_BACK: type[BaseException] = asyncpg.TransactionRollbackError
"""What asyncpg raises where PostgreSQL ended a transaction for another's sake (a deadlock): nothing of it was done."""


CLIENT_CHECK_MS = 2000  # how often a long statement looks whether its client still is there


class LedgerAway(ConnectionError):
    """PostgreSQL can't be reached, or was lost in between."""


class Ledger:
    """A small pool for short reads; it connects when it is first asked, and again after every loss."""

    def __init__(self, url: str, *, connections_max: int = 4, timeout_s: float = 1.0) -> None:
        """`timeout_s` bounds the wait for a connection and each statement."""
        self._url = url
        self._connections_max = connections_max
        self._timeout_s = timeout_s
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lends a connection. Raises LedgerAway where there is none in time or it breaks while it is lent."""
        try:
            pool = await self._open()
            async with asyncio.timeout(self._timeout_s):
                connection = await pool.acquire()
        except CONNECTION_LOST as fault:
            raise LedgerAway(reason_of(fault)) from fault
        try:
            yield connection
        except CONNECTION_LOST as fault:
            with contextlib.suppress(asyncpg.InterfaceError):  # the pool has it already
                # Else the pool asks a server that may be frozen to clean up: the wait twice over.
                connection.terminate()
            raise LedgerAway(reason_of(fault)) from fault
        finally:
            # A server lost only now took nothing back of what was done: the pool has dropped the connection.
            with contextlib.suppress(*CONNECTION_LOST):
                await pool.release(connection)

    async def close(self) -> None:
        """Closes every connection at once; lent ones break."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,  # so that a pool can be made while the server is away
                    max_size=self._connections_max,
                    timeout=self._timeout_s,
                    command_timeout=self._timeout_s,
                    init=end_with_client,
                )
            return self._pool


async def connect(
    url: str, *, timeout_s: float = 5.0, command_timeout_s: float | None = None, statement_s: float = 0
) -> "asyncpg.Connection[asyncpg.Record]":
    """One connection of one's own (the writer, the audit). Raises LedgerAway where the server can't be reached.

    `statement_s`: PostgreSQL itself ends a statement, or a transaction in which nothing is asked, that takes longer; 0:
    never.
    """
    try:
        connection = await asyncpg.connect(url, timeout=timeout_s, command_timeout=command_timeout_s)
        async with asyncio.timeout(timeout_s):
            await end_with_client(connection)
            if statement_s:
                ms = round(1000 * statement_s)
                await connection.execute(
                    f"SET statement_timeout = {ms}; SET idle_in_transaction_session_timeout = {ms}"
                )
    except CONNECTION_LOST as fault:
        raise LedgerAway(reason_of(fault)) from fault
    return connection


async def end_with_client(connection: Connection) -> None:
    """A statement ends soon after the process that asked for it is gone: else it goes on for as long as it takes, with
    its locks, and whoever comes after waits for it."""
    with contextlib.suppress(asyncpg.PostgresError):  # a pooler in between, or a server that can't look at its clients
        await connection.execute(f"SET client_connection_check_interval = '{CLIENT_CHECK_MS}ms'")


def reason_of(fault: BaseException) -> str:
    """What PostgreSQL said, in one line without the links and hints that libraries add."""
    if isinstance(fault, asyncpg.UndefinedTableError):
        return "the ledger has not this release's tables: run `flashsale migrate`"
    original = getattr(fault, "orig", None) or fault  # SQLAlchemy's wrapper
    lines = str(getattr(original, "__cause__", None) or original).splitlines()
    return f"PostgreSQL: {lines[0] if lines and lines[0] else type(fault).__name__}"
