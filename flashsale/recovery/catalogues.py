"""The catalogue's versions on both sides: which there are, each read by itself, and brought from one side to the other.

What can't be read is as good as absent: it is told apart from what is sound before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import msgspec
import redis.asyncio
from msgspec.structs import replace

from flashsale.ledger import sales
from flashsale.ledger.pool import Connection
from flashsale.recovery.valkey import answer
from flashsale.reservation import commands, keys
from flashsale.sale.catalogue import Catalogue, Sale
from flashsale.sale.salefile import SaleFileFaults, parse_sale_file
from flashsale.sale.world import packaged


async def in_valkey(client: redis.asyncio.Redis) -> set[int]:
    """The versions of which Valkey has a document, whatever it is worth; version 0, the empty one, apart."""
    names = await answer(client.hkeys(keys.CATALOGUE))
    return {int(name) for name in names if name.isdigit()} - {0}


async def from_valkey(client: redis.asyncio.Redis, version: int) -> Catalogue | None:
    """The catalogue at that version; None where Valkey has none that can be read."""
    try:
        return await commands.load_catalogue(client, version)
    except (msgspec.DecodeError, ValueError):
        return None


async def from_ledger(ledger: Connection, version: int) -> Catalogue | None:
    """The catalogue at that version; None where the ledger has none that can be read."""
    document = await sales.catalogue(ledger, version)
    try:
        return None if document is None else Catalogue.decode(document)
    except (msgspec.DecodeError, ValueError):
        return None


async def into_ledger(ledger: Connection, catalogue: Catalogue) -> None:
    """Keeps the version in the ledger, in the place of one that could not be read."""
    await sales.put_catalogue(ledger, catalogue.version, catalogue.encode())


async def into_valkey(client: redis.asyncio.Redis, catalogue: Catalogue) -> None:
    """Keeps the version in Valkey; none is put in force by that."""
    await answer(client.hset(keys.CATALOGUE, str(catalogue.version), cast(str, catalogue.encode())))


async def versions(ledger: Connection) -> set[int]:
    """The versions that the ledger has rows of, read or not."""
    return set(await sales.catalogue_versions(ledger))


@dataclass(slots=True)
class Needed:
    """What becomes of the catalogue's versions. `in_force`: the one that will be; `take`: from Valkey to the ledger;
    `remake`: those that are nowhere, and are made again from the sales' files and their own orders' prices."""

    in_force: int = 0
    take: list[int] = field(default_factory=list)
    remake: list[int] = field(default_factory=list)


async def needed(client: redis.asyncio.Redis, ledger: Connection, in_force: int, from_valkey_too: bool) -> Needed:
    """Which versions have to be brought where, one read at a time. `from_valkey_too`: Valkey's are of this ledger."""
    found = Needed(in_force)
    sound = set()
    stored, there = await versions(ledger), await in_valkey(client) if from_valkey_too else set()
    for version in sorted(stored | there):
        if version in stored and await from_ledger(ledger, version) is not None:
            sound.add(version)
        elif version in there and await from_valkey(client, version) is not None:
            found.take.append(version)
    sound.update(found.take)
    wanted = stored | set(await sales.orders_by_version(ledger)) | {in_force}
    found.remake = sorted(wanted - sound - {0})
    return found


async def no_file(ledger: Connection) -> str | None:
    """The first sale whose file can't be read, so that no version can be made again."""
    for row in await sales.all_sales(ledger):
        try:
            parse_sale_file(row.file, f"{row.id}.toml")
        except SaleFileFaults:
            return row.id
    return None


async def settle(
    client: redis.asyncio.Redis, ledger: Connection, wanted: Needed, windows: Mapping[int, tuple[int, int]]
) -> None:
    """Brings the ledger to what `wanted` says. `windows`: each sale's (ms), by its number, as they are now."""
    for version in wanted.take:
        catalogue = await from_valkey(client, version)
        if catalogue is not None:
            await into_ledger(ledger, catalogue)
    for version in wanted.remake:
        await into_ledger(ledger, await _from_files(ledger, version, windows))


async def _from_files(ledger: Connection, version: int, windows: Mapping[int, tuple[int, int]]) -> Catalogue:
    """The catalogue as the sales' files say it, each offer at the index that it always had and at the price that the
    version's orders paid."""
    made = []
    skus, prices = await sales.all_offers(ledger), await sales.prices_of_orders(ledger, version)
    for row in await sales.all_sales(ledger):
        file = parse_sale_file(row.file, f"{row.id}.toml").with_id(row.id)
        by_sku = {offer.sku: offer for offer in file.offers}
        then = prices.get(row.number, {})
        known = [by_sku[sku] for sku in skus.get(row.number, ()) if sku in by_sku]
        offers = tuple(
            replace(offer, index=index, prices=offer.prices | then.get(index, {})) for index, offer in enumerate(known)
        )
        opens_at, closes_at = windows.get(row.number, (file.opens_at_ms, file.closes_at_ms))
        made.append(
            replace(
                Sale.from_file(file, row.number, row.key), offers=offers, opens_at_ms=opens_at, closes_at_ms=closes_at
            )
        )
    return Catalogue(version, tuple(made), packaged())
