"""The outbox's dispatcher: tells Valkey what followed from the changes of orders, at least once each.

Units move once all the same: scripts know a movement by its number. A row that moves units is cleared by the ledger
writer in the transaction that stores the movement, so the dispatcher sends it and waits for the writer; what comes of
a late payment's units is acted on here. Rows of an order are sent in the order of their numbers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ResponseError

from flashsale import metrics
from flashsale.ledger import life, outbox, partitions, set_aside
from flashsale.ledger.outbox import OutboxRow
from flashsale.ledger.partitions import Partition
from flashsale.ledger.pool import Connection
from flashsale.pipeline.care import reason_of
from flashsale.pipeline.catalogues import Catalogues, KnownSale
from flashsale.pipeline.duty import Duty, is_away
from flashsale.reservation import commands, keys, server
from flashsale.reservation.commands import MovedOrder
from flashsale.reservation.limits import IdentityYear, LaneDay
from flashsale.reservation.movements import parse_entry_id

log = structlog.get_logger(__name__)

OUTBOX_LOCK = 0x666C6F78
IDLE_S = 0.05  # an empty outbox is looked at again after this
REFUSED_PAUSE_S = 0.2  # Valkey is of another epoch, or its ACL forbids a script: asked again after this
ASIDE_LOOK_S = 5.0  # a row that is retried is sent within this
ROWS = 16  # read at once: about a quarter of a megabyte
SENT_MAX = 256  # rows under way: so many that the ledger writer, which clears them by the chunk, is never waited for
ORDERS_S = 15_000
"""Orders told a second at most. Each costs Valkey some 8 µs: a wave of expired holds leaves it most of its time for new
orders, and 100,000 of them are told in seven seconds. After a call that took long there is a pause as long as it: where
Valkey is short of time, new orders go first."""

BESIDE = ("drawn", "lane", "limit")  # an item's keys for what moves beside its units
GONE = ("already", "unknown", "beyond")


@dataclass(slots=True)
class Sent:
    """A row under way. `expected`: Valkey journalled something for it; `entry`: the journal's newest id some time after
    the call, which the row's own entry, if there is any, is not newer than; None until it is asked."""

    kind: str
    expected: bool
    entry: tuple[int, int] | None = None


