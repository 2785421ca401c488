"""What was answered and had not reached the ledger: the journal behind the mark, stored before a rebuild."""

from __future__ import annotations

import contextlib

import asyncpg
import redis.asyncio

from flashsale.ledger import partitions
from flashsale.ledger.partitions import Partition
from flashsale.pipeline.journal_rows import read_journal
from flashsale.pipeline.ledger_writer import MarkMoved, store_entries

SURVIVORS = 100  # journal entries a transaction while what survived is stored


async def save_survivors(
    client: redis.asyncio.Redis, ledger: asyncpg.Connection[asyncpg.Record], partition: int
) -> tuple[Partition, int]:
    """Stores what stands in the journal behind the mark; the partition afterwards, and how many entries."""
    saved = 0
    while True:
        known = await partitions.get(ledger, partition)
        assert known is not None  # noqa: S101  ensured by the caller
        items = await read_journal(client, partition, known.mark, SURVIVORS)
        if not items:
            return known, saved
        with contextlib.suppress(MarkMoved):  # the ledger writer stored them: look again
            await store_entries(ledger, known, items)
            saved += len(items)
