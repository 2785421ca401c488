"""A crowd of shoppers that live whole lives of orders (order, pay, pay late, cancel, return), and their shop.

Everything goes over HTTP, to the engine and to the payments sandbox's own pages. Whoever gets no final answer
(connection lost, 503, 504) asks again, under the same key. What an answer must not say is noted in `faults`; what was
answered 201 is remembered, for `tests/payers_judged.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from tests.conftest import Engine

LIVES = 20  # shoppers at once
SHOPPERS = 200
HOLD_S, EXTENSION_S = 4, 2
PLENTY, SCARCE = 3, 3  # SKUs with units for everybody, and those that live by what comes back
PLENTY_UNITS, SCARCE_UNITS = 10**6, 12
ANSWER_WITHIN_S = 20.0
LIFE_WITHIN_S = 90.0  # from the order to its last step, whatever is killed meanwhile
POLL_S = 0.4
AGAIN_S = 0.2
METHODS = ("card", "card", "alipay", "grabpay")
OVER = ("expired", "cancelled")
STEPS = ("pay", "wait", "order-again", "send-back", "return", "contact", "nothing")
STATUSES = ("reserved", "paid", "expired", "cancelled", "shipped", "delivered", "undeliverable")
SETTINGS = {
    "FLASHSALE_SWEEP_S": "0.3",
    "FLASHSALE_PROVIDER_GRACE_S": "0.5",
    "FLASHSALE_PAYMENTS_SILENT_S": "2",
    "FLASHSALE_PAYMENTS_TIMEOUT_S": "2",
    "FLASHSALE_EXTENSION_GUARD_S": "0.5",
    "FLASHSALE_RETURN_ORIGINS": '["https://shop.example"]',
}
"""The engine's own for this crowd: short, so that a run sees many of each."""

_OFFER = """
[[offers]]
sku = "{sku}"
brand = "Haier"
title = {{ en = "kettle" }}
stock = {stock}
quota = 0
weight_g = 900
prices = {{ SG = "{price}" }}
"""


def supplies() -> dict[str, int]:
    """Units of each SKU."""
    return {f"PLENTY-{n}": PLENTY_UNITS for n in range(PLENTY)} | {f"SCARCE-{n}": SCARCE_UNITS for n in range(SCARCE)}


def open_sale(engine: Engine, sale: str, directory: Path, hold_s: int = HOLD_S) -> None:
    """Creates the crowd's sale, open, with holds of a few seconds."""
    text = (
        f'[sale]\nid = "{sale}"\nname = "Payers"\nhold_seconds = {hold_s}\nextension_seconds = {EXTENSION_S}\n'
        "opens_at = 2020-01-01T00:00:00Z\ncloses_at = 2099-01-01T00:00:00Z\n"
    )
    for number, (sku, units) in enumerate(supplies().items()):
        text += _OFFER.format(sku=sku, stock=units, price=f"{3 * number + 7}.{number}3")
    file = directory / f"{sale}.toml"
    file.write_text(text)
    engine.command("sale", "create", str(file))


@dataclass(slots=True)
class Lived:
    """One order and what its shopper knows of it."""

    key: str
    shopper: int
    body: dict[str, Any]
    id: str = ""
    reserved_until: str = ""
    keeps: bool = False  # whether its units may stay sold in the end
    seen: list[str] = field(default_factory=list)

    def said(self, what: str) -> None:
        self.seen.append(f"{time.strftime('%H:%M:%S')} {what}")


class Unending(Exception):
    """A step that got no final answer, or a life without an end."""


