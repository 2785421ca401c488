"""Ledger and Valkey each brought back to any point by itself: green, or one line that names the command, then green.

No order that was answered vanishes unnamed: it is in the ledger afterwards, or among the orders that are named as lost.
`FLASHSALE_RECOVERY_ROUNDS` sets the number of random rounds (CI: 6; the full size: 200).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flashsale import merchandising
from flashsale.audit import audit
from flashsale.embedded import PostgresServer, ValkeyServer
from flashsale.ledger import lost_orders
from flashsale.recovery.by_hand import Recovered
from flashsale.reservation import keys
from flashsale.sale.salefile import parse_sale_file
from tests.integration.points import Points
from tests.integration.shop import FAN, FILE, FRIDGE, KETTLE, Shop

ROUNDS = int(os.environ.get("FLASHSALE_RECOVERY_ROUNDS", "6"))
SEED = 1111
COMMANDS = ("flashsale recover", "flashsale restore", "FLASHSALE_MAXMEMORY_MB")


class Story:
    """A shop with a past: sales made, changed, paused and reopened, orders of each, some trimmed off the journal."""

    def __init__(self, shop: Shop, points: Points, aside: Path) -> None:
        self.shop, self.points, self.aside = shop, points, aside
        self.answered: set[str] = set()
        self._shoppers = itertools.count()

    async def make_sale(self, sale_id: str, title: str = "A sale") -> None:
        text = FILE.format(id=sale_id).replace('"A sale"', f'"{title}"')
        await merchandising.create(self.shop.valkey, self.shop.ledger, parse_sale_file(text, f"{sale_id}.toml"), text)

    async def update_sale(self, sale_id: str, price: str) -> None:
        text = FILE.format(id=sale_id).replace('"20.50"', f'"{price}"')
        await merchandising.update(self.shop.valkey, self.shop.ledger, parse_sale_file(text, f"{sale_id}.toml"), text)

    async def sell(self, count: int, sale_id: str = "sale") -> None:
        for _ in range(count):
            number = next(self._shoppers)
            lines = [(FRIDGE, 1 + number % 2)] + ([(KETTLE, 3)] if number % 3 == 0 else [])
            outcome, order = await self.shop.buy(f"shopper-{number}", *lines, key=f"k{number}", sale_id=sale_id)
            assert outcome == "A"
            self.answered.add(order)

    async def settle(self, trim: bool = True) -> None:
        await self.shop.write()
        if trim:
            await self.shop.trim()

    async def happen(self) -> None:
        """The whole past, a point after each chapter."""
        await self.points.take(self.answered)  # 0: a ledger and a Valkey of no sale
        await self.make_sale("sale")
        await self.sell(4)
        await self.settle()
        await self.points.take(self.answered)  # 1
        await self.sell(3)
        await merchandising.set_stock(self.shop.valkey, "sale", KETTLE, to=450, expect=500)
        await merchandising.suspend(self.shop.valkey, "sale", FAN)
        await self.settle()
        await self.sell(2)
        await self.points.take(self.answered)  # 2: with a journal that the ledger has not yet
        await self.update_sale("sale", "21.50")
        await merchandising.pause(self.shop.valkey, "sale")
        await merchandising.resume(self.shop.valkey, "sale")
        await self.sell(2)
        await self.make_sale("later")
        await self.sell(3, "later")
        await self.settle()
        await self.points.take(self.answered)  # 3
        await self.sell(2, "later")
        await self.settle(trim=False)
        await self.sell(1)
        await self.points.take(self.answered)  # 4

    async def recover(self, **options: object) -> Recovered:
        return await self.shop.recover(set_aside=self.aside, **options)

    async def comes_back(self, answered: set[str]) -> Recovered:
        """Green, or a line that names a command, and green by it; and each answered order is there or named."""
        outcome = await self.recover()
        if not outcome.ok:
            assert any(command in (outcome.reason or "") for command in COMMANDS), outcome
            assert "\n" not in (outcome.reason or "")
            dry = await self.recover(dry_run=True)
            assert not dry.ok
            assert dry.plan is not None
            outcome = await self.recover(force=True)
            assert outcome.ok, outcome
            assert dry.plan["lost"] == len(outcome.lost)
        await self.settle()
        report = await audit(self.shop.redis_url, self.shop.database_url)
        assert report.faults == []
        rows = await self.shop.ledger.fetch("SELECT id FROM orders")
        there = [row[0] for row in rows]
        assert len(there) == len(set(there))
        named = {lost.id for lost in await lost_orders.first(self.shop.ledger, 1000)}
        assert not answered - set(there) - named
        assert not named & set(there)
        return outcome


@pytest.fixture
async def story(
    valkey_memory: ValkeyServer, ledger: str, _postgres_session: PostgresServer, tmp_path: Path
) -> AsyncIterator[Story]:
    async with Shop(valkey_memory.url, ledger) as shop:
        assert (await shop.recover()).ok
        points = Points(shop, _postgres_session.url)
        made = Story(shop, points, tmp_path / "set-aside")
        await made.happen()
        yield made
        await points.drop()


async def test_every_pair_of_points_comes_back_and_no_answered_order_vanishes_unnamed(story: Story) -> None:
    points = story.points.taken
    pairs = list(itertools.product(range(len(points)), [*range(len(points)), None]))
    if len(pairs) > ROUNDS:
        pairs = random.Random(SEED).sample(pairs, ROUNDS)
    for ledger_at, valkey_at in pairs:
        await story.points.ledger_back_to(points[ledger_at])
        if valkey_at is None:
            await story.shop.valkey.flushall()
        else:
            await story.points.valkey_back_to(points[valkey_at])
        answered = points[valkey_at].answered if valkey_at is not None else set()
        try:
            await story.comes_back(answered)
        except AssertionError as fault:
            raise AssertionError(f"ledger at {ledger_at}, Valkey at {valkey_at}: {fault}") from fault


async def test_a_ledger_from_before_an_order_takes_what_the_newer_valkey_knows(story: Story) -> None:
    """The sale, its supply, its catalogue and the orders that stand in the journal; the others are named, and their
    units are nobody else's."""
    await story.points.ledger_back_to(story.points.taken[0])
    await story.points.valkey_back_to(story.points.taken[4])
    before = await story.shop.ledger.fetchval("SELECT count(*) FROM orders")
    assert before == 0
    refused = await story.recover()
    assert (refused.ok, refused.rebuilt) == (False, False)
    assert "flashsale recover --force" in (refused.reason or "")
    assert await story.shop.valkey.hlen(keys.holds(0, "sale")) > 0
    outcome = await story.comes_back(story.answered)
    assert outcome.copy is not None
    assert os.stat(outcome.copy).st_mode & 0o777 == 0o600
    assert outcome.taken == 3  # two of `later`, one of `sale`
    assert {lost["sale"] for lost in outcome.lost} == {"sale", "later"}
    assert len(outcome.lost) == len(story.answered) - 3
    assert all(lost["units"] for lost in outcome.lost)
    sale, _ = await story.shop.sale("later")
    assert [offer.sku for offer in sale.offers] == [FRIDGE, KETTLE, FAN]
    reading = {sale_id: await merchandising.show(story.shop.valkey, sale_id) for sale_id in ("sale", "later")}
    lost_of = {lost["sale"]: lost["units"] for lost in outcome.lost}
    for sale_id, view in reading.items():
        assert view.state.supply[0] == 1000 - lost_of[sale_id][FRIDGE]
    assert reading["sale"].state.suspended == {2}
    assert (await story.shop.buy("new", (KETTLE, 1), sale_id="later"))[0] == "A"


