"""`flashsale audit` and `flashsale recover` as an operator runs them: JSON to the letter, exit status, one line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from flashsale.embedded import ValkeyServer
from flashsale.reservation import keys
from tests.conftest import FLASHSALE
from tests.integration.shop import FRIDGE, Shop


def command(redis_url: str, database_url: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "FLASHSALE_REDIS_URL": redis_url,
        "FLASHSALE_DATABASE_URL": database_url,
        "FLASHSALE_DATA_DIR": str(directory),
        "FLASHSALE_DURABILITY": "memory",
    }
    return subprocess.run(
        [str(FLASHSALE), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def in_shop(redis_url: str, database_url: str, act: Callable[[Shop], Awaitable[object]]) -> None:
    async def run() -> None:
        async with Shop(redis_url, database_url) as shop:
            await act(shop)

    asyncio.run(run())


async def _sell(shop: Shop) -> None:
    await shop.open()
    assert (await shop.buy("ann", (FRIDGE, 2)))[0] == "A"


async def _drift(shop: Shop) -> None:
    await shop.valkey.hincrby(keys.stock(0, "sale"), "0", -1)


async def _lose(shop: Shop) -> None:
    await shop.write()
    await shop.valkey.flushall()


def test_audit_and_recover_as_commands(valkey_memory: ValkeyServer, ledger: str, tmp_path: Path) -> None:
    url = valkey_memory.url
    in_shop(url, ledger, _sell)
    done = command(url, ledger, tmp_path, "audit", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["faults"]) == (0, True, [])
    assert report["counts"].keys() == {
        *(
            "orders_valkey",
            "orders_ledger",
            "backlog",
            "orders_lost",
            "orders_paid",
            "payments",
            "units",
            "money",
            "as_of",
        )
    }

    in_shop(url, ledger, _drift)
    done = command(url, ledger, tmp_path, "audit", "--json")
    (fault,) = json.loads(done.stdout)["faults"]
    assert done.returncode == 1
    assert fault.keys() == {"invariant", "sale", "sku", "order", "detail"}
    assert (fault["invariant"], fault["sale"], fault["sku"], fault["order"]) == ("I1", "sale", "FRIDGE", None)

    in_shop(url, ledger, _lose)
    done = command(url, ledger, tmp_path, "recover", "--json")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["ok"], outcome["rebuilt"], outcome["orders"]) == (0, True, True, 1)
    done = command(url, ledger, tmp_path, "recover")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert command(url, ledger, tmp_path, "audit").returncode == 0

    done = command("redis://127.0.0.1:1", ledger, tmp_path, "audit", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["faults"][0]["invariant"] == "unreachable"
    done = command("redis://127.0.0.1:1", ledger, tmp_path, "recover")
    assert (done.returncode, done.stdout) == (1, "")
    assert "unreachable" in done.stderr
    assert command(url, ledger, tmp_path, "audit", "--nonsense").returncode == 2
    done = command("redis://127.0.0.1:1", ledger, tmp_path, "recover", "--json")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["ok"], outcome["reason"].split(":")[0]) == (1, False, "unreachable")


def test_without_an_engine_json_is_still_printed(tmp_path: Path) -> None:
    done = command("", "", tmp_path, "audit", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    assert [fault["invariant"] for fault in report["faults"]] == ["unreachable"]
    assert report["counts"]["as_of"].endswith("Z")
    done = command("", "", tmp_path, "recover", "--json")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["ok"]) == (1, False)
    assert outcome["reason"].startswith("unreachable: no engine has been started")


def test_a_setting_at_fault_is_usage_for_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSALE_BATCH_MAX", "abc")
    for words in (("config",), ("sale", "list"), ("audit", "--json"), ("recover", "--json"), ("token", "admin")):
        done = command("", "", tmp_path, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), words
        assert "FLASHSALE_BATCH_MAX" in done.stderr
