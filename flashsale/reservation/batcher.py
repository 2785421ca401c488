"""Group commit: orders that arrive while a script call is under way wait, and go together in the next one.

`Batcher` owns one partition's link to Valkey: it verifies it, keeps an order's place, sends each sale's orders to
`reserve.lua` in batches and hands the outcomes to the front. It answers every order once: with an outcome, or with a
refusal by ANSWER_WITHIN_MS. An order that was never sent is refused as `overloaded` (nothing was done); one that was
sent and not answered is sent again until its time is over, then refused as `outcome-unknown`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Protocol

import hiredis
import structlog

from flashsale.reservation import keys
from flashsale.reservation.batch import arguments, script_keys
from flashsale.reservation.link import (
    CHECK_S,
    LOST_TO_VALKEY,
    POLL_S,
    RECONNECT_S,
    REFUSED_BY_VALKEY,
    SILENT_S,
    Address,
    Link,
    encode,
    keep,
)
from flashsale.reservation.scripts import Script
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.priced import Order, PricedSale

log = structlog.get_logger(__name__)

RESERVE = Script("reserve")
AWAY_S = 0.25  # a link gone for less is a hiccup that orders wait out; gone for longer, they are refused at once


class Front(Protocol):
    """What the batcher tells the front. It clears `order.client` of what it has answered: a late outcome is dropped."""

    def decided(self, orders: list[Order], outcomes: str, details: list[Any], now_ms: int, entry_ms: int) -> None:
        """Outcomes as `reserve.lua` names them, details flat in order, Valkey's clock and the entry's time (ms)."""

    def refused(self, orders: list[Order], problem: str, detail: str) -> None:
        """No outcome: `overloaded`, `outcome-unknown` or `internal`."""

    def adopted(self, sales: dict[str, PricedSale]) -> None:
        """Another catalogue version is in force; orders priced before it have been priced again."""

    def batch_took(self, orders: int, waited_s: float, script_s: float) -> None:
        """One call was answered: its orders, its oldest order's wait before it, and the call itself."""


class Limits:
    """The bounds of one batcher: settings.py says what each is for."""

    __slots__ = ("answer_within_s", "backlog_max_bytes", "batch_max", "batches_in_flight", "linger_s", "queue_max")

    def __init__(
        self,
        *,
        batch_max: int,
        batches_in_flight: int,
        queue_max: int,
        linger_ms: float,
        answer_within_ms: int,
        backlog_max_bytes: int,
    ) -> None:
        self.batch_max, self.batches_in_flight, self.queue_max = batch_max, batches_in_flight, queue_max
        self.linger_s, self.answer_within_s = linger_ms / 1000, answer_within_ms / 1000
        self.backlog_max_bytes = backlog_max_bytes


_Question = tuple[float, Callable[[bool], None]]
"""Since when (the loop's clock) somebody waits for the catalogue in force, and what to call then."""

_arrived, _sale_id = attrgetter("arrived"), attrgetter("sale.id")


class _Lane:
    """One sale's orders: waiting (never sent), returned (sent, outcome unknown) and the calls in flight."""

    __slots__ = ("batches", "halted", "keys", "returned", "scheduled", "waiting")

    def __init__(self, partition: int, sale_id: str) -> None:
        names = script_keys(partition, sale_id)
        self.keys = encode([b"EVALSHA", RESERVE.sha.encode(), b"9", *(name.encode() for name in names)])
        self.keys = self.keys.replace(b"*12\r\n", b"*30\r\n", 1)  # eighteen arguments follow
        self.waiting: deque[Order] = deque()
        self.returned: deque[Order] = deque()
        self.batches: deque[_Batch] = deque()
        self.scheduled = False
        self.halted = False


class _Batch:
    """One call: its orders, by arrival; how many of them, from the first, were refused as late; whether sent before."""

    __slots__ = ("again", "late", "orders", "sent_at")

    def __init__(self, orders: list[Order], again: bool, sent_at: float) -> None:
        self.orders, self.again, self.sent_at = orders, again, sent_at
        self.late = 0