class Payers:
    """Use as `async with`: orders live from entry to exit; the exit waits until each has come to its end."""

    def __init__(self, engine: Engine, sale: str, seed: int, lives: int = LIVES) -> None:
        self.engine, self.sale = engine, sale
        self.orders: list[Lived] = []
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.dice = random.Random(seed)
        running = json.loads((engine.data_dir / "run.json").read_text())["payments_sandbox"]
        self.sandbox, self._api_key = running["address"], running["api_key"]
        self._tokens = engine.command("token", "shopper", "payer", "--count", str(SHOPPERS)).stdout.split()
        self._admin = engine.token("admin")
        self._lives = lives
        self._numbers = itertools.count(1)
        self._leaving = False
        self._http: aiohttp.ClientSession
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Payers:
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        self._http = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        self._running = [asyncio.create_task(self._shop()) for _ in range(self._lives)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        if error is not None:
            for task in self._running:
                task.cancel()
        ends = await asyncio.gather(*self._running, return_exceptions=True)
        self.faults += [repr(end) for end in ends if isinstance(end, Exception)]
        if error is not None:
            await self._http.close()

    async def aclose(self) -> None:
        """No question after it."""
        await self._http.close()

    def fault(self, order: Lived, what: str) -> None:
        self.faults.append(f"{order.id or order.key}: {what}\n    " + "\n    ".join(order.seen[-30:]))

    # --- asking ---

    async def ask(
        self,
        order: Lived,
        method: str,
        path: str,
        expected: tuple[int, ...],
        body: Any = None,
        *,
        key: str = "",
        admin: bool = False,
    ) -> tuple[int, dict[str, Any]]:
        """The final answer to a step, asked until there is one. Any status but 503, 504 and `expected` is a fault."""
        headers = {"Authorization": f"Bearer {self._admin if admin else self._tokens[order.shopper]}"}
        if key:
            headers["Idempotency-Key"] = key
        deadline = time.monotonic() + LIFE_WITHIN_S
        while time.monotonic() < deadline:
            try:
                async with self._http.request(method, self.engine.url + path, json=body, headers=headers) as answer:
                    status, told = answer.status, await answer.json(content_type=None)
            except (aiohttp.ClientError, OSError, ValueError):
                self.counts["lost answers"] += 1
                await asyncio.sleep(AGAIN_S)
                continue
            except TimeoutError:
                self.fault(order, f"{method} {path}: no answer within {ANSWER_WITHIN_S} s")
                continue
            if status not in (503, 504):
                self.counts["steps"] += method != "GET"
                if method != "GET":
                    problem = str(told.get("type", "")).rpartition("/")[2]
                    order.said(f"{method} {path.removeprefix(f'/v1/orders/{order.id}')} {status} {problem}")
                if status not in expected:
                    self.fault(order, f"{method} {path} {body}: {status} {told}")
                return status, told
            self.counts[str(status)] += 1
            await asyncio.sleep(AGAIN_S)
        raise Unending(f"{order.id}: {method} {path} got no final answer within {LIFE_WITHIN_S} s")

    async def order(self, order: Lived) -> tuple[int, dict[str, Any]]:
        """The order's first request, or its retry."""
        return await self.ask(order, "POST", "/v1/orders", (201, 409), order.body, key=order.key)

    async def look(self, order: Lived) -> dict[str, Any]:
        """The order as its shopper finds it on coming back. It must be in one definite state with a next step."""
        _, found = await self.ask(order, "GET", f"/v1/orders/{order.id}", (200,))
        numbers = [entry["number"] for entry in found["history"]]
        if numbers != list(range(1, len(numbers) + 1)) or found["history"][-1]["status"] != found["status"]:
            self.fault(order, f"its history does not lead to its status: {found['status']}, {found['history']}")
        step = found["next"]
        if found["status"] not in STATUSES or step["do"] not in STEPS or not step["why"]:
            self.fault(order, f"no definite state: {found['status']} {step}")
        if step["do"] in ("pay", "wait", "return", "order-again") and not step.get("href"):
            self.fault(order, f"a step that leads nowhere: {step}")
        return found

    async def at_sandbox(self, order: Lived, path: str, form: dict[str, str]) -> int:
        """What a shopper does at the sandbox, done until it answers; the status."""
        url = path if path.startswith("http") else self.sandbox + path
        headers = {"Authorization": f"Bearer {self._api_key}"} if "/v1/" in url else {}
        deadline = time.monotonic() + LIFE_WITHIN_S
        while time.monotonic() < deadline:
            try:
                async with self._http.post(url, data=form, headers=headers, allow_redirects=False) as answer:
                    await answer.read()
                if answer.status == 503:  # asked through the engine, which says so of a sandbox that is away
                    await asyncio.sleep(AGAIN_S)
                    continue
                order.said(f"sandbox {url.partition('/')[2][-40:]} {form} {answer.status}")
                return answer.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(AGAIN_S)
        raise Unending(f"{order.id}: {url} does not answer")

    async def faults_at_sandbox(self, **faults: float) -> None:
        """Sets the sandbox's faults, as soon as it answers."""
        while True:
            try:
                async with self._http.post(f"{self.sandbox}/sandbox/faults", json=faults) as answer:
                    assert answer.status == 200, await answer.text()
                    return
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(AGAIN_S)

    async def listed(self, kind: str) -> list[dict[str, Any]]:
        """Everything of a kind that the sandbox has: payment_intents, charges, refunds."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            url = f"{self.sandbox}/v1/{kind}?limit=100" + (f"&starting_after={after}" if after else "")
            async with self._http.get(url, headers={"Authorization": f"Bearer {self._api_key}"}) as answer:
                page = await answer.json()
            found += page["data"]
            if not page["has_more"]:
                return found
            after = page["data"][-1]["id"]

    async def waiting_at_sandbox(self) -> int:
        """Webhooks that the sandbox has still to deliver."""
        async with self._http.get(f"{self.sandbox}/sandbox/health") as answer:
            return int((await answer.json())["webhooks_waiting"])

    async def page(self, path: str) -> dict[str, Any]:
        """A page of the shop's."""
        async with self._http.get(self.engine.url + path) as answer:
            return dict(await answer.json())

    # --- a life ---

    async def _shop(self) -> None:
        while not self._leaving:
            order = self.new_order()
            try:
                async with asyncio.timeout(2 * LIFE_WITHIN_S):
                    await self._live(order)
            except (Unending, TimeoutError) as unending:
                self.fault(order, f"no end: {unending!r}")

    def new_order(self) -> Lived:
        dice = self.dice
        scarce = dice.random() < 0.4
        names = [f"{'SCARCE' if scarce else 'PLENTY'}-{n}" for n in dice.sample(range(3), dice.choice((1, 1, 2)))]
        lines = [{"sku": sku, "quantity": dice.randint(1, 3)} for sku in names]
        body = {"sale": self.sale, "market": "SG", "lines": lines}
        number = next(self._numbers)
        return Lived(f"{self.sale}-{number}", number % SHOPPERS, body, keeps=not scarce)

    async def _live(self, order: Lived) -> None:
        status, placed = await self.order(order)
        if status != 201:
            self.counts["sold out"] += 1
            await asyncio.sleep(AGAIN_S)
            return
        order.id, order.reserved_until = placed["id"], placed["reserved_until"]
        self.orders.append(order)
        dice = self.dice
        if dice.random() < 0.1:
            await self.extend(order)
        when = dice.choices(("at once", "never", "at the deadline", "too late"), (10, 2, 3, 3))[0]
        if when == "never" and dice.random() < 0.5:
            await self.begin(order, dice.choice(METHODS))  # the page is opened, and left
        elif when == "at once":
            if dice.random() < 0.1:
                await self.cancel(order, part=True)
            await self.pay(order, dice.choice(METHODS), declined_first=dice.random() < 0.15)
        elif when != "never":
            begun = await self.begin(order, method := dice.choice(METHODS))
            if begun is not None:
                wait_s = self._left_s(order) + (dice.uniform(-0.5, 1.5) if when == "at the deadline" else 0)
                await asyncio.sleep(max(0.0, wait_s))
                if when == "too late":
                    await self._over(order)
                await self.pay_at(order, begun, method)
        if dice.random() < 0.2:
            await self.cancel(order, part=dice.random() < 0.5)
        if dice.random() < 0.15:
            await self.order(order)  # the same again, whatever has become of it
        await self.follow(order, pays=when == "at once")

    async def _over(self, order: Lived) -> None:
        """Returns when the order is not reserved any more."""
        while (await self.look(order))["status"] == "reserved":  # noqa: ASYNC110  somebody else's state
            await asyncio.sleep(POLL_S)

    def _left_s(self, order: Lived) -> float:
        return datetime.fromisoformat(order.reserved_until).timestamp() - time.time()

    async def begin(self, order: Lived, method: str) -> dict[str, Any] | None:
        """The payment, begun; None where it is too late for that."""
        body = {"method": method}
        if method != "card" and self.dice.random() < 0.7:
            body["return_url"] = "https://shop.example/back"
        status, begun = await self.ask(order, "POST", f"/v1/orders/{order.id}/payment", (201, 409), body)
        return begun if status == 201 else None

    async def pay_at(self, order: Lived, begun: dict[str, Any], method: str, action: str = "pay") -> int:
        """Pays, or declines, where the shopper is sent, or by the provider's own API."""
        self.counts["paying"] += 1
        if method == "card" and self.dice.random() < 0.5:
            name = "pm_card_visa" if action == "pay" else "pm_card_visa_chargeDeclined"
            return await self.at_sandbox(
                order, f"/v1/payment_intents/{begun['provider_id']}/confirm", {"payment_method": name}
            )
        return await self.at_sandbox(order, begun["pay_url"], {"method": method, "action": action})

    async def pay(self, order: Lived, method: str, *, declined_first: bool = False) -> None:
        begun = await self.begin(order, method)
        if begun is None:
            return
        if declined_first:
            await self.pay_at(order, begun, method, "decline")
            begun = await self.begin(order, method)
            if begun is None:
                return
        await self.pay_at(order, begun, method)

    async def extend(self, order: Lived) -> None:
        status, found = await self.ask(order, "POST", f"/v1/orders/{order.id}/extension", (200, 409), {})
        if status == 200:
            order.reserved_until = found["reserved_until"]
            self.counts["extended"] += 1

    async def cancel(self, order: Lived, *, part: bool) -> None:
        body: dict[str, Any] = {}
        if part:
            body["lines"] = [{"sku": order.body["lines"][0]["sku"], "quantity": 1}]
        path, key = f"/v1/orders/{order.id}/cancellation", f"cancel-{next(self._numbers)}"
        await self.ask(order, "POST", path, (200, 409), body, key=key)
        if self.dice.random() < 0.2:
            await self.ask(order, "POST", path, (200, 409), body, key=key)

    # --- to the end ---

    async def follow(self, order: Lived, *, pays: bool = True) -> dict[str, Any]:
        """Takes the next step that the order names, the shop's and the carrier's between them, until there is none."""
        deadline = time.monotonic() + LIFE_WITHIN_S
        asked_back = False
        while time.monotonic() < deadline:
            found = await self.look(order)
            step, status = found["next"]["do"], found["status"]
            if step in ("nothing", "order-again"):
                return found
            if step == "contact":
                self.fault(order, f"left to its shop: {found['next']} {found['payment']} {found.get('refunds')}")
                return found
            if step == "return" and (asked_back or (order.keeps and self.dice.random() < 0.5)):
                return found
            if step == "pay" and pays:
                await self.pay(order, self.dice.choice(METHODS))
            elif step == "return":
                asked_back = await self._send_back(order, found)
                if not asked_back:
                    return found
            elif step == "send-back":
                await self._receive(order, found)
            elif status == "paid":
                if await self._ship(order):
                    continue
                return found
            elif status == "shipped" and step == "wait":
                path = f"/v1/orders/{order.id}/delivery"
                body = {"delivered": self.dice.random() < 0.8}
                await self.ask(order, "POST", path, (200, 409), body, admin=True)
            elif status == "delivered" and step == "wait" and found.get("returns"):
                for back in found["returns"]:
                    if back["status"] == "requested":
                        body = {"accept": self.dice.random() < 0.8 or not order.keeps}
                        await self.ask(
                            order, "POST", f"/v1/returns/{back['id']}/decision", (200, 409), body, admin=True
                        )
            await asyncio.sleep(POLL_S * self.dice.uniform(0.5, 1.5))
        raise Unending(f"{order.id}: {found['status']}, {found['payment']}, still {found['next']}")

    async def _ship(self, order: Lived) -> bool:
        """What the shop does with a paid order; False: it stays paid for good."""
        draw = self.dice.random()
        if not order.keeps and draw < 0.4:
            await self.cancel(order, part=False)
            return True
        if order.keeps and draw < 0.1:
            return False
        lines = None
        if draw > 0.85:
            lines = [{"sku": order.body["lines"][0]["sku"], "quantity": 1}]
        body = {} if lines is None else {"lines": lines}
        path, key = f"/v1/orders/{order.id}/shipment", f"ship-{next(self._numbers)}"
        await self.ask(order, "POST", path, (200, 409), body, key=key, admin=True)
        return True

    async def _send_back(self, order: Lived, found: dict[str, Any]) -> bool:
        whole = not order.keeps or self.dice.random() < 0.5
        lines = []
        for line in found["lines"]:
            units = line.get("shipped", 0) - line.get("returned", 0)
            if units > 0:
                lines.append({"sku": line["sku"], "quantity": units if whole else 1})
        body = {"lines": lines, "reason": "too loud"}
        path, key = f"/v1/orders/{order.id}/returns", f"return-{next(self._numbers)}"
        status, _ = await self.ask(order, "POST", path, (201, 409), body, key=key)
        return status == 201

    async def _receive(self, order: Lived, found: dict[str, Any]) -> None:
        for back in found["returns"]:
            if back["status"] == "accepted":
                restock = not order.keeps or self.dice.random() < 0.5
                lines = [
                    {"sku": line["sku"], "quantity": line["quantity"], "restock": restock} for line in back["lines"]
                ]
                await self.ask(order, "POST", f"/v1/returns/{back['id']}/receipt", (200,), {"lines": lines}, admin=True)
