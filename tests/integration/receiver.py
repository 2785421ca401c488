"""For the tests of webhooks out: a receiver on a real socket, a history to tell of, and a worker that tells it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple

import asyncpg
from standardwebhooks import Webhook

from flashsale.ledger import webhook_endpoints, webhooks
from flashsale.ledger.pool import Ledger
from flashsale.partners.outbound import Outbound, networks
from flashsale.pipeline.webhooks import WebhookFanout, WebhookSender, jobs_of, now_ms

LOOPBACK = networks(["127.0.0.0/8"])
SECRET = "whsec_WYMOvDpBhBEFZr8aKQ0IRz39y9SSzkmLFM0aXi+i5EE="
ORDER = "o{:024d}"


class Got(NamedTuple):
    """One request that a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        return Webhook(SECRET).verify(self.body, self.headers)  # type: ignore[no-any-return]

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Behaviour = Callable[["Receiver", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Receiver:
    """Answers every POST with `answer`, or does what `behaviour` does after the request was read."""

    def __init__(self, answer: bytes = OK, behaviour: Behaviour | None = None) -> None:
        self.answer, self.behaviour = answer, behaviour
        self.got: list[Got] = []
        self.connections = 0
        self.open = 0
        self.open_most = 0

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.open_most = max(self.open_most, self.open)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = dict(line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in fields.items()}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.got.append(Got(head[0].split()[1], headers, body))
            if self.behaviour is not None:
                await self.behaviour(self, reader, writer)
            else:
                writer.write(self.answer)
                await writer.drain()
        self.open -= 1
        writer.close()


class Newsroom:
    """A ledger with one order, the buttons that change it, and a worker that is told what to do."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._number = 1

    async def __aenter__(self) -> Newsroom:
        self.connection = await asyncpg.connect(self.url)
        await self.connection.execute(
            "INSERT INTO sale (number, id, key, file) VALUES (1, 'double11', $1, '')", bytes(32)
        )
        await self.order(1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.terminate()

    async def order(self, number: int) -> str:
        await self.connection.execute(
            """INSERT INTO orders (id, sale, shopper, idempotency_key, market, channel, skus, quantities, prices, total,
                                   currency, catalogue_version, fingerprint, hold_ms, partition, journal_ms,
                                   journal_seq)
               VALUES ($1, 1, 'ann', 'k', 'SG', 'web', '{0}', '{1}', '{100}', 100, 'SGD', 1, '\\x00', 1, 0, 1, 0)""",
            ORDER.format(number),
        )
        return ORDER.format(number)

    async def happens(
        self, *events: str, at_ms: int | None = None, connection: Any = None, detail: dict[str, Any] | None = None
    ) -> None:
        """Changes of the order, in one transaction."""
        rows = []
        for event in events:
            self._number += 1
            rows.append(
                (ORDER.format(1), self._number, at_ms or now_ms(), event, "paid", "captured", json.dumps(detail))
            )
        await (connection or self.connection).executemany(
            "INSERT INTO history (order_id, number, at_ms, event, status, payment, detail)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            rows,
        )

    async def endpoint(self, url: str, *events: str, id: str = "ep1") -> str:
        await webhook_endpoints.add(
            self.connection, id=id, owner="admin", url=url, events=events or ("*",), secret=SECRET, now_ms=now_ms()
        )
        return id

    async def log(self, **which: Any) -> list[webhooks.Delivery]:
        return await webhooks.log_of(self.connection, **which)

    async def until(self, condition: Callable[[], bool], within_s: float = 10) -> None:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110  # what it waits for lies in other processes' sockets
                await asyncio.sleep(0.01)

    async def settled(self, count: int, within_s: float = 20) -> list[webhooks.Delivery]:
        """The delivery log, once it has `count` settled ones."""
        async with asyncio.timeout(within_s):
            while True:
                log = await self.log(limit=100_000)
                if len([line for line in log if line.status != "pending"]) >= count:
                    return log
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def worker(
        self,
        *,
        retry_s: Sequence[float] = (0.05, 0.05),
        timeout_s: float = 5,
        circuit_failures: int = 1000,
        each: int = 4,
    ) -> AsyncIterator[WebhookSender]:
        """Fan-out and sender, until the block ends."""
        ledger = Ledger(self.url, timeout_s=5)
        sender = WebhookSender(
            ledger,
            Outbound(timeout_s=timeout_s, allow=LOOPBACK),
            retry_s=retry_s,
            endpoint_concurrency=each,
            circuit_failures=circuit_failures,
        )
        fanout = WebhookFanout(self.url, log_days=30)
        jobs = jobs_of(self.url, sender)
        running = asyncio.gather(fanout.run(), jobs.run())
        try:
            yield sender
        finally:
            fanout.stop()
            jobs.stop()
            await asyncio.wait_for(running, 15)
            await ledger.close()
