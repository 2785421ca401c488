"""Payments: webhooks confirmed to the paid row, against orders accepted into the ledger, in one engine.

The orders are those of a load just measured. Their payments stand in the ledger as opened at the provider; the webhook
is one that the sandbox sent for a real payment, with another order's ids and its own signature.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from bench.bench import Bench
from bench.engine import Cpu, Engine
from bench.load import CONNECTIONS, order_body, write_plan
from bench.machine import FRONT_CORE, OTHER_CORE, BenchFault, pin, spawn, stop, wait_for

FIGURES = ("payments", "payment-cpu")
WEBHOOKS = Path(__file__).with_name("webhooks.lua")
PATH = "/v1/webhooks/payments"
CONFIRM_S = 300
BACKLOG = str(1 << 30)  # what is measured is the work, not the provider's patience
SKU = "HAIER-FRIDGE-320"


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    """Each repeat: a load of orders until all are in the ledger, then as many webhooks until all are paid."""
    for _ in range(bench.repeat):
        with Engine(bench.new_folder("payments"), payments_backlog_max_bytes=BACKLOG) as engine:
            # Over both loads: a payment is the worker's and PostgreSQL's work more than the front's.
            pin(engine.pids("worker"), FRONT_CORE)
            template = _real_event(bench, engine)
            bench.load_engine(engine, 1)
            orders = bench.load_engine(engine)
            into_ledger = orders.orders / (orders.seen.seconds + orders.behind_s)
            paid, seconds, cpu = _confirm(bench, engine, template)
            micros = cpu.all / paid * 1e6
            rate = paid / seconds
            bench.note(
                "payments", paid=paid, rate=round(rate), orders_rate=round(into_ledger), us=cpu.micros_an_order(paid),
            )  # fmt: skip
            bench.add("payments", rate / into_ledger)
            bench.add("payment-cpu", micros / orders.all_us)


def _confirm(bench: Bench, engine: Engine, template: dict[str, Any]) -> tuple[int, float, Cpu]:
    """Payments confirmed, seconds from the first webhook to the last paid row, CPU of all processes."""
    ids = [row[0] for row in engine.rows("SELECT id FROM orders WHERE sale = (SELECT max(number) FROM sale)")]
    _open_payments(engine)
    plan = _plan(bench, engine, template, ids)
    before, began = engine.cpu(), time.monotonic()
    paid_before = _paid(engine)
    # wrk sends each once, then is silent until it is ended: one that was refused would be missed below.
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{CONFIRM_S}s", "--timeout", "15s", "-s", str(WEBHOOKS)]
    crowd = spawn([*command, f"http://127.0.0.1:{engine.port}", "--", str(plan)], OTHER_CORE, bench.folder / "wrk.log")
    try:
        wait_for(lambda: _paid(engine) - paid_before >= len(ids), CONFIRM_S, "every webhook's order is paid")
    finally:
        stop(crowd)
    took = time.monotonic() - began
    paid = _paid(engine) - paid_before
    return paid, took, engine.cpu().since(before)


def _paid(engine: Engine) -> int:
    return int(engine.rows("SELECT coalesce(sum(units), 0)::int8 FROM sold")[0][0])


def _open_payments(engine: Engine) -> None:
    """The rows that opening a payment leaves, for every order of the last sale."""
    now_ms = int(time.time() * 1000)
    engine.rows(
        "INSERT INTO payment (order_id, sale, method, amount, currency, session_id, provider_id, due_ms, created_ms,"
        " heard_ms) SELECT id, sale, 'card', total, currency, 'cs_' || id, 'pi_' || id, $1::int8 + 3600000, $1, $1"
        " FROM orders WHERE sale = (SELECT max(number) FROM sale)",
        now_ms,
    )
    engine.rows("ANALYZE payment")


def _real_event(bench: Bench, engine: Engine) -> dict[str, Any]:
    """What the sandbox sent when a real order's card was authorised."""
    sale = engine.create_sale(bench.new_sale())
    token = bench.new_tokens(1).read_text().strip()
    status, body = engine.order(token, "template", order_body(sale, SKU))
    if status != 201:
        raise BenchFault(f"the template order was answered {status}: {body.decode(errors='replace')}")
    order = json.loads(body)["id"]
    engine.catch_up()
    payment = _ask(
        f"http://127.0.0.1:{engine.port}/v1/orders/{order}/payment",
        json.dumps({"method": "card"}).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    sandbox = engine.parts["payments_sandbox"]
    secret = {"Authorization": f"Bearer {sandbox['api_key']}"}
    intent = payment["provider_id"]
    _ask(f"{sandbox['address']}/v1/payment_intents/{intent}/confirm", b"payment_method=pm_card_visa", secret)
    kind = "payment_intent.amount_capturable_updated"
    query = urllib.parse.urlencode({"type": kind, "limit": 1})
    event = _ask(f"{sandbox['address']}/v1/events?{query}", None, secret)["data"][0]
    wait_for(lambda: _paid(engine) == 1, CONFIRM_S, "the template's order is paid")
    text = json.dumps(event, separators=(",", ":")).replace(f'"{intent}"', '"pi_ORDER"').replace(order, "ORDER")
    return {"text": text, "secret": sandbox["webhook_secret"]}


def _ask(url: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
    """A POST with a body, else a GET."""
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310  our own addresses
    with urllib.request.urlopen(request, timeout=15) as answer:  # noqa: S310
        document: dict[str, Any] = json.load(answer)
    return document


def _plan(bench: Bench, engine: Engine, template: dict[str, Any], ids: list[str]) -> Path:
    """Signs a webhook an order, now; a signature is good for five minutes."""
    stamp = str(int(time.time()))
    secret, parts = template["secret"].encode(), [part.encode() for part in template["text"].split("ORDER")]
    signed = bench.folder / "signed"
    with signed.open("w") as file:
        for order in (ids[0], *ids):  # wrk looks at a first request that it does not send
            body = order.encode().join(parts)
            mark = hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
            file.write(f"{order} {mark}\n")
    length = len(ids[0].encode().join(parts))
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"Content-Length: {length}\r\nStripe-Signature: t={stamp},v1="
    )
    rest = [part.decode() for part in parts]
    rest[0] = "\r\n\r\n" + rest[0]
    bench.note("webhook", bytes=length, payments=len(ids))
    return write_plan(bench.folder / "webhooks-plan.lua", signed=signed, head=head, parts=rest)
