"""`flashsale promises` as an operator runs it: a table, one JSON object, one line where there is no engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg

from flashsale.embedded import ValkeyServer
from flashsale.ledger.promises import raise_alert
from flashsale.sale.shipping.promises import Share
from tests.integration.shop import Shop
from tests.integration.test_audit_commands import command

NOW_MS = 1_794_000_000_000


async def _deliver(redis_url: str, database_url: str) -> None:
    async with Shop(redis_url, database_url) as shop:
        await shop.open()  # the lanes' names are the catalogue's
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "INSERT INTO promise SELECT 'o' || lane || '-' || n, lane, market, '2026-11-12', NULL, true, n,"
            " '2026-11-12', n > late FROM (VALUES (10, 'HK', 30), (1, 'SG', 30)) AS of (lane, market, late),"
            " generate_series(1, 200) AS n"
        )
        await raise_alert(connection, 10, "HK", Share(200, 170), NOW_MS)
    finally:
        await connection.close()


def test_the_command_shows_each_lane_and_where_it_is_late(
    valkey_memory: ValkeyServer, ledger: str, tmp_path: Path
) -> None:
    done = command(valkey_memory.url, ledger, tmp_path, "promises")
    assert (done.returncode, done.stdout) == (0, "no parcel of a lane has been delivered yet\n")
    asyncio.run(_deliver(valkey_memory.url, ledger))
    done = command(valkey_memory.url, ledger, tmp_path, "promises")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "lane                     country deliveries  on time   share",
        "cainiao-standard         SG             200      170   85.0%",
        "tmall-supermarket-hk     HK             200      170   85.0%"
        "  ALERT: less than 90% since 2026-11-06T21:20:00.000Z",
    ]
    done = command(valkey_memory.url, ledger, tmp_path, "promises", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["last"] == 200
    assert [(each["lane"], each["country"], each["share"], each["alert"]) for each in found["promises"]] == [
        ("cainiao-standard", "SG", 0.85, False),
        ("tmall-supermarket-hk", "HK", 0.85, True),
    ]
    away = ledger.replace("@/test_", "@/gone_")
    done = command(valkey_memory.url, away, tmp_path, "promises", "--json")
    assert (done.returncode, list(json.loads(done.stdout))) == (1, ["error"])
    done = command(valkey_memory.url, away, tmp_path, "promises")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert command(valkey_memory.url, ledger, tmp_path, "promises", "--wrong").returncode == 2
    assert "Example: flashsale promises --json" in command(valkey_memory.url, ledger, tmp_path, "promises", "-h").stdout
