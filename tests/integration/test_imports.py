"""`flashsale import catalogue` on real servers: a merchant's products taken over as a whole, or not at all."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flashsale.cli import app
from flashsale.embedded import ValkeyServer
from flashsale.sale.local_time import local_time_ms
from tests.conftest import FLASHSALE

ROWS = int(os.environ.get("FLASHSALE_IMPORT_ROWS", "3000"))
"""Of the big catalogue; 100000 is the size that the engine is meant for."""

SCRIPT = Path(__file__).parents[2] / "scripts" / "catalogue.py"
CORPUS = sorted(Path(os.environ.get("FLASHSALE_CORPORA", "/nowhere"), "catalogue").glob("*.csv*"))
COLUMNS = ("Handle", "Title", "Option1 Name", "Option1 Value", "Variant SKU", "Variant Price", "Variant Inventory Qty",
           "Expected Inventory Qty", "Variant Grams", "HS Code", "Country of Origin")  # fmt: skip


def row(handle: str, sku: str = "", price: str = "9.99", stock: str = "5", **more: str) -> dict[str, str]:
    named = {"Handle": handle, "Title": handle.title(), "Variant SKU": sku, "Variant Price": price,
             "Variant Inventory Qty": stock}  # fmt: skip
    return named | {name.replace("_", " "): value for name, value in more.items()}


def table(*rows: dict[str, str], delimiter: str = ",", bom: bool = False) -> bytes:
    text = io.StringIO()
    file = csv.DictWriter(text, COLUMNS, delimiter=delimiter, restval="")
    file.writeheader()
    file.writerows(rows)
    return text.getvalue().encode("utf-8-sig" if bom else "utf-8")


@dataclass
class Said:
    """What the command printed: findings, and the line about all."""

    code: int
    findings: list[dict[str, Any]]
    all: dict[str, Any]

    def places(self, severity: str = "fault") -> list[tuple[int, str, str]]:
        found = [each for each in self.findings if each["severity"] == severity]
        return [(each["row"], each["column"], each["code"]) for each in found]


class Desk:
    """A merchant's desk: the command, and a look into the ledger."""

    def __init__(self, folder: Path, redis_url: str, database_url: str) -> None:
        self.file, self.database_url = folder / "catalogue.csv", database_url
        self.environment = {"FLASHSALE_REDIS_URL": redis_url, "FLASHSALE_DATABASE_URL": database_url,
                            "FLASHSALE_DATA_DIR": str(folder / "none")}  # fmt: skip

    def take(self, data: bytes | Path, *options: str) -> Said:
        """`flashsale import catalogue FILE …`; without a loop of the test's own."""
        if isinstance(data, bytes):
            self.file.write_bytes(data)
        file = self.file if isinstance(data, bytes) else data
        done = CliRunner().invoke(app, ["import", "catalogue", str(file), "--json", *options], env=self.environment)
        assert done.exit_code in (0, 1), (done.output, done.exception)
        *said, last = [json.loads(line) for line in done.stdout.splitlines()]
        return Said(done.exit_code, said, last)

    def rows(self, query: str = "SELECT * FROM product ORDER BY merchant, sku") -> list[tuple[Any, ...]]:
        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.database_url)
            try:
                return [tuple(found) for found in await connection.fetch(query)]
            finally:
                await connection.close()

        return asyncio.run(ask())

    def products(self, *fields: str) -> list[tuple[Any, ...]]:
        return self.rows(f"SELECT {', '.join(fields)} FROM product ORDER BY merchant, sku")  # noqa: S608  the test's own


@pytest.fixture
def desk(tmp_path: Path, valkey_memory: ValkeyServer, ledger: str) -> Desk:
    return Desk(tmp_path, valkey_memory.url, ledger)


# --- catalogues that others wrote ---


@pytest.mark.skipif(not CORPUS, reason="needs the corpora: FLASHSALE_CORPORA")
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_a_catalogue_of_others_comes_in_whole_and_again_changes_nothing(desk: Desk, path: Path) -> None:
    first = desk.take(path)
    assert (first.code, first.all["faults"], first.all["created"]) == (0, 0, first.all["rows"])
    before = desk.rows()
    assert len(before) == first.all["rows"] > 0
    again = desk.take(path)
    assert (again.code, again.all["unchanged"], again.all["updated"]) == (0, len(before), 0)
    assert desk.rows() == before


# --- all or nothing ---


def test_a_faulty_file_tells_all_and_changes_nothing(desk: Desk) -> None:
    desk.take(table(row("lamp", "L1"), row("desk", "D1")))
    before = desk.rows()
    said = desk.take(table(
        row("lamp", "L1", price="1.00"), row("chair", "C1", price="1,234"), row("sofa", "S1", stock="many"),
        row("bed", "B1", HS_Code="84", Country_of_Origin="China"), row("shelf", "X1", Expected_Inventory_Qty="-1"),
    ))  # fmt: skip
    assert said.code == 1 and said.all["applied"] is False
    assert said.places() == [
        (3, "Variant Price", "not-a-number"), (4, "Variant Inventory Qty", "not-a-number"),
        (5, "HS Code", "not-an-hs-code"), (5, "Country of Origin", "not-a-country"),
        (6, "Expected Inventory Qty", "out-of-range"),
    ]  # fmt: skip
    assert desk.rows() == before


