"""Pushes to channels: each hears what becomes of its orders, and what it may sell of every SKU.

One worker does it, with a task a channel, so that one that hangs holds up no other. Changes of orders go out in batches
until they are taken or too old; a worker that dies between an endpoint's answer and the ledger sends again: at least
once, never not at all. Stock is compared with what the channel took last, so it need not be remembered and can't be
lost; it is told as a state, and only the newest.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import asyncpg
import redis.asyncio
import structlog

from flashsale.ledger import channel_pushes, followers
from flashsale.ledger.channel_pushes import EndpointRow, PushRow
from flashsale.ledger.fulfilment import tracking_of
from flashsale.ledger.pool import CONNECTION_LOST, Connection, Ledger, LedgerAway
from flashsale.partners.channels.marketplace import Endpoint, HttpMarketplace, Marketplace, OrderChange, Sellable
from flashsale.partners.outbound import Outbound, networks
from flashsale.pipeline.care import reason_of
from flashsale.pipeline.duty import VALKEY_LOST, Duty, is_away
from flashsale.reservation import commands, server
from flashsale.sale.catalogue import Catalogue, Sale
from flashsale.settings import Settings

log = structlog.get_logger(__name__)

POLL_S = 0.3  # a change is told within this after its transaction, and those before it, have ended
HISTORY_ROWS = 1000  # changes handed out in one transaction
ORDERS_AT_ONCE = 100  # changes in one request
LEVELS_AT_ONCE = 500  # SKUs in one request
PAUSE_S = (1.0, 300.0)  # after the first failure, and the longest: it doubles from one to the other
JITTER = 0.2  # a pause is longer by up to this share, so that what failed together does not come back together
SWEEP_S = 30.0  # between two looks for what is too old
LOST_PAUSE_S = 1.0  # after the ledger was lost
OVER_MS = 86_400_000  # how long after its end a sale's stock, none, is still told to those that were away
DAY_MS = 86_400_000
CONNECTIONS = 4  # to the ledger: a task needs one for a statement at a time
LEDGER_TIMEOUT_S = 10.0

_AWAY: tuple[type[BaseException], ...] = (*CONNECTION_LOST, LedgerAway, asyncpg.PostgresError)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Stock:
    """What every channel may sell as last read: (sale number, offer index) -> units, by channel; `names` tells sale id
    and SKU."""

    as_of_ms: int = 0
    by_channel: dict[str, dict[tuple[int, int], int]] = field(default_factory=dict)
    names: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)


class ChannelPushes(Duty):
    """Tells the channels. `give_up_s`: a change of an order that was not taken within this is given up."""

    name = "channel pushes"
    lock = 0x666C6370

    def __init__(
        self,
        redis_url: str,
        database_url: str,
        marketplace: Marketplace,
        *,
        give_up_s: float,
        stock_s: float,
        log_days: int,
        pause_s: tuple[float, float] = PAUSE_S,
    ) -> None:
        super().__init__(database_url)
        self._redis_url = redis_url
        self._marketplace = marketplace
        self._give_up_ms = round(give_up_s * 1000)
        self._stock_s = stock_s
        self._log_ms = log_days * DAY_MS
        self._pause_s = pause_s
        self._stock = _Stock()
        self._catalogue = Catalogue(0, ())
        self._look_failed: str | None = None

    async def work(self, connection: Connection) -> None:
        await followers.mend(connection, self.beat)
        ledger = Ledger(self._database_url, connections_max=CONNECTIONS, timeout_s=LEDGER_TIMEOUT_S)
        valkey = server.connect(self._redis_url)
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            await self._direct(connection, ledger, valkey, tasks)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            await ledger.close()
            await valkey.aclose()

    async def _direct(
        self,
        connection: Connection,
        ledger: Ledger,
        valkey: redis.asyncio.Redis,
        tasks: dict[str, asyncio.Task[None]],
    ) -> None:
        """Hands out what is to be told, and sees that every channel has its task."""
        swept = looked = 0.0
        while not self.stopping.is_set():
            self.beat()
            more = await channel_pushes.tell(connection, rows=HISTORY_ROWS, now_ms=now_ms())
            heard = await channel_pushes.heard(connection)
            if heard and time.monotonic() - looked >= self._stock_s:
                await self._look_if_possible(valkey)
                looked = time.monotonic()
            for channel in heard:
                if channel not in tasks or tasks[channel].done():
                    tasks[channel] = asyncio.create_task(self._serve(channel, ledger))
            if time.monotonic() - swept > SWEEP_S:
                await self._sweep(connection)
                swept = time.monotonic()
            if not more:
                await self.pause(POLL_S)

    async def _look_if_possible(self, valkey: redis.asyncio.Redis) -> None:
        """A stock that can't be read keeps no channel from hearing of its orders."""
        try:
            await self._look(valkey)
            self._look_failed = None
        except Exception as fault:
            if is_away(fault):
                raise
            if self._look_failed != (said := reason_of(fault)):
                log.error("channels are not told of the stock", exc_info=fault)
            self._look_failed = said

    async def _sweep(self, connection: Connection) -> None:
        at_ms = now_ms()
        gone = await channel_pushes.give_up(connection, before_ms=at_ms - self._give_up_ms, now_ms=at_ms)
        if gone:
            log.warning("channels did not take what became of their orders: it is given up", changes=gone)
        await channel_pushes.prune(connection, before_ms=at_ms - self._log_ms)

    # --- one channel ---

    async def _serve(self, channel: str, ledger: Ledger) -> None:
        """Tells one channel, as long as it hears anywhere."""
        failures, stock_after = 0, 0.0  # of the stock alone: what a channel thinks of it delays no order
        while not self.stopping.is_set():
            try:
                async with ledger.connection() as connection:
                    row = await channel_pushes.endpoint(connection, channel)
                if row is None:
                    return
                wait_s = (row.next_ms - now_ms()) / 1000
                if wait_s > 0:
                    await self.pause(min(wait_s, POLL_S))
                    continue
                told = await self._tell_orders(row, ledger)
                if not told and time.monotonic() >= stock_after:
                    taken = await self._tell_stock(row, ledger)
                    failures = 0 if taken else failures + 1
                    stock_after = time.monotonic() + (0.0 if taken else self._pause(failures))
                if not told:
                    await self.pause(POLL_S)
            except _AWAY as fault:
                log.warning("pushes to a channel wait for the ledger", channel=channel, reason=repr(fault))
                await self.pause(LOST_PAUSE_S)
            except Exception:  # a fault of ours: it must not silence the channel for ever
                log.exception("a push to a channel failed", channel=channel)
                await self.pause(self._pause_s[1])

    async def _tell_orders(self, row: EndpointRow, ledger: Ledger) -> bool:
        """The next changes; whether the channel took any, and more may follow at once."""
        async with ledger.connection() as connection:
            found = await channel_pushes.due(connection, row.channel, ORDERS_AT_ONCE, now_ms())
        if not found:
            return False
        # What was refused goes alone: its company is innocent.
        batch = found[:1] if found[0].refusals else [push for push in found if not push.refusals]
        endpoint = Endpoint(row.channel, row.url, row.secret)
        outcome = await self._marketplace.tell_orders(endpoint, [_change(push) for push in batch], now_ms())
        at_ms = now_ms()
        async with ledger.connection() as connection, connection.transaction():
            if outcome.taken:
                await channel_pushes.delivered(connection, batch, at_ms)
            elif outcome.refused:
                for push in batch:
                    again_s = 0.0 if len(batch) > 1 else self._pause(push.refusals + 1)
                    await channel_pushes.refused(connection, push, outcome.error, at_ms + round(1000 * again_s))
            else:
                failures = row.failures + 1
                again_ms = at_ms + round(1000 * self._pause(failures))
                await channel_pushes.failed(connection, row.channel, failures, again_ms)
            if outcome.taken or outcome.refused:
                await channel_pushes.answered(connection, row.channel)
        if not outcome.taken:
            log.info("a channel did not take changes of orders", channel=row.channel, reason=outcome.error)
        return outcome.taken or len(batch) > 1

    async def _tell_stock(self, row: EndpointRow, ledger: Ledger) -> bool:
        """What differs from what the channel took last; False where it did not take it."""
        stock = self._stock
        now = stock.by_channel.get(row.channel, {})
        if not now:
            return True
        async with ledger.connection() as connection:
            told = await channel_pushes.stock_told(connection, row.channel)
        changed = [(key, units) for key, units in now.items() if told.get(key) != units]
        endpoint = Endpoint(row.channel, row.url, row.secret)
        for start in range(0, len(changed), LEVELS_AT_ONCE):
            part = dict(changed[start : start + LEVELS_AT_ONCE])
            levels = [Sellable(*stock.names[key], units) for key, units in part.items()]
            outcome = await self._marketplace.tell_stock(endpoint, levels, stock.as_of_ms)
            if not outcome.taken:
                log.info("a channel did not take its stock", channel=row.channel, reason=outcome.error)
                return False
            async with ledger.connection() as connection:
                await channel_pushes.stock_taken(connection, row.channel, part)
        return True

    def _pause(self, failures: int) -> float:
        first, longest = self._pause_s
        pause: float = min(first * 2.0 ** min(failures - 1, 30), longest)
        return pause * (1 + random.uniform(0, JITTER))  # noqa: S311  it spreads load and hides nothing

    # --- the stock ---

    async def _look(self, valkey: redis.asyncio.Redis) -> None:
        """Reads what every channel may sell. With Valkey away it stays as it was: the channels were told that."""
        try:
            self._stock = await self._read_stock(valkey)
        except VALKEY_LOST as fault:
            log.info("the stock for the channels can't be read", reason=f"{type(fault).__name__}: {fault}")

    async def _read_stock(self, valkey: redis.asyncio.Redis) -> _Stock:
        known = await commands.read_partition(valkey, self._partition)
        if known is None or not known.version:
            return self._stock
        if known.version != self._catalogue.version:
            loaded = await commands.load_catalogue(valkey, known.version, self._partition)
            if loaded is None:
                return self._stock
            self._catalogue = loaded
        at_ms = await commands.clock(valkey)
        read = _Stock(at_ms)
        for sale in self._catalogue.sales:
            if sale.closes_at_ms + OVER_MS > at_ms:
                await self._read_sale(valkey, sale, read)
        return read

    async def _read_sale(self, valkey: redis.asyncio.Redis, sale: Sale, read: _Stock) -> None:
        now = await commands.read_sale(valkey, sale.id, self._partition)
        if now is None or len(now.common) < len(sale.offers):  # a version is published after its offers have stock
            return
        for offer in sale.offers:
            read.names[(sale.number, offer.index)] = (sale.id, offer.sku)
        for channel in self._catalogue.world.channels:
            mine = read.by_channel.setdefault(channel.id, {})
            own = {sku: units for (sku, number), units in now.guarantees.items() if number == channel.number}
            units = channel.sellable(sale.offers, now.common, own, now.suspended, now.now_ms)
            for index, count in units.items():
                mine[(sale.number, index)] = count if now.phase == "open" else 0


def _change(push: PushRow) -> OrderChange:
    return OrderChange(
        order=push.order_id,
        reference=push.reference,
        sale=push.sale,
        number=push.number,
        event=push.event,
        status=push.status,
        payment=push.payment,
        at_ms=push.at_ms,
        tracking=None if push.package is None else tracking_of(push.package),
    )


def pushes_of(settings: Settings, redis_url: str, database_url: str) -> ChannelPushes:
    """The duty that the settings describe. Raises ValueError for an allow-list of what are no networks."""
    outbound = Outbound(timeout_s=settings.webhook_timeout_s, allow=networks(settings.webhook_allow))
    return ChannelPushes(
        redis_url,
        database_url,
        HttpMarketplace(outbound),
        give_up_s=settings.channel_give_up_s,
        stock_s=settings.channel_stock_s,
        log_days=settings.webhook_log_days,
    )
