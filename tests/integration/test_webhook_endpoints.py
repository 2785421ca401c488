"""Endpoints are made, read, disabled and replayed to: by an admin's request and by command."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from flashsale import settings
from flashsale.ledger.pool import Ledger
from flashsale.partners.channels.marketplace import ORDERS, STOCK
from flashsale.sale.published import EVENTS
from tests.conftest import FLASHSALE
from tests.integration.house import House, problem_of
from tests.integration.receiver import Newsroom, Receiver

URL = "https://merchant.example/hooks"
PATH = "/v1/webhooks/endpoints"


class Desk:
    """An admin's requests."""

    def __init__(self, house: House) -> None:
        self.house, self.ledger = house, house.ledger

    async def ask(self, method: str, path: str, status: int, body: Any = None, role: str = "admin") -> Any:
        headers = self.house.token("root", role)
        async with self.house.session.request(method, path, json=body, headers=headers) as answer:
            content = await answer.read()
            assert answer.status == status, (method, path, answer.status, content)
            if status >= 400:
                return problem_of(answer, content)
            return orjson.loads(content) if content else None

    async def made(self, url: str = URL, *events: str) -> Any:
        return await self.ask("POST", PATH, 201, {"url": url, "events": list(events) or ["*"]})


@pytest.fixture
async def desk(house: House) -> AsyncIterator[Desk]:
    house.context.settings = settings.load(webhook_allow=["127.0.0.0/8"])
    house.context.ledger = Ledger(house.context.ledger._url, timeout_s=5)
    yield Desk(house)


async def test_the_secret_is_shown_once(desk: Desk) -> None:
    made = await desk.made(URL, "order.paid", "refund.failed", "order.paid")
    assert made["events"] == ["order.paid", "refund.failed"]
    kind, _, secret = made["secret"].partition("_")
    assert (kind, len(base64.b64decode(secret))) == ("whsec", 32)
    del made["secret"]
    assert await desk.ask("GET", f"{PATH}/{made['id']}", 200) == made
    assert await desk.ask("GET", PATH, 200) == {"endpoints": [made]}


async def test_a_long_list_goes_on_where_next_says(desk: Desk) -> None:
    made = [(await desk.made())["id"] for _ in range(5)]
    seen, path = [], f"{PATH}?limit=2"
    while path:
        page = await desk.ask("GET", path, 200)
        seen += [each["id"] for each in page["endpoints"]]
        path = page.get("next")
    assert seen == sorted(made)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"url": URL, "events": ["order.paid", "order.eaten", "*"]}, ["events[1]"]),
        ({"url": "http://merchant.example/", "events": ["*"]}, ["url"]),
        ({"url": "https://10.0.0.1/", "events": ["*"]}, ["url"]),
        ({"url": "https://169.254.169.254/", "events": ["nothing"]}, ["events[0]", "url"]),
        ({"url": "https://[::1]/", "events": ["*"]}, ["url"]),
        ({"url": URL, "events": []}, ["events"]),
        ({"url": URL}, ["events"]),
        ({"url": URL, "events": ["*"], "secret": "mine"}, ["secret"]),
    ],
)
async def test_what_is_wrong_with_an_endpoint_is_named(desk: Desk, body: Any, fields: list[str]) -> None:
    problem = await desk.ask("POST", PATH, 422, body)
    assert problem["name"] == "invalid-request"
    assert sorted(problem["fields"]) == fields
    assert (await desk.ask("GET", PATH, 200))["endpoints"] == []


async def test_a_name_of_this_machine_is_refused(house: House) -> None:
    problem = await Desk(house).ask("POST", PATH, 422, {"url": "https://localhost/", "events": ["*"]})
    assert list(problem["fields"]) == ["url"]


async def test_a_shopper_and_a_stranger_get_nothing(desk: Desk) -> None:
    id = (await desk.made())["id"]
    for method, path, body in (
        ("GET", PATH, None),
        ("POST", PATH, {"url": URL, "events": ["*"]}),
        ("GET", f"{PATH}/{id}", None),
        ("DELETE", f"{PATH}/{id}", None),
        ("GET", f"{PATH}/{id}/deliveries", None),
        ("POST", f"{PATH}/{id}/replay", {"since": "2026-11-11T00:00:00Z"}),
    ):
        assert (await desk.ask(method, path, 403, body, role="shopper"))["name"] == "forbidden"
        async with desk.house.session.request(method, path, json=body) as answer:
            assert answer.status == 401


async def test_an_unknown_endpoint_is_not_found(desk: Desk) -> None:
    for id in ("ep_019aa1b2c3d0123456789", "nonsense", "%00", "a%2Fb"):
        await desk.ask("GET", f"{PATH}/{id}", 404)
        await desk.ask("DELETE", f"{PATH}/{id}", 404)
        await desk.ask("POST", f"{PATH}/{id}/replay", 404, {"since": "2026-11-11T00:00:00Z"})
    await desk.ask("GET", f"{PATH}?after=%00", 400)