def test_a_dry_run_says_what_would_be_and_changes_nothing(desk: Desk) -> None:
    desk.take(table(row("lamp", "L1")))
    before = desk.rows()
    said = desk.take(table(row("lamp", "L1", price="1.00"), row("desk", "D1")), "--dry-run")
    assert (said.code, said.all["created"], said.all["updated"], said.all["applied"]) == (0, 1, 1, False)
    assert desk.rows() == before


def test_blanks_erase_nothing(desk: Desk) -> None:
    desk.take(table(row("lamp", "L1", Variant_Grams="400", HS_Code="9405.21", Country_of_Origin="CN")))
    before = desk.rows()
    said = desk.take(table(row("lamp", "L1", price="", stock="") | {"Title": ""}))
    assert (said.code, said.all["unchanged"]) == (0, 1)
    assert desk.rows() == before


def test_a_blank_sku_is_the_same_however_the_rows_stand(desk: Desk) -> None:
    rows = [row("lamp", Option1_Name="Colour", Option1_Value=colour) for colour in ("red", "blue", "green")]
    assert desk.take(table(*rows)).all["created"] == 3
    before = desk.rows()
    assert desk.take(table(*rows[::-1], bom=True)).all["unchanged"] == 3
    assert desk.rows() == before


def test_a_repeated_sku_is_warned_of_and_derived_and_stays(desk: Desk) -> None:
    rows = [row("lamp", "S"), row("desk", "S")]
    said = desk.take(table(*rows))
    assert (said.code, said.places("warning")) == (0, [(3, "Variant SKU", "sku-repeated")])
    before = desk.products("sku", "handle")
    assert len(before) == 2 and ("S", "lamp") in before
    desk.take(table(*rows[::-1]))
    assert desk.products("sku", "handle") == before


def test_negative_stock_is_none_and_warned_of(desk: Desk) -> None:
    said = desk.take(table(row("lamp", "L1", stock="-3")))
    assert (said.code, said.places("warning")) == (0, [(2, "Variant Inventory Qty", "negative-stock")])
    assert desk.products("stock") == [(0,)]


def test_each_market_has_its_own_price(desk: Desk) -> None:
    desk.take(table(row("lamp", "L1", price="9.99")), "--market", "SG")
    desk.take(table(row("lamp", "L1", price="31.50")), "--market", "MY")
    assert [json.loads(prices) for (prices,) in desk.products("prices")] == [{"SG": 999, "MY": 3150}]


def test_stock_is_compared_and_set_all_or_none(desk: Desk) -> None:
    desk.take(table(row("lamp", "L1", stock="5"), row("desk", "D1", stock="8")))
    said = desk.take(table(row("lamp", "L1", stock="7", Expected_Inventory_Qty="5"),
                           row("desk", "D1", stock="9", Expected_Inventory_Qty="6")))  # fmt: skip
    assert (said.code, said.places()) == (1, [(3, "Expected Inventory Qty", "stock-changed")])
    # Beside a fault in another row, too.
    both = desk.take(table(row("lamp", "L1", price="much"), row("desk", "D1", stock="9", Expected_Inventory_Qty="6")))
    assert [place[0] for place in both.places()] == [2, 3] and both.code == 1
    assert desk.products("sku", "stock") == [("D1", 8), ("L1", 5)]
    edit = table(row("lamp", "L1", stock="7", Expected_Inventory_Qty="5"))
    assert desk.take(edit).all["updated"] == 1
    assert desk.take(edit).all["unchanged"] == 1  # done again, as after a worker's death: it is as asked for
    assert desk.products("sku", "stock") == [("D1", 8), ("L1", 7)]


# --- hostile files ---

HEAD = b"Handle,Title,Option1 Name,Option1 Value,Variant Price,Variant SKU\n"


