"""Every order of a crowd of payers, judged from outside: its page, the ledger, the sandbox's own books, the stock.

The amount due is worked out here again, from the page alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import asyncpg

from tests.conftest import Engine
from tests.payers import OVER, Lived, Payers, supplies

QUIET_WITHIN_S = 60.0
BACK_WITHIN_S = 30.0
_TO_DO = {
    "holds": "SELECT count(*) FROM orders WHERE status = 'reserved' AND sale = $1",
    "outbox": "SELECT count(*) FROM outbox WHERE $1::int4 IS NOT NULL",
    "calls": "SELECT count(*) FROM payment WHERE todo IS NOT NULL AND sale = $1",
    "late": "SELECT count(*) FROM payment WHERE late = 'asked' AND sale = $1",
    "refunds": "SELECT count(*) FROM refund WHERE status = 'pending' AND $1::int4 IS NOT NULL",
    "jobs": "SELECT count(*) FROM pgqueuer WHERE $1::int4 IS NOT NULL",
}
_COUNTED = {
    "orders": "SELECT count(*) FROM orders WHERE sale = $1",
    "payments": "SELECT count(*) FROM payment WHERE authorised > 0 AND sale = $1",
    "refunds": "SELECT count(*) FROM refund WHERE $1::int4 IS NOT NULL",
    "late payments": "SELECT count(*) FROM history WHERE event = 'payment.late' AND $1::int4 IS NOT NULL",
    "late, taken again": "SELECT count(*) FROM payment WHERE late = 'taken' AND sale = $1",
    "late, refused": "SELECT count(*) FROM payment WHERE late = 'refused' AND sale = $1",
    "expiries": "SELECT count(*) FROM history WHERE event = 'order.expired' AND $1::int4 IS NOT NULL",
    "cancellations": "SELECT count(*) FROM history WHERE event LIKE 'order.%cancelled' AND $1::int4 IS NOT NULL",
    "shipments": "SELECT count(*) FROM history WHERE event = 'order.shipped' AND $1::int4 IS NOT NULL",
    "returns": "SELECT count(*) FROM history WHERE event = 'return.received' AND $1::int4 IS NOT NULL",
}


async def connect(engine: Engine) -> asyncpg.Connection:
    """To the engine's ledger, as soon as that is up."""
    deadline = time.monotonic() + BACK_WITHIN_S
    while True:
        running = json.loads((engine.data_dir / "run.json").read_text())
        try:
            return await asyncpg.connect(running["postgres"]["address"])
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


async def quiet(engine: Engine, payers: Payers, within_s: float = QUIET_WITHIN_S) -> None:
    """Returns when nothing is left to do for anybody."""
    deadline = time.monotonic() + within_s
    ledger = await connect(engine)
    try:
        number = await ledger.fetchval("SELECT number FROM sale WHERE id = $1", payers.sale)
        while True:
            left = {what: await ledger.fetchval(query, number) for what, query in _TO_DO.items()}
            waiting = await payers.waiting_at_sandbox()
            if not any(left.values()) and not waiting:
                return
            assert time.monotonic() < deadline, f"not quiet within {within_s} s: {left}, {waiting} events wait"
            await asyncio.sleep(0.2)
    finally:
        await ledger.close()


async def counted(engine: Engine, sale: str) -> dict[str, int]:
    """How often what happened."""
    ledger = await connect(engine)
    try:
        number = await ledger.fetchval("SELECT number FROM sale WHERE id = $1", sale)
        return {what: await ledger.fetchval(query, number) for what, query in _COUNTED.items()}
    finally:
        await ledger.close()


class Books:
    """What the provider has of each order."""

    def __init__(self, intents: list[Any], charges: list[Any], refunds: list[Any]) -> None:
        self.intents: dict[str, list[Any]] = defaultdict(list)
        self.charges: dict[str, list[Any]] = defaultdict(list)
        self.refunds: dict[str, list[Any]] = defaultdict(list)
        order_of = {intent["id"]: intent["metadata"]["order"] for intent in intents}
        for intent in intents:
            self.intents[order_of[intent["id"]]].append(intent)
        for charge in charges:
            self.charges[order_of[charge["payment_intent"]]].append(charge)
        for refund in refunds:
            self.refunds[order_of[refund["payment_intent"]]].append(refund)

    def kept(self, order_id: str) -> int:
        """Money of the order that is with the shop."""
        received = sum(int(intent["amount_received"]) for intent in self.intents[order_id])
        return received - sum(
            int(refund["amount"]) for refund in self.refunds[order_id] if refund["status"] != "failed"
        )

    def authorised(self, order_id: str) -> int:
        """Money that is reserved for the shop and not taken."""
        return sum(int(intent["amount_capturable"]) for intent in self.intents[order_id])


