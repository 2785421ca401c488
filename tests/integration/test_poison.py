"""What makes a duty fail each time is set aside, by itself, and found again: everything beside it is done.

PostgreSQL itself refuses what is poison here, in a trigger, whatever way it comes; a worker that dies of a file dies.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from flashsale.embedded import ValkeyServer
from flashsale.ledger import imports, merchants, set_aside
from flashsale.ledger.imports import ImportRow
from flashsale.ledger.pool import Connection, LedgerAway
from flashsale.partners.payments.stripe import facts_of
from flashsale.pipeline import deadletters
from flashsale.pipeline.careful import apply_carefully
from flashsale.pipeline.imports import ATTEMPTS_MAX, Imports
from flashsale.sale.payment import IntentState, PaymentFact
from tests.integration.life import Life
from tests.integration.shop import FRIDGE, KETTLE
from tests.integration.test_duties_alone import GOOD, ended, queued
from tests.integration.test_expiry import expired_with_open_intent
from tests.integration.till import running, until

POISONS = int(os.environ.get("FLASHSALE_POISONS", "6"))


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Life]:
    async with Life(valkey_memory.url, ledger) as made:
        await made.open()
        yield made


async def poison(shop: Life, event: str, orders: Sequence[str]) -> None:
    """From now on PostgreSQL takes no such change of these orders."""
    await shop.ledger.execute(
        "CREATE TABLE poisoned (id text PRIMARY KEY);"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.event = '{event}' AND EXISTS (SELECT FROM poisoned WHERE id = NEW.order_id) THEN"
        " RAISE EXCEPTION 'poison: %', NEW.order_id; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON history FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    await shop.ledger.executemany("INSERT INTO poisoned VALUES ($1)", [(each,) for each in orders])


async def cured(shop: Life) -> None:
    await shop.ledger.execute("TRUNCATE poisoned")


async def test_orders_that_cannot_expire_keep_no_other_from_it(shop: Life) -> None:
    bought = [(await shop.buy(f"shopper-{number}", (KETTLE, 1)))[1] for number in range(3 * POISONS)]
    await shop.drain()
    bad = sorted(bought[::3])
    await poison(shop, "order.expired", bad)
    assert await shop.expire() == len(bought) - len(bad)
    assert await shop.expire() == 0
    assert await set_aside.ids(shop.ledger, set_aside.EXPIRY) == bad
    shown = await deadletters.get(shop.ledger, f"expiry:{bad[0]}")
    assert "poison" in shown.error
    await shop.drain()
    assert [await shop.status(order_id) for order_id in bad] == ["reserved"] * len(bad)
    await cured(shop)
    for order_id in bad:
        await deadletters.retry(shop.ledger, f"expiry:{order_id}", facts_of)
    assert await shop.expire() == len(bad)
    await shop.drain()
    assert await deadletters.newest(shop.ledger, 10) == []
    assert await shop.faults() == []


async def test_a_late_payment_that_cannot_be_settled_holds_up_no_other_and_no_release(shop: Life) -> None:
    bad = await expired_with_open_intent(shop, "ann", (FRIDGE, 1))
    good = await expired_with_open_intent(shop, "ben", (FRIDGE, 1))
    await poison(shop, "order.paid", [bad])
    for order_id in (bad, good):
        await shop.pay(order_id)
    for _ in range(4):  # drain() would wait for the row that is set aside
        await shop.outbox.round(shop.ledger)
        await shop.write()
    assert (await shop.status(bad), await shop.status(good)) == ("expired", "paid")
    (aside,) = await set_aside.newest(shop.ledger, 10)
    assert aside.kind == "outbox"
    await cured(shop)
    await deadletters.retry(shop.ledger, f"outbox:{aside.id}", facts_of)
    again = shop.new_outbox()  # a worker that begins anew, or looks after its five seconds
    await again.round(shop.ledger)
    assert await shop.status(bad) == "paid"
    await shop.drain()
    assert await shop.faults() == []


async def test_an_event_that_a_trigger_refuses_is_unfit_alone(shop: Life) -> None:
    bought = [(await shop.buy(f"shopper-{number}", (KETTLE, 1)))[1] for number in range(5)]
    await shop.drain()
    for order_id in bought:
        await shop.begin_payment(order_id)
    await poison(shop, "order.paid", [bought[2]])
    now_ms = time.time_ns() // 1_000_000
    amount = await shop.ledger.fetchval("SELECT amount FROM payment WHERE order_id = $1", bought[0])
    facts = [
        PaymentFact(
            *(order_id, f"pi_{order_id}", IntentState.AUTHORISED, "card", amount, 0),
            capture_before_ms=now_ms + 7 * 86_400_000, failure=None, attempt=None, source="test",
        )
        for order_id in bought
    ]  # fmt: skip
    async with shop.ledger.transaction():
        applied, unfit = await apply_carefully(shop.ledger, facts, now_ms)
    assert (applied.paid, [each.place for each in unfit]) == (4, [2])


async def attempts(connection: Connection, number: int) -> int:
    found: int = await connection.fetchval("SELECT attempts FROM catalogue_import WHERE number = $1", number)
    return found


DIES = """
import asyncio, os, signal, sys
from flashsale.pipeline.imports import Imports
async def dies(ledger, found):
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(Imports(sys.argv[1], dies).run())
"""


async def test_an_import_that_workers_die_of_is_set_aside(shop: Life, ledger: str) -> None:
    await merchants.put(shop.ledger, "haier", "Haier", "UTC", 1)
    deadly, later = await queued(shop.ledger, GOOD), await queued(shop.ledger, GOOD)
    await shop.ledger.execute("UPDATE catalogue_import SET attempts = $2 WHERE number = $1", deadly, ATTEMPTS_MAX - 1)
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES, ledger)
    assert await asyncio.wait_for(worker.wait(), 30) == -9
    assert await attempts(shop.ledger, deadly) == ATTEMPTS_MAX

    async def done(connection: Connection, found: ImportRow) -> ImportRow:
        await imports.end(connection, applied := replace(found, status="applied"), b"", 1)
        return applied

    async with running(Imports(ledger, done)):
        await until(lambda: ended(shop.ledger, later), "the later one is done")
    assert await set_aside.ids(shop.ledger, set_aside.IMPORT) == [f"im-{deadly}"]
    await deadletters.retry(shop.ledger, f"import:im-{deadly}", facts_of)
    assert await attempts(shop.ledger, deadly) == 0


async def test_a_stopped_worker_or_a_lost_server_is_held_against_no_import(shop: Life, ledger: str) -> None:
    await merchants.put(shop.ledger, "haier", "Haier", "UTC", 1)
    number = await queued(shop.ledger, GOOD)
    taken = asyncio.Event()

    async def never_done(connection: Connection, found: ImportRow) -> ImportRow:
        taken.set()
        await asyncio.Event().wait()
        raise AssertionError

    stopped = asyncio.create_task(Imports(ledger, never_done).run())
    await asyncio.wait_for(taken.wait(), 10)
    assert await attempts(shop.ledger, number) == 1
    stopped.cancel()
    await asyncio.wait({stopped})
    assert await attempts(shop.ledger, number) == 0
    times = 0

    async def away(connection: Connection, found: ImportRow) -> ImportRow:
        nonlocal times
        times += 1
        raise LedgerAway("lost in the middle")

    async with running(Imports(ledger, away)):

        async def often() -> bool:
            return times > 2

        await until(often, "it is taken up again and again")
    assert await attempts(shop.ledger, number) <= 1
    assert await set_aside.ids(shop.ledger, set_aside.IMPORT) == []
