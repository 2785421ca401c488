"""A worker's duties fail alone: whatever is thrown into one, the others go on, it comes back, and stopping is as quick.

Nothing is imitated: PostgreSQL raises in triggers, loses its clients, and holds documents that nobody can read; Valkey
has keys of another type.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from flashsale import settings
from flashsale.cli import app
from flashsale.duties import duties_of
from flashsale.embedded import ValkeyServer
from flashsale.importing import importer
from flashsale.ledger import imports, merchants, set_aside
from flashsale.ledger.pool import Ledger
from flashsale.pipeline.care import Care
from flashsale.pipeline.imports import Imports
from flashsale.reservation import keys, workers
from tests.conftest import FLASHSALE
from tests.integration.shop import FRIDGE, Shop
from tests.integration.till import running, until

FAULTS = int(os.environ.get("FLASHSALE_DUTY_FAULTS", "30"))
SEED = int(os.environ.get("FLASHSALE_DUTY_SEED", str(random.randrange(10**6))))
DRAIN_S = 3.0
AGAIN_S = (0.02, 0.1)
FOLLOWERS = {"settlement_mark": "settlements", "webhook_mark": "webhook fan-out", "channel_mark": "channel pushes"}

RAISE = """
CREATE FUNCTION stumble() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'a fault of the test' USING ERRCODE = 'XX001'; END $$
"""


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Shop]:
    async with Shop(valkey_memory.url, ledger) as made:
        await made.open()
        await made.ledger.execute(RAISE)
        yield made


@asynccontextmanager
async def cared_for(shop: Shop) -> AsyncIterator[Care]:
    """Every duty of a worker; they have to end in the drain's time."""
    chosen = settings.load(durability="memory")
    async with AsyncExitStack() as held:
        ledger = Ledger(shop.database_url, timeout_s=5)
        held.push_async_callback(ledger.close)
        care = Care(duties_of(chosen, shop.redis_url, shop.database_url, False, ledger, held), AGAIN_S)
        running = asyncio.create_task(care.run(DRAIN_S))
        try:
            yield care
        finally:
            began = time.monotonic()
            care.stop()
            late = await asyncio.wait_for(running, DRAIN_S + 3)
        assert late == []
        assert time.monotonic() - began < DRAIN_S


async def goes_on(shop: Shop, but: str = "") -> None:
    """The ledger writer stores a new order; every follower but one passes a new change of it."""
    # Of fridges there are 1,000: at full size kettles would be sold out.
    outcome, order_id = await shop.buy(f"shopper-{time.monotonic_ns()}", (FRIDGE, 1))
    assert outcome == "A", outcome

    async def stored() -> bool:
        return bool(await shop.ledger.fetchval("SELECT EXISTS (SELECT FROM orders WHERE id = $1)", order_id))

    await until(stored, "the ledger writer goes on")
    tx = await shop.ledger.fetchval(
        "INSERT INTO history (order_id, number, at_ms, event, status, payment)"
        " VALUES ($1, 2, 1, 'order.extended', 'reserved', 'none') RETURNING tx::text",
        order_id,
    )
    for mark in FOLLOWERS:
        if mark == but:
            continue

        async def passed(mark: str = mark) -> bool:
            return bool(await shop.ledger.fetchval(f"SELECT tx > $1::text::xid8 FROM {mark}", tx))  # noqa: S608  one of three

        await until(passed, f"{mark} goes on")


async def test_a_duty_that_fails_is_begun_anew_alone_and_says_so(shop: Shop) -> None:
    await shop.ledger.execute("CREATE TRIGGER t BEFORE UPDATE ON settlement_mark EXECUTE FUNCTION stumble()")
    async with cared_for(shop) as care:
        await goes_on(shop, but="settlement_mark")

        async def told() -> str | None:
            return care.failing().get("settlements")

        assert "a fault of the test" in await until(told, "the failing duty is named")
        assert list(care.failing()) == ["settlements"]
        await workers.give(shop.valkey, "w-1", care.failing())
        (warning,) = await workers.warnings(shop.valkey)
        assert "w-1: settlements fails and is begun anew" in warning
        await shop.ledger.execute("DROP TRIGGER t ON settlement_mark")
        await goes_on(shop)
    await workers.withdraw(shop.valkey, "w-1")
    (nobody,) = await workers.warnings(shop.valkey)
    assert "no worker gives a sign of life" in nobody


