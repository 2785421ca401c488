"""Provider and ledger compared: silent where they agree, and every kind of difference is named."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from typing import Any

import asyncpg
import pytest

from flashsale.partners.payments.provider import ProviderAway
from flashsale.partners.payments.stripe import StripeProvider
from flashsale.pipeline import reconciliation
from flashsale.pipeline.reconciliation import Reconciled
from tests.conftest import FLASHSALE, free_port
from tests.integration.till import Till, running, until
from tests.payments_sandbox import API_KEY

AGAIN_S = 0.05
DAY_MS = 86_400_000


async def reconciled(till: Till) -> Reconciled:
    """Of this test's own time: the sandbox is shared."""
    return await reconciliation.reconcile(till.ledger, till.provider, await till.now_ms() - DAY_MS, again_s=AGAIN_S)


async def differences(till: Till) -> set[tuple[str, str | None]]:
    mine = {row[0] for row in await till.ledger.fetch("SELECT id FROM orders")} | {"nobody"}
    found = (await reconciled(till)).differences
    return {(each.what, each.order) for each in found if each.order in mine}


async def create(till: Till, order_id: str, **params: Any) -> Any:
    """An intent made by hand, paid at once."""
    wanted: Any = {
        "amount": 4100,
        "currency": "sgd",
        "payment_method": "pm_card_visa",
        "confirm": True,
        "metadata": {"order": order_id},
        **params,
    }
    return await asyncio.to_thread(till.client.v1.payment_intents.create, wanted)


async def refund(till: Till, order_id: str, amount: int, **metadata: str) -> Any:
    wanted: Any = {"payment_intent": await till.intent(order_id), "amount": amount, "metadata": metadata}
    return await asyncio.to_thread(till.client.v1.refunds.create, wanted)


async def test_a_run_without_faults_has_no_difference(till: Till) -> None:
    opened, declined, held, shipped, wallet, cancelled, part, expired = orders = await till.orders(8)
    with pytest.raises(Exception, match="declined"):
        await till.confirm(declined, "pm_card_visa_chargeDeclined")
    for order_id in (held, shipped, cancelled):
        await till.confirm(order_id)
    for order_id in (wallet, part):
        await till.confirm(order_id, "pm_alipay")
    await till.tell()
    await till.ship(shipped)
    await till.cancel(cancelled)
    await till.cancel(wallet)
    await till.cancel(part, [(1, 1)])
    await till.ledger.execute("UPDATE payment SET todo = 'close', due_ms = 0 WHERE order_id = $1", expired)
    async with running(till.calls(), till.jobs()):
        await till.until_state(shipped, "shipped", "captured", "captured")
        await till.until_state(cancelled, "cancelled", "refunded", "closed")
        await till.until_state(wallet, "cancelled", "refunded", "captured")
        await till.until_state(part, "paid", "part_refunded", "captured")
        await till.until_state(expired, "reserved", "none", "closed")
    assert await differences(till) == set()
    found = await reconciled(till)
    assert found.payments == len(orders)
    assert opened


