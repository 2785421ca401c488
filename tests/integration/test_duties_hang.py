"""A duty that hangs is begun anew, one that can't be ended is reported, and a worker ends in time whatever hangs.

What hangs, hangs for real: locks that another session holds, servers that take a connection and never say a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from flashsale.embedded import ValkeyServer
from flashsale.ledger.pool import Connection
from flashsale.pipeline.care import Care
from flashsale.pipeline.duty import Duty
from flashsale.pipeline.promise_alerts import PromiseAlerts
from flashsale.pipeline.settlements import Settlements
from tests.conftest import FLASHSALE, free_port
from tests.integration.till import until

AGAIN_S = (0.02, 0.1)
END_S = 1.0
STOPPED_WITHIN_S = 2.5  # what `flashsale up` waits for a worker


class Impatient(Settlements):
    """The duty as it is, but for its patience."""

    silent_s = 0.5


class Brief(Settlements):
    """The same, whose statements may take less."""

    statement_s = 0.3


class Deaf(Duty):
    """A duty that swallows its end, as a library under it may."""

    name = "deaf"
    lock = 0x666C6466
    silent_s = 0.2
    hears = False

    async def work(self, connection: Connection) -> None:
        while not Deaf.hears:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)


@contextlib.asynccontextmanager
async def caring(ledger: str, *kinds: type[Duty]) -> AsyncIterator[Care]:
    """These duties at work; they end in time, whatever they hang on."""
    care = Care({kind.name: lambda kind=kind: kind(ledger) for kind in kinds}, AGAIN_S, let_go_s=0.2)
    running = asyncio.create_task(care.run(END_S))
    try:
        yield care
    finally:
        care.stop()
        began = time.monotonic()
        await running
        assert time.monotonic() - began < STOPPED_WITHIN_S


@pytest.fixture
async def locked(ledger: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that holds what the settlements' duty needs, as a migration or a forgotten terminal may."""
    connection = await asyncpg.connect(ledger)
    await connection.execute("BEGIN; LOCK TABLE settlement_mark")
    yield connection
    await connection.close()


async def test_a_duty_that_hangs_is_begun_anew_and_works_when_it_can(ledger: str, locked: asyncpg.Connection) -> None:
    async with caring(ledger, Impatient, PromiseAlerts) as care:

        async def told() -> str | None:
            return care.failing().get("settlements")

        assert "no sign of life" in await until(told, "it is noticed that it hangs")
        assert list(care.failing()) == ["settlements"]
        assert care.alive()  # it let go
        await locked.execute("COMMIT")
        await locked.execute("UPDATE settlement_mark SET tx = '0'::xid8")
        await locked.execute(
            "INSERT INTO history (order_id, number, at_ms, event, status, payment)"
            " VALUES ('o', 2, 1, 'order.extended', 'reserved', 'none')"
        )

        async def moved() -> bool:
            return bool(await locked.fetchval("SELECT tx > '0'::xid8 FROM settlement_mark"))

        await until(moved, "it works again")


async def test_a_statement_that_takes_too_long_is_ended_and_told(ledger: str, locked: asyncpg.Connection) -> None:
    async with caring(ledger, Brief) as care:

        async def told() -> str | None:
            return care.failing().get("settlements")

        assert "QueryCanceledError" in await until(told, "the failing duty is named")


async def test_a_duty_that_cannot_be_ended_is_no_life_and_holds_up_no_end(ledger: str) -> None:
    async with caring(ledger, Deaf, PromiseAlerts) as care:

        async def dead() -> bool:
            return not care.alive()

        await until(dead, "the worker shows no sign of life any more")
    Deaf.hears = True  # it is the test's loop that has to end now


async def test_a_worker_ends_in_time_where_a_server_takes_connections_and_says_nothing(tmp_path: Path) -> None:
    taken = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.set()
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")},
        "FLASHSALE_DATA_DIR": str(tmp_path),
        "FLASHSALE_REDIS_URL": f"redis://127.0.0.1:{port}",
        "FLASHSALE_DATABASE_URL": f"postgresql://nobody@127.0.0.1:{port}/none",
        "FLASHSALE_SECRET": "a secret of these tests, long enough",
    }
    process = await asyncio.create_subprocess_exec(FLASHSALE, "worker", env=environment)
    try:
        async with asyncio.timeout(30):
            await taken.wait()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), STOPPED_WITHIN_S) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        silent.close()


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", 1, "the ledger is a newer release's"),
        ("DROP TABLE alembic_version", None, "the ledger has no tables yet: run `flashsale migrate`"),
    ],
)
async def test_a_front_leaves_a_newer_ledger_alone_and_says_what_another_lacks(
    valkey_memory: ValkeyServer, ledger: str, tmp_path: Path, change: str, status: int | None, words: str
) -> None:
    connection = await asyncpg.connect(ledger)
    await connection.execute(change)
    await connection.close()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")},
        "FLASHSALE_DATA_DIR": str(tmp_path),
        "FLASHSALE_PORT": str(free_port()),
        "FLASHSALE_REDIS_URL": valkey_memory.url,
        "FLASHSALE_DATABASE_URL": ledger,
        "FLASHSALE_SECRET": "a secret of these tests, long enough",
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(FLASHSALE, "serve", env=environment, stderr=pipe)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while words not in (line := (await process.stderr.readline()).decode()):
                assert line, "it ended and never said so"
            if status is not None:
                assert await process.wait() == status
            else:
                while "front is listening" not in (line := (await process.stderr.readline()).decode()):
                    assert line, "it does not serve"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