async def lose_a_client(shop: Shop, dice: random.Random) -> str:
    """PostgreSQL ends the connection of one of the duties."""
    found = await shop.ledger.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    if found:
        await shop.ledger.execute("SELECT pg_terminate_backend($1)", dice.choice(found)[0])
    return ""


async def stumble(shop: Shop, dice: random.Random) -> str:
    """A statement of one duty raises, for a while."""
    mark = dice.choice(list(FOLLOWERS))
    await shop.ledger.execute(f"CREATE TRIGGER t BEFORE UPDATE ON {mark} EXECUTE FUNCTION stumble()")
    await goes_on(shop, but=mark)
    await shop.ledger.execute(f"DROP TRIGGER t ON {mark}")
    return mark


async def another_type(shop: Shop, dice: random.Random) -> str:
    """A key that one duty reads has another type, for a while."""
    key = dice.choice([keys.PAYMENT_EVENTS, keys.returns(0, "sale")])
    await shop.valkey.delete(key)
    await shop.valkey.set(key, "no stream and no hash")
    await goes_on(shop)
    await shop.valkey.delete(key)
    return ""


async def no_number(shop: Shop, dice: random.Random) -> str:
    """A stock field holds no number, for a while."""
    key = keys.supply(0, "sale")
    there = await shop.valkey.hget(key, "2")  # type: ignore[misc]
    await shop.valkey.hset(key, "2", "many")  # type: ignore[misc]
    await goes_on(shop)
    await shop.valkey.hset(key, "2", there)  # type: ignore[misc]
    return ""


THROWN: tuple[Callable[[Shop, random.Random], Awaitable[str]], ...] = (lose_a_client, stumble, another_type, no_number)


async def test_random_faults_stop_no_other_duty_and_stopping_takes_no_longer(shop: Shop) -> None:
    print(f"seed {SEED}, {FAULTS} faults")
    dice = random.Random(SEED)
    left = FAULTS
    while left > 0:
        async with cared_for(shop):
            for _ in range(min(left, 50)):
                left -= 1
                await dice.choice(THROWN)(shop, dice)
            await goes_on(shop)


async def queued(connection: asyncpg.Connection[Any], content: bytes) -> int:
    """An import of that file, waiting to be done."""
    made = await imports.add(
        connection,
        merchant="haier", market="SG", sale=None, decimal_mark=None, dry_run=False, parts=1, at_ms=0, now_ms=1,
    )  # fmt: skip
    assert made is not None
    await imports.put_part(connection, made, 1, content)
    return made.number


async def ended(connection: asyncpg.Connection[Any], number: int) -> imports.ImportRow | None:
    found = await imports.get(connection, "haier", number)
    return found if found is not None and found.status in imports.ENDED else None


HEAD = "Handle,Title,Option1 Name,Option1 Value,Variant Price,Variant SKU"
GOOD = f"{HEAD}\nkettle,Kettle,,,20.50,K-1\n".encode()


