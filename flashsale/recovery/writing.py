"""Every key of a partition but journal and partition hash, from the ledger alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg
import redis.asyncio

from flashsale.ledger import held, movements, orders, sales
from flashsale.ledger.partitions import Partition
from flashsale.recovery import catalogues
from flashsale.recovery.valkey import FIELDS, HashWriter
from flashsale.reservation import commands, holds, keys
from flashsale.reservation.limits import identity_field, lane_field
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.identity import SaleIdentity

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class SaleWindowState:
    """A sale's state as the movements tell it."""

    status: str = "open"
    opens_at: int = 0
    closes_at: int = 0
    suspended: set[int] = field(default_factory=set)


def replayed(rows: list[movements.MovementRow]) -> dict[int, SaleWindowState]:
    """Each sale's state, by number, after these movements (in the journal's order)."""
    states: dict[int, SaleWindowState] = {}
    for row in rows:
        if row.sale is None:
            continue
        state = states.setdefault(row.sale, SaleWindowState())
        if row.kind == "suspend" and row.sku is not None:
            state.suspended.add(row.sku)
        elif row.kind == "unsuspend" and row.sku is not None:
            state.suspended.discard(row.sku)
        else:
            detail = json.loads(row.detail)
            state.opens_at, state.closes_at = detail["opens_at"], detail["closes_at"]
            state.status = detail.get("status", state.status)
    return states


def limited_lines(catalogues: dict[int, Catalogue]) -> list[tuple[int, int, int]]:
    """(catalogue version, sale number, offer index) of every offer with a quota."""
    return [
        (version, sale.number, offer.index)
        for version, catalogue in catalogues.items()
        for sale in catalogue.sales
        for offer in sale.offers
        if offer.quota
    ]


def channel_numbers(catalogues: dict[int, Catalogue]) -> dict[str, int]:
    """Every channel's number, of any version: a number names its channel for ever."""
    return {channel.id: channel.number for catalogue in catalogues.values() for channel in catalogue.world.channels}


async def write(
    client: redis.asyncio.Redis,
    ledger: asyncpg.Connection[asyncpg.Record],
    known: Partition,
    progress: Progress | None,
) -> tuple[int, int]:
    """Writes every key of the partition but journal and partition; returns how many sales and orders."""
    partition, mark = known.id, known.mark
    rows = {row.number: row for row in await sales.all_sales(ledger)}
    writer = HashWriter(client)
    limited: list[tuple[int, int, int]] = []
    channels: dict[str, int] = {}
    await catalogues.into_valkey(client, Catalogue(0, ()))
    for version in sorted(await catalogues.versions(ledger)):
        catalogue = await catalogues.from_ledger(ledger, version)
        if catalogue is None:
            continue  # it is nowhere: the plan said so
        await catalogues.into_valkey(client, catalogue)
        limited += limited_lines({version: catalogue})
        channels |= channel_numbers({version: catalogue})

    supplied = await movements.supplies(ledger, partition, mark)
    released = await movements.released_units(ledger, partition, mark)
    taken = await orders.taken_units(ledger, partition, mark)
    guarantees = await held.guarantees_left(ledger, partition, mark, channels)
    states = replayed(await movements.of_sales(ledger, partition))
    for number, state in states.items():
        sale_id = rows[number].id
        suspended = "".join(f",{sku}" for sku in sorted(state.suspended))
        values: dict[str, str | int] = {
            "number": number,
            "status": state.status,
            "opens_at": state.opens_at,
            "closes_at": state.closes_at,
            "suspended": f"{suspended}," if suspended else "",
        }
        for name, value in values.items():
            await writer.put(keys.state(partition, sale_id), name, value)
        guaranteed: Counter[int] = Counter()
        for (sku, channel), units in guarantees.get(number, {}).items():
            guaranteed[sku] += units
            await writer.put(keys.stock(partition, sale_id), f"{sku}.{channel}", units)
        for sku, supply in supplied.get(number, {}).items():
            common = supply - taken.get(number, {}).get(sku, 0) + released.get(number, {}).get(sku, 0)
            common -= guaranteed[sku]
            await writer.put(keys.supply(partition, sale_id), sku, supply)
            await writer.put(keys.stock(partition, sale_id), sku, common)

    identities = {number: SaleIdentity(partition, number, row.key) for number, row in rows.items()}
    async for number, shopper, sku, units in orders.each_quota_use(ledger, partition, mark, limited):
        quota_field = identities[number].quota_field(shopper, sku)
        await writer.put(keys.quota(partition, rows[number].id), quota_field, units)

    for (lane, day), parcels in (await held.lane_days(ledger, partition, mark)).items():
        await writer.put(keys.limits(partition), lane_field(lane, day), parcels)
    async for person, year, amount in held.each_import(ledger, partition, mark):
        await writer.put(keys.limits(partition), identity_field(person, year), amount)
    for (recipient, agent), grant in (await held.grants(ledger, partition, mark)).items():
        await writer.put(keys.grants(partition), commands.grant_field(recipient, agent), grant)

    count, total = 0, await orders.count(ledger) if progress is not None else 0
    async for order in orders.each_hold(ledger, partition, mark):
        hold = holds.Hold(
            order.letter, order.fingerprint, order.version, order.journal_ms, order.journal_seq, order.number
        )
        used_id = bytes.fromhex(order.id)[-commands.USED_ID_BYTES :]
        await writer.put(keys.holds(partition, rows[order.sale].id), used_id, holds.pack(hold))
        count += 1
        if progress is not None and count % FIELDS == 0:
            progress(count, total)
    await writer.flush()
    if progress is not None:
        progress(count, count)
    return len(states), count
