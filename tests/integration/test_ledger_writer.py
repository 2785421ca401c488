"""The ledger writer against real servers: exactly once whatever is lost in between, and no line fails another."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flashsale.embedded import ValkeyServer
from flashsale.ledger import dead_letters, movements, orders, outbox, partitions
from flashsale.ledger.partitions import Partition
from flashsale.pipeline.journal_rows import read_journal
from flashsale.pipeline.ledger_writer import LedgerWriter, MarkMoved, store_entries
from flashsale.reservation import commands, keys
from flashsale.sale.terms import PLAIN

WITHIN_S = 20
KINDS = (outbox.RELEASE, outbox.RESERVE_AGAIN, outbox.RESERVE_AGAIN, outbox.STATUS)
POISON = (
    b"too\tfew\tcolumns\n",
    b"\n",
    b"\\.\n",
    b"\xff\xfe\n",
    b"a\x00b\n",
    b"carriage\rreturn\n",
    b"backslash at the end\\\n",
)


def record(order_id: str, shopper: str = "ann", sku: int = 0, total: int = 89900) -> bytes:
    """A good line as the front makes it."""
    return (
        f"{order_id}\t1\t{shopper}\t{secrets.token_hex(4)}\tSG\tdirect\t\\N\t\\N\t{{{sku}}}\t{{1}}\t{{{total}}}\t{total}"
        f"\tSGD\t1\t\\\\x{secrets.token_hex(8)}\t900000{PLAIN}"
    ).encode()


def new_id() -> str:
    return "000001" + secrets.token_hex(12)


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not await holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


class Journal:
    """A partition's journal, written as the scripts write it."""

    def __init__(self, url: str) -> None:
        self.client = redis.asyncio.Redis.from_url(url)
        self.written = 0

    async def open(self, epoch: int = 1) -> None:
        await self.client.flushall()
        await self.client.hset(keys.partition(0), mapping={"epoch": epoch, "version": 1, "written": 0, "trimmed": 0})

    async def add(self, records: bytes = b"", movement: bytes = b"") -> tuple[int, int]:
        self.written += len(records or movement)
        fields = {"o": records} if records else {"m": movement}
        entry = await self.client.xadd(keys.journal(0), {**fields, "w": self.written})
        await self.client.hset(keys.partition(0), "written", self.written)
        ms, _, seq = entry.decode().partition("-")
        return int(ms), int(seq)


@asynccontextmanager
async def journal_and_ledger(
    valkey: ValkeyServer, ledger: str
) -> AsyncIterator[tuple[Journal, asyncpg.Connection[asyncpg.Record]]]:
    journal, connection = Journal(valkey.url), await asyncpg.connect(ledger)
    await connection.execute("TRUNCATE orders, movement, dead_letter, partition, outbox, sold RESTART IDENTITY")
    await connection.execute("INSERT INTO partition (id, epoch) VALUES (0, 1)")
    await journal.open()
    try:
        yield journal, connection
    finally:
        await connection.close()
        await journal.client.aclose()


@asynccontextmanager
async def running(*writers: LedgerWriter) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(writer.run()) for writer in writers]
    try:
        yield
    finally:
        for writer in writers:
            writer.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), WITHIN_S)


async def mark(connection: asyncpg.Connection[asyncpg.Record]) -> Partition:
    found = await partitions.get(connection, 0)
    assert found is not None
    return found


