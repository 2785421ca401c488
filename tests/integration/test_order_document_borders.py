"""An order across a border, read: what its 201 said, from the journal and from the ledger, and what its quote said."""

from datetime import date
from typing import Any

import orjson

from flashsale import merchandising
from flashsale.front.verdicts import Answers
from flashsale.reservation import commands
from flashsale.reservation.batch import arguments, script_keys
from flashsale.sale.order import from_json
from flashsale.sale.priced import Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from tests.integration.house import RESERVE, House

ACROSS = """
[sale]
id = "across"
name = "Across"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2096-01-01T00:00:00Z
hold_seconds = 900
ships_from = "CN"
[[offers]]
sku = "KETTLE"
brand = "Midea"
title = { en = "Kettle" }
stock = 100
quota = 0
weight_g = 1150
hs_code = "8516.79"
origin = "CN"
guarantees = { lazada-my = 5 }
prices = { SG = "31.90", MY = "99.00" }
[[offers]]
sku = "FRIDGE"
brand = "Haier"
title = { en = "Fridge" }
stock = 100
quota = 2
weight_g = 9000
hs_code = "8418.21"
origin = "CN"
prices = { SG = "899.00", MY = "2919.00" }
"""
CROSSING = ("lane", "shipping", "duty", "tax", "due_on_delivery", "terms", "estimated", "promised_by")


async def _place(house: House, body: dict[str, Any], key: str = "k") -> dict[str, Any]:
    """Takes the order as the hot path does; answers the body of its 201."""
    catalogue = await commands.load_catalogue(house.valkey)
    partition = await commands.read_partition(house.valkey)
    assert catalogue is not None and partition is not None
    sale = catalogue.sale("across")
    assert sale is not None
    seconds, microseconds = await house.valkey.time()
    order = Order()
    order.request = from_json(orjson.dumps(body))
    order.shopper, order.key, order.msgpack = "ann", key, False
    priced = PricedSale(sale, catalogue.version, 0, catalogue.world, seconds * 1000 + microseconds // 1000)
    priced.identify(order)
    priced.price(order)
    answer = await RESERVE.run(
        house.valkey, script_keys(0, "across"), [partition.epoch, catalogue.version, *arguments([order])]
    )
    assert answer[0] == b"A", answer
    created = orjson.loads(Answers().accepted(order, "2026-11-10T16:15:00.123Z").partition(b"\r\n\r\n")[2])
    assert isinstance(created, dict)
    return created


async def test_an_order_is_read_as_it_was_quoted_and_answered(house: House) -> None:
    await merchandising.create(house.valkey, house.ledger, parse_sale_file(ACROSS, "across.toml"), ACROSS)
    for market, channel in (("SG", "tmall-world"), ("MY", "lazada-my")):
        lines = [{"sku": "KETTLE", "quantity": 3}, {"sku": "FRIDGE", "quantity": 1}]
        body = {"sale": "across", "market": market, "channel": channel, "lines": lines}
        quote = await house.post("/v1/quotes", body)
        created = await _place(house, body, market)
        assert {name: created[name] for name in (*CROSSING[:-1], "total")} == {
            name: quote[name] for name in (*CROSSING[:-1], "total")
        }
        assert created["promised_by"] == quote["lanes"][0]["promise"]["by"]

        path, ann = f"/v1/orders/{created['id']}", house.token("ann")
        in_journal = await house.get(path, **ann)
        await house.settle()
        for read in (in_journal, await house.get(path, **ann)):
            assert {name: read[name] for name in CROSSING} == {name: created[name] for name in CROSSING}
            assert read["total"] == created["total"]
            taxed = [{name: line[name] for name in ("sku", "duty", "tax")} for line in read["lines"]]
            assert taxed == [{name: line[name] for name in ("sku", "duty", "tax")} for line in quote["lines"]]
            assert "restated_by" not in read and "agent" not in read


async def test_a_promise_made_anew_stands_beside_the_first_and_an_agent_is_named(house: House) -> None:
    await merchandising.create(house.valkey, house.ledger, parse_sale_file(ACROSS, "across.toml"), ACROSS)
    body = {"sale": "across", "market": "SG", "lines": [{"sku": "KETTLE", "quantity": 1}]}
    created = await _place(house, body)
    await house.settle()
    await house.ledger.execute(
        "UPDATE orders SET restated_by = $1, agent = 'helpful' WHERE id = $2", date(2097, 1, 2), created["id"]
    )
    read = await house.get(f"/v1/orders/{created['id']}", **house.token("ann"))
    assert (read["promised_by"], read["restated_by"]) == (created["promised_by"], "2097-01-02")
    assert read["agent"] == "helpful"


async def test_an_order_that_crosses_no_border_says_so(house: House) -> None:
    await house.create_sale(("A", 'SG = "899.00", TH = "18990"'))
    order = await house.order("ann", ("A", 1))
    read = await house.get(f"/v1/orders/{order.id}", **house.token("ann"))
    nothing = {"amount": 0, "currency": "SGD"}
    assert (read["lane"], read["promised_by"], read["estimated"]) == (None, None, False)
    assert read["shipping"] == read["duty"] == read["tax"] == nothing
    assert read["due_on_delivery"] == {"duty": nothing, "tax": nothing}
    assert "duty" not in read["lines"][0]
