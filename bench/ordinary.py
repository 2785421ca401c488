"""The ordinary way, the yardstick: aiohttp, PyJWT, orjson and one EVALSHA an order, as a good team would write it.

    python -m bench.ordinary VALKEY_SOCKET PORT SALE_FILE

The same contract of an order as the engine's: identity, prices, quota, idempotency, all or nothing, a stream entry for
those who work downstream, the same full 201. FLASHSALE_SECRET is the tokens' key. It is meant to be fast: what can be
made ready before an order comes is made ready.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jwt
import orjson
import redis.asyncio as redis
import uvloop
from aiohttp import web

CONNECTIONS = 64  # to Valkey: at 256 HTTP connections, 16, 64 and 256 differ by less than the noise
MARKET, CURRENCY, MINOR_UNITS = "SG", "SGD", 100
ISSUER = AUDIENCE = "flashsale"
SCRIPT = Path(__file__).with_name("ordinary.lua").read_text()
PROBLEM = "application/problem+json"


class Sale:
    """A sale's offers in memory, its stock in Valkey."""

    def __init__(self, text: str, sale_id: str) -> None:
        document = tomllib.loads(text)
        self.id = sale_id
        self.hold = timedelta(seconds=document["sale"]["hold_seconds"])
        self.offers: dict[str, dict[str, Any]] = {offer["sku"]: offer for offer in document["offers"]}
        self.prices = {sku: int(Decimal(offer["prices"][MARKET]) * MINOR_UNITS) for sku, offer in self.offers.items()}
        self.keys = [f"{{o}}:{sale_id}:{name}" for name in ("stock", "quota", "holds", "orders")]


def problem(status: int, name: str, **members: Any) -> web.Response:
    body = {"type": f"/problems/{name}", "title": name.replace("-", " "), "status": status, **members}
    return web.Response(status=status, body=orjson.dumps(body), content_type=PROBLEM)


def moment(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Shop:
    def __init__(self, client: redis.Redis, sale: Sale, secret: str) -> None:
        self.client, self.sale, self.secret = client, sale, secret
        self.sha = ""

    async def open(self) -> None:
        stock = {sku: offer["stock"] for sku, offer in self.sale.offers.items()}
        await self.client.hset(self.sale.keys[0], mapping=stock)
        self.sha = await self.client.script_load(SCRIPT)

    def shopper(self, request: web.Request) -> str:
        """The token's subject. Raises jwt.InvalidTokenError."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise jwt.InvalidTokenError
        claims = jwt.decode(token, self.secret, algorithms=["HS256"], issuer=ISSUER, audience=AUDIENCE)
        return str(claims["sub"])

    async def place_order(self, request: web.Request) -> web.Response:
        sale = self.sale
        try:
            shopper = self.shopper(request)
        except jwt.InvalidTokenError:
            return problem(401, "unauthenticated")
        key = request.headers.get("Idempotency-Key", "").strip('"')
        if not key:
            return problem(400, "idempotency-key-missing")
        raw = await request.read()
        try:
            order = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return problem(400, "malformed")
        try:
            if order["sale"] != sale.id:
                return problem(404, "unknown-sale")
            if order["market"] != MARKET:
                return problem(404, "unknown-sku")
            lines = [(str(line["sku"]), int(line["quantity"])) for line in order["lines"]]
        except (KeyError, TypeError, ValueError):
            return problem(422, "invalid-order")
        if not 1 <= len(lines) <= 20 or any(not 1 <= quantity <= 10_000 for _, quantity in lines):
            return problem(422, "invalid-order")

        total, priced, arguments = 0, [], []
        for sku, quantity in lines:
            if (offer := sale.offers.get(sku)) is None:
                return problem(404, "unknown-sku")
            price = sale.prices[sku]
            total += price * quantity
            priced.append({"sku": sku, "quantity": quantity, "price": {"amount": price, "currency": CURRENCY}})
            arguments += (sku, quantity, offer["quota"], f"{shopper}:{sku}")
        order_id = hashlib.blake2b(f"{shopper}\0{key}".encode(), digest_size=15).hexdigest()
        fingerprint = hashlib.blake2b(raw, digest_size=8).hexdigest()
        deadline = moment(datetime.now(UTC) + sale.hold)
        answer = {
            "id": order_id,
            "sale": sale.id,
            "status": "reserved",
            "market": MARKET,
            "channel": order.get("channel", "direct"),
            "lines": priced,
            "total": {"amount": total, "currency": CURRENCY},
            "reserved_until": deadline,
        }
        payload = orjson.dumps({**answer, "shopper": shopper, "key": key})
        outcome = await self.client.evalsha(
            self.sha, len(sale.keys), *sale.keys, order_id, fingerprint + deadline, payload, *arguments
        )
        headers = {"Location": f"/v1/orders/{order_id}"}
        if outcome[0] == b"R":
            hold = outcome[1].decode()
            if hold[:16] != fingerprint:
                return problem(422, "idempotency-mismatch", id=order_id)
            answer["reserved_until"] = hold[16:]
            headers["Idempotent-Replayed"] = "true"
        elif outcome[0] != b"A":
            sku, quantity = lines[outcome[1] - 1]
            if outcome[0] == b"Q":
                quota = sale.offers[sku]["quota"]
                return problem(409, "quota-exceeded", id=order_id, sku=sku, quota=quota, used=outcome[2])
            short = [{"sku": sku, "requested": quantity, "available": outcome[2]}]
            return problem(409, "sold-out", id=order_id, lines=short)
        return web.Response(status=201, body=orjson.dumps(answer), content_type="application/json", headers=headers)


async def make_app(socket: str, sale: Sale) -> web.Application:
    pool = redis.BlockingConnectionPool.from_url(f"unix://{socket}", max_connections=CONNECTIONS)
    shop = Shop(redis.Redis(connection_pool=pool), sale, os.environ["FLASHSALE_SECRET"])
    await shop.open()
    app = web.Application()
    app.router.add_post("/v1/orders", shop.place_order)
    return app


def main() -> None:
    socket, port, sale_file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    sale = Sale(sale_file.read_text(), sale_file.stem)
    uvloop.install()
    web.run_app(make_app(socket, sale), host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main()