async def judge(engine: Engine, payers: Payers) -> list[str]:
    """Every fault that can be seen of the crowd's orders. Call it when all is quiet."""
    books = Books(*[await payers.listed(kind) for kind in ("payment_intents", "charges", "refunds")])
    ledger = await connect(engine)
    try:
        rows = await ledger.fetch(
            "SELECT o.id, o.status, p.captured, p.refunded, p.authorised, p.released FROM orders AS o"
            " LEFT JOIN payment AS p ON p.order_id = o.id WHERE o.sale = (SELECT number FROM sale WHERE id = $1)",
            payers.sale,
        )
    finally:
        await ledger.close()
    known = {row["id"]: row for row in rows}
    told = {order.id for order in payers.orders}
    faults = []
    if len(rows) != len(known) or known.keys() != told:
        faults.append(f"ledger only: {known.keys() - told}, told only: {told - known.keys()}, {len(rows)} rows")
    faults += [f"an intent of nobody: {order}" for order in books.intents.keys() - told]
    sold: Counter[str] = Counter()
    for order in payers.orders:
        found = await payers.look(order)
        for what in of_order(order, found, books, known[order.id]):
            payers.fault(order, f"{what}; {found['status']} {found['payment']}")
        if found["status"] not in OVER:
            for line in found["lines"]:
                sold[line["sku"]] += line["quantity"] - line.get("cancelled", 0)
            for back in found.get("returns", ()):
                for line in back["lines"]:
                    sold[line["sku"]] -= line.get("restocked", 0)
    return faults + await of_stock(payers, sold) + payers.faults


def of_order(order: Lived, found: Mapping[str, Any], books: Books, row: Mapping[str, Any]) -> list[str]:
    """Faults of one order's money."""
    faults = []
    taken = [charge for charge in books.charges[order.id] if charge["paid"] and charge["captured"]]
    if len(taken) > 1:
        faults.append(f"charged twice: {[charge['id'] for charge in taken]}")
    refunded = Counter(refund["metadata"].get("refund") for refund in books.refunds[order.id])
    if any(count > 1 for count in refunded.values()):
        faults.append(f"refunded twice: {refunded}")
    due, kept, reserved = due_of(found), books.kept(order.id), books.authorised(order.id)
    if found["status"] != row["status"]:
        faults.append(f"the page says {found['status']}, the ledger {row['status']}")
    if found["status"] in ("reserved", *OVER):
        if kept or reserved:
            faults.append(f"{kept} kept and {reserved} reserved at the provider")
    elif reserved:
        if kept or reserved < due or found["status"] != "paid":
            faults.append(f"due {due}, {kept} kept and {reserved} reserved at the provider")
    elif kept != due:
        faults.append(f"due {due}, {kept} kept at the provider")
    if row["captured"] is not None:
        received = sum(intent["amount_received"] for intent in books.intents[order.id])
        back = sum(refund["amount"] for refund in books.refunds[order.id] if refund["status"] == "succeeded")
        open_at_ledger = row["authorised"] - row["captured"] - row["released"]
        if (row["captured"], row["refunded"], open_at_ledger) != (received, back, reserved):
            faults.append(f"the ledger has {dict(row)}, the provider took {received}, gave {back}, reserves {reserved}")
    elif books.intents[order.id]:
        faults.append("an intent that the ledger does not know")
    return faults


def due_of(found: Mapping[str, Any]) -> int:
    """What the shopper owes, by the order's page."""
    if found["status"] in OVER or not any(line["quantity"] > line.get("refunded", 0) for line in found["lines"]):
        return 0
    total = int(found["total"]["amount"])
    return total - sum(line.get("refunded", 0) * int(line["price"]["amount"]) for line in found["lines"])


async def of_stock(payers: Payers, sold: Mapping[str, int]) -> list[str]:
    """Faults of the sale's stock: every unit is available or sold, exactly as the surviving orders say."""
    deadline = time.monotonic() + 5
    while True:
        stock = (await payers.page(f"/v1/sales/{payers.sale}/stock"))["stock"]
        wanted = {
            sku: {"supply": units, "available": units - sold.get(sku, 0), "held": 0, "sold": sold.get(sku, 0)}
            for sku, units in supplies().items()
        }
        if stock == wanted:
            return []
        if time.monotonic() > deadline:  # the page may show what was sold a second ago
            return [f"{sku}: {stock[sku]}, the orders say {wanted[sku]}" for sku in wanted if stock[sku] != wanted[sku]]
        await asyncio.sleep(0.2)


async def retried(payers: Payers, most: int) -> int:
    """First requests of expired orders, and of some others, sent again: each answers 201 with the present status and
    takes nothing; returns how many."""
    before = await payers.page(f"/v1/sales/{payers.sale}/stock")
    some = payers.orders[-most:]
    for order in some:
        status, again = await payers.order(order)
        found = await payers.look(order)
        if (status, again.get("id"), again.get("status")) != (201, order.id, found["status"]):
            payers.fault(order, f"a retry answers {status} {again}, the order is {found['status']}")
    after = await payers.page(f"/v1/sales/{payers.sale}/stock")
    if before["stock"] != after["stock"]:
        payers.faults.append(f"retries moved units: {before['stock']} {after['stock']}")
    return len(some)
