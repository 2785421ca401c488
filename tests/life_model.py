"""The life of an order in plain Python: what ledger, Valkey and payment provider must hold after every step.

No I/O and no clock. Four places know something: the provider (its intents), the ledger, Valkey's counters, and the ways
between them, where something may lie, come late or come twice (events, outbox, journal, what is to be asked of the
provider, refunds). Each method is one step of one of them. Written from the issue and DESIGN.md, not from the code:
where the two differ, one of them is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OPEN, FAILED, PROCESSING, AUTHORISED, CAPTURED, CLOSED = [
    "open",
    "failed",
    "processing",
    "authorised",
    "captured",
    "closed",
]
RANKS = {OPEN: 0, FAILED: 0, PROCESSING: 1, AUTHORISED: 2, CAPTURED: 3, CLOSED: 3}
REFUND_RANKS = {"pending": 0, "succeeded": 1, "failed": 2}
LETTERS = {
    "reserved": "h", "expired": "e", "paid": "p", "shipped": "s", "delivered": "d", "undeliverable": "u",
    "cancelled": "c",
}  # fmt: skip
LETTER_RANKS = {"h": 0, "e": 1, "p": 2, "s": 3, "d": 4, "u": 4, "c": 5}
OVER = ("expired", "cancelled")
ROWS_A_ROUND = 16


class Refused(Exception):
    """A step that is not possible: the problem's name."""


class IntentFact(NamedTuple):
    """What the provider tells of an order's intent."""

    order: str
    intent: str
    state: str
    authorised: int
    captured: int
    attempt: str | None


class RefundFact(NamedTuple):
    refund: str
    state: str


class DisputeFact(NamedTuple):
    order: str
    dispute: str
    state: str


Fact = IntentFact | RefundFact | DisputeFact