async def test_every_kind_of_difference_is_named(till: Till) -> None:
    names = ("behind", "twice", "elsewhere", "less", "more", "gone", "byhand", "lostrefund", "amount")
    orders = dict(zip(names, await till.orders(len(names)), strict=True))
    for name in ("less", "more", "byhand", "lostrefund", "amount"):
        await till.confirm(orders[name], "pm_alipay")
    await till.tell()
    assert await differences(till) == set()

    await till.confirm(orders["behind"])  # its event is lost
    await create(till, orders["twice"])
    await create(till, "nobody")
    elsewhere = await create(till, orders["elsewhere"], currency="usd")
    execute = till.ledger.execute
    await execute("UPDATE payment SET provider_id = $2 WHERE order_id = $1", orders["elsewhere"], elsewhere.id)
    await execute("UPDATE payment SET captured = captured - 1 WHERE order_id = $1", orders["less"])
    await execute("UPDATE payment SET authorised = authorised + 1 WHERE order_id = $1", orders["more"])
    await execute("UPDATE payment SET provider_id = 'pi_gone' WHERE order_id = $1", orders["gone"])
    await refund(till, orders["byhand"], 100)
    await refund(till, orders["less"], 100, order=orders["less"], refund="re-stranger")
    for name, amount in (("lostrefund", 700), ("amount", 701)):
        await execute(
            "INSERT INTO refund (id, order_id, amount, currency, cause, status, provider_id, created_ms)"
            " VALUES ($1, $2, 700, 'SGD', 'goodwill', 'succeeded', 're_gone', $3)",
            f"re-{name}", orders[name], await till.now_ms(),
        )  # fmt: skip
        if name == "amount":
            await refund(till, orders[name], amount, order=orders[name], refund=f"re-{name}")
    found = await differences(till)
    assert found == {
        ("state", orders["behind"]),
        ("authorised", orders["behind"]),
        ("another intent", orders["twice"]),
        ("unknown to the ledger", "nobody"),
        ("state", orders["elsewhere"]),
        ("authorised", orders["elsewhere"]),
        ("captured", orders["elsewhere"]),
        ("currency", orders["elsewhere"]),
        ("captured", orders["less"]),
        ("authorised", orders["more"]),
        ("unknown to the provider", orders["gone"]),
        # The intent that the ledger forgot.
        ("another intent", orders["gone"]),
        ("another intent", orders["elsewhere"]),
        ("refunded by hand", orders["byhand"]),
        ("unknown to the ledger", orders["less"]),
        ("unknown to the provider", orders["lostrefund"]),
        ("amount", orders["amount"]),
        ("state", orders["amount"]),
    }


async def test_what_is_on_its_way_is_no_difference(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    (order_id,) = await till.orders(1)
    await till.confirm(order_id)
    connection = await asyncpg.connect(till.database_url)
    bodies = await till.heard()
    looked = asyncio.Event()
    real = reconciliation._suspected_refunds

    async def then_the_event_arrives(*arguments: Any) -> Any:
        looked.set()
        return await real(*arguments)

    monkeypatch.setattr(reconciliation, "_suspected_refunds", then_the_event_arrives)
    comparing = asyncio.create_task(
        reconciliation.reconcile(connection, till.provider, await till.now_ms() - DAY_MS, again_s=1)
    )
    await asyncio.wait_for(looked.wait(), 10)
    await till.arrive(bodies)
    async with running(till.events()):
        await until(till.applied, "the event is applied")
    found = await comparing
    await connection.close()
    assert [each for each in found.differences if each.order == order_id] == []


async def test_a_provider_that_is_away_is_no_agreement(till: Till) -> None:
    provider = StripeProvider(API_KEY, f"http://127.0.0.1:{free_port()}", timeout_s=1, return_url="http://shop.test/")
    with pytest.raises(ProviderAway):
        await reconciliation.reconcile(till.ledger, provider, 0, again_s=AGAIN_S)
    await provider.aclose()


async def test_the_command_names_what_differs_and_fails(till: Till) -> None:
    def command(*arguments: str, url: str = till.sandbox.url) -> subprocess.CompletedProcess[str]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")},
            "FLASHSALE_REDIS_URL": till.redis_url,
            "FLASHSALE_DATABASE_URL": till.database_url,
            "FLASHSALE_PAYMENTS_URL": url,
            "FLASHSALE_PAYMENTS_API_KEY": API_KEY,
        }
        return subprocess.run(
            [FLASHSALE, "payments", *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    (order_id,) = await till.orders(1)
    await till.confirm(order_id)
    done = await asyncio.to_thread(command, "reconcile", "--since", "1h", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (1, False)
    mine = [each for each in told["differences"] if each["order"] == order_id]
    assert {each["what"] for each in mine} == {"state", "authorised"}
    done = await asyncio.to_thread(command, "reconcile")
    assert done.returncode == 1
    assert f"state  order {order_id}, {await till.intent(order_id)}: the ledger has open, the provider authorised" in (
        done.stdout
    )
    away = await asyncio.to_thread(command, "reconcile", url=f"http://127.0.0.1:{free_port()}")
    assert (away.returncode, away.stdout) == (1, "")
    assert "the payment provider is away" in away.stderr
    assert (await asyncio.to_thread(command, "reconcile", "--since", "soon")).returncode == 2
