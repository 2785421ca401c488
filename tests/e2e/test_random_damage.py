"""An engine's files damaged, or brought back to an earlier point: it starts green, or one line names the command that
helps, and it is green by that. Each order that was answered is in the ledger afterwards, or named as lost.

`FLASHSALE_DAMAGE_ROUNDS` sets the number of rounds (CI: 3; the full size: 200).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from flashsale.aof import MANIFEST
from tests.conftest import Engine
from tests.e2e.test_damaged_log import Sold, last_log
from tests.wire import ask, get

ROUNDS = int(os.environ.get("FLASHSALE_DAMAGE_ROUNDS", "3"))
SEED = int(os.environ.get("FLASHSALE_DAMAGE_SEED", "1123"))
WITHIN_S = 60
HELP = ("flashsale recover --force", "flashsale restore")
KEPT = 4  # points to go back to


@dataclass
class Point:
    """A stopped engine's two servers as files, and the orders that had been answered by then."""

    directory: Path
    answered: set[str]


class Damaged:
    """An engine whose files suffer while it does not run."""

    def __init__(self, engine: Engine, sold: Sold, points: Path, draw: random.Random) -> None:
        self.engine, self.sold, self.draw = engine, sold, draw
        self._directory = points
        self.points: list[Point] = []
        self.answered: set[str] = set()
        """Orders that one of the two servers still knows, as far as its files were left alone."""

    async def sell(self) -> None:
        before = len(self.sold.orders)
        await self.sold.sell(self.draw.randint(1, 3))
        self.answered |= {order["id"] for number, order in self.sold.orders.items() if number >= before}

    def take_point(self) -> None:
        directory = self._directory / str(len(self.points))
        directory.mkdir(parents=True)
        self._copy(self.engine.data_dir / "valkey", directory / "valkey")
        self._copy(self.engine.data_dir / "postgres", directory / "postgres")
        self.points.append(Point(directory, set(self.answered)))

    def _copy(self, source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)

    def suffer(self) -> str:
        """One damage, seeded; what it was. `answered` is then what still has to be there or named."""
        damages = ["nothing", "tail", "manifest", "base", "ledger", "valkey", "both", "gone", "run.json"]
        which = self.draw.choice(damages)
        data_dir = self.engine.data_dir
        logs = data_dir / "valkey" / "appendonlydir"
        point = self.draw.choice(self.points)
        match which:
            case "tail":
                with last_log(data_dir / "valkey").open("ab") as log:
                    log.write(self.draw.choice([bytes(512), b"*3\r\n$3\r\nSET\r\n", b"rubbish\n" * 9]))
            case "manifest":
                self._soil(logs / MANIFEST)
            case "base":
                self._soil(next(iter(logs.glob("*.base.*")), logs / MANIFEST))
            case "ledger":
                self._copy(point.directory / "postgres", data_dir / "postgres")
            case "valkey":
                self._copy(point.directory / "valkey", data_dir / "valkey")
            case "both":
                other = self.draw.choice(self.points)
                self._copy(point.directory / "postgres", data_dir / "postgres")
                self._copy(other.directory / "valkey", data_dir / "valkey")
                self.answered = point.answered | other.answered
            case "gone":
                shutil.rmtree(data_dir / "valkey")
            case "run.json":
                (data_dir / "run.json").write_text(self.draw.choice(["", "{", '{"front": null}', "[1]"]))
        return f"{which} (point {self.points.index(point)})"

    def _soil(self, path: Path) -> None:
        how = self.draw.choice(["empty", "zeros", "absent", "foreign"])
        if how == "absent":
            path.unlink()
        else:
            size = path.stat().st_size
            path.write_bytes({"empty": b"", "zeros": bytes(size), "foreign": b"PK\x03\x04" * (size // 4 + 1)}[how])

    async def comes_back(self, what: str) -> str:
        """Starts; green, or by the command of the line. Says which."""
        before = self.engine.errors.stat().st_size
        self.engine.spawn()
        helped = "green"
        async with asyncio.timeout(WITHIN_S):
            while not await asyncio.to_thread(self.engine.is_ready):
                assert self.engine.process is not None
                said = self.engine.errors.read_text()[before:]
                assert self.engine.process.poll() is None, f"{what}: `up` ended: {said[-3000:]}"
                if helped == "green" and any(command in said for command in HELP):
                    await self._until_readyz_names_it()
                    done = await asyncio.to_thread(self.engine.command, "recover", check=False)
                    assert done.returncode == 1, f"{what}: {done.stdout}"
                    assert done.stdout.count("\n") == 1, f"{what}: {done.stdout}"
                    assert any(command in done.stdout for command in HELP), f"{what}: {done.stdout}"
                    done = await asyncio.to_thread(self.engine.command, "recover", "--force", "--json", check=False)
                    assert done.returncode == 0, f"{what}: {done.stdout}{done.stderr}"
                    helped = "recover --force"
                await asyncio.sleep(0.02)
        await self.sold.into_ledger()  # the audit is green in it
        running = json.loads((self.engine.data_dir / "run.json").read_text())
        ledger = await asyncpg.connect(running["postgres"]["address"])
        try:
            there = {row[0] for row in await ledger.fetch("SELECT id FROM orders")}
            named = {row[0] for row in await ledger.fetch("SELECT id FROM lost_order")}
        finally:
            await ledger.close()
        assert not self.answered - there - named, f"{what}: vanished unnamed"
        self.answered -= named - there  # said once: a ledger brought back to before that does not know of it
        return helped

    async def _until_readyz_names_it(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            while True:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    (answer,) = await ask(self.engine.port, get("/readyz"))
                    if any(command in line for line in answer.json()["warnings"] for command in HELP):
                        return
                await asyncio.sleep(0.05)


@pytest.mark.chaos
@pytest.mark.slow
async def test_whatever_happens_to_its_files_the_engine_is_green_or_names_the_command(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    engine = make_engine().start()
    sold = Sold(engine, tmp_path)
    case = Damaged(engine, sold, tmp_path / "points", draw)
    outcomes: dict[str, int] = {}
    for number in range(ROUNDS):
        if len(sold.orders) < len(sold.tokens) - 5:
            await case.sell()
        await sold.into_ledger()
        assert await asyncio.to_thread(engine.stop) == 0
        if len(case.points) < KEPT:
            case.take_point()
        what = f"round {number}: {case.suffer()}"
        helped = await case.comes_back(what)
        outcomes[helped] = outcomes.get(helped, 0) + 1
        print(what, helped)
    print(outcomes)
    assert await asyncio.to_thread(engine.stop) == 0