async def test_a_disabled_endpoint_stays_listed_and_takes_no_replay(desk: Desk) -> None:
    id = (await desk.made())["id"]
    await desk.ask("DELETE", f"{PATH}/{id}", 204)
    await desk.ask("DELETE", f"{PATH}/{id}", 204)
    assert (await desk.ask("GET", f"{PATH}/{id}", 200))["status"] == "disabled"
    await desk.ask("POST", f"{PATH}/{id}/replay", 422, {"since": "2026-11-11T00:00:00Z"})


@pytest.mark.parametrize("since", ["yesterday", "2026-11-11T00:00:00", 5, None])
async def test_a_replay_needs_a_time(desk: Desk, since: Any) -> None:
    id = (await desk.made())["id"]
    problem = await desk.ask("POST", f"{PATH}/{id}/replay", 422, {"since": since})
    assert list(problem["fields"]) == ["since"]


@pytest.mark.parametrize("since", ["2026-11-11T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
async def test_a_replay_is_kept_for_the_worker(desk: Desk, since: str) -> None:
    id = (await desk.made())["id"]
    assert (await desk.ask("POST", f"{PATH}/{id}/replay", 202, {"since": since}))["endpoint"] == id
    assert await desk.ledger.fetchval("SELECT count(*) FROM webhook_replay") == 1


async def test_every_published_event_is_described(house: House) -> None:
    document = await house.get("/openapi.json")
    assert set(document["webhooks"]) == {*EVENTS, ORDERS, STOCK}  # the last two are told to channels alone
    async with house.session.get("/docs") as answer:
        page = await answer.text()
    assert all(name in page for name in EVENTS)


async def test_the_delivery_log_says_what_became_of_each(desk: Desk, ledger: str) -> None:
    async with (
        Newsroom(ledger) as told,
        Receiver(b"HTTP/1.1 503 \x1b[31mNo\r\nContent-Length: 5\r\n\r\n\x1b[31m") as receiver,
    ):
        made = await desk.made(receiver.url)
        await told.happens("order.paid")
        async with told.worker(retry_s=(3600,)):
            await told.until(lambda: bool(receiver.got))
            await asyncio.sleep(0.3)
        [line] = (await desk.ask("GET", f"{PATH}/{made['id']}/deliveries", 200))["deliveries"]
        assert (line["status"], line["tries"], line["http_status"], line["error"]) == ("pending", 1, 503, "503 [31m")
        assert line["message"] == receiver.got[0].id
        assert line["next_at"] > line["tried_at"] >= line["created_at"]


async def test_without_the_ledger_it_is_503(desk: Desk) -> None:
    desk.house.context.ledger = Ledger("postgresql://flashsale@127.0.0.1:1/none", timeout_s=0.5)
    assert (await desk.ask("GET", PATH, 503))["name"] == "overloaded"


# --- commands ---


def command(ledger: str, tmp_path: Path, *arguments: str, status: int = 0) -> Any:
    done = subprocess.run(
        [str(FLASHSALE), "webhooks", *arguments, "--json"],
        env=os.environ
        | {
            "FLASHSALE_DATABASE_URL": ledger,
            "FLASHSALE_REDIS_URL": "redis://127.0.0.1:1",
            "FLASHSALE_DATA_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def test_endpoints_are_added_listed_disabled_and_replayed_to_by_command(ledger: str, tmp_path: Path) -> None:
    made = command(ledger, tmp_path, "endpoints", "add", URL, "--event", "order.paid", "--event", "refund.failed")
    assert made["secret"].startswith("whsec_")
    [listed] = command(ledger, tmp_path, "endpoints")["endpoints"]
    assert listed == {name: value for name, value in made.items() if name != "secret"}
    command(ledger, tmp_path, "replay", made["id"], "--since", "2026-11-11T00:00:00Z")
    command(ledger, tmp_path, "replay", made["id"], "--since", "yesterday", status=2)
    assert command(ledger, tmp_path, "deliveries", "--status", "pending") == {"deliveries": []}
    command(ledger, tmp_path, "endpoints", "disable", made["id"])
    assert "disabled" in command(ledger, tmp_path, "replay", made["id"], "--since", "2026-11-11", status=1)["error"]
    assert (
        "url" in command(ledger, tmp_path, "endpoints", "add", "https://10.0.0.1/", "--event", "*", status=1)["error"]
    )
    assert "eaten" in command(ledger, tmp_path, "endpoints", "add", URL, "--event", "order.eaten", status=1)["error"]
