"""What the load test asks of the engine's command line: a fresh sale, tokens for its shoppers, the audit afterwards."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

FLASHSALE = Path(sys.executable).with_name("flashsale")
DEMO_SALE = Path(str(files("flashsale") / "sale" / "double11.toml"))
COMMAND_TIMEOUT_S = 600  # the audit waits for the ledger, which may be far behind after a high peak
SALE_DAYS = 1


class CommandFailed(Exception):
    """A flashsale command said no; the text is what it wrote to stderr."""


def run(*arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    """Runs a flashsale command on the engine of the environment (FLASHSALE_DATA_DIR) and returns what it printed."""
    done = subprocess.run(  # noqa: S603 - our own command
        [str(FLASHSALE), *arguments], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode not in allowed:
        raise CommandFailed(
            f"flashsale {' '.join(arguments[:3])}: exit {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return done.stdout


def fresh_sale(source: Path, sale_id: str, folder: Path) -> list[str]:
    """Creates a file's sale under a new id, open from now for a day; returns its SKUs priced in SG, in their order."""
    now = datetime.now(UTC).replace(microsecond=0)
    text = source.read_text(encoding="utf-8")
    for field, moment in (("opens_at", now - timedelta(minutes=1)), ("closes_at", now + timedelta(days=SALE_DAYS))):
        stamp = moment.isoformat().replace("+00:00", "Z")
        text = re.sub(rf"(?m)^{field}\s*=.*$", f"{field} = {stamp}", text, count=1)
    copy = folder / f"{sale_id}.toml"
    copy.write_text(text, encoding="utf-8")
    run("sale", "create", str(copy), "--as", sale_id)
    return [offer["sku"] for offer in tomllib.loads(text)["offers"] if "SG" in offer["prices"]]


def tokens(prefix: str, count: int) -> list[str]:
    """Bearer tokens of the shoppers prefix-1 … prefix-count."""
    return run("token", "shopper", prefix, "--count", str(count)).split()


def audit() -> dict[str, Any]:
    """The audit's verdict, faults included: {"ok", "faults", "counts"}."""
    verdict: dict[str, Any] = json.loads(run("audit", "--json", allowed=(0, 1)))
    return verdict
