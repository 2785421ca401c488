"""Webhooks through a whole front process: the genuine ones are kept before their 200, all others change nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import stripe

from flashsale.embedded import ValkeyServer
from flashsale.reservation import events as event_stream
from flashsale.reservation import server
from tests.conftest import FLASHSALE, free_port
from tests.integration.shop import Shop
from tests.wire import Answer, Wire, ask, get, post_order

SECRET = "whsec_of_these_tests_and_long_enough"
PATH = "/v1/webhooks/payments"
BODY_MAX = 8 * 1024
WITHIN_S = 20  # only a failing test waits this long
GAP_S = 0.004  # between two parts of a request: long enough for the first to be read alone
OPENING = b"is the door open?"
ORDER = b'{"sale":"sale","market":"SG","lines":[{"sku":"KETTLE","quantity":1}]}'


class Front:
    """A `flashsale serve` of one process on a port of its own; nobody applies the events that it keeps."""

    def __init__(self, folder: Path, redis_url: str, database_url: str, **settings: str) -> None:
        self.port = free_port()
        self.errors = folder / "front.err"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")},
            "FLASHSALE_DATA_DIR": str(folder / "front"),
            "FLASHSALE_PORT": str(self.port),
            "FLASHSALE_REDIS_URL": redis_url,
            "FLASHSALE_DATABASE_URL": database_url,
            "FLASHSALE_SECRET": "a secret of these tests, long enough",
            "FLASHSALE_PAYMENTS_WEBHOOK_SECRET": SECRET,
            "FLASHSALE_BODY_MAX_BYTES": str(BODY_MAX),
            **settings,
        }
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen([str(FLASHSALE), "serve"], env=self.environment, stderr=errors)

    async def until_open(self) -> None:
        """Returns when webhooks are taken."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            try:
                (answer,) = await ask(self.port, webhook(OPENING))
            except OSError:
                answer = None
            if answer is not None and answer.status == 200:
                return
            await asyncio.sleep(0.02)

    def token(self, *who: str) -> str:
        command = [str(FLASHSALE), "token", *who]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def make_front(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    made: list[Front] = []

    def make(redis_url: str, database_url: str, **settings: str) -> Front:
        made.append(Front(tmp_path, redis_url, database_url, **settings))
        return made[-1]

    yield make
    for front in made:
        front.kill()


@pytest.fixture
async def front(valkey: ValkeyServer, ledger: str, make_front: Callable[..., Front]) -> AsyncIterator[Front]:
    """A front that takes webhooks and the orders of one sale."""
    async with Shop(valkey.url, ledger, durability="fsync") as shop:
        await shop.open()
    made = make_front(valkey.url, ledger)
    await made.until_open()
    yield made


async def events_in(redis_url: str) -> list[bytes]:
    """Every event kept so far, but for those that asked whether the door is open."""
    client = server.connect(redis_url)
    found: list[bytes] = []
    after = (0, 0)
    while entries := await event_stream.read_events(client, after, 100):
        found += [body for entry in entries for body in entry.bodies if body != OPENING]
        after = entries[-1].id
    await client.aclose()
    return found


def signature(body: bytes, at_s: float | None = None, secret: str = SECRET) -> str:
    """What Stripe's own library signs."""
    at = int(time.time() if at_s is None else at_s)
    return stripe.WebhookSignature.generate_signature_header(body.decode(), secret, at)


def webhook(body: bytes, *more: bytes, signed: str | None = None, path: str = PATH) -> bytes:
    """A webhook as Stripe sends it."""
    lines = [
        f"POST {path} HTTP/1.1".encode(),
        b"Host: 127.0.0.1",
        b"Content-Type: application/json; charset=utf-8",
        b"Accept: */*; q=0.5, application/xml",
        b"Cache-Control: no-cache",
        b"User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        b"Content-Length: %d" % len(body),
        *more,
    ]
    signed = signature(body) if signed is None else signed
    if signed:
        lines.append(b"Stripe-Signature: " + signed.encode())
    return b"\r\n".join([*lines, b"", b""]) + body


def event(number: int | str) -> bytes:
    return json.dumps({"id": f"evt_{number}", "object": "event", "type": "payment_intent.succeeded"}).encode()


async def one(front: Front, request: bytes) -> Answer:
    (answer,) = await ask(front.port, request)
    return answer


async def test_a_genuine_one_is_kept_byte_by_byte_and_every_other_changes_nothing(
    valkey: ValkeyServer, front: Front
) -> None:
    body = event(1)
    genuine = await one(front, webhook(body))
    assert (genuine.status, genuine.json()) == (200, {"received": True})
    assert await events_in(valkey.url) == [body]

    now = time.time()
    forged = {
        "no header": webhook(body, signed=""),
        "no signature": webhook(body, signed="i'm not even a real signature header"),
        "another secret": webhook(body, signed=signature(body, secret="whsec_another")),
        "another body": webhook(body, signed=signature(body + b" ")),
        "v0 alone": webhook(body, signed=signature(body).replace("v1=", "v0=")),
        "stale": webhook(body, signed=signature(body, now - 305)),
        "of the future": webhook(body, signed=signature(body, now + 305)),
        "two headers": webhook(body, b"Stripe-Signature: " + signature(body).encode()),
        "a long header": webhook(body, signed=signature(body) + ",v1=" + "0" * 5000),
        "not ASCII": webhook(body, signed=f"t={int(now)},v1=\u00e9"),
        "no body": webhook(b"", signed=signature(body)),
    }
    for name, request in forged.items():
        answer = await one(front, request)
        assert (answer.status, answer.problem) == (400, "webhook-signature"), f"{name}: {answer}"
    oversized = await one(front, webhook(b"x" * (BODY_MAX + 1)))
    assert (oversized.status, oversized.problem) == (413, "too-large")
    packed = gzip.compress(body, mtime=0).decode("latin-1").encode()
    compressed = await one(front, webhook(packed, b"Content-Encoding: gzip"))
    assert (compressed.status, compressed.problem) == (415, "unsupported-media-type")
    assert await events_in(valkey.url) == [body], "nothing else is kept"

    text = await _metrics(front)
    counted = dict(re.findall(r'flashsale_webhooks_total\{outcome="([a-z-]+)"\} (\d+)', text))
    assert int(counted["webhook-signature"]) == len(forged)
    assert int(counted["unsupported-media-type"]) == 1
    assert int(counted["kept"]) >= 1


async def _metrics(front: Front) -> str:
    """The metrics, once they know of the refusals (they are told several times a second)."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            text = (await one(front, get("/metrics"))).body.decode()
            if 'webhooks_total{outcome="unsupported' in text:
                return text
            await asyncio.sleep(0.05)


async def test_whatever_is_signed_is_kept_as_it_is(valkey: ValkeyServer, front: Front) -> None:
    """What an event says is not judged here: a repetition, a foreign or unknown one, no JSON, another Content-Type."""
    bodies = [event(1), event(1), b"this is not valid JSON", b"", b"\r\n\r\nPOST / HTTP/1.1\r\n\r\n", b"x" * BODY_MAX]
    for body in bodies:
        assert (await one(front, webhook(body))).status == 200
    plain = webhook(event(2)).replace(b"application/json; charset=utf-8", b"application/octet-stream")
    chunked = webhook(b"", b"Transfer-Encoding: chunked", signed=signature(b"{}")).replace(
        b"Content-Length: 0\r\n", b""
    )
    for request in (plain, chunked + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", webhook(event(3), path=PATH + "?live=1")):
        assert (await one(front, request)).status == 200
    two = signature(event(4)) + ",v1=" + "0" * 64
    assert (await one(front, webhook(event(4), signed=two))).status == 200
    assert await events_in(valkey.url) == [*bodies, event(2), b"{}", event(3), event(4)]


async def test_the_path_is_known_under_one_spelling_and_takes_post_alone(valkey: ValkeyServer, front: Front) -> None:
    for path in (
        "/v1/webhooks/%70ayments",
        "/v1/webhooks/payments/",
        "/v1//webhooks/payments",
        "/V1/webhooks/payments",
    ):
        answer = await one(front, webhook(event(1), path=path))
        assert (answer.status, answer.problem) == (404, "not-found"), path
    answer = await one(front, get(PATH))
    assert (answer.status, answer.problem) == (405, "method-not-allowed")
    assert answer.headers["allow"] == "OPTIONS, POST"
    assert await events_in(valkey.url) == []


async def test_one_split_at_any_byte_is_the_same_webhook(valkey: ValkeyServer, front: Front) -> None:
    places = asyncio.Semaphore(24)
    requests = {number: webhook(event(number)) for number in range(1, len(webhook(event(0))))}

    async def split(number: int, request: bytes) -> Answer:
        async with places:
            with await Wire.open(front.port) as wire:
                await wire.send(request[:number])
                await asyncio.sleep(GAP_S)
                await wire.send(request[number:])
                return (await wire.read(1))[0]

    answers = await asyncio.gather(*(split(number, request) for number, request in requests.items()))
    assert {answer.status for answer in answers} == {200}
    assert sorted(await events_in(valkey.url)) == sorted(event(number) for number in requests)


async def test_answers_come_in_the_order_of_the_requests_whatever_they_ask_for(
    valkey: ValkeyServer, front: Front
) -> None:
    token = front.token("shopper", "ann")
    requests, wanted = [], []
    for number in range(12):
        requests += [
            post_order(ORDER, token, f"key-{number}"),
            webhook(event(number)),
            webhook(event("forged"), signed=signature(b"another")),
            webhook(event(f"{number} again")),
            get("/livez"),
            post_order(b"{", token, "key"),
        ]
        wanted += [201, 200, 400, 200, 200, 400]
    for together in (requests, list(reversed(requests))):
        answers = await ask(front.port, *together)
        statuses = [answer.status for answer in answers]
        assert statuses == (wanted if together is requests else wanted[::-1])
    orders = [answer.headers["location"] for answer in answers if answer.status == 201]
    assert len(set(orders)) == 12
    kept = [event(number) for n in range(12) for number in (n, f"{n} again")]
    assert await events_in(valkey.url) == kept + kept[::-1], "and are kept in that order"


async def test_without_a_secret_no_webhook_is_taken(
    valkey: ValkeyServer, ledger: str, make_front: Callable[..., Front]
) -> None:
    closed = make_front(valkey.url, ledger, FLASHSALE_PAYMENTS_WEBHOOK_SECRET="")
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                answer = await one(closed, webhook(event(1)))
                break
            except OSError:
                await asyncio.sleep(0.02)
    assert (answer.status, answer.problem) == (503, "overloaded")
    assert "FLASHSALE_PAYMENTS_WEBHOOK_SECRET" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) > 0


async def test_what_waits_to_be_applied_is_bounded(
    valkey: ValkeyServer, ledger: str, make_front: Callable[..., Front]
) -> None:
    bounded = make_front(valkey.url, ledger, FLASHSALE_PAYMENTS_BACKLOG_MAX_BYTES=str(1024 * 1024))
    await bounded.until_open()
    body = b"x" * BODY_MAX
    for _ in range(127):
        assert (await one(bounded, webhook(body))).status == 200
    answers = await ask(bounded.port, *[webhook(body)] * 3)
    assert [answer.status for answer in answers] == [503] * 3
    assert answers[0].problem == "overloaded"
    assert answers[0].headers["retry-after"] == "1"
    client = server.connect(valkey.url)
    await event_stream.trim_events(client, await event_stream.last_event_id(client))
    await client.aclose()
    assert (await one(bounded, webhook(body))).status == 200


async def test_a_stopping_front_answers_what_it_took(valkey: ValkeyServer, front: Front) -> None:
    with await Wire.open(front.port) as wire:
        await wire.send(webhook(event(1)))
        await wire.read(1)
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            await wire.send(webhook(event(2)))
            await asyncio.sleep(0.1)
            front.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        answers = await wire.read_to_end()
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[-1].headers["connection"] == "close"
    assert await asyncio.to_thread(front.process.wait, WITHIN_S) == 0
    assert await events_in(valkey.url) == [event(1), event(2)]


async def test_no_200_is_lost_when_valkey_is_killed(
    own_valkey: Callable[..., ValkeyServer], ledger: str, make_front: Callable[..., Front]
) -> None:
    """Nobody verifies the sales' data after a restart here: webhooks don't wait for that."""
    valkey = own_valkey()
    valkey.start()
    front = make_front(valkey.url, ledger)
    sent = 0
    kept: set[bytes] = set()
    refused = 0

    async def send(stop: asyncio.Event) -> None:
        nonlocal sent, refused
        with await Wire.open(front.port) as wire:
            while not stop.is_set():
                bodies = [event(sent := sent + 1) for _ in range(4)]
                wire.received = b""
                await wire.send(b"".join(webhook(body) for body in bodies))
                answers = await wire.read(len(bodies))
                assert len(answers) == len(bodies)
                for body, answer in zip(bodies, answers, strict=True):
                    if answer.status == 200:
                        kept.add(body)
                    else:
                        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                        refused += 1

    for _ in range(5):
        await front.until_open()
        stop, enough = asyncio.Event(), len(kept) + 300
        senders = [asyncio.create_task(send(stop)) for _ in range(8)]
        async with asyncio.timeout(WITHIN_S):
            while len(kept) < enough:  # noqa: ASYNC110 - a count, not an event
                await asyncio.sleep(0.001)
        valkey.kill()
        await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*senders)
        valkey.start()
    await front.until_open()
    found = set(await events_in(valkey.url))
    assert refused, "Valkey was never killed in the middle"
    assert not kept - found, f"{len(kept - found)} of {len(kept)} answered 200 are lost"