async def test_a_poison_import_is_set_aside_and_later_ones_are_done(shop: Shop, ledger: str) -> None:
    await merchants.put(shop.ledger, "haier", "Haier", "UTC", 1)
    poison, later = await queued(shop.ledger, GOOD), await queued(shop.ledger, GOOD)
    # Whatever the reason is: PostgreSQL refuses what the first one found, each time.
    await shop.ledger.execute(
        f"ALTER TABLE catalogue_import ADD CONSTRAINT poison CHECK (number <> {poison} OR status <> 'applied')"
    )
    async with running(Imports(ledger, importer(shop.redis_url))):
        failed = await until(lambda: ended(shop.ledger, poison), "the poison import has ended")
        done = await until(lambda: ended(shop.ledger, later), "the later import is done")
    assert (failed.status, done.status) == ("failed", "applied")
    (aside,) = await set_aside.newest(shop.ledger, 10)
    assert (aside.kind, aside.id) == ("import", f"im-{poison}")
    assert "poison" in aside.error

    environment = {"FLASHSALE_DATABASE_URL": ledger, "FLASHSALE_REDIS_URL": shop.redis_url}
    listed = await asyncio.to_thread(command, environment, "list", "--json")
    assert [letter["id"] for letter in json.loads(listed.stdout)["deadletters"]] == [f"import:im-{poison}"]
    await shop.ledger.execute("ALTER TABLE catalogue_import DROP CONSTRAINT poison")
    again = await asyncio.to_thread(command, environment, "retry", f"import:im-{poison}")
    assert again.returncode == 0, again.stderr
    async with running(Imports(ledger, importer(shop.redis_url))):
        done = await until(lambda: ended(shop.ledger, poison), "it is done again")
    assert done.status == "applied"
    assert (await asyncio.to_thread(command, environment, "list")).stdout == "nothing is set aside\n"
    strange = await asyncio.to_thread(command, environment, "retry", "import:im-99")
    assert (strange.returncode, strange.stdout) == (1, "")
    assert "nothing is set aside as import:im-99" in strange.stderr


async def test_a_file_in_another_encoding_is_faulty_and_its_findings_can_be_read(shop: Shop, ledger: str) -> None:
    await merchants.put(shop.ledger, "haier", "Haier", "UTC", 1)
    content = f"{HEAD},备注\nkettle,Kettle,,,20.50,K-1,好\n".encode("gbk")
    number = await queued(shop.ledger, content)
    later = await queued(shop.ledger, GOOD)
    async with running(Imports(ledger, importer(shop.redis_url))):
        found = await until(lambda: ended(shop.ledger, number), "it has ended")
        assert (await until(lambda: ended(shop.ledger, later), "the later one is done")).status == "applied"
    assert found.status == "faulty"
    findings = [json.loads(line) for line in (await imports.findings(shop.ledger, number)).splitlines()]
    assert {finding["code"] for finding in findings} == {"not-utf-8"}


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLASHSALE, "deadletters", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


async def test_an_order_whose_money_cannot_be_divided_is_set_aside_and_booked_later(shop: Shop, ledger: str) -> None:
    async with cared_for(shop):
        await goes_on(shop)
    order_id = await shop.ledger.fetchval("SELECT id FROM orders LIMIT 1")
    document = await shop.ledger.fetchval("SELECT document FROM catalogue WHERE version = 1")
    await shop.ledger.execute("UPDATE catalogue SET document = '\\xc1'::bytea WHERE version = 1")
    # Paid, as the ledger has it: what is kept of it has to be divided.
    await shop.ledger.execute(
        "INSERT INTO payment (order_id, sale, method, amount, currency, state, captured, created_ms, heard_ms)"
        " SELECT id, sale, 'card', total, currency, 'captured', total, 1, 1 FROM orders WHERE id = $1",
        order_id,
    )
    async with cared_for(shop):
        await goes_on(shop)
        await shop.ledger.execute("UPDATE settlement_mark SET tx = '0'::xid8")

        async def aside() -> list[str]:
            return await set_aside.ids(shop.ledger, set_aside.SETTLEMENT)

        assert await until(aside, "it is set aside") == [order_id]
        await goes_on(shop)
    environment = {"FLASHSALE_DATABASE_URL": ledger, "FLASHSALE_REDIS_URL": shop.redis_url}
    name = f"settlement:{order_id}"
    fails = await asyncio.to_thread(command, environment, "retry", name)
    assert (fails.returncode, "it fails again" in fails.stderr) == (1, True)
    await shop.ledger.execute("UPDATE catalogue SET document = $1 WHERE version = 1", document)
    assert (await asyncio.to_thread(command, environment, "retry", name)).stdout == f"{name}: booked\n"
    booked = await shop.ledger.fetchval("SELECT sum(amount) FROM settlement_entry WHERE order_id = $1", order_id)
    assert booked == await shop.ledger.fetchval("SELECT total FROM orders WHERE id = $1", order_id)


