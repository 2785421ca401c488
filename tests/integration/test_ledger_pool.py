"""The pool of short reads against a PostgreSQL that stops answering: a page waits its bound, not a multiple of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from flashsale.embedded import PostgresServer
from flashsale.ledger.pool import Ledger, LedgerAway

TIMEOUT_S = 1.0


async def test_a_frozen_server_costs_a_read_its_timeout_and_no_more(
    own_postgres: Callable[..., PostgresServer],
) -> None:
    server = own_postgres("frozen")
    server.start()
    ledger = Ledger(server.url, timeout_s=TIMEOUT_S)
    frozen: list[int] = []
    try:
        async with ledger.connection() as connection:
            frozen = [server.pid, await connection.fetchval("SELECT pg_backend_pid()")]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        for _ in range(2):  # on the pooled connection; on a new one
            began = time.monotonic()
            with pytest.raises(LedgerAway):
                async with ledger.connection() as connection:
                    await connection.fetchval("SELECT 1")
            assert TIMEOUT_S * 0.9 < time.monotonic() - began < TIMEOUT_S * 1.7
        for pid in reversed(frozen):
            os.kill(pid, signal.SIGCONT)
        frozen.clear()
        async with ledger.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        await ledger.close()
