"""A sale at a glance: its head, and of its units only those that a page shows. Of the whole sale see commands.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import redis.asyncio

from flashsale.reservation import keys
from flashsale.reservation.commands import SaleHead
from flashsale.reservation.scripts import Script

_READ_OFFERS = Script("read_offers")
OFFERS_MAX = 500  # at once; with as many guarantees as there are channels it stays below the script's bound

OfferFields = tuple[int, tuple[int, ...]]
"""An offer's SKU index, and the numbers of the channels that it guarantees units to."""


@dataclass(frozen=True, slots=True)
class SaleGlance(SaleHead):
    """A sale in one instant of Valkey's clock. `available`: units by SKU index, of the offers that were asked for and
    that have any stock; what is guaranteed to channels among them."""

    available: Mapping[int, int]


async def glance(
    client: redis.asyncio.Redis, sale_id: str, offers: Sequence[OfferFields] = (), partition: int = 0
) -> SaleGlance | None:
    """The sale's head and those offers; None where the partition has no such sale. Raises ValueError for too many."""
    if len(offers) > OFFERS_MAX:
        raise ValueError(f"{len(offers)} offers at a glance, at most {OFFERS_MAX}")
    fields = [
        field for index, channels in offers for field in (str(index), *(f"{index}.{channel}" for channel in channels))
    ]
    names = [key(partition, sale_id) for key in (keys.state, keys.stock)]
    version, now_ms, number, status, opens_at, closes_at, suspended, units = await _READ_OFFERS.run(
        client, [keys.partition(partition), *names], fields
    )
    if not number:
        return None
    left = iter(units)
    available = {}
    for index, channels in offers:
        common, *guaranteed = (next(left) for _ in range(1 + len(channels)))
        if common:
            available[index] = int(common) + sum(int(each or 0) for each in guaranteed)
    return SaleGlance(
        now_ms,
        int(number),
        status.decode(),
        int(opens_at),
        int(closes_at),
        frozenset(int(index) for index in suspended.split(b",") if index),
        int(version or 0),
        available,
    )