class Batcher:
    """Decides orders through Valkey. `load` fetches the catalogue in force; `check` names what is wrong with Valkey."""

    def __init__(
        self,
        url: str,
        front: Front,
        limits: Limits,
        load: Callable[[], Awaitable[Catalogue]],
        check: Callable[[], Awaitable[list[str]]],
        partition: int = 0,
    ) -> None:
        self._address = Address(url)
        self._front, self._limits, self._load, self._check = front, limits, load, check
        self._partition = partition
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, _Lane] = {}
        self._link: Link | None = None
        self._ready = False  # the link is verified; scripts may run
        self._away_since = self._loop.time()
        self._epoch = b""
        self._version = -1
        self._refreshing: asyncio.Task[None] | None = None
        self._sales: dict[str, PricedSale] = {}
        self._reasons = ["Valkey is not connected yet"]
        self._asking: list[_Question] = []  # wait to learn which version is in force
        self._asked: list[_Question] = []  # the same, and the question is under way
        self._awaiting: list[tuple[float, int, Callable[[bool], None]]] = []  # wait for the catalogue of that version
        self._pending = 0
        self.backlog_bytes = 0
        self.closed: str | None = "Valkey is not connected yet."
        """Why every order is refused at once, before any work; None while orders are taken."""

    # --- what the front asks ---

    @property
    def pending(self) -> int:
        """Orders taken and not yet answered."""
        return self._pending

    @property
    def batches(self) -> int:
        """Calls in flight."""
        return sum(len(lane.batches) for lane in self._lanes.values())

    def reasons(self) -> list[str]:
        """Why orders are not taken, a line each; empty while they are."""
        reasons = list(self._reasons)
        if self.backlog_bytes >= self._limits.backlog_max_bytes:
            reasons.append(f"the journal's backlog is {self.backlog_bytes} bytes: the ledger writer is behind or away")
        if self.closed is not None and not reasons:
            reasons.append(self.closed)  # what a shopper is told must not be news to a load balancer
        return reasons

    def submit(self, order: Order) -> None:
        """Takes a priced, identified order. The front has looked at `closed` first."""
        if self._pending >= self._limits.queue_max:
            self._front.refused([order], "overloaded", "Too many orders are waiting.")
            return
        self._pending += 1
        lane = self._lane(order.sale.id)
        lane.waiting.append(order)
        self._schedule(lane)

    def submit_all(self, orders: list[Order]) -> None:
        """The same for many at once."""
        room = max(0, self._limits.queue_max - self._pending)
        if len(orders) > room:
            self._front.refused(orders[room:], "overloaded", "Too many orders are waiting.")
            orders = orders[:room]
        self._pending += len(orders)
        for sale_id, alike in groupby(orders, _sale_id):
            lane = self._lane(sale_id)
            lane.waiting.extend(alike)
            self._schedule(lane)

    def _lane(self, sale_id: str) -> _Lane:
        lane = self._lanes.get(sale_id)
        if lane is None:
            lane = self._lanes[sale_id] = _Lane(self._partition, sale_id)
        return lane

    def _schedule(self, lane: _Lane) -> None:
        if not lane.scheduled:
            lane.scheduled = True
            if self._limits.linger_s:
                self._loop.call_later(self._limits.linger_s, self._flush, lane)
            else:  # after every socket that is readable now has been read
                self._loop.call_soon(self._flush, lane)

    # --- sending ---

    def _flush(self, lane: _Lane) -> None:
        lane.scheduled = False
        limits = self._limits
        while self._ready and not lane.halted:
            # A full batch gains nothing by waiting: one more may go, so that Valkey decides while this process answers.
            full = len(lane.waiting) >= limits.batch_max
            if len(lane.batches) >= limits.batches_in_flight + full:
                return
            if lane.returned:
                self._send(lane, self._take(lane.returned), True)
            elif lane.waiting:
                self._send(lane, self._take(lane.waiting), False)
            else:
                return

    def _take(self, queue: deque[Order]) -> list[Order]:
        """The next batch: orders priced alike, as many as have batch_max lines, at least one."""
        lines = count = 0
        priced = queue[0].sale
        for order in islice(queue, self._limits.batch_max):
            lines += len(order.skus)
            if (lines > self._limits.batch_max and count) or order.sale is not priced:
                break
            count += 1
        if count == len(queue):
            taken = list(queue)
            queue.clear()
            return taken
        return [queue.popleft() for _ in range(count)]

    def _send(self, lane: _Lane, orders: list[Order], again: bool) -> None:
        link = self._link
        try:
            command = self._encode(lane, orders)
        except Exception:  # one order never fails another: find the one that can't be encoded
            log.exception("a batch could not be encoded", orders=len(orders))
            if len(orders) == 1:
                self._refuse(orders, "internal", "The order could not be encoded.")
                return
            middle = len(orders) // 2
            self._send(lane, orders[:middle], again)
            self._send(lane, orders[middle:], again)
            return
        batch = _Batch(orders, again, self._loop.time())
        lane.batches.append(batch)
        if link is not None:
            link.call(command, partial(self._answered, lane, batch))

    def _encode(self, lane: _Lane, orders: list[Order]) -> bytes:
        """The whole EVALSHA, as `reserve.lua` documents its arguments."""
        version = b"%d" % orders[0].sale.version
        parts = [lane.keys]
        for argument in (self._epoch, version, *arguments(orders)):
            parts += b"$%d\r\n" % len(argument), argument, b"\r\n"
        return b"".join(parts)

    # --- what came back ---

    def _answered(self, lane: _Lane, batch: _Batch, answer: Any) -> None:
        lane.batches.remove(batch)
        if type(answer) is list and len(answer) == 5:
            outcomes, details, now_ms, entry, backlog = answer
            self.backlog_bytes = backlog
            if backlog >= self._limits.backlog_max_bytes:
                self._look()
            orders = batch.orders
            self._pending -= len(orders) - batch.late
            sent_at, oldest = batch.sent_at, orders[0].arrived
            entry_ms = int(entry.partition(b"-")[0]) if entry else now_ms
            try:
                self._front.decided(orders, outcomes.decode("ascii"), details, now_ms, entry_ms)
            except Exception:  # those behind the one at fault have an outcome, which they are to ask for again
                log.exception("a batch could not be answered", orders=len(orders))
                unanswered = [order for order in orders if order.client is not None]
                self._front.refused(unanswered, "outcome-unknown", "The answer could not be written.")
            self._front.batch_took(len(orders), max(0.0, sent_at - oldest), self._loop.time() - sent_at)
        else:
            self._not_decided(lane, batch, answer)
        if lane.waiting or lane.returned:
            self._flush(lane)

    def _not_decided(self, lane: _Lane, batch: _Batch, answer: Any) -> None:
        """Nothing was decided by this call; whether an earlier one did, batch.again says."""
        if answer is None:  # the link is lost: this call's outcome is unknown
            self._requeue(lane.returned, batch)
        elif isinstance(answer, hiredis.ReplyError):
            self._failed(lane, batch, str(answer))
        elif answer[0] == b"stale":
            self._put_back(lane, batch)
            if int(answer[1]) != self._version:
                self._refresh()
            else:  # adopted while this call was under way, or another span of time has begun
                self._adopt_time(answer[2])
                self._reprice(lane)
        elif answer[0] == b"fenced":
            self._put_back(lane, batch)
            self._unready(["Valkey's state is not the one that was verified"])
        else:
            log.error("Valkey's ACL denies a command of reserve.lua", command=answer[1].decode())
            self._refuse_batch(batch, "overloaded", "The store refuses to write.")

    def _failed(self, lane: _Lane, batch: _Batch, error: str) -> None:
        code = error.partition(" ")[0]
        if code == "NOSCRIPT":
            self._put_back(lane, batch)
            if self._link is not None:
                self._link.call(encode([b"SCRIPT", b"LOAD", RESERVE.source]), _ignore)
        elif code in LOST_TO_VALKEY:
            self._put_back(lane, batch)
            if self._link is not None:
                self._link.abort()
        elif code in REFUSED_BY_VALKEY:
            log.error("Valkey refused a batch", orders=len(batch.orders), error=error)
            self._refuse_batch(batch, "overloaded", "The store can't take orders now.")
        elif len(batch.orders) == 1:
            log.error("an order could not be decided", order=batch.orders[0].id, error=error)
            self._refuse_batch(batch, "internal", "The order could not be decided.")
        elif not self._ready:
            self._put_back(lane, batch)
        else:  # one order never fails another: find the one that can't be decided
            log.error("a batch could not be decided", orders=len(batch.orders), error=error)
            orders = batch.orders[batch.late :]
            middle = len(orders) // 2
            self._send(lane, orders[:middle], batch.again)
            self._send(lane, orders[middle:], batch.again)

    def _put_back(self, lane: _Lane, batch: _Batch) -> None:
        self._requeue(lane.returned if batch.again else lane.waiting, batch)

    def _requeue(self, queue: deque[Order], batch: _Batch) -> None:
        """First come, first served, whichever call comes back first: _expire looks at a queue's oldest alone."""
        orders = sorted([*batch.orders[batch.late :], *queue], key=_arrived)
        queue.clear()
        queue.extend(orders)

    def _refuse_batch(self, batch: _Batch, problem: str, detail: str) -> None:
        if batch.again:
            problem, detail = "outcome-unknown", "The store did not answer the first time."
        self._refuse(batch.orders[batch.late :], problem, detail)

    def _refuse(self, orders: list[Order], problem: str, detail: str) -> None:
        self._pending -= len(orders)
        self._front.refused(orders, problem, detail)

    # --- the catalogue ---

    def when_current(self, then: Callable[[bool], None]) -> None:
        """Calls `then(True)` once the catalogue that was in force at this call, or a newer one, is here; `then(False)`
        where that is not known within ANSWER_WITHIN_MS or no orders are taken any more."""
        if self._pending + len(self._asking) + len(self._asked) + len(self._awaiting) >= self._limits.queue_max:
            then(False)
            return
        self._asking.append((self._loop.time(), then))
        self._ask_version()

    def _ask_version(self) -> None:
        """One question at a time; who comes after it was put needs another."""
        if self._asked or not self._asking or not self._ready or self._link is None:
            return  # _tick tries again
        self._asked, self._asking = self._asking, []
        self._link.call(encode([b"HGET", keys.partition(self._partition).encode(), b"version"]), self._told)

    def _told(self, answer: Any) -> None:
        asked, self._asked = self._asked, []
        if not isinstance(answer, bytes):  # a lost link: another one may tell
            self._asking = asked + self._asking
            return
        if int(answer) != self._version:
            self._awaiting += [(since, int(answer), then) for since, then in asked]
            self._refresh()
        else:
            for _, then in asked:
                then(True)
        self._ask_version()

    def _refresh(self) -> None:
        """Loads the catalogue in force; no order is sent until it is here."""
        for lane in self._every_lane():
            lane.halted = True
        if self._refreshing is None:
            self._refreshing = self._loop.create_task(self._adopt())

    async def _adopt(self) -> None:
        while True:
            try:
                catalogue = await self._load()
                break
            except Exception as error:
                log.warning("the catalogue could not be loaded", error=repr(error))
                await asyncio.sleep(RECONNECT_S)
        self._refreshing = None
        if catalogue.version != self._version:
            self._version = catalogue.version
            # Whether now is Valkey's now, the first batch tells.
            now_ms = time.time_ns() // 1_000_000
            self._sales = {
                sale.id: PricedSale(sale, catalogue.version, self._partition, catalogue.world, now_ms)
                for sale in catalogue.sales
            }
            self._front.adopted(self._sales)
        for lane in self._every_lane():
            lane.halted = False
            self._reprice(lane)
            self._flush(lane)
        awaiting, self._awaiting = self._awaiting, []
        for question in awaiting:
            if question[1] <= catalogue.version:
                question[2](True)
            else:  # it was told of a newer one while this one was being loaded
                self._awaiting.append(question)
        if self._awaiting:
            self._refresh()

    def _adopt_time(self, now_ms: int) -> None:
        """Sales whose prices do not hold at that time (Valkey's clock) are priced for the span that it lies in."""
        over = [sale for sale in self._sales.values() if not sale.holds_at(now_ms)]
        for sale in over:
            self._sales[sale.id] = sale.at(now_ms)
        if over:
            self._front.adopted(self._sales)

    def _reprice(self, lane: _Lane) -> None:
        """Prices every order that waits as prices are now; a version never takes an offer or a market away."""
        for queue in (lane.returned, lane.waiting):
            for order in [order for order in queue if order.sale is not self._sales.get(order.sale.id)]:
                try:
                    self._sales[order.sale.id].price(order)
                except Exception:
                    log.exception("an order could not be priced again", order=order.id)
                    queue.remove(order)
                    self._refuse([order], "internal", "The order could not be priced again.")

    # --- the link ---

    async def run(self) -> None:
        """Keeps a verified link until cancelled."""
        ticking = self._loop.create_task(self._tick())
        try:
            await keep(self._address, self._attend, self._lost, self._not_connected, self._limits.answer_within_s)
        finally:
            ticking.cancel()

    def _not_connected(self, reason: str) -> None:
        self._reasons = [reason]

    async def _attend(self, link: Link) -> None:
        """Verifies the link, then polls what may change; raises when the link is lost or silent."""
        self._link = link
        patience_s = self._limits.answer_within_s
        async with asyncio.timeout(patience_s):
            info = await link.ask(b"INFO", b"server")
        run_id = next(line[7:] for line in info.split(b"\r\n") if line.startswith(b"run_id:"))
        checked_at = 0.0
        while True:
            async with asyncio.timeout(patience_s):
                if not self._ready:
                    await self._verify(link, run_id)
                    checked_at = self._loop.time()
            if self._ready and self._loop.time() - checked_at > CHECK_S:
                await self._check_again()
                checked_at = self._loop.time()
            await asyncio.sleep(POLL_S if self._ready else RECONNECT_S)
            async with asyncio.timeout(patience_s):
                epoch, version, verified, written, trimmed = await self._read_partition(link)
            self.backlog_bytes = int(written or 0) - int(trimmed or 0)
            if self._ready and (epoch != self._epoch or verified != run_id):
                self._unready(["Valkey's data is not verified against the ledger"])
            elif self._ready and int(version or -1) != self._version:
                self._refresh()
            self._look()

    async def _check_again(self) -> None:
        """Closes the doors if somebody has changed Valkey's settings so that it might lose orders."""
        try:
            async with asyncio.timeout(CHECK_S):
                faults = await self._check()
        except Exception as error:  # it could not be asked: whether it is there, the link says
            log.warning("Valkey's settings could not be read", error=repr(error))
            return
        if faults:
            log.warning("orders are not taken any more", reasons=faults)
            self._unready(faults)

    def _read_partition(self, link: Link) -> Awaitable[Any]:
        return link.ask(
            b"HMGET", keys.partition(self._partition).encode(), b"epoch", b"version", b"run_id", b"written", b"trimmed"
        )

    async def _verify(self, link: Link, run_id: bytes) -> None:
        """Opens the doors if this Valkey is fit, and verified against the ledger since it started."""
        try:
            faults = await self._check()
        except Exception as error:
            faults = [f"Valkey does not answer: {error}"]
        epoch, version, verified, written, trimmed = await self._read_partition(link)
        if verified != run_id or epoch is None or version is None:
            faults = [*faults, "Valkey's data is not verified against the ledger"]
        if faults:
            if faults != self._reasons:
                log.warning("orders are not taken", reasons=faults)
            self._reasons = faults
            return
        await link.ask(b"SCRIPT", b"LOAD", RESERVE.source)
        self._epoch = epoch
        self.backlog_bytes = int(written or 0) - int(trimmed or 0)
        self._ready = True
        self._reasons = []
        self._look()
        if int(version) != self._version:
            self._refresh()
        for lane in self._every_lane():
            self._flush(lane)

    def _unready(self, reasons: list[str]) -> None:
        if self._ready:
            self._ready = False
            self._away_since = self._loop.time()
        self._reasons = reasons

    def _lost(self, link: Link) -> None:
        if link is self._link:
            self._unready(["the connection to Valkey was lost"])

    # --- time ---

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(POLL_S / 2)
            try:
                self._look()
                self._expire(self._loop.time() - self._limits.answer_within_s)
                self._ask_version()
            except Exception:  # without it no order would ever time out again
                log.exception("the batcher's clock stumbled")

    def _look(self) -> None:
        """Sets `closed`; orders that were never sent do not wait behind a closed door."""
        now = self._loop.time()
        if not self._ready and now - self._away_since > AWAY_S:
            self.closed = "The store is away."
        elif any(lane.batches and now - lane.batches[0].sent_at > SILENT_S for lane in self._lanes.values()):
            self.closed = "The store does not answer."
        elif self.backlog_bytes >= self._limits.backlog_max_bytes:
            self.closed = "The ledger is too far behind."
        elif self._version < 0:
            self.closed = "The catalogue is not loaded yet."
        else:
            self.closed = None
            return
        for lane in self._every_lane():
            if lane.waiting:
                waiting, lane.waiting = list(lane.waiting), deque()
                self._refuse(waiting, "overloaded", self.closed)
        self._give_up(self._loop.time())

    def _expire(self, before: float) -> None:
        """Answers what has waited longer than ANSWER_WITHIN_MS."""
        self._give_up(before)
        for lane in self._every_lane():
            self._expire_queue(lane.waiting, before, "overloaded", "The order waited too long.")
            self._expire_queue(lane.returned, before, "outcome-unknown", "The store did not answer in time.")
            silent = False
            for batch in lane.batches:
                late = batch.late
                while late < len(batch.orders) and batch.orders[late].arrived < before:
                    late += 1
                if late > batch.late:
                    orders, batch.late, silent = batch.orders[batch.late : late], late, True
                    self._refuse(orders, "outcome-unknown", "The store did not answer in time.")
            if silent and self._link is not None:
                self._link.abort()

    def _give_up(self, before: float) -> None:
        """Tells those who asked for the catalogue in force before then that it can't be known."""
        for questions in (self._asking, self._asked):
            while questions and questions[0][0] <= before:
                questions.pop(0)[1](False)
        while self._awaiting and self._awaiting[0][0] <= before:
            self._awaiting.pop(0)[2](False)

    def _every_lane(self) -> list[_Lane]:
        """The lanes as they are now: a refused order may let the next of its connection in, of a sale without one."""
        return list(self._lanes.values())

    def _expire_queue(self, queue: deque[Order], before: float, problem: str, detail: str) -> None:
        late = []
        while queue and queue[0].arrived < before:
            late.append(queue.popleft())
        if late:
            self._refuse(late, problem, detail)


def _ignore(answer: Any) -> None:
    """Takes the answer of a call whose failure the next call shows."""