@dataclass
class Intent:
    """An order's intent as it is at the provider. `refunds`: (amount, status) by our id; `refused`: refunds that the
    provider decided against, which it says again under the same key."""

    session: str
    id: str
    amount: int
    state: str = OPEN
    attempt: str | None = None
    authorised: int = 0
    captured: int = 0
    wallet: bool = False
    dispute: str | None = None
    dispute_id: str | None = None
    refunds: dict[str, tuple[int, str]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def kept(self) -> int:
        return self.captured - sum(amount for amount, status in self.refunds.values() if status != "failed")

    def fact(self, order: str) -> IntentFact:
        state = FAILED if self.state == OPEN and self.attempt is not None else self.state
        return IntentFact(
            order, self.id, state, self.authorised, self.captured, self.attempt if state == FAILED else None
        )


@dataclass(eq=False)
class Refund:
    order: str
    amount: int
    status: str = "pending"


@dataclass
class Payment:
    """What the ledger knows of an order's payment."""

    amount: int
    state: str = OPEN
    authorised: int = 0
    captured: int = 0
    released: int = 0
    refunding: int = 0
    refunded: int = 0
    refund_failed: int = 0
    goodwill: int = 0
    late: str | None = None
    dispute: str | None = None
    disputes: set[str] = field(default_factory=set)  # that are open
    decided: set[str] = field(default_factory=set)
    todo: str | None = None
    todo_amount: int | None = None
    opened: bool = False
    known: bool = False  # which intent it is
    attempt: str | None = None
    attempts: set[str] = field(default_factory=set)
    former: set[str] = field(default_factory=set)  # intents that were closed unpaid before this beginning

    @property
    def rank(self) -> int:
        return RANKS[self.state]

    @property
    def refundable(self) -> int:
        return self.captured - self.refunded - self.refunding - self.refund_failed

    def ask(self, todo: str, amount: int | None = None) -> None:
        self.todo, self.todo_amount = todo, amount

    def shown(self) -> str:
        if self.captured:
            return "refunded" if self.refunded >= self.captured else "part_refunded" if self.refunded else "captured"
        if self.authorised:
            return "refunded" if self.released >= self.authorised else "authorised"
        return "failed" if self.state == FAILED else "none"


@dataclass
class Return:
    order: str
    lines: dict[int, int]
    status: str = "requested"


@dataclass
class Order:
    """`lines`: SKU -> units; the other maps say of each SKU how many of them."""

    id: str
    shopper: str
    lines: dict[int, int]
    stored: bool = False  # in the ledger; until then in Valkey and its journal alone
    deadline: int = 0
    status: str = "reserved"
    extended: bool = False
    shown: str = "none"
    cancelled: Counter[int] = field(default_factory=Counter)
    refunded: Counter[int] = field(default_factory=Counter)
    shipped: Counter[int] = field(default_factory=Counter)
    returned: Counter[int] = field(default_factory=Counter)
    restocked: Counter[int] = field(default_factory=Counter)
    failures: int = 0  # declines that its history tells
    payment: Payment | None = None

    def left(self) -> dict[int, int]:
        return {sku: units - self.cancelled[sku] for sku, units in self.lines.items() if units > self.cancelled[sku]}

    def letter(self) -> str:
        return LETTERS[self.status].upper() if self.extended else LETTERS[self.status]


@dataclass(eq=False)
class Row:
    """An outbox row: `orders`: (order, SKU -> units, quota too, letter)."""

    kind: str
    orders: list[tuple[str, dict[int, int], bool, str]]
    called: bool = False  # the script has done it: a repetition does nothing
    outcome: str | None = None


class Model:
    """One sale of one partition, and its payments."""

    def __init__(self, supply: Mapping[int, int], quotas: Mapping[int, int], prices: Mapping[int, int]) -> None:
        self.supply, self.quotas, self.prices = dict(supply), dict(quotas), dict(prices)
        self.orders: dict[str, Order] = {}
        self.intents: dict[str, Intent] = {}
        self.refunds: dict[str, Refund] = {}
        self.returns: dict[str, Return] = {}
        self.sold: Counter[int] = Counter()
        self.outbox: list[Row] = []
        self.sent: list[Row] = []  # what the present dispatcher has under way
        self.stream: list[list[Fact]] = []
        self.fresh: list[Refund] = []  # made, their ids not yet told
        self.moved: list[tuple[str, dict[int, int], bool]] = []  # units given back; below 0: taken again
        self.valkey_as_of_ledger()

    # --- Valkey ---

    def valkey_as_of_ledger(self) -> None:
        """A Valkey built anew from what the ledger holds; the journal is empty."""
        self.available = dict(self.supply)
        self.used: Counter[tuple[str, int]] = Counter()
        self.letters: dict[str, str] = {}
        self.journal: list[tuple[Any, ...]] = []
        for order in self.orders.values():
            if order.stored:
                self._take(order.shopper, order.lines)
                again = any(row.outcome == "taken" and row.orders[0][0] == order.id for row in self.outbox)
                self.letters[order.id] = ("P" if order.extended else "p") if again else order.letter()
        for shopper, lines, quota in self.moved:
            self._give(shopper, lines, quota)
        for row in self.outbox:
            row.called = row.outcome is not None

    def _take(self, shopper: str, lines: Mapping[int, int], quota: bool = True) -> None:
        for sku, units in lines.items():
            self.available[sku] -= units
            if self.quotas[sku] and quota:
                self.used[shopper, sku] += units

    def _give(self, shopper: str, lines: Mapping[int, int], quota: bool) -> None:
        self._take(shopper, {sku: -units for sku, units in lines.items()}, quota)

    def _fits(self, shopper: str, lines: Mapping[int, int]) -> str:
        for sku, units in lines.items():
            if self.quotas[sku] and self.used[shopper, sku] + units > self.quotas[sku]:
                return "Q"
        return "A" if all(self.available[sku] >= units for sku, units in lines.items()) else "S"

    def reserve(self, order_id: str, shopper: str, lines: Mapping[int, int]) -> str:
        """A accepted, R taken before (whatever became of it), Q over the quota, S sold out."""
        if order_id in self.orders:
            return "R"
        outcome = self._fits(shopper, lines)
        if outcome == "A":
            self.orders[order_id] = Order(order_id, shopper, dict(lines))
            self._take(shopper, lines)
            self.letters[order_id] = "h"
            self.journal.append(("order", order_id))
        return outcome

    def _hear(self, order_id: str, letter: str) -> None:
        before = self.letters[order_id]
        after = letter if LETTER_RANKS[letter.lower()] > LETTER_RANKS[before.lower()] else before
        self.letters[order_id] = after.upper() if before.isupper() or letter.isupper() else after.lower()

    # --- the journal's way to the ledger ---

    def write(self, entries: int, deadlines: Mapping[str, int]) -> None:
        """The first entries are stored; `deadlines` of the orders among them."""
        for kind, *what in self.journal[:entries]:
            if kind == "order":
                order = self.orders[what[0]]
                order.stored, order.deadline = True, deadlines[order.id]
            elif kind == "release":
                row, moved = what
                self.moved = [*self.moved, *moved]
                if row in self.outbox:
                    self.outbox.remove(row)
            else:
                row, moved, taken = what
                self.moved = [*self.moved, *moved]
                row.outcome = "taken" if taken else "refused"
        del self.journal[:entries]

    def lose_valkey(self) -> None:
        """All that was not in the ledger is gone."""
        self.orders = {key: order for key, order in self.orders.items() if order.stored}
        self.stream.clear()
        self.valkey_as_of_ledger()

    # --- the outbox's way to Valkey ---

    def restart(self) -> None:
        self.sent.clear()

    def round(self, most: int | None = None) -> None:
        """A dispatcher's round; `most`: it dies after so many script calls."""
        self.sent = [row for row in self.sent if row in self.outbox and row.outcome is None]
        self.settle_again()
        waiting = [row for row in self.outbox if row.outcome is None and row not in self.sent][:ROWS_A_ROUND]
        for row in waiting[:most]:
            self._call(row)
            if row.kind != "status":
                self.sent.append(row)
        if most is None:
            self.outbox = [row for row in self.outbox if row.kind != "status" or row not in waiting]

    def _call(self, row: Row) -> None:
        if row.kind == "status":
            for order_id, _, _, letter in row.orders:
                self._hear(order_id, letter)
            return
        if row.called:
            return
        row.called = True
        moved = []
        taken = True
        for order_id, lines, quota, letter in row.orders:
            shopper = self.orders[order_id].shopper
            if row.kind == "release":
                self._give(shopper, lines, quota)
                moved.append((shopper, lines, quota))
            else:
                taken = self._fits(shopper, lines) == "A"
                if taken:
                    self._take(shopper, lines)
                    moved.append((shopper, {sku: -units for sku, units in lines.items()}, True))
            if taken:
                self._hear(order_id, letter)
        self.journal.append((row.kind, row, moved) if row.kind == "release" else (row.kind, row, moved, taken))

    # --- the ledger's rules ---

    def total(self, order: Order) -> int:
        return sum(self.prices[sku] * units for sku, units in order.lines.items())

    def owed(self, order: Order) -> int:
        """What the shopper owes: nothing for an order that is over, else what was ordered less what went back."""
        if order.status in OVER:
            return 0
        back = sum(self.prices[sku] * units for sku, units in order.refunded.items())
        return max(0, self.total(order) - back - (order.payment.goodwill if order.payment else 0))

    def _record(self, order: Order, status: str | None = None) -> None:
        order.status = status or order.status
        order.shown = order.payment.shown() if order.payment else "none"

    def _tell(self, kind: str, order: Order, lines: Mapping[int, int], quota: bool, letter: str | None = None) -> None:
        self.outbox.append(Row(kind, [(order.id, dict(lines), quota, letter or order.letter())]))

    def _mirror(self, order: Order) -> None:
        self._tell("status", order, {}, False)

    def _settle(self, order: Order) -> None:
        payment = order.payment
        if payment is None or payment.late == "asked":
            return
        owed = self.owed(order)
        if payment.captured:
            excess = payment.refundable - owed
            if excess > 0 and payment.dispute in (None, "won"):
                payment.refunding += excess
                self._record(order)
                self.fresh.append(Refund(order.id, excess))
        elif payment.rank == RANKS[AUTHORISED]:
            if owed == 0:
                payment.ask("release")
            elif order.shipped:
                payment.ask("capture", min(owed, payment.authorised))
        elif payment.rank < RANKS[AUTHORISED] and owed == 0:
            payment.ask("close")

    def named(self, ids: Iterable[str]) -> None:
        """The ids that the ledger gave to new refunds."""
        for refund_id in ids:
            order_id = refund_id[3:].rpartition("-")[0]
            (first, *_) = [refund for refund in self.fresh if refund.order == order_id]
            self.fresh = [refund for refund in self.fresh if refund is not first]
            self.refunds[refund_id] = first

    def _known(self, order_id: str) -> Order:
        order = self.orders.get(order_id)
        if order is None or not order.stored:
            raise Refused("not-found")
        return order

    # --- steps that somebody takes ---

    def begin_payment(self, order_id: str) -> None:
        order = self._known(order_id)
        payment = order.payment
        if order.status not in OVER and payment is not None and payment.rank >= 2 and payment.authorised:
            raise Refused("already-paid")
        if order.status != "reserved":
            raise Refused("not-payable")
        if payment is None:
            order.payment = Payment(self.owed(order))
        elif payment.state == CLOSED and not payment.authorised:
            former = {self.intents.pop(order_id).id} if order_id in self.intents else set()
            order.payment = Payment(self.owed(order), former=payment.former | former)
        elif payment.todo == "close":
            raise Refused("not-payable")  # the hold has run out

    def opened(self, order_id: str) -> None:
        payment = self.orders[order_id].payment
        assert payment is not None
        payment.opened = payment.known = True

    def extend(self, order_id: str, extension_ms: int, now_ms: int, guard_ms: int) -> None:
        order = self._known(order_id)
        if order.status != "reserved" or order.extended or order.deadline - now_ms < guard_ms:
            raise Refused("not-extendable")
        order.extended, order.deadline = True, order.deadline + extension_ms
        self._record(order)
        self._mirror(order)

    def cancel(self, order_id: str, lines: Mapping[int, int] | None) -> None:
        order = self._known(order_id)
        if order.status == "cancelled" and lines is None:
            return
        if order.status not in ("reserved", "paid"):
            raise Refused("not-cancellable")
        gone = _wanted(order, lines, order.left(), "not-cancellable")
        self._cancel_units(order, gone)
        self._settle(order)

    def _cancel_units(self, order: Order, gone: Mapping[int, int]) -> None:
        if order.status == "paid":
            self.sold.subtract(gone)
        order.cancelled.update(gone)
        order.refunded.update(gone)
        self._record(order, None if order.left() else "cancelled")
        self._tell("release", order, gone, True)

    def ship(self, order_id: str, lines: Mapping[int, int] | None) -> None:
        order = self._known(order_id)
        if order.status != "paid":
            raise Refused("not-shippable")
        left = order.left()
        going = _wanted(order, lines, left, "not-shippable")
        rest = {sku: left[sku] - going.get(sku, 0) for sku in left if left[sku] > going.get(sku, 0)}
        if rest:
            self._cancel_units(order, rest)
        order.shipped.update(going)
        self._record(order, "shipped")
        self._mirror(order)
        self._settle(order)

    def deliver(self, order_id: str, delivered: bool) -> None:
        order = self._known(order_id)
        status = "delivered" if delivered else "undeliverable"
        if order.status == status:
            return
        if order.status != "shipped":
            raise Refused("not-shippable")
        if not delivered:
            order.refunded = Counter(order.lines)
        self._record(order, status)
        self._mirror(order)
        self._settle(order)

    def goodwill(self, order_id: str, amount: int) -> None:
        order = self._known(order_id)
        payment = order.payment
        if payment is None or amount > min(payment.refundable, self.owed(order)):
            raise Refused("refund-exceeds-payment")
        if payment.dispute in ("open", "lost"):
            raise Refused("payment-disputed")
        payment.goodwill += amount
        self._record(order)
        self._settle(order)

    def request_return(self, order_id: str, lines: Mapping[int, int]) -> None:
        order = self._known(order_id)
        payment = order.payment
        if order.status not in ("shipped", "delivered", "undeliverable") or payment is None:
            raise Refused("not-returnable")
        if payment.dispute in ("open", "lost"):
            raise Refused("payment-disputed")
        left = Counter(order.shipped)
        left.subtract(order.returned)
        for other in self.returns.values():
            if other.order == order_id and other.status in ("requested", "accepted"):
                left.subtract(other.lines)
        wanted = _wanted(order, lines, left, "not-returnable")
        asked = sum(
            self.prices[sku] * min(units, order.lines[sku] - order.refunded[sku]) for sku, units in wanted.items()
        )
        if asked > (payment.refundable if payment.captured else payment.todo_amount or 0):
            raise Refused("refund-exceeds-payment")
        self._record(order)

    def requested(self, return_id: str, order_id: str, lines: Mapping[int, int]) -> None:
        self.returns[return_id] = Return(order_id, dict(lines))

    def decide_return(self, return_id: str, accept: bool) -> None:
        asked = self.returns[return_id]
        status = "accepted" if accept else "refused"
        if asked.status == status or (accept and asked.status == "received"):
            return
        if asked.status != "requested":
            raise Refused("not-returnable")
        asked.status = status
        self._record(self.orders[asked.order])

    def receive_return(
        self, return_id: str, came: Mapping[int, int], restock: bool, sale_open: bool, quota: bool
    ) -> None:
        asked = self.returns[return_id]
        order = self.orders[asked.order]
        if asked.status == "received":
            return
        if asked.status != "accepted":
            raise Refused("not-returnable")
        came = _wanted(order, came, asked.lines, "not-returnable")
        asked.status = "received"
        order.returned.update(came)
        for sku, units in came.items():
            order.refunded[sku] = min(order.lines[sku], order.refunded[sku] + units)
        self._record(order)
        if restock and sale_open:
            order.restocked.update(came)
            self.sold.subtract(came)
            self._tell("release", order, came, quota)
        self._settle(order)

    # --- time ---

    def expire(self, until_ms: int, grace_ms: int) -> None:
        for with_payment in (False, True):
            expired = []
            for order in self.orders.values():
                payment = order.payment
                if not order.stored or order.status != "reserved" or order.deadline > until_ms:
                    continue
                if (payment is not None) is not with_payment:
                    continue
                if payment is None or payment.state == CLOSED or order.deadline + grace_ms <= until_ms:
                    order.status = "expired"
                    expired.append((order.id, order.left(), True, order.letter()))
                if payment is not None and payment.rank < 2:
                    payment.ask("close")
            if expired:
                self.outbox.append(Row("release", expired))

    # --- the provider's facts ---

    def apply(self, facts: Sequence[Fact], answered: bool = False) -> None:
        """A batch of events, or of answers to calls and polls (`answered`)."""
        newest: dict[tuple[str, str], IntentFact] = {}
        for fact in facts:
            if isinstance(fact, IntentFact):
                known = newest.get((fact.order, fact.intent))
                if known is None or (RANKS[fact.state], fact.state == FAILED) >= (
                    RANKS[known.state],
                    known.state == FAILED,
                ):
                    newest[fact.order, fact.intent] = fact
        paid_at_once = Row("status", [])
        self.outbox.append(paid_at_once)
        for fact in sorted(newest.values(), key=self._is_out_of_the_common):
            order = self.orders[fact.order]
            payment = order.payment
            common = not self._is_out_of_the_common(fact)
            changed = payment is not None and self._apply_intent(order, payment, fact)
            if changed and common:
                paid_at_once.orders += self.outbox.pop().orders
            if payment is None or changed or not answered:
                continue
            if payment.rank < 2 and order.status in OVER:
                payment.todo = "close"
        if not paid_at_once.orders:
            self.outbox.remove(paid_at_once)
        for fact in facts:
            if isinstance(fact, RefundFact) and fact.refund in self.refunds:
                self._apply_refund(fact)
            elif isinstance(fact, DisputeFact):
                self._apply_dispute(fact)

    def _is_out_of_the_common(self, fact: IntentFact) -> bool:
        """Anything but the payment in full of a reserved order: those of a batch are told in one row."""
        order = self.orders[fact.order]
        return fact.state not in (AUTHORISED, CAPTURED) or order.status != "reserved" or bool(order.refunded)

    def _apply_intent(self, order: Order, payment: Payment, fact: IntentFact) -> bool:
        if fact.intent in payment.former:
            return False
        declined = fact.state == FAILED and payment.rank == 0 and fact.attempt not in payment.attempts
        if RANKS[fact.state] <= payment.rank and not declined:
            return False
        payment.known = True
        payment.state = fact.state
        payment.authorised = max(payment.authorised, fact.authorised)
        payment.captured = fact.captured
        payment.released = payment.authorised - fact.captured if payment.rank == 3 else 0
        if payment.rank >= 2:
            payment.todo = None
        if fact.state == FAILED:
            payment.attempts.add(fact.attempt or "")
            if order.status == "reserved":
                order.failures += 1
                self._record(order)
        elif fact.state == CLOSED and payment.authorised:
            self._record(order)
            if order.status == "paid":
                self._lapse(order)
        elif fact.state in (AUTHORISED, CAPTURED):
            self._paid(order, payment)
        return True

    def _paid(self, order: Order, payment: Payment) -> None:
        if order.status == "reserved":
            self._record(order, "paid")
            self.sold.update(order.left())
            self._mirror(order)
            self._settle(order)
        elif order.status == "expired" and payment.late is None:
            payment.late = "asked"
            self._record(order)
            self._tell("reserve_again", order, order.left(), True, "P" if order.extended else "p")
        else:
            self._record(order)
            self._settle(order)

    def _lapse(self, order: Order) -> None:
        """The authorisation is gone, so is the order."""
        gone = order.left()
        self.sold.subtract(gone)
        order.cancelled = order.refunded = Counter(order.lines)
        order.refunded = Counter(order.lines)
        self._record(order, "cancelled")
        self._tell("release", order, gone, True)

    def _apply_refund(self, fact: RefundFact) -> None:
        refund = self.refunds[fact.refund]
        payment = self.orders[refund.order].payment
        assert payment is not None
        if REFUND_RANKS[fact.state] <= REFUND_RANKS[refund.status]:
            return
        if refund.status == "succeeded":
            payment.refunded -= refund.amount
        else:
            payment.refunding -= refund.amount
        if fact.state == "succeeded":
            payment.refunded += refund.amount
        else:
            payment.refund_failed += refund.amount
        refund.status = fact.state
        self._record(self.orders[refund.order])

    def _apply_dispute(self, fact: DisputeFact) -> None:
        order = self.orders[fact.order]
        payment = order.payment
        if payment is None or not payment.known or fact.dispute in payment.decided:
            return
        if fact.state == "open" and fact.dispute in payment.disputes:
            return
        if fact.state == "open":
            payment.disputes.add(fact.dispute)
        else:
            payment.disputes.discard(fact.dispute)
            payment.decided.add(fact.dispute)
        payment.dispute = "open" if payment.disputes else fact.state
        self._record(order)
        self._settle(order)

    def settle_again(self) -> None:
        for row in [row for row in self.outbox if row.outcome is not None]:
            ((order_id, lines, _, _),) = row.orders
            order = self.orders[order_id]
            payment = order.payment
            assert payment is not None and payment.late == "asked" and order.status == "expired"
            payment.late = row.outcome
            if row.outcome == "taken":
                self._record(order, "paid")
                self.sold.update(lines)
                self._mirror(order)
                if payment.state == CLOSED:
                    self._lapse(order)
            self._settle(order)
            self.outbox.remove(row)

    # --- what is asked of the provider ---

    def open(self, order_id: str, session: str, intent: str) -> None:
        """The order's session is made, once."""
        payment = self.orders[order_id].payment
        assert payment is not None
        known = self.intents.setdefault(order_id, Intent(session, intent, payment.amount))
        assert (known.session, known.id) == (session, intent), "one session an order"

    def silent(self) -> list[str]:
        """Orders whose payment is to be asked about: something is wanted of the provider, or may not have been told."""
        return [
            order.id
            for order in self.orders.values()
            if order.payment is not None
            and (order.payment.todo or order.payment.rank < 2 or self.intents[order.id].state != order.payment.state)
        ]

    def ask(self, order_id: str) -> Fact | None:
        """What is wanted of the provider is done there; its answer. None: nothing is asked this time."""
        order = self.orders[order_id]
        payment = order.payment
        assert payment is not None
        intent = self.intents[order_id]
        if (payment.todo == "close" and intent.state == OPEN) or (
            payment.todo == "release" and intent.state in (OPEN, AUTHORISED)
        ):
            intent.state = CLOSED
        elif payment.todo == "capture" and intent.state == AUTHORISED:
            intent.state, intent.captured = CAPTURED, payment.todo_amount or 0
        return intent.fact(order_id)

    def capture_early(self, order_id: str) -> bool:
        """An authorisation that the provider would drop soon; whether it is to be captured now."""
        order = self.orders[order_id]
        payment = order.payment
        if payment is None or payment.rank != 2 or payment.todo is not None or order.status != "paid":
            return False
        payment.ask("capture", min(self.owed(order), payment.authorised))
        return True

    def refund_at_provider(self, refund_id: str) -> set[str]:
        """A refund's job asks the provider; what it may be told."""
        refund = self.refunds[refund_id]
        intent = self.intents[refund.order]
        if refund_id in intent.refunds:
            return {"succeeded"} if not intent.wallet else {"pending", "succeeded", "failed"}
        if refund_id in intent.refused or intent.dispute in ("open", "lost"):
            intent.refused.add(refund_id)
            return {"failed"}
        assert refund.amount <= intent.kept(), "never more than was taken"
        intent.refunds[refund_id] = (refund.amount, "pending" if intent.wallet else "succeeded")
        return {"pending", "succeeded"} if intent.wallet else {"succeeded"}


def _wanted(order: Order, lines: Mapping[int, int] | None, left: Mapping[int, int], problem: str) -> dict[int, int]:
    if lines is None:
        return {sku: units for sku, units in left.items() if units}
    if any(sku not in order.lines for sku in lines) or not any(lines.values()):
        raise Refused("invalid-request")
    if any(units > left.get(sku, 0) for sku, units in lines.items()):
        raise Refused(problem)
    return {sku: units for sku, units in lines.items() if units}
