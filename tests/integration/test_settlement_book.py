"""The settlement book over real lives of orders: it adds up to the payments, and each merchant reads its own."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from flashsale.ledger import life, settlement
from flashsale.ledger.pool import Connection
from flashsale.sale.settlement import PLATFORM, day_of, day_span_ms
from tests.integration.house import House

SALE = """
[sale]
id = "night"
name = "The night"
opens_at = 2020-01-01T00:00:00Z
closes_at = 2096-01-01T00:00:00Z
hold_seconds = 900
"""
OFFER = """
[[offers]]
sku = "{sku}"
brand = "B"
title = {{ en = "{sku}" }}
stock = 1000
quota = 0
weight_g = 1
prices = {{ SG = "{price}" }}
{merchant}
"""
OFFERS = (("LAMP", "9.99", 'merchant = "lux"'), ("DESK", "100.01", 'merchant = "dim"'), ("OWN", "1.00", ""))


async def opened(house: House) -> None:
    from flashsale import merchandising
    from flashsale.sale.salefile import parse_sale_file

    text = SALE + "".join(OFFER.format(sku=sku, price=price, merchant=merchant) for sku, price, merchant in OFFERS)
    await merchandising.create(house.valkey, house.ledger, parse_sale_file(text, "night.toml"), text)


async def book(connection: Connection, now_ms: int | None = None) -> None:
    merchants = settlement.Merchants()
    now_ms = now_ms or int(time.time() * 1000)
    while await settlement.book(connection, merchants, rows=3, now_ms=now_ms):
        pass


async def booked(connection: Connection) -> dict[str, int]:
    rows = await connection.fetch("SELECT merchant, sum(amount)::int8 FROM settlement_entry GROUP BY merchant")
    return {merchant: amount for merchant, amount in rows if amount}


async def ship(house: House, order_id: str) -> None:
    """The parcel leaves, and the card is charged what is due."""
    now_ms = int(time.time() * 1000)
    async with house.ledger.transaction():
        await life.ship(house.ledger, order_id, None, now_ms)
    await capture(house, order_id)


async def capture(house: House, order_id: str) -> None:
    """What the provider tells when it has taken what was asked for."""
    from flashsale.ledger import payments
    from flashsale.sale.payment import IntentState, PaymentFact

    payment = await payments.find(house.ledger, order_id)
    assert payment is not None and payment.todo_amount is not None
    now_ms = int(time.time() * 1000)
    fact = PaymentFact(
        *(order_id, f"pi_{order_id}", IntentState.CAPTURED, "card", payment.authorised, payment.todo_amount),
        capture_before_ms=None, failure=None, attempt=None, source="test",
    )  # fmt: skip
    async with house.ledger.transaction():
        await life.apply_facts(house.ledger, [fact], now_ms)


async def test_money_is_whose_goods_it_was_paid_for(house: House) -> None:
    await opened(house)
    order = await house.order("ann", ("LAMP", 2), ("DESK", 1), ("OWN", 3))
    await house.settle()
    await house.pay(order.id)
    await book(house.ledger)
    assert await booked(house.ledger) == {}  # authorised is not captured
    await ship(house, order.id)
    await book(house.ledger)
    assert await booked(house.ledger) == {"lux": 1998, "dim": 10001, "house": 300}
    before = await house.ledger.fetch("SELECT * FROM settlement_entry ORDER BY merchant")
    await house.ledger.execute("UPDATE settlement_mark SET tx = '0'::xid8")
    await book(house.ledger)  # booked again from the start: nothing is booked twice
    assert await house.ledger.fetch("SELECT * FROM settlement_entry ORDER BY merchant") == before


async def test_the_book_adds_up_to_the_payments_and_a_past_day_stays(house: House) -> None:
    await opened(house)
    orders = [await house.order(f"s{n}", ("LAMP", 1 + n % 2), ("DESK", 1), key=f"k{n}") for n in range(6)]
    await house.settle()
    for order in orders:
        await house.pay(order.id)
    for order in orders[:4]:
        await ship(house, order.id)
    now_ms = int(time.time() * 1000)
    await book(house.ledger, now_ms)
    day = day_of(now_ms)
    first = await settlement.totals(house.ledger, "lux", *day_span_ms(day))

    tomorrow = day_span_ms(day + timedelta(days=1))[0]
    for order in orders[:2]:  # goodwill: given back in proportion
        async with house.ledger.transaction():
            await life.refund_goodwill(house.ledger, order.id, 500, "scratched", now_ms)
    await house.ledger.execute(
        "UPDATE payment SET refunded = refunded + refunding, refunding = 0 WHERE refunding > 0"
    )  # the provider has sent it back; the history has the request's entry
    await house.ledger.execute(
        "INSERT INTO history (order_id, number, at_ms, event, status, payment)"
        " SELECT order_id, 90, $1, 'refund.succeeded', 'shipped', 'part_refunded' FROM payment WHERE refunded > 0",
        now_ms,
    )
    await book(house.ledger, tomorrow)
    assert await settlement.totals(house.ledger, "lux", *day_span_ms(day)) == first
    (second,) = await settlement.totals(house.ledger, "lux", *day_span_ms(day + timedelta(days=1)))
    assert second.refunds > 0 and second.sales == 0
    kept = await house.ledger.fetchval("SELECT sum(captured - refunded)::int8 FROM payment")
    assert sum((await booked(house.ledger)).values()) == kept
    # A clock that is set back books nothing into a day that is over.
    await house.ledger.execute(
        "INSERT INTO history (order_id, number, at_ms, event, status, payment) VALUES ($1, 91, $2, 'x', 'paid', 'x')",
        orders[5].id, now_ms,
    )  # fmt: skip
    await house.ledger.execute("UPDATE payment SET captured = 100 WHERE order_id = $1", orders[5].id)
    await book(house.ledger, now_ms)
    assert await settlement.totals(house.ledger, "lux", *day_span_ms(day)) == first


async def test_what_a_channel_collected_is_settled_and_what_it_gives_back_is_taken(house: House) -> None:
    await opened(house)
    order = await house.order("ann", ("LAMP", 2), ("DESK", 1))
    await house.settle()
    await house.ledger.execute("UPDATE orders SET collected = true, status = 'paid', payment = 'captured', changes = 2")
    await house.ledger.execute(
        "INSERT INTO history (order_id, number, at_ms, event, status, payment)"
        " VALUES ($1, 2, 0, 'order.paid', 'paid', 'captured')",
        order.id,
    )
    await book(house.ledger)
    assert await booked(house.ledger) == {"lux": 1998, "dim": 10001}
    async with house.ledger.transaction():
        await life.cancel(house.ledger, order.id, [(0, 1)], int(time.time() * 1000))
    await book(house.ledger)
    assert await booked(house.ledger) == {"lux": 999, "dim": 10001}


async def test_a_merchant_reads_its_own_day_and_no_other_s(house: House) -> None:
    await opened(house)
    for number in range(3):
        order = await house.order(f"s{number}", ("LAMP", 1), ("DESK", 1), key=f"k{number}")
        await house.settle()
        await house.pay(order.id)
        await ship(house, order.id)
    await book(house.ledger)
    day = day_of(int(time.time() * 1000)).isoformat()
    path = f"/v1/merchants/lux/settlement?day={day}"
    own = house.token("lux", "merchant")
    body = await house.get(path, **own)
    assert body["totals"] == [
        {"currency": "SGD", "orders": 3, "units_sold": 3, "units_returned": 0,
         "sales": {"amount": 2997, "currency": "SGD"}, "refunds": {"amount": 0, "currency": "SGD"},
         "net": {"amount": 2997, "currency": "SGD"}}
    ]  # fmt: skip
    assert body["complete"] is False
    page = await house.get(f"{path}&limit=2", **own)
    rest = await house.get(page["next"], **own)
    assert page["entries"] + rest["entries"] == body["entries"]
    await house.get(path, 404, **house.token("dim", "merchant"))
    await house.get(path, 403, **house.token("ann"))
    assert (await house.get(path, **house.token("root", "admin")))["totals"] == body["totals"]
    platform = await house.get(f"/v1/merchants/{PLATFORM}/settlement?day={day}", **house.token("root", "admin"))
    assert platform["totals"] == []
    await house.get("/v1/merchants/lux/settlement?day=yesterday", 400, **own)


@pytest.mark.parametrize("falsified", ["UPDATE settlement_entry SET amount = amount + 1 WHERE merchant = 'lux'",
                                       "DELETE FROM settlement_entry WHERE merchant = 'dim'"])  # fmt: skip
async def test_the_audit_compares_the_book_with_the_payments(house: House, falsified: str) -> None:
    from flashsale.audit import settlement as check

    await opened(house)
    order = await house.order("ann", ("LAMP", 1), ("DESK", 1))
    await house.settle()
    await house.pay(order.id)
    await ship(house, order.id)
    await book(house.ledger)

    class Look:
        ledger = house.ledger
        found: list[str] = []  # noqa: RUF012

        def fault(self, invariant: str, detail: str, **where: object) -> None:
            self.found.append(detail)

        def sale_id(self, number: int) -> str:
            return str(number)

    look = Look()
    await check.check(look)  # type: ignore[arg-type]
    assert look.found == []
    await house.ledger.execute(falsified)
    await check.check(look)  # type: ignore[arg-type]
    assert len(look.found) == 1 and "settled" in look.found[0]