async def test_orders_and_movements_reach_the_ledger_and_the_journal_is_trimmed(
    valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
        ids = [new_id() for _ in range(3)]
        await journal.add(movement=b'{"kind":"create","sale":1,"supply":{"0":10,"1":5},"opens_at":1,"closes_at":2}')
        await journal.add(movement=b'{"kind":"version","version":7}')
        first = await journal.add(record(ids[0]) + record(ids[1], "bob \\\\ co"))
        async with running(LedgerWriter(valkey_memory.url, ledger)):
            await journal.add(movement=b'{"kind":"adjust","sale":1,"sku":1,"delta":-2,"supply":3}')
            last = await journal.add(record(ids[2], "bob \\\\ co"))
            await until(lambda: _reached(connection, last), "the mark reaches the last entry")
        row = await orders.find(connection, ids[0])
        assert row is not None
        assert (row.journal_ms, row.journal_seq) == first
        assert (row.skus, row.quantities, row.prices, row.status) == ([0], [1], [89900], "reserved")
        assert await movements.supplies(connection, 0, last) == {1: {0: 10, 1: 3}}
        newest = await orders.of_shopper(connection, "bob \\ co", 10)
        assert [order.id for order in newest] == [ids[2], ids[1]]
        assert [order.id for order in await orders.of_shopper(connection, "bob \\ co", 10, ids[2])] == [ids[1]]
        assert await orders.sold_units(connection, 1) == {}
        await connection.execute("INSERT INTO sold (sale, sku, units) VALUES (1, 0, 1)")
        assert await orders.sold_units(connection, 1) == {0: 1}
        now = await mark(connection)
        assert (now.version, now.mark_bytes) == (7, journal.written)
        assert await journal.client.xlen(keys.journal(0)) == 0
        assert int(await journal.client.hget(keys.partition(0), "trimmed")) == journal.written


async def _reached(connection: asyncpg.Connection[asyncpg.Record], entry: tuple[int, int]) -> bool:
    return (await mark(connection)).mark >= entry


RELEASE = (
    b'{"kind":"release","sale":1,"outbox":%d,"orders":[{"order":"%s","number":2,"lines":[[0,2],[1,1]],"quota_back":true},'
    b'{"order":"%s","number":3,"lines":[[1,4]],"quota_back":false}]}'
)
AGAIN = (
    b'{"kind":"reserve_again","sale":1,"outbox":%d,"order":"%s","number":4,"lines":[[0,2],[1,1]],'
    b'"taken":%s,"quota":true}'
)


async def test_units_that_move_again_are_rows_and_the_outbox_hears_of_them(
    valkey_memory: ValkeyServer, ledger: str
) -> None:
    async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
        numbers = [await outbox.add(connection, 0, 1, kind, [{"order": "x"}]) for kind in KINDS]
        ann, bob = new_id().encode(), new_id().encode()
        await journal.add(movement=RELEASE % (numbers[0], ann, bob))
        await journal.add(movement=AGAIN % (numbers[1], ann, b"true"))
        last = await journal.add(movement=AGAIN % (numbers[2], bob, b"false"))
        async with running(LedgerWriter(valkey_memory.url, ledger)):
            await until(lambda: _reached(connection, last), "the mark reaches the last entry")
        rows = await connection.fetch(
            "SELECT kind, order_id, sku, units, detail ->> 'number', detail ->> 'outbox', detail ->> 'quota_back'"
            " FROM movement ORDER BY journal_ms, journal_seq, order_id = $1 DESC, sku",
            ann.decode(),
        )
        first, second, third = (str(number) for number in numbers[:3])
        assert [tuple(row) for row in rows] == [
            ("release", ann.decode(), 0, 2, "2", first, "true"),
            ("release", ann.decode(), 1, 1, "2", first, "true"),
            ("release", bob.decode(), 1, 4, "3", first, "false"),
            ("reserve_again", ann.decode(), 0, -2, "4", second, "true"),
            ("reserve_again", ann.decode(), 1, -1, "4", second, "true"),
            ("reserve_again", bob.decode(), None, None, "4", third, "true"),  # nothing moved, but the number is used
        ]
        assert await movements.released_units(connection, 0, last) == {1: {0: 0, 1: 4}}
        answers = [(row.number, row.outcome) for row in await outbox.answered(connection)]
        assert answers == [(numbers[1], "taken"), (numbers[2], "refused")]
        left = await outbox.pending(connection, 10)
        assert [(row.number, row.kind, row.items) for row in left] == [(numbers[3], "status", [{"order": "x"}])]
        assert await outbox.pending(connection, 10, [numbers[3]]) == []


async def test_an_outbox_number_that_no_row_has_harms_no_other_entry(valkey_memory: ValkeyServer, ledger: str) -> None:
    async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
        order = new_id()
        for number in (-1, 0, 2**63, 2**80):
            await journal.add(movement=RELEASE % (number, order.encode(), order.encode()))
        last = await journal.add(record(order))
        async with running(LedgerWriter(valkey_memory.url, ledger)):
            await until(lambda: _reached(connection, last), "the mark passes them")
        assert await orders.count(connection) == 1


async def test_a_fault_of_the_trimming_is_logged_and_stops_no_writing(
    valkey_memory: ValkeyServer, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> int:
        raise RuntimeError("trimming is broken")

    monkeypatch.setattr(commands, "trim", fail)
    async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
        with capture_logs() as logs:
            async with running(LedgerWriter(valkey_memory.url, ledger)):
                await journal.add(record(new_id()))
                await until(lambda: _counted(connection, 1), "the order is written")
                await journal.add(record(new_id()))
                await until(lambda: _counted(connection, 2), "the next one too")
    assert "the journal was not trimmed" in [line["event"] for line in logs if line["log_level"] == "error"]


async def test_what_cannot_be_stored_is_set_aside_alone(valkey_memory: ValkeyServer, ledger: str) -> None:
    async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
        good = [new_id() for _ in range(40)]
        lines = [record(order_id) for order_id in good]
        for place, poison in enumerate(POISON):
            lines.insert(5 * place, poison)
        lines.insert(3, record(new_id(), total=10**30))
        half = len(lines) // 2
        await journal.add(b"".join(lines[:half]))
        await journal.add(movement=b"no JSON at all")
        await journal.add(b"".join(lines[half:])[:-1])  # its last newline is lost: the next entry must not suffer
        await journal.add(movement=b'{"kind":"suspend","sale":1,"sku":99999}')
        await journal.add(movement=b'{"kind":"release","sale":1,"movement":"m","order":"x","lines":[[0,1]]}')
        last = await journal.add(record(good[0].replace("000001", "000002")))
        async with running(LedgerWriter(valkey_memory.url, ledger)):
            await until(lambda: _reached(connection, last), "the mark passes the poison")
        stored = {row[0] for row in await connection.fetch("SELECT id FROM orders")}
        assert stored == {*good, good[0].replace("000001", "000002")}
        letters = await dead_letters.first(connection, 100)
        records = [letter.record for letter in letters]
        assert set(POISON) <= set(records)
        assert (
            len(letters) == len(POISON) + 4
        )  # and the total, the bad JSON, the SKU out of range, the release of nothing known
        assert all(letter.error for letter in letters)


async def test_a_standby_takes_over_and_nothing_is_written_twice(valkey_memory: ValkeyServer, ledger: str) -> None:
    async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
        writers = [LedgerWriter(valkey_memory.url, ledger) for _ in range(3)]
        async with running(*writers):
            ids: list[str] = []
            for _ in range(6):
                await until(lambda: _one_writes(writers), "one of them writes")
                assert sum(writer.writing for writer in writers) == 1
                for _ in range(5):
                    ids.append(new_id())
                    last = await journal.add(record(ids[-1]))
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            await until(lambda: _reached(connection, last), "the backlog is written")
        found = [row[0] for row in await connection.fetch("SELECT id FROM orders ORDER BY journal_ms, journal_seq")]
        assert found == ids


async def _one_writes(writers: list[LedgerWriter]) -> bool:
    return any(writer.writing for writer in writers)


async def test_a_writer_of_an_old_epoch_or_mark_stores_nothing(valkey_memory: ValkeyServer, ledger: str) -> None:
    async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
        await journal.add(record(new_id()))
        before = await mark(connection)
        items = await read_journal(journal.client, 0, before.mark, 10)
        after = (await store_entries(connection, before, items)).partition
        with pytest.raises(MarkMoved):
            await store_entries(connection, before, items)
        await journal.add(record(new_id()))
        items = await read_journal(journal.client, 0, after.mark, 10)
        await partitions.raise_epoch(connection, 0)
        with pytest.raises(MarkMoved):
            await store_entries(connection, after, items)
        assert await orders.count(connection) == 1


async def test_the_writer_waits_for_either_server(own_valkey: Callable[..., ValkeyServer], ledger: str) -> None:
    server = own_valkey("killed")
    server.start()
    async with journal_and_ledger(server, ledger) as (journal, connection):
        writer = LedgerWriter(server.url, ledger)
        async with running(writer):
            await journal.add(record(new_id()))
            await until(lambda: _counted(connection, 1), "the first order is written")
            server.kill()
            server.start()
            again = Journal(server.url)
            again.written = journal.written
            await until(lambda: _answers(again), "Valkey is back")
            await again.add(record(new_id()))
            await until(lambda: _counted(connection, 2), "the second order is written")
            await again.client.aclose()


async def _counted(connection: asyncpg.Connection[asyncpg.Record], count: int) -> bool:
    return await orders.count(connection) == count


async def _answers(journal: Journal) -> bool:
    try:
        return bool(await journal.client.ping())
    except (OSError, redis.exceptions.RedisError):
        return False


lines_of_an_entry = st.lists(st.sampled_from((None, None, None, *POISON)), min_size=1, max_size=6)


@given(
    entries=st.lists(lines_of_an_entry, min_size=1, max_size=12),
    rows=st.integers(1, 20),
    kills=st.lists(st.floats(0, 0.01), max_size=3),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_and_dead_letters_are_what_was_accepted(
    valkey_memory: ValkeyServer,
    ledger: str,
    entries: list[list[bytes | None]],
    rows: int,
    kills: list[float],
) -> None:
    """Whatever the journal holds and whenever connections are cut: each line once, in rows or set aside."""

    async def run() -> None:
        async with journal_and_ledger(valkey_memory, ledger) as (journal, connection):
            good: list[str] = []
            poison: list[bytes] = []
            async with running(LedgerWriter(valkey_memory.url, ledger, rows=rows)):
                for lines in entries:
                    texts = []
                    for line in lines:
                        if line is None:
                            good.append(new_id())
                            texts.append(record(good[-1]))
                        else:
                            poison.append(line)
                            texts.append(line)
                    last = await journal.add(b"".join(texts))
                for moment in kills:
                    await asyncio.sleep(moment)  # not waiting for anything: the cut's moment is what is drawn
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                    await journal.client.client_kill_filter(_type="normal", skipme=True)
                await until(lambda: _reached(connection, last), "the journal is written")
            stored = [row[0] for row in await connection.fetch("SELECT id FROM orders")]
            assert sorted(stored) == sorted(good)
            letters = await dead_letters.first(connection, 1000)
            assert sorted(letter.record for letter in letters) == sorted(poison)

    asyncio.run(run())
