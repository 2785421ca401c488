"""POST /v1/orders on the hot path: a message becomes an order (intake.py), the batcher decides it, and it is answered.

`OrderRoute` is also the batcher's `Front`: it turns outcomes into answers (verdicts.py, replay.py) and counts them.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import structlog

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.front.connection import Connection
from flashsale.front.framing import PLAIN_ORDER, Head
from flashsale.front.intake import Intake, Unknown
from flashsale.front.lane_room import LaneRoom
from flashsale.front.replay import Replays
from flashsale.front.verdicts import Answers, outcome_counts, time_text
from flashsale.reservation.batcher import Batcher
from flashsale.sale.priced import Order, PricedSale
from flashsale.settings import Settings

ALONE = -1  # the place of an order that has a request of its own

log = structlog.get_logger(__name__)


class OrderRoute:
    """Takes orders and answers each once."""

    path = b"/v1/orders"
    batcher: Batcher

    def __init__(self, settings: Settings, intake: Intake, answers: Answers, replays: Replays, room: LaneRoom) -> None:
        self._intake, self._answers, self._replays, self._room = intake, answers, replays, room
        self._clock = asyncio.get_running_loop().time  # get_running_loop itself asks for the process id each time
        # A plain order is not longer than this in all, so neither its head nor its body is too large.
        self._plain_max = min(settings.head_max_bytes, settings.body_max_bytes)
        # Since the last tick: refusals by problem, and of orders that the store did not decide how many and the first.
        self._refusals: dict[str, int] = {}
        self._undecided: dict[tuple[str, str], tuple[int, str]] = {}
        self._tells_all = settings.log_level == "debug"

    @property
    def pending(self) -> int:
        """Orders taken and not yet answered."""
        return self.batcher.pending

    # --- a request becomes an order ---

    def take(self, connection: Connection, head: Head, body: bytes) -> None:
        """An order with any head."""
        try:
            if self.batcher.closed is not None:
                raise Refused("overloaded", self.batcher.closed)
            order = self._intake.read(head, body)
        except Refused as refused:
            self._refuse(connection, refused)
        else:
            self._place(connection, order)

    def take_plain(self, connection: Connection, data: bytes) -> bool:
        """The same for bytes that are one order with a head that PLAIN_ORDER takes apart; false where they are not."""
        match = PLAIN_ORDER.match(data)
        if match is None:
            return False
        body = data[match.end() :]
        _, media_type, token, key, length = match.groups()
        if len(body) != int(length) or len(data) > self._plain_max:
            return False
        try:
            if self.batcher.closed is not None:
                raise Refused("overloaded", self.batcher.closed)
            order = self._intake.order(token, key.decode("ascii"), media_type == b"application/msgpack", body)
        except Refused as refused:
            self._refuse(connection, refused)
        else:
            self._place(connection, order)
        return True

    def _refuse(self, connection: Connection, refused: Refused) -> None:
        self.count(refused.name)
        connection.refuse(refused)

    def _place(self, connection: Connection, order: Order) -> None:
        order.place = ALONE
        connection.place(order)
        self._submit(order)

    def place_all(self, orders: list[Order], reply: object) -> None:
        """Orders of one request, each with its place in it: `reply.answered` gets their answers."""
        arrived, price, priced = self._clock(), self._intake.price, []
        for order in orders:
            order.client, order.arrived = reply, arrived
            try:
                price(order)
            except Refused as refused:
                self._unpriced(order, refused)
            else:
                priced.append(order)
        self.batcher.submit_all(priced)

    def _submit(self, order: Order) -> None:
        order.arrived = self._clock()
        try:
            self._intake.price(order)
        except Refused as refused:
            self._unpriced(order, refused)
        else:
            self.batcher.submit(order)

    def _unpriced(self, order: Order, refused: Refused) -> None:
        if isinstance(refused, Unknown):
            self.batcher.when_current(partial(self._price_again, order))
        else:
            self.count(refused.name)
            self._deliver(order, self._answers.problem(refused))

    def _price_again(self, order: Order, current: bool) -> None:
        """The catalogue at hand did not know the order's sale, SKU or market; now it is the one in force, unless that
        can't be known."""
        try:
            self._intake.price(order)
        except Refused as unknown:
            refused: Refused = unknown
            if not current and isinstance(unknown, Unknown):
                known = {name: value for name, value in unknown.members.items() if name == "id"}
                refused = Refused(
                    "overloaded", "It can't be asked whether there is such a sale, SKU or market.", **known
                )
            self.count(refused.name)
            self._deliver(order, self._answers.problem(refused))
        else:
            self.batcher.submit(order)

    # --- the batcher's Front ---

    def decided(self, orders: list[Order], outcomes: str, details: list[Any], now_ms: int, entry_ms: int) -> None:
        rest = iter(details)
        answers = self._answers
        accepted, body = answers.accepted, answers.accepted_among
        hold_ms = orders[0].sale.hold_ms
        until = time_text(entry_ms + hold_ms)
        for order, outcome in zip(orders, outcomes, strict=True):
            if outcome == "A":
                answer: bytes | str = accepted(order, until) if order.place == ALONE else body(order, until)
            elif outcome == "S":
                answer = answers.sold_out(order, rest, now_ms)
            elif outcome == "R":
                if order.client is not None:
                    self._replays.answer(order, next(rest), self._deliver)
                else:
                    next(rest)
                continue
            elif outcome == "F":
                next(rest)
                if order.client is not None:
                    self._room.answer(order, now_ms, self._deliver)
                continue
            else:
                answer = answers.refused(order, outcome, rest, now_ms)
            client = order.client
            if client is not None:
                order.client = None
                client.answered(order, answer)  # type: ignore[attr-defined]
        metrics.count_outcomes(outcome_counts(outcomes))
        if self._tells_all:
            log.debug("batch decided", entry_ms=entry_ms, orders=[order.id for order in orders], outcomes=outcomes)

    def refused(self, orders: list[Order], problem: str, detail: str) -> None:
        count, first = self._undecided.get((problem, detail), (0, orders[0].id))
        self._undecided[problem, detail] = count + len(orders), first
        for order in orders:
            self._deliver(order, self._answers.problem(Refused(problem, detail, id=order.id)))

    def adopted(self, sales: dict[str, PricedSale]) -> None:
        self._intake.sales = sales

    def batch_took(self, orders: int, waited_s: float, script_s: float) -> None:
        metrics.observe_batch(orders, waited_s, script_s, {})

    def _deliver(self, order: Order, answer: bytes) -> None:
        """Gives an order its one answer."""
        client = cast("Connection | None", order.client)
        if client is not None:
            order.client = None
            client.answered(order, answer)

    # --- time ---

    def tick(self, now_s: float) -> None:
        for (problem, detail), (count, first) in self._undecided.items():
            self._refusals[problem] = self._refusals.get(problem, 0) + count
            log.warning("orders refused", problem=problem, detail=detail, count=count, first_order=first)
        self._undecided.clear()
        if self._refusals:
            refusals, self._refusals = self._refusals, {}
            metrics.count_outcomes(refusals)
        metrics.set_in_flight(self.batcher.pending, self.batcher.batches)

    def count(self, problem: str) -> None:
        """A refusal that never reached the batcher; the metrics learn of it at the next tick."""
        self._refusals[problem] = self._refusals.get(problem, 0) + 1