async def test_a_retry_of_a_lost_order_makes_it_an_order_again(story: Story) -> None:
    await story.points.ledger_back_to(story.points.taken[0])
    await story.points.valkey_back_to(story.points.taken[1])
    outcome = await story.comes_back(story.points.taken[1].answered)
    assert len(outcome.lost) == 4
    outcome_letter, order = await story.shop.buy("shopper-1", (FRIDGE, 2), key="k1")
    assert outcome_letter == "A"
    assert order in {lost["order"] for lost in outcome.lost}
    await story.shop.write()
    assert order not in {lost.id for lost in await lost_orders.first(story.shop.ledger, 1000)}
    assert (await audit(story.shop.redis_url, story.shop.database_url)).faults == []


async def test_another_engines_valkey_is_kept_as_a_file_before_it_is_rebuilt(story: Story, postgres: str) -> None:
    from flashsale.ledger.migrate import migrate

    await migrate(postgres)
    async with Shop(story.shop.redis_url, postgres) as stranger:
        await stranger.valkey.flushall()
        await stranger.open("sale")
        await stranger.buy("ann", (FRIDGE, 1))
        await stranger.write()
        await story.points.valkey_back_to(story.points.taken[4])
        refused = await stranger.recover(set_aside=story.aside)
        assert "flashsale recover --force" in (refused.reason or "")
        outcome = await stranger.recover(set_aside=story.aside, force=True)
        assert outcome.ok, outcome
        assert outcome.copy is not None
        assert b"later" in await asyncio.to_thread(Path(outcome.copy).read_bytes)
        assert len(outcome.lost) == len(story.answered)
        assert (await audit(stranger.redis_url, stranger.database_url)).faults == []
        assert await stranger.ledger.fetchval("SELECT count(*) FROM orders") == 1


