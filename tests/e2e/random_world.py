"""Orders drawn at random over markets, channels, lanes, agents and importers, and what became of each."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import msgpack
from msgspec.structs import replace

from flashsale.front.auth import mint
from flashsale.front.identities import IdentityTokens
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.world import World
from tests.conftest import Engine
from tests.wire import Answer, ask, post, post_order

TIGHT = "tight"
DEMO = "double11"
PRICES = {
    "SG": "20.00", "MY": "60.00", "TH": "500", "VN": "400000", "PH": "900", "ID": "250000",
    "HK": "120.00", "TW": "500", "JP": "2500", "KR": "22000", "AU": "25.00",
}  # fmt: skip
IN_FLIGHT = 50
CHANNEL_SHARE, AGENT_SHARE, IMPORT_SHARE = 0.35, 0.1, 0.15
MSGPACK = "application/msgpack"
FINAL = frozenset({201, 403, 404, 409, 422})  # 404: the SKU is not in this market


def _offer(sku: str, stock: int, quota: int, weight_g: int, prices: dict[str, str], more: str = "") -> str:
    sold = ", ".join(f'{market} = "{price}"' for market, price in prices.items())
    hs_code, origin = ("910221", "JP") if "CN" in prices else ("851712", "CN")
    return (
        f'[[offers]]\nsku = "{sku}"\nbrand = "Shop"\ntitle = {{ en = "{sku}" }}\nstock = {stock}\nquota = {quota}\n'
        f'weight_g = {weight_g}\nhs_code = "{hs_code}"\norigin = "{origin}"\nprices = {{ {sold} }}\n{more}\n'
    )


def tight_sale(orders: int) -> str:
    """A sale's file in which every limit is reached by that many orders."""
    owned = "guarantees = { lazada-sg = 6, lazada-my = 5, lazada-th = 4, lazada-id = 3, lazada-ph = 2, aliexpress = 3 }"
    return (
        f'[sale]\nid = "{TIGHT}"\nname = "Tight"\nopens_at = 2020-01-01T00:00:00Z\ncloses_at = 2099-01-01T00:00:00Z\n'
        'ships_from = "CN"\nhold_seconds = 900\n'
        + _offer("PLENTY", 10**7, 0, 400, PRICES)
        + _offer("SCARCE", max(5, orders // 40), 0, 400, PRICES)
        + _offer("ONE-EACH", 10**6, 1, 400, PRICES)
        + _offer("HEAVY", 10**6, 0, 40_000, PRICES)
        + _offer("OWNED", 40, 0, 400, PRICES, owned)
        + _offer("WATCH", 10**6, 0, 450, {"CN": "6480.00"}, "guarantees = { tmall-global = 9 }")
    )


def tight_lanes(orders: int) -> dict[str, int]:
    """The parcels a day of those lanes that have room for few of the orders."""
    few = max(3, orders // 100)
    return {"freight-forward": few, "sf-bonded": few, "tmall-supermarket-hk": few, "ems-parcel": 3 * few}


def tightened(world: World, orders: int) -> World:
    """The world with those lanes."""
    few = tight_lanes(orders)
    lanes = tuple(replace(lane, capacity=few.get(lane.id, lane.capacity)) for lane in world.lanes.lanes)
    return replace(world, lanes=replace(world.lanes, lanes=lanes))


def demo_text() -> str:
    return files("flashsale.sale").joinpath("double11.toml").read_text(encoding="utf-8")


@dataclass(slots=True)
class Placed:
    """One order: who sends what, and each answer's status, problem and document."""

    body: dict[str, Any]
    channel: str  # of whose batch; "": by itself
    shopper: str
    agent: str = ""
    key: str = ""
    statuses: list[int] = field(default_factory=list)
    problem: str = ""
    first: dict[str, Any] | None = None


class RandomWorld:
    """Draws, sends and remembers."""

    def __init__(self, engine: Engine, catalogue: Catalogue, seed: int, orders: int) -> None:
        self.engine, self.dice, self.count = engine, random.Random(seed), orders
        self.placed: list[Placed] = []
        self.faults: list[str] = []
        self._secret = (engine.data_dir / "secret").read_bytes().strip()
        self._identities = IdentityTokens(self._secret)
        self._tokens: dict[tuple[str, str], str] = {}
        self.world = catalogue.world
        self._skus: dict[tuple[str, str], list[str]] = {}
        self._supermarket: set[str] = set()
        for name in (DEMO, TIGHT):
            sale = catalogue.sale(name)
            assert sale is not None
            for sku, offer in sale.by_sku.items():
                if offer.service:
                    self._supermarket.add(sku)
                for market in offer.prices:
                    self._skus.setdefault((name, market), []).append(sku)
        self.markets = sorted({market for name, market in self._skus if name == DEMO})
        self.lanes = {
            market: [lane.id for lane in self.world.lanes.lanes if market in lane.routes] for market in self.markets
        }
        self._accounts = max(20, orders // 8)

    def token(self, role: str, sub: str) -> str:
        if (role, sub) not in self._tokens:
            self._tokens[role, sub] = next(mint(self._secret, sub, role, 3600, int(time.time())))
        return self._tokens[role, sub]

    # --- drawing ---

    def _draw(self, number: int) -> Placed:
        dice = self.dice
        draw = dice.random()
        if draw < IMPORT_SHARE:
            return self._import(number, "" if dice.random() < 0.6 else "tmall-global")
        shopper = f"s{dice.randrange(self._accounts)}"
        market = dice.choice([each for each in self.markets if each != "CN"])
        if draw < IMPORT_SHARE + CHANNEL_SHARE:
            channel = dice.choice([each for each in self.world.channels if each.kind != "import"])
            if channel.markets and dice.random() < 0.97:
                market = dice.choice(sorted(channel.markets))
            return Placed(self._body(market), channel.id, shopper, key=f"r{number}")
        if draw < IMPORT_SHARE + CHANNEL_SHARE + AGENT_SHARE:
            # Recipients of odd numbers never granted anything.
            return Placed(
                self._body(market) | {"for": shopper}, "", shopper, f"agent-{dice.randrange(3)}", f"k{number}"
            )
        return Placed(self._body(market), "", shopper, key=f"k{number}")

    def _import(self, number: int, channel: str) -> Placed:
        dice = self.dice
        person = dice.randrange(max(3, self.count // 60))
        shopper = f"imp{person}-{dice.randrange(4)}"
        body = self._body("CN")
        owner = f"{channel}\x1f{shopper}" if channel else shopper
        if dice.random() < 0.9:
            body["identity"] = self._identities.issue(owner, b"person%04d" % person)
        if not channel:
            body["channel"] = "tmall-global"
        return Placed(body, channel, shopper, key=f"i{number}")

    def _body(self, market: str) -> dict[str, Any]:
        dice = self.dice
        sale = TIGHT if (TIGHT, market) in self._skus and dice.random() < 0.5 else DEMO
        known = self._skus[sale, market]
        if market == "HK" and sale == DEMO and dice.random() < 0.5:
            known = [sku for sku in known if sku in self._supermarket] or known
        skus = dice.sample(known, min(len(known), dice.choice((1, 1, 1, 2))))
        if dice.random() < 0.02:
            skus = [
                dice.choice(
                    self._skus[sale, dice.choice([each for each in self.markets if (sale, each) in self._skus])]
                )
            ]
        body: dict[str, Any] = {
            "sale": sale,
            "market": market,
            "lines": [{"sku": sku, "quantity": dice.choice((1, 1, 1, 2))} for sku in skus],
        }
        if dice.random() < 0.6:
            body["lane"] = dice.choice(self.lanes[market])
        if dice.random() < 0.01:
            body["lane"] = "pigeon"
        return body

    # --- sending ---

    async def run(self) -> None:
        """Grants, then all orders, so many requests in flight."""
        grants = [
            (f"s{number}", f"agent-{agent}") for number in range(0, self._accounts, 2) for agent in range(3)
        ]  # fmt: skip
        room = asyncio.Semaphore(IN_FLIGHT)

        async def grant(recipient: str, agent: str) -> None:
            body = json.dumps({"agent": agent}).encode()
            async with room:
                (answer,) = await ask(
                    self.engine.port, post("/v1/shoppers/me/grants", body, self.token("shopper", recipient))
                )
            assert answer.status == 201, answer

        await asyncio.gather(*(grant(*each) for each in grants))
        waiting: dict[str, list[Placed]] = {}
        requests: list[list[Placed]] = []
        for number in range(self.count):
            placed = self._draw(number)
            self.placed.append(placed)
            if not placed.channel:
                requests.append([placed])
                continue
            batch = waiting.setdefault(placed.channel, [])
            batch.append(placed)
            if self.dice.random() < 0.08:  # a batch of 12 on average
                requests.append(waiting.pop(placed.channel))
        requests += waiting.values()
        for placed in self.placed:
            if placed.channel and self.dice.random() < 0.4:
                placed.body["collected_by"] = "channel"
        again = [each for each in requests if self.dice.random() < 0.1]
        await asyncio.gather(*(self._within(room, each) for each in requests + again))

    async def _within(self, room: asyncio.Semaphore, batch: list[Placed]) -> None:
        async with room:
            await self.send(batch)

    async def send(self, batch: list[Placed]) -> None:
        """Sends these, of one channel or one alone, and judges each answer."""
        packed = self.dice.random() < 0.5
        channel = batch[0].channel
        if not channel:
            (placed,) = batch
            who = self.token("agent", placed.agent) if placed.agent else self.token("shopper", placed.shopper)
            body = msgpack.packb(placed.body) if packed else json.dumps(placed.body).encode()
            kind = MSGPACK if packed else "application/json"
            (answer,) = await ask(self.engine.port, post_order(body, who, placed.key, kind))
            self._judge(placed, answer.status, _said(answer))
            return
        whole = {"orders": [each.body | {"reference": each.key, "shopper": each.shopper} for each in batch]}
        body = msgpack.packb(whole) if packed else json.dumps(whole).encode()
        kind = MSGPACK if packed else "application/json"
        path = f"/v1/channels/{channel}/orders"
        (answer,) = await ask(self.engine.port, post(path, body, self.token("channel", channel), kind))
        assert answer.status == 200, answer
        results = _said(answer)["results"]
        assert [each["reference"] for each in results] == [each.key for each in batch]
        for placed, result in zip(batch, results, strict=True):
            self._judge(placed, result["status"], result.get("order") or result["problem"])

    def _judge(self, placed: Placed, status: int, said: dict[str, Any]) -> None:
        placed.statuses.append(status)
        if status == 201:
            lasting = {
                name: said[name] for name in ("id", "lines", "total", "shipping", "duty", "tax", "lane", "promised_by")
            }
            if placed.first is None:
                placed.first = lasting
            elif placed.first != lasting:
                self.faults.append(f"{placed.key}: first {placed.first}, then {lasting}")
            return
        placed.problem = str(said["type"]).rpartition("/")[2]
        if placed.first is not None or status not in FINAL:
            self.faults.append(f"{placed.key} {placed.statuses} {placed.body}: {said}")

    # --- what was seen ---

    @property
    def accepted(self) -> list[Placed]:
        return [each for each in self.placed if each.first is not None]

    def counts(self) -> dict[str, Counter[str]]:
        """Accepted orders by market, channel and lane, and refusals by kind."""
        taken = self.accepted
        return {
            "market": Counter(each.body["market"] for each in taken),
            "channel": Counter(each.channel or each.body.get("channel", "tmall-world") for each in taken),
            "batched by": Counter(each.channel for each in taken if each.channel),
            "lane": Counter(each.first["lane"] for each in taken if each.first),
            "agent": Counter(each.agent for each in taken if each.agent),
            "refused": Counter(each.problem for each in self.placed if each.first is None),
        }


def _said(answer: Answer) -> dict[str, Any]:
    if answer.headers["content-type"] == MSGPACK:
        return dict(msgpack.unpackb(answer.body))
    return dict(answer.json())