class Outbox(Duty):
    """Dispatches one partition's outbox."""

    name = "outbox"
    lock = OUTBOX_LOCK

    def __init__(self, redis_url: str, database_url: str, *, partition: int = 0) -> None:
        super().__init__(database_url, partition=partition)
        self._client = server.connect(redis_url, connections=2)
        self._catalogues = Catalogues(partition)
        self._sent: dict[int, Sent] = {}
        self._set_aside: set[int] = set()  # rows that no script can be called for: a fault, told once and left there
        self._under: tuple[int, str | None] | None = None
        self._free_at = 0.0

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            await self._client.aclose()

    async def work(self, connection: Connection) -> None:
        self._sent.clear()  # what an earlier connection sent is sent again: scripts answer `already`
        looked = -ASIDE_LOOK_S
        while not self.stopping.is_set():
            if time.monotonic() - looked > ASIDE_LOOK_S:  # one that is retried is no longer set aside
                self._set_aside = set(map(int, await set_aside.ids(connection, set_aside.OUTBOX)))
                looked = time.monotonic()
            try:
                busy = await self.round(connection)
            except commands.Refusal as refusal:
                self._sent.clear()
                log.warning("the outbox waits", reason=str(refusal))
                await self.pause(REFUSED_PAUSE_S)
                continue
            if not busy:
                await self.pause(IDLE_S)

    async def round(self, connection: Connection) -> bool:
        """Looks what became of rows under way, then sends the next ones; whether there was anything to send. Raises
        commands.Refusal where Valkey refuses scripts."""
        partition = await partitions.get(connection, self._partition)
        if partition is None or partition.epoch == 0:
            return False
        if self._under != (partition.epoch, partition.run_id):
            self._under = (partition.epoch, partition.run_id)
            self._sent.clear()  # another Valkey, or one built anew: it may know nothing of them
        if self._sent:
            await self._look_after(connection, partition)
        await self._settle(connection)
        if len(self._sent) >= SENT_MAX:
            return False
        rows = await outbox.pending(connection, ROWS, [*self._sent, *self._set_aside])
        mirrored: list[int] = []
        for row in rows:
            if self.stopping.is_set():
                break
            await self.pause(self._free_at - time.monotonic())
            began = time.monotonic()
            if await self._tell(connection, partition, row):
                mirrored.append(row.number)
            told = time.monotonic()
            self._free_at = max(began + len(row.items) / ORDERS_S, told + (told - began))
        if mirrored:
            await outbox.done(connection, mirrored)
        unseen = [sent for sent in self._sent.values() if sent.entry is None]
        if unseen:
            entry = await self._last_entry()
            for sent in unseen:
                sent.entry = entry
        return bool(rows)

    # --- what became of what was sent ---

    async def _look_after(self, connection: Connection, partition: Partition) -> None:
        """Forgets rows that were cleared. Where the ledger has the journal beyond a row's entry and the row is left all
        the same, it is sent again if something was journalled for it, and else given up."""
        left = await outbox.left(connection, list(self._sent))
        for number in self._sent.keys() - left:
            del self._sent[number]
        # The mark was read before the rows: who is left now was not cleared by an entry up to it.
        passed = [n for n, sent in self._sent.items() if sent.entry is not None and sent.entry <= partition.mark]
        for number in passed:
            sent = self._sent.pop(number)
            assert sent.entry is not None  # noqa: S101  chosen so
            if sent.expected:
                log.warning("an outbox row was not cleared by its journal entry: it is sent again", row=number)
            elif await outbox.give_up(connection, partition, sent.entry, [number]):
                log.warning("an outbox row is over: Valkey had nothing to do for it", row=number, kind=sent.kind)
                metrics.OUTBOX_GIVEN_UP.inc()

    async def _settle(self, connection: Connection) -> None:
        """Late payments whose units were decided about: the order is paid, or the money goes back."""
        if not await outbox.answered(connection, 1, list(self._set_aside)):
            return
        now_ms = await commands.clock(self._client)
        try:
            async with connection.transaction():
                settled = await life.settle_again(connection, now_ms, without=list(self._set_aside))
        except Exception as fault:
            if is_away(fault):
                raise
            settled = await self._settle_carefully(connection, now_ms)
        log.info("late payments are settled", orders=settled)

    async def _settle_carefully(self, connection: Connection, now_ms: int) -> int:
        """The same one by one: what can't be settled is set aside, and holds up no other."""
        settled = 0
        while rows := await outbox.answered(connection, 1, list(self._set_aside)):
            try:
                async with connection.transaction():
                    settled += await life.settle_again(connection, now_ms, 1, list(self._set_aside))
            except Exception as fault:
                if is_away(fault):
                    raise
                await self._put_aside(connection, rows[0], fault)
        return settled

    async def _put_aside(self, connection: Connection, row: OutboxRow, fault: Exception) -> None:
        self._set_aside.add(row.number)
        metrics.SET_ASIDE.labels(set_aside.OUTBOX).inc()
        aside = [(str(row.number), reason_of(fault))]
        await set_aside.put(connection, set_aside.OUTBOX, aside, time.time_ns() // 1_000_000)
        log.error("an outbox row is set aside", row=row.number, kind=row.kind, exc_info=fault)

    async def _last_entry(self) -> tuple[int, int]:
        """The newest journal id ever given out; (0, 0) where there is no journal."""
        try:
            info: Any = await self._client.xinfo_stream(keys.journal(self._partition))
        except ResponseError:
            return 0, 0
        return parse_entry_id(info["last-generated-id"])

    # --- sending ---

    async def _tell(self, connection: Connection, partition: Partition, row: OutboxRow) -> bool:
        """One row, one script call. True where nothing more will come of it."""
        try:
            sale = await self._catalogues.sale(connection, row.sale)
            if row.kind == outbox.STATUS:
                letters = [(item["order"], item["letter"]) for item in row.items]
                await commands.mirror_status(
                    self._client, epoch=partition.epoch, sale_id=sale.id, letters=letters, partition=row.partition
                )
                metrics.OUTBOX_ORDERS.labels("mirrored").inc(len(letters))
                return True
            orders = [await self._moved(connection, sale, row.sale, item) for item in row.items]
            outcomes = await self._move(partition, sale, row, orders)
        except (LookupError, TypeError, ValueError) as fault:
            metrics.OUTBOX_ORDERS.labels("malformed").inc(len(row.items))
            await self._put_aside(connection, row, fault)
            return False
        self._report(row, outcomes)
        self._sent[row.number] = Sent(row.kind, any(outcome not in GONE for outcome in outcomes))
        return False

    async def _move(
        self, partition: Partition, sale: KnownSale, row: OutboxRow, orders: Sequence[MovedOrder]
    ) -> list[str]:
        """What became of each order's units."""
        if row.kind == outbox.RELEASE:
            return await commands.release(
                self._client,
                epoch=partition.epoch, sale_id=sale.id, outbox=row.number, orders=orders, partition=row.partition,
            )  # fmt: skip
        if row.kind != outbox.RESERVE_AGAIN:
            raise ValueError(f"a row of kind {row.kind!r}")
        (order,) = orders
        outcome = await commands.reserve_again(
            self._client,
            epoch=partition.epoch, sale_id=sale.id, outbox=row.number, order=order, partition=row.partition,
        )  # fmt: skip
        return [outcome]

    async def _moved(self, connection: Connection, sale: KnownSale, number: int, item: dict[str, Any]) -> MovedOrder:
        """An item of a row as the scripts take it: with the quota fields of the lines that had a quota when the order
        was taken."""
        lines = [(sku, units) for sku, units in item["lines"]]
        quotas = await self._catalogues.quotas(connection, item["version"])
        limited = [(sku, units, quotas[number, sku]) for sku, units in lines if (number, sku) in quotas]
        shopper = sale.identity.shopper_hash(item["shopper"]) if limited else b""
        moved = MovedOrder(
            item["order"],
            item["number"],
            item["letter"],
            lines,
            [(shopper + sku.to_bytes(2, "big"), units) for sku, units, _ in limited],
            item["quota"],
            [quota for _, _, quota in limited],
        )
        return moved if item.keys().isdisjoint(BESIDE) else await self._with_beside(connection, number, moved, item)

    async def _with_beside(
        self, connection: Connection, sale: int, moved: MovedOrder, item: dict[str, Any]
    ) -> MovedOrder:
        """The same with what else the item moves: units of a guarantee, a lane's parcel, an import limit. Units that
        are taken again leave on the lane's present dispatch day, if it still goes there."""
        world = await self._catalogues.present(connection)
        more: dict[str, Any] = {}
        if "drawn" in item:
            channel = world.world.channel(item["channel"])
            if channel is None:
                raise LookupError(f"there is no channel {item['channel']!r}")
            more["drawn"] = [(sku, channel.number, units) for sku, units in item["drawn"]]
        if "lane" in item:
            more["lane"] = LaneDay(*item["lane"])
        if "limit" in item:
            identity, year, amount = item["limit"]
            more["imported"] = IdentityYear(bytes.fromhex(identity), year), amount
        if "market" in item:  # taken again
            known = world.by_number(sale)
            ships_from = known.ships_from if known is not None else ""
            now_ms = await commands.clock(self._client)
            if "lane" in item:
                lanes = world.world.lanes.at(item["market"], ships_from, now_ms)
                lane = next((lane for lane in lanes if lane.number == item["lane"][0]), None)
                more["capacity"] = lane.capacity if lane is not None else -1
                if lane is not None:
                    more["lane"] = LaneDay(lane.number, lane.dispatch_day)
            if "limit" in item:
                regime = world.world.trade.regime(item["market"], ships_from, item["at"])
                more["annual"] = regime.limit.annual if regime is not None and regime.limit is not None else 0
        return moved._replace(**more)

    def _report(self, row: OutboxRow, outcomes: Sequence[str]) -> None:
        for outcome, count in Counter(outcomes).items():
            metrics.OUTBOX_ORDERS.labels(outcome).inc(count)
        for item, outcome in zip(row.items, outcomes, strict=True):
            if outcome == "beyond":
                log.error("units can't go back: more would be available than was supplied", order=item["order"],
                          change=item["number"], row=row.number)  # fmt: skip
            elif outcome == "unknown":
                log.warning("Valkey does not know an order whose units move", order=item["order"], row=row.number)
