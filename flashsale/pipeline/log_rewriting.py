"""Has Valkey's log rewritten: between sales when it is much longer than what it stands for, in a sale only when
replaying it would take too long.

A rewriting forks Valkey and doubles its writes for as long, hence not in a sale's rush without need. Answers stay on
disk before they are given: `no-appendfsync-on-rewrite` is `no`, and the child flushes in small pieces.
"""

from __future__ import annotations

import time

import structlog
from redis.exceptions import NoPermissionError, ResponseError

from flashsale.ledger import sales
from flashsale.ledger.pool import Connection
from flashsale.pipeline.duty import Duty, is_away
from flashsale.reservation import commands, keys, server
from flashsale.reservation.log_rewrite import LogSize, log_size, rewrite

log = structlog.get_logger(__name__)

MIB = 1024 * 1024
LOOK_S = 5.0
QUIET_FACTOR = 2  # between sales: a log that is so many times what is in memory is rewritten
QUIET_FLOOR_BYTES = 32 * MIB  # replayed in little more than a second: less is not worth a fork
SOON_MS = 15 * 60 * 1000  # a sale that opens within this finds Valkey at rest; 10^7 ids are written in under a minute
AGAIN_S = 60.0  # after a rewriting that failed, on a full disk, say


def too_long(size: LogSize, *, selling: bool, grown_max_bytes: int) -> bool:
    """Whether a log of that size is to be rewritten now. In a sale it has grown by `grown_max_bytes` and by more than
    is in memory: each rewriting then writes less than the orders since the last one did."""
    if selling:
        return size.grown >= max(grown_max_bytes, size.data)
    return size.grown >= QUIET_FLOOR_BYTES and size.total >= QUIET_FACTOR * size.data


class LogRewriting(Duty):
    """One worker looks after the log of one Valkey. `grown_max_bytes`: what may have to be replayed while a sale
    sells."""

    name = "log rewriting"
    lock = 0x666C6177

    def __init__(
        self, redis_url: str, database_url: str, *, grown_max_bytes: int, look_s: float = LOOK_S, partition: int = 0
    ) -> None:
        super().__init__(database_url, partition=partition)
        self._client = server.connect(redis_url, connections=1)
        self._grown_max_bytes = grown_max_bytes
        self._look_s = look_s
        self._not_before = 0.0
        self._denied = False

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._client.aclose()

    async def work(self, connection: Connection) -> None:
        while not self.stopping.is_set():
            if not self._denied and time.monotonic() >= self._not_before:
                await self.look(connection)
            await self.pause(self._look_s)

    async def look(self, connection: Connection) -> bool:
        """One look; True where it had the log rewritten."""
        size = await log_size(self._client)
        if size is None or size.busy or size.grown < min(QUIET_FLOOR_BYTES, self._grown_max_bytes):
            return False
        if size.failed and self._not_before == 0.0:
            log.warning("Valkey's log could not be rewritten; it is tried again", again_s=AGAIN_S)
            self._not_before = time.monotonic() + AGAIN_S
            return False
        self._not_before = 0.0
        selling = await self._selling(connection)
        if not too_long(size, selling=selling, grown_max_bytes=self._grown_max_bytes):
            return False
        try:
            await rewrite(self._client)
        except (NoPermissionError, ResponseError) as refused:
            if is_away(refused):
                raise
            # Said once: a managed server rewrites its log by its own rules, or keeps it elsewhere.
            self._denied = True
            log.warning(
                "Valkey does not let its log be rewritten: it grows until the server does it", reason=str(refused)
            )
            return False
        log.info("Valkey's log is rewritten", bytes=size.total, grown_bytes=size.grown, selling=selling)
        return True

    async def _selling(self, connection: Connection) -> bool:
        """Whether a sale takes orders, or will soon. A paused one may be resumed at any moment."""
        now_ms = await commands.clock(self._client)
        for sale in await sales.all_sales(connection):
            found = await self._client.hmget(keys.state(self._partition, sale.id), ["status", "opens_at", "closes_at"])
            status, opens_at, closes_at = found
            if opens_at is None or closes_at is None or status == b"closed":
                continue
            if int(opens_at) - SOON_MS <= now_ms < int(closes_at):
                return True
        return False
