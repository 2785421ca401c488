"""`flashsale backup` of an engine that sells, `flashsale restore` into a new one: every old key replays there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Engine
from tests.e2e.test_damaged_log import Sold, body
from tests.wire import ask, post_order


@pytest.mark.slow
async def test_an_engine_comes_back_from_its_backup_on_another_machine(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    sold = Sold(make_engine("first").start(), tmp_path)
    await sold.sell(20)
    await sold.into_ledger()
    selling = asyncio.create_task(sold.sell(10))
    done = await asyncio.to_thread(sold.engine.command, "backup", str(tmp_path / "backup"), "--json")
    await selling
    manifest = json.loads(done.stdout)
    assert manifest["orders"] >= 20
    assert (tmp_path / "backup" / "secret").stat().st_mode & 0o777 == 0o600
    refused = await asyncio.to_thread(sold.engine.command, "restore", str(tmp_path / "backup"), check=False)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1  # it runs: nothing is touched
    assert await asyncio.to_thread(sold.engine.stop) == 0

    second = make_engine("second")
    done = await asyncio.to_thread(second.command, "restore", str(tmp_path / "backup"), "--json")
    outcome = json.loads(done.stdout)
    assert (outcome["ok"], outcome["orders"], outcome["faults"]) == (True, manifest["orders"], [])
    refused = await asyncio.to_thread(second.command, "restore", str(tmp_path / "backup"), check=False)
    assert (refused.returncode, "--force" in refused.stderr) == (1, True)
    await asyncio.to_thread(second.start)
    for number in range(20):  # the tokens are the first engine's: the secret came along
        (again,) = await ask(second.port, post_order(body(1 + number % 2), sold.tokens[number], f"k{number}"))
        assert (again.status, again.headers.get("idempotent-replayed")) == (201, "true")
        assert again.json() == sold.orders[number]
    assert await asyncio.to_thread(second.stop) == 0

    # The ledger of the first engine goes back to the backup; its own Valkey knows what came after.
    done = await asyncio.to_thread(sold.engine.command, "restore", str(tmp_path / "backup"), "--force", "--json")
    outcome = json.loads(done.stdout)
    assert outcome["ok"], outcome
    assert outcome["aside"].startswith("set_aside_")
    named = {lost["order"] for lost in outcome["recovered"]["lost"]}
    await asyncio.to_thread(sold.engine.start)
    there = 0
    for number, order in sold.orders.items():
        (again,) = await ask(sold.engine.port, post_order(body(1 + number % 2), sold.tokens[number], f"k{number}"))
        assert again.status == 201
        assert again.json()["id"] == order["id"]
        there += again.headers.get("idempotent-replayed") == "true"
    assert there == len(sold.orders) - len(named)
    assert await asyncio.to_thread(sold.engine.stop) == 0
