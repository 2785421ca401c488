"""A next-day order to Hong Kong through the pages: paid behind its cut-off, shipped, delivered, counted."""

from __future__ import annotations

import time
from datetime import date
from typing import Any

import orjson

from flashsale import merchandising
from flashsale.ledger import life, orders
from flashsale.reservation import commands
from flashsale.reservation.batch import arguments, script_keys
from flashsale.sale.order import OrderRequest, from_json
from flashsale.sale.payment import IntentState, PaymentFact
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from flashsale.sale.writing import day_text
from tests.integration.house import RESERVE, House
from tests.integration.parcels import FILE, NOODLES, cutoff_ms, lane_of


async def ordered(house: House) -> Order:
    """Ada's noodles, in the ledger."""
    await merchandising.create(house.valkey, house.ledger, parse_sale_file(FILE, "sale.toml"), FILE)
    catalogue, partition = await commands.load_catalogue(house.valkey), await commands.read_partition(house.valkey)
    assert catalogue is not None and partition is not None
    sale = catalogue.sale("sale")
    assert sale is not None
    order = Order()
    body = {"sale": "sale", "market": "HK", "channel": "tmall-world", "lines": [{"sku": NOODLES, "quantity": 1}]}
    request = from_json(orjson.dumps(body))
    assert isinstance(request, OrderRequest)
    order.request, order.shopper, order.key = request, "ada", "k"
    priced = PricedSale(sale, catalogue.version, 0, catalogue.world, time.time_ns() // 1_000_000)
    priced.identify(order)
    priced.price(order)
    values = [partition.epoch, catalogue.version, *arguments([order])]
    answer = await RESERVE.run(house.valkey, script_keys(0, "sale"), values)
    assert answer[0] == b"A", answer
    await house.settle()
    return order


async def test_both_dates_are_read_and_the_delivery_counts(house: House) -> None:
    order = await ordered(house)
    path, ada, boss = f"/v1/orders/{order.id}", house.token("ada"), house.token("boss", "admin")
    before = await house.get(path, **ada)
    assert "restated_by" not in before and "by" not in before["next"]
    row = await orders.find(house.ledger, order.id)
    assert row is not None and row.dispatch_day is not None
    async with house.ledger.transaction():
        _, payment = await life.begin_payment(house.ledger, order.id, "card", None, row.journal_ms, 60_000)
        paid = PaymentFact(
            *(order.id, "pi_1", IntentState.AUTHORISED, "card", payment.amount, 0, None, None, None), source="test"
        )
        await life.apply_facts(house.ledger, [paid], cutoff_ms(lane_of("tmall-supermarket-hk"), row.dispatch_day))
    read = await house.get(path, **ada)
    assert read["promised_by"] == before["promised_by"] < read["restated_by"] == read["next"]["by"]
    both = {name: read[name] for name in ("promised_by", "restated_by")}
    assert read["history"][-1]["detail"] == {"method": "card", "source": "test", **both}
    assert "by_text" not in read["next"]
    shown = await house.get(path, **ada, **{"Accept-Language": "zh-HK"})
    assert shown["next"]["by_text"] == day_text(date.fromisoformat(read["restated_by"]), "zh-HK")
    assert "截單時間" in shown["next"]["why"]
    (listed,) = (await house.get("/v1/shoppers/me/orders", **ada))["orders"]
    assert {name: listed[name] for name in both} == both

    await house.post(f"{path}/shipment", {}, **boss)
    shipped = await house.get(path, **ada)
    assert shipped["next"]["by"] == read["restated_by"]
    done: dict[str, Any] = await house.post(f"{path}/delivery", {"delivered": True}, **boss)
    assert "by" not in done["next"]
    (counted,) = (await house.get("/v1/lanes/promises", **boss))["promises"]
    assert (counted["lane"], counted["country"]) == ("tmall-supermarket-hk", "HK")
    assert (counted["deliveries"], counted["on_time"], counted["alert"]) == (1, 1, False)
