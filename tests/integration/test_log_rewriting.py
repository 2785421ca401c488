"""Valkey's log is rewritten when it is time: what it stands for stays, and a killed Valkey has little to replay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from flashsale import merchandising
from flashsale.embedded import ValkeyServer
from flashsale.pipeline.log_rewriting import LogRewriting, too_long
from flashsale.reservation import keys
from flashsale.reservation.log_rewrite import LogSize, log_size
from tests.integration.shop import KETTLE, Shop
from tests.integration.till import running, until

MIB = 1024 * 1024
IN_A_SALE = 2 * MIB  # a test's order of magnitude; the engine's is a setting
NOISE = 1024  # bytes: written over and over, they are a log without data


@pytest.fixture
async def sale(own_valkey: Callable[..., ValkeyServer], ledger: str) -> AsyncIterator[tuple[ValkeyServer, Shop]]:
    """An open sale with one order, in a Valkey that keeps a log."""
    server = own_valkey()
    server.start()
    async with Shop(server.url, ledger, "fsync") as shop:
        await shop.open()
        assert (await shop.buy("a shopper", (KETTLE, 1)))[0] == "A"
        yield server, shop


def rewriting(shop: Shop, grown_max_bytes: int = IN_A_SALE) -> LogRewriting:
    return LogRewriting(shop.redis_url, shop.database_url, grown_max_bytes=grown_max_bytes, look_s=0.02)


async def grow(shop: Shop, size_bytes: int) -> None:
    async with shop.valkey.pipeline(transaction=False) as many:
        for _ in range(size_bytes // NOISE):
            many.set("noise", b"x" * NOISE)
        await many.execute()
    await shop.valkey.delete("noise")


async def size_of(shop: Shop) -> LogSize:
    found = await log_size(shop.valkey)
    assert found is not None
    return found


async def everything(shop: Shop) -> dict[bytes, Any]:
    """Every key's content; not the signs of life, which come and go."""
    return {name: await shop.valkey.dump(name) async for name in shop.valkey.scan_iter()}


async def test_in_a_sale_a_log_that_grew_by_the_setting_is_rewritten_and_a_killed_valkey_comes_back_whole(
    sale: tuple[ValkeyServer, Shop],
) -> None:
    server, shop = sale
    before = await everything(shop)
    await grow(shop, IN_A_SALE + MIB)
    async with running(rewriting(shop)):

        async def short() -> bool:
            size = await size_of(shop)
            return not size.busy and size.total < MIB

        await until(short, "the log is short")
    server.kill()
    server.start()
    async with Shop(server.url, shop.database_url, "fsync") as again:
        assert await everything(again) == before
        assert keys.holds(0, "sale").encode() in before


async def test_in_a_sale_a_log_that_grew_by_less_is_left_alone(sale: tuple[ValkeyServer, Shop]) -> None:
    _, shop = sale
    await grow(shop, IN_A_SALE + MIB)
    duty = rewriting(shop, grown_max_bytes=2 * IN_A_SALE + 2 * MIB)
    assert not await duty.look(shop.ledger)
    await merchandising.close(shop.valkey, "sale")
    assert not await duty.look(shop.ledger)  # between sales too: what is replayed in a second is worth no fork


async def test_between_sales_a_log_much_longer_than_its_data_is_rewritten_though_a_sale_would_not_have_it(
    sale: tuple[ValkeyServer, Shop],
) -> None:
    _, shop = sale
    await grow(shop, 33 * MIB)
    duty = rewriting(shop, grown_max_bytes=1024 * MIB)
    assert not await duty.look(shop.ledger)
    await merchandising.close(shop.valkey, "sale")
    assert await duty.look(shop.ledger)


async def test_a_valkey_that_forbids_it_is_told_of_once_and_the_duty_goes_on(sale: tuple[ValkeyServer, Shop]) -> None:
    _, shop = sale
    await grow(shop, IN_A_SALE + MIB)
    await shop.valkey.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof")
    with capture_logs() as said:
        duty = rewriting(shop)
        async with running(duty):

            async def told() -> bool:
                return any("does not let its log" in line["event"] for line in said)

            await until(told, "the refusal is told")
            looked = (await shop.valkey.info("commandstats"))["cmdstat_bgrewriteaof"]["rejected_calls"]
        assert looked == 1


@pytest.mark.parametrize(
    ("size", "selling", "expected"),
    [
        (LogSize(200 * MIB, 0, 60 * MIB, False, False), True, True),
        (LogSize(200 * MIB, 0, 300 * MIB, False, False), True, False),  # it would write more than it saves
        (LogSize(200 * MIB, 100 * MIB, 60 * MIB, False, False), True, False),
        (LogSize(200 * MIB, 100 * MIB, 60 * MIB, False, False), False, True),
        (LogSize(200 * MIB, 190 * MIB, 60 * MIB, False, False), False, False),
    ],
)
def test_which_log_is_too_long(size: LogSize, selling: bool, expected: bool) -> None:
    assert too_long(size, selling=selling, grown_max_bytes=192 * MIB) is expected
