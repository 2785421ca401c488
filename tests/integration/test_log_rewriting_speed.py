"""What a rewriting costs the orders that come meanwhile, and what it saves a Valkey that is killed afterwards.

Prints the figures (`-rP`); FLASHSALE_LOG_ORDERS sets the orders. A shared machine's times prove nothing, so what is
asserted is what holds on any: no id is lost, and less is replayed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from flashsale import merchandising
from flashsale.embedded import ValkeyServer
from flashsale.pipeline.log_rewriting import MIB, LogRewriting
from flashsale.reservation import commands, keys
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.log_rewrite import log_size
from flashsale.sale.order import Line, OrderRequest
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests.integration.shop import FILE, KETTLE, RESERVE, Shop

ORDERS = int(os.environ.get("FLASHSALE_LOG_ORDERS", "20000"))
BATCH = 100  # orders of one call: a crowd's, not a full one's


async def batches(shop: Shop, priced: PricedSale, first: int, count: int) -> list[float]:
    """Takes `count` orders; what each batch's call took, in ms. The journal is trimmed as the writer does it."""
    partition = await commands.read_partition(shop.valkey)
    assert partition is not None
    took = []
    for start in range(first, first + count, BATCH):
        orders = []
        for number in range(start, start + BATCH):
            order = Order()
            order.shopper, order.key = f"shopper-{number}", "k"
            order.request = OrderRequest(sale="sale", market="SG", lines=[Line(sku=KETTLE, quantity=1)])
            priced.identify(order)
            priced.price(order)
            orders.append(order)
        head = [partition.epoch, priced.version, *arguments(orders)]
        began = time.perf_counter()
        answer = await RESERVE.run(shop.valkey, script_keys(0, "sale"), head)
        took.append((time.perf_counter() - began) * 1000)
        assert answer[0] == b"A" * BATCH
        if start % (100 * BATCH) == 0:
            state = await commands.read_partition(shop.valkey)
            assert state is not None
            last = (await shop.valkey.xinfo_stream(keys.journal(0)))["last-generated-id"].decode().split("-")
            mark = (int(last[0]), int(last[1]))
            await commands.trim(shop.valkey, partition=0, epoch=state.epoch, mark=mark, written=state.written)
    return took


def p99(took: list[float]) -> float:
    return sorted(took)[len(took) * 99 // 100]


def back_after_s(server: ValkeyServer) -> float:
    """How long a killed Valkey takes until it answers again."""
    server.kill()
    began = time.monotonic()
    server.start()
    return time.monotonic() - began


@pytest.mark.slow
async def test_a_rewriting_loses_no_order_that_comes_meanwhile_and_saves_the_replay(
    own_valkey: Callable[..., ValkeyServer], ledger: str
) -> None:
    server = own_valkey()
    server.start()
    async with Shop(server.url, ledger, "fsync") as shop:
        assert (await shop.recover()).ok
        text = FILE.format(id="sale").replace("stock = 500", f"stock = {4 * ORDERS}")
        await merchandising.create(shop.valkey, shop.ledger, parse_sale_file(text, "sale.toml"), text)
        sale, version = await shop.sale()
        priced = PricedSale(sale, version)
        taken = ORDERS
        before = await batches(shop, priced, 0, taken)
        size = await log_size(shop.valkey)
        assert size is not None
    replayed_s = back_after_s(server)
    async with Shop(server.url, ledger, "fsync") as shop:
        before = await batches(shop, priced, taken, 100 * BATCH)
        taken += 100 * BATCH
        duty = LogRewriting(server.url, ledger, grown_max_bytes=1 * MIB)
        assert await duty.look(shop.ledger)
        meanwhile: list[float] = []
        while (now := await log_size(shop.valkey)) is not None and (now.busy or not meanwhile):
            meanwhile += await batches(shop, priced, taken, BATCH)
            taken += BATCH
        assert now is not None
        assert now.total < size.total
    rewritten_s = back_after_s(server)
    async with Shop(server.url, ledger, "fsync") as shop:
        assert await shop.valkey.hlen(keys.holds(0, "sale")) == taken
    print(
        f"{ORDERS} orders, log {size.total / MIB:.0f} MiB -> {now.total / MIB:.0f} MiB; back after kill -9 in "
        f"{replayed_s:.2f} s -> {rewritten_s:.2f} s; a batch of {BATCH}: p50/p99 "
        f"{sorted(before)[len(before) // 2]:.2f}/{p99(before):.2f} ms before, "
        f"{sorted(meanwhile)[len(meanwhile) // 2]:.2f}/{p99(meanwhile):.2f} ms meanwhile ({len(meanwhile)} batches)"
    )