async def test_after_a_dump_came_back_settlement_books_what_was_not_booked(shop: Shop, ledger: str) -> None:
    async with cared_for(shop):
        await goes_on(shop)
    order_id = await shop.ledger.fetchval("SELECT id FROM orders LIMIT 1")
    await shop.ledger.execute(
        "INSERT INTO payment (order_id, sale, method, amount, currency, state, captured, created_ms, heard_ms)"
        " SELECT id, sale, 'card', total, currency, 'captured', total, 1, 1 FROM orders WHERE id = $1",
        order_id,
    )
    # As in a server whose transactions count from less: mark and history are of the future.
    await shop.ledger.execute("UPDATE settlement_mark SET tx = '900000000'::xid8")
    await shop.ledger.execute("UPDATE history SET tx = '900000001'::xid8 WHERE order_id = $1", order_id)
    async with cared_for(shop):

        async def booked() -> bool:
            query = "SELECT EXISTS (SELECT FROM settlement_entry WHERE order_id = $1)"
            return bool(await shop.ledger.fetchval(query, order_id))

        await until(booked, "what the dump had not booked is booked")
        await goes_on(shop)  # and what comes after it


@pytest.fixture
async def bare(ledger: str) -> str:
    """A database without any table of ours."""
    connection = await asyncpg.connect(ledger)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    return ledger


def worker(tmp_path: Path, redis_url: str, database_url: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "FLASHSALE_DATA_DIR": str(tmp_path),
        "FLASHSALE_REDIS_URL": redis_url,
        "FLASHSALE_DATABASE_URL": database_url,
        "FLASHSALE_SECRET": "a secret of these tests, long enough",
        "FLASHSALE_DURABILITY": "memory",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen([FLASHSALE, "worker"], env=environment, stdout=pipe, stderr=pipe, text=True)


def line_of(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    while line := process.stderr.readline():
        if words in line:
            return line
    raise AssertionError(f"{words!r} was never said")


async def test_a_worker_waits_for_its_tables_in_one_line_and_ends_when_asked(
    valkey_memory: ValkeyServer, bare: str, tmp_path: Path
) -> None:
    process = worker(tmp_path, valkey_memory.url, bare)
    try:
        line = await asyncio.to_thread(line_of, process, "waiting for the ledger")
        assert "flashsale migrate" in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert process.stderr is not None
        assert "waiting for the ledger" not in process.stderr.read()
    finally:
        process.kill()


async def test_migrate_makes_the_tables_and_a_newer_ledger_is_left_alone(
    valkey_memory: ValkeyServer, bare: str, tmp_path: Path
) -> None:
    environment = {"FLASHSALE_DATABASE_URL": bare, "FLASHSALE_REDIS_URL": valkey_memory.url}

    def migrate(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["migrate", *options], env=environment)
        return done.exit_code, done.output

    assert (await asyncio.to_thread(migrate, "--check"))[0] == 1
    status, said = await asyncio.to_thread(migrate)
    assert (status, "from nothing to" in said) == (0, True)
    assert "nothing to do" in (await asyncio.to_thread(migrate, "--check"))[1]
    connection = await asyncpg.connect(bare)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    process = worker(tmp_path, valkey_memory.url, bare)
    try:
        assert await asyncio.to_thread(process.wait, 20) == 1
        assert process.stderr is not None
        assert "the ledger is a newer release's" in process.stderr.read().splitlines()[-1]
    finally:
        process.kill()


async def test_a_killed_worker_leaves_no_statement_behind(ledger: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from flashsale.ledger.pool import connect\n"
        "async def main():\n"
        "    connection = await connect(sys.argv[1])\n"
        "    await connection.execute('SELECT pg_advisory_lock(4711), pg_sleep(600)')\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, ledger)
    connection = await asyncpg.connect(ledger)
    try:

        async def held() -> bool:
            return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE objid = 4711)"))

        await until(held, "the statement runs")
        process.kill()
        await process.wait()

        async def gone() -> bool:
            return not await held()

        await until(gone, "its statement ends with it")
    finally:
        await connection.close()