@pytest.mark.parametrize(
    ("line", "code", "column"),
    [
        (b"a\0b,T,,,1,S", "control-character", "Handle"),
        (b"a,T\0,,,1,S", "control-character", "Title"),
        (b"a,T,Col\0our,red,1,S", "control-character", "Option1 Name"),
        (b"a,T," + b"n" * 300 + b",red,1,S", "too-long", "Option1 Name"),
        (b"a,T,Colour,re\0d,1,S", "control-character", "Option1 Value"),
        (b"a,T,,,1\0,S", "not-a-number", "Variant Price"),
        (b"a,T\xff\xfe,,,1,S", "not-utf-8", "Title"),
        (b"a," + b"x" * 100_000 + b",,,1,S", "too-long", "Title"),
        (b"a," + b"x" * 1_000_000 + b",,,1,S", "not-csv", ""),
        (b"a," + b"x," * 4_000_000, "not-csv", ""),
        (b'a,"never closed', "not-csv", ""),
        (b"a,T,,,1e999,S", "not-a-number", "Variant Price"),
        (b"a,T,,," + b"9" * 5000 + b",S", "not-a-number", "Variant Price"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_hostile_row_is_named_and_nothing_changes(desk: Desk, line: bytes, code: str, column: str) -> None:
    said = desk.take(HEAD + b"good,Good,,,1,G\n" + line + b"\n")
    assert said.code == 1
    assert (3, column, code) in said.places(), said.findings
    assert desk.rows() == []


def test_formulas_and_odd_characters_are_text(desk: Desk) -> None:
    texts = ["=cmd|' /C calc'!A0", "@SUM(1+1)", "'; DROP TABLE product; --", '{"a": \\u0000}', "\u202eevil"]
    said = desk.take(table(*(row(f"h{n}", f"S{n}") | {"Title": text} for n, text in enumerate(texts))))
    assert said.code == 0, said.findings
    assert [json.loads(title)["en"] for (title,) in desk.products("title")] == texts


# --- times ---

ZONES = ("Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "UTC")


@given(st.datetimes(datetime(2000, 1, 1), datetime(2037, 1, 1)), st.sampled_from(ZONES))
def test_a_local_time_is_the_one_moment_that_shows_it(local: datetime, name: str) -> None:
    """Searched, not calculated: every quarter hour's offset about it is tried."""
    local, zone = local.replace(microsecond=0), ZoneInfo(name)
    offsets = {(local.replace(tzinfo=UTC) + timedelta(hours=h)).astimezone(zone).utcoffset() for h in range(-30, 31)}
    moments = {(local - offset).replace(tzinfo=UTC) for offset in offsets if offset is not None}
    showing = [each for each in moments if each.astimezone(zone).replace(tzinfo=None) == local]
    if len(showing) == 1:
        assert local_time_ms(local.isoformat(), name) == int(showing[0].timestamp()) * 1000
    else:
        with pytest.raises(ValueError, match="twice" if showing else "does not exist"):
            local_time_ms(local.isoformat(), name)


@pytest.mark.parametrize(
    ("text", "said"), [("2026-03-29T02:30", "does not exist"), ("2026-10-25T02:30", "comes twice"), ("soon", "no time")]
)
def test_a_time_that_is_none_is_bad_usage(desk: Desk, text: str, said: str) -> None:
    CliRunner().invoke(
        app, ["merchant", "create", "haus", "--name", "Haus", "--time-zone", "Europe/Berlin"], env=desk.environment
    )
    desk.file.write_bytes(table(row("lamp", "L1")))
    done = CliRunner().invoke(
        app, ["import", "catalogue", str(desk.file), "--merchant", "haus", "--at", text], env=desk.environment
    )
    assert done.exit_code == 2 and said in " ".join(done.output.replace("│", " ").split()), done.output
    assert desk.rows("SELECT * FROM catalogue_import") == []


# --- large ---


@pytest.fixture
def big(tmp_path: Path) -> Callable[[int], Path]:
    def make(faulty: int) -> Path:
        path = tmp_path / f"big-{faulty}.csv"
        arguments = [sys.executable, str(SCRIPT), str(path), "--rows", str(ROWS), "--faulty", str(faulty)]
        subprocess.run(arguments, check=True, timeout=60)
        return path

    return make


# A process begins with the peak of the one that it was forked from, which a test run's own would hide: so one between.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""


def timed(desk: Desk, path: Path) -> tuple[int, list[dict[str, Any]], float, float]:
    """The command in a process of its own: exit status, what it said, its seconds, and the most MB that it held."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(FLASHSALE), "import", "catalogue", str(path), "--json"],
        env={**os.environ, **desk.environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    *said, mb = done.stdout.splitlines()
    return done.returncode, [json.loads(line) for line in said], time.monotonic() - began, float(mb)


def test_a_big_catalogue(desk: Desk, big: Callable[[int], Path]) -> None:
    path = big(0)
    for what in ("created", "unchanged"):
        code, findings, seconds, mb = timed(desk, path)
        said = findings[-1]
        print(f"{ROWS} rows, {what}: {seconds:.1f} s, peak {mb:.0f} MB")
        assert code == 0, findings[-5:]
        assert said[what] == said["rows"] > ROWS * 0.85
        assert mb < 300
        assert seconds < 60


def test_a_big_faulty_catalogue_tells_all_and_changes_nothing(desk: Desk, big: Callable[[int], Path]) -> None:
    faults = ROWS // 10
    path = big(faults)
    code, (*findings, said), seconds, mb = timed(desk, path)
    print(f"{ROWS} rows, {faults} faults: {seconds:.1f} s, peak {mb:.0f} MB")
    assert (code, said["faults"], said["applied"]) == (1, faults, False)
    assert len({each["row"] for each in findings if each["severity"] == "fault"}) == faults
    assert desk.rows() == []
    assert mb < 300