async def test_a_catalogue_version_that_is_nowhere_is_made_again_from_the_sales_files(story: Story) -> None:
    await story.shop.write()
    version = await story.shop.ledger.fetchval("SELECT version FROM partition")
    await story.shop.ledger.execute("DELETE FROM catalogue WHERE version = $1", version)
    await story.shop.valkey.hset(keys.CATALOGUE, str(version), b"no catalogue")
    await story.shop.valkey.hdel(keys.partition(0), "run_id")
    outcome = await story.comes_back(story.answered)
    assert outcome.rebuilt
    assert f"catalogue version {version} is nowhere" in "".join(outcome.notices)
    sale, in_force = await story.shop.sale("sale")
    assert in_force == version
    assert [offer.sku for offer in sale.offers] == [FRIDGE, KETTLE, FAN]


async def test_a_ledger_without_one_of_its_sales_is_refused_and_nothing_is_deleted(story: Story) -> None:
    await story.shop.write()
    await story.shop.ledger.execute("DELETE FROM offer WHERE sale = 1; DELETE FROM sale WHERE number = 1")
    await story.shop.ledger.execute("DELETE FROM catalogue")
    await story.shop.valkey.delete(keys.CATALOGUE)
    before = await story.shop.dump()
    outcome = await story.recover(force=True)
    assert not outcome.ok
    assert "flashsale restore DIR" in (outcome.reason or "")
    assert await story.shop.dump() == before


DAMAGES = ["nothing", "catalogue", "both catalogues", "stock", "partition", "state", "journal"]


async def damage(story: Story, which: str, draw: random.Random) -> None:
    valkey = story.shop.valkey
    sale_id = draw.choice(["sale", "later"])
    version = str(await story.shop.ledger.fetchval("SELECT max(version) FROM catalogue") or 1)
    match which:
        case "catalogue":
            await valkey.hset(keys.CATALOGUE, version, b"\x93\x01")
        case "both catalogues":
            await valkey.hset(keys.CATALOGUE, version, b"")
            await story.shop.ledger.execute("UPDATE catalogue SET document = '\\x00' WHERE version = $1", int(version))
        case "stock":
            await valkey.hset(keys.stock(0, sale_id), draw.choice(["0", "1"]), draw.choice(["many", "-", ""]))
        case "partition":
            await valkey.hset(keys.partition(0), draw.choice(["epoch", "trimmed", "version", "written"]), "?")
        case "state":
            await valkey.hdel(keys.state(0, sale_id), "opens_at")
        case "journal":
            await valkey.delete(keys.journal(0))


async def test_random_damage_at_random_points_ends_green_or_in_one_line(story: Story) -> None:
    draw = random.Random(SEED)
    points = story.points.taken
    for number in range(ROUNDS):
        ledger_at, valkey_at = draw.randrange(len(points)), draw.randrange(len(points))
        which = draw.choice(DAMAGES)
        await story.points.ledger_back_to(points[ledger_at])
        await story.points.valkey_back_to(points[valkey_at])
        await damage(story, which, draw)
        answered = points[valkey_at].answered if which != "journal" else set()
        try:
            await story.comes_back(answered)
        except AssertionError as fault:
            raise AssertionError(f"round {number}: ledger {ledger_at}, Valkey {valkey_at}, {which}: {fault}") from fault


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
async def test_a_rebuild_over_a_newer_valkey_that_is_killed_loses_no_name(story: Story, at: float) -> None:
    """Cut off at a share of Valkey's commands; what is done again needs no second word."""
    await story.points.ledger_back_to(story.points.taken[1])
    await story.points.valkey_back_to(story.points.taken[4])
    first = await commands_of(story)
    assert (await story.recover(force=True)).ok
    whole = await commands_of(story) - first
    await story.points.ledger_back_to(story.points.taken[1])
    await story.points.valkey_back_to(story.points.taken[4])
    allowed = await commands_of(story) + int(whole * at)
    recovering = asyncio.create_task(story.recover(force=True))
    while not recovering.done() and await commands_of(story) < allowed:  # noqa: ASYNC110 - Valkey counts
        await asyncio.sleep(0)
    recovering.cancel()
    await asyncio.wait([recovering])
    begun = await story.shop.valkey.exists(keys.rebuilding(0))
    if begun:
        assert (await story.recover()).ok
    await story.comes_back(story.answered)


async def commands_of(story: Story) -> int:
    return int((await story.shop.valkey.info("stats"))["total_commands_processed"])
