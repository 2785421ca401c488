"""A rebuild as a whole, computed before anything is changed: what would be written, and whether it can be.

Nothing is deleted before it is known that it can be written again: every document is decoded, every reference followed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import asyncpg
import redis.asyncio

from flashsale.ledger import orders, sales, statistics
from flashsale.recovery import before, catalogues
from flashsale.recovery.catalogues import Needed
from flashsale.recovery.survey import Kin, Survey, survey
from flashsale.recovery.valkey import answer

ORDER_BYTES = 160
"""Of Valkey's memory an order takes at most: a hold (56 bytes, 72 where units moved) and a quota entry a line."""

BY_HAND = (
    "`flashsale recover --dry-run` shows all of it; `flashsale recover --force` keeps a copy, takes into the ledger"
    " what it can and names the rest"
)
BRING_BACK = "`flashsale restore DIR` brings back a backup that is whole"


class CannotRebuild(Exception):
    """Valkey can't be rebuilt, or not without being told: one line that says why and which command helps."""


@dataclass(slots=True)
class Plan:
    """What a rebuild would do. `refusals`: why it can't be written at all; `doubts`: what it would do only when told
    to; `notices`: what it can't mend, whatever it is told."""

    found: Survey
    versions: Needed
    sales: int = 0
    orders: int = 0
    refusals: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def refuse(self, told: bool) -> None:
        """Raises CannotRebuild where this plan may not be carried out."""
        if self.refusals:
            raise CannotRebuild("; ".join(self.refusals))
        if self.doubts and not (told or self.found.told):
            raise CannotRebuild(f"{'; '.join(self.doubts)}: {BY_HAND}")

    def as_dict(self) -> dict[str, Any]:
        """For `flashsale recover --dry-run --json`."""
        return {
            "orders": self.orders,
            "sales": self.sales,
            "survivors": self.found.survivors,
            "lost": self.found.lost,
            "refusals": self.refusals,
            "doubts": self.doubts,
            "notices": self.notices,
        }


async def plan(client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], partition: int = 0) -> Plan:
    """Looks at everything, changes nothing."""
    await statistics.ensure(ledger)
    found = await survey(client, ledger, partition)
    made = Plan(found, await needed(client, ledger, found))
    made.sales = len(found.rows)
    made.orders = await orders.count(ledger) + found.survivors
    if found.phase != before.TAKEN:
        if found.kin is not Kin.STRANGER:
            made.sales += len(found.only_sales)
        made.doubts = found.doubts()
    adopted = {sale.number for sale in found.only_sales} if found.kin is not Kin.STRANGER else set()
    unknown = [number for number in await sales.unknown_numbers(ledger) if number not in adopted]
    if unknown:
        numbers = ", ".join(map(str, unknown[:5]))
        made.refusals.append(f"the ledger has orders of sale number {numbers}, but no such sale: {BRING_BACK}")
    made.refusals += await _too_small(client, made.orders)
    if made.versions.remake:
        sale_id = await catalogues.no_file(ledger)
        if sale_id is not None:
            made.refusals.append(f"a catalogue version is nowhere, nor sale {sale_id}'s file: {BRING_BACK}")
    for version in made.versions.remake:
        made.notices.append(
            f"catalogue version {version} is nowhere: made again from the sales' files and its orders' prices"
        )
    return made


async def needed(client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], found: Survey) -> Needed:
    """What becomes of the catalogue's versions."""
    in_force = found.known.version
    if found.kin is not Kin.STRANGER:
        in_force = max(in_force, found.version)
        if found.gap and found.state is not None and found.catalogue is not None:
            in_force = max(in_force, found.catalogue.version)
    return await catalogues.needed(client, ledger, in_force, found.kin is not Kin.STRANGER)


async def _too_small(client: redis.asyncio.Redis, count: int) -> list[str]:
    maxmemory = int((await answer(client.config_get("maxmemory")))["maxmemory"])
    wanted = count * ORDER_BYTES
    if maxmemory and wanted > maxmemory:
        return [
            f"Valkey's maxmemory is {maxmemory}, the {count} orders of the ledger may need {wanted}: raise"
            " FLASHSALE_MAXMEMORY_MB (or maxmemory of your own Valkey)"
        ]
    return []
