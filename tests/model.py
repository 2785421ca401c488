"""A partition and its one sale in plain Python: what the scripts must do, said once more without Valkey.

Each method takes what the script takes and answers what it answers; `now_ms` is given, for the model has no clock. The
stateful test runs both and compares every answer and every key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

RANKS = {"h": 0, "e": 1, "p": 2, "s": 3, "d": 4, "u": 4, "c": 5}


@dataclass(frozen=True)
class Order:
    """One order as the hot path hands it on. `lines`: (SKU index, units); `record`: its line of the journal."""

    id: bytes
    head: bytes
    shopper: int
    lines: tuple[tuple[int, int], ...]
    differing: bool
    record: bytes


@dataclass(frozen=True)
class Move:
    """Units of one order that go back or are taken again. `quota`: ((shopper, SKU index), units)."""

    order_hex: str
    number: int
    letter: str
    lines: tuple[tuple[int, int], ...]
    quota: tuple[tuple[tuple[int, int], int], ...]
    quota_back: bool

    @property
    def id(self) -> bytes:
        return bytes.fromhex(self.order_hex)[-12:]


@dataclass
class Hold:
    """What is kept of a used id. `entry`: place of its journal entry; `number`: of its last movement, 0: none."""

    letter: str
    head: bytes
    entry: int
    number: int = 0

    def hear(self, letter: str) -> bool:
        """A letter of a higher rank is taken over, and that the hold was extended; whether that changed anything."""
        before = self.letter
        higher = RANKS[letter.lower()] > RANKS[before.lower()]
        self.letter = (letter if higher else before).lower()
        if before.isupper() or letter.isupper():
            self.letter = self.letter.upper()
        return self.letter != before


@dataclass
class Sale:
    """State, stock, supply, quotas used, the holds, and when units may come back (ms, by SKU index)."""

    number: int
    opens_at: int
    closes_at: int
    status: str = "open"
    suspended: set[int] = field(default_factory=set)
    supply: dict[int, int] = field(default_factory=dict)
    available: dict[int, int] = field(default_factory=dict)
    quota_used: dict[tuple[int, int], int] = field(default_factory=dict)
    holds: dict[bytes, Hold] = field(default_factory=dict)
    returns: dict[int, int] = field(default_factory=dict)


class Refused(Exception):
    """The script refuses: the answer's first words."""

    def __init__(self, *answer: Any) -> None:
        super().__init__(*answer)
        self.answer = answer


class Model:
    """One partition. `journal` holds ("o", records) and ("m", movement) in order; nothing is ever cut off it here."""

    def __init__(self, epoch: int, version: int) -> None:
        self.epoch = epoch
        self.version = version
        self.sale: Sale | None = None
        self.journal: list[tuple[str, Any]] = []

    def _enter(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise Refused("fenced")

    def _move(self, **movement: Any) -> None:
        self.journal.append(("m", movement))

    def create(self, epoch: int, number: int, opens_at: int, closes_at: int, supply: dict[int, int]) -> int:
        """How many SKUs were added."""
        self._enter(epoch)
        sale = self.sale
        if sale is not None and sale.number != number:
            raise Refused("mismatch", sale.number)
        known = sale or Sale(number, opens_at, closes_at)
        if known.status == "closed":
            opens_at, closes_at = known.opens_at, known.closes_at
        added = {sku: units for sku, units in supply.items() if sku not in known.supply}
        if sale is not None and not added and (opens_at, closes_at) == (sale.opens_at, sale.closes_at):
            return 0
        self.sale = known
        known.opens_at, known.closes_at = opens_at, closes_at
        known.supply.update(added)
        known.available.update(added)
        named = {str(sku): units for sku, units in added.items()}
        self._move(kind="create", sale=number, supply=named, opens_at=opens_at, closes_at=closes_at)
        return len(added)

    def set_status(self, epoch: int, action: str, now_ms: int) -> tuple[str, int, int]:
        """(status, opens_at, closes_at) from now on."""
        self._enter(epoch)
        sale = self.sale
        if sale is None:
            raise Refused("unknown")
        before = (sale.status, sale.opens_at, sale.closes_at)
        if sale.status == "closed" and action != "close":
            raise Refused("closed")
        if sale.status != "closed":
            if action == "open":
                if now_ms >= sale.closes_at:
                    raise Refused("ended")
                sale.opens_at = min(sale.opens_at, now_ms)
            if action == "close":
                sale.closes_at = min(sale.closes_at, now_ms)
            sale.status = {"open": "open", "resume": "open", "pause": "paused", "close": "closed"}[action]
        after = (sale.status, sale.opens_at, sale.closes_at)
        if after != before:
            self._move(kind="status", sale=sale.number, status=after[0], opens_at=after[1], closes_at=after[2])
        return after

    def suspend(self, epoch: int, sku: int, action: str) -> bool:
        """Whether that changed anything; `action` is suspend or unsuspend."""
        self._enter(epoch)
        if self.sale is None:
            raise Refused("unknown")
        if sku not in self.sale.supply:
            raise Refused("unknown-sku")
        if (sku in self.sale.suspended) == (action == "suspend"):
            return False
        self.sale.suspended ^= {sku}
        self._move(kind=action, sale=self.sale.number, sku=sku)
        return True

    def adjust(self, epoch: int, sku: int, to: int, expect: int) -> tuple[int, int]:
        """(supply, available) from now on."""
        self._enter(epoch)
        sale = self.sale
        if sale is None:
            raise Refused("unknown")
        if sku not in sale.supply:
            raise Refused("unknown-sku")
        supply, available = sale.supply[sku], sale.available[sku]
        if supply != expect:
            raise Refused("mismatch", supply, available)
        if to < supply - available:
            raise Refused("taken", supply, available)
        if to != supply:
            sale.supply[sku], sale.available[sku] = to, available + to - supply
            self._move(kind="adjust", sale=sale.number, sku=sku, delta=to - supply, supply=to)
        return sale.supply[sku], sale.available[sku]

    def release(self, epoch: int, outbox: int, moves: list[Move]) -> list[str]:
        """What became of each."""
        self._enter(epoch)
        outcomes = [self._release(move) for move in moves]
        moved = [
            {
                "order": move.order_hex,
                "number": move.number,
                "lines": [list(line) for line in move.lines],
                "quota_back": move.quota_back,
            }
            for move, outcome in zip(moves, outcomes, strict=True)
            if outcome == "ok"
        ]
        if self.sale is not None and moved:
            self._move(kind="release", sale=self.sale.number, outbox=outbox, orders=moved)
        return outcomes

    def _release(self, move: Move) -> str:
        sale = self.sale
        if sale is None or move.id not in sale.holds:
            return "unknown"
        hold = sale.holds[move.id]
        if move.number <= hold.number:
            return "already"
        if any(sale.available[sku] + units > sale.supply[sku] for sku, units in move.lines):
            return "beyond"
        for sku, units in move.lines:
            sale.available[sku] += units
        for shopper_sku, units in move.quota if move.quota_back else ():
            sale.quota_used[shopper_sku] = max(0, sale.quota_used.get(shopper_sku, 0) - units)
        hold.number = move.number
        hold.hear(move.letter)
        return "ok"

    def reserve_again(self, epoch: int, outbox: int, move: Move, quotas: dict[int, int]) -> str:
        """What became of it."""
        self._enter(epoch)
        sale = self.sale
        if sale is None or move.id not in sale.holds:
            return "unknown"
        hold = sale.holds[move.id]
        if move.number <= hold.number:
            return "already"
        quota = move.quota if move.quota_back else ()
        taken = all(sale.available.get(sku, 0) >= units for sku, units in move.lines) and all(
            sale.quota_used.get(who, 0) + units <= quotas[who[1]] for who, units in quota
        )
        hold.number = move.number
        if taken:
            hold.hear(move.letter)
            for sku, units in move.lines:
                sale.available[sku] -= units
            for who, units in quota:
                sale.quota_used[who] = sale.quota_used.get(who, 0) + units
        self._move(
            kind="reserve_again",
            sale=sale.number,
            outbox=outbox,
            order=move.order_hex,
            number=move.number,
            lines=[list(line) for line in move.lines],
            taken=taken,
            quota=move.quota_back,
        )
        return "taken" if taken else "refused"

    def mirror(self, epoch: int, letters: list[tuple[bytes, str]]) -> int:
        """How many holds changed."""
        self._enter(epoch)
        holds = self.sale.holds if self.sale is not None else {}
        return len({id for id, letter in letters if id in holds and holds[id].hear(letter)})

    def set_returns(self, epoch: int, deadlines: dict[int, int]) -> None:
        """Where there is no sale nobody asks for it."""
        self._enter(epoch)
        if self.sale is not None:
            self.sale.returns = dict(deadlines)

    def publish(self, epoch: int, version: int) -> bool:
        """Whether that changed anything."""
        self._enter(epoch)
        if version < self.version:
            raise Refused("stale", self.version)
        if version == self.version:
            return False
        self.version = version
        self._move(kind="version", version=version)
        return True

    def reserve(
        self, epoch: int, version: int, orders: list[Order], quotas: dict[int, int], now_ms: int
    ) -> list[tuple[Any, ...]]:
        """An outcome an order: its letter and details; for R the used id's, for its hold is known after the entry."""
        self._enter(epoch)
        if version != self.version:
            raise Refused("stale", self.version)
        sale = self.sale
        if sale is None:
            raise Refused("fenced")
        entry = len(self.journal)
        outcomes = [self._decide(sale, order, quotas, now_ms, entry) for order in orders]
        taken = [order.record for order, outcome in zip(orders, outcomes, strict=True) if outcome == ("A",)]
        if taken:
            self.journal.append(("o", b"".join(taken)))
        return outcomes

    def _decide(self, sale: Sale, order: Order, quotas: dict[int, int], now_ms: int, entry: int) -> tuple[Any, ...]:
        if order.id in sale.holds:
            return ("R", order.id)
        if sale.status == "closed" or now_ms >= sale.closes_at:
            return ("C",)
        if now_ms < sale.opens_at:
            return ("N",)
        if sale.status == "paused":
            return ("P",)
        for place, (sku, _) in enumerate(order.lines, 1):
            if sku in sale.suspended:
                return ("U", place)
        if order.differing:
            return ("T",)
        for place, (sku, units) in enumerate(order.lines, 1):
            used = sale.quota_used.get((order.shopper, sku), 0)
            if quotas[sku] and used + units > quotas[sku]:
                return ("Q", place, used)
        short = [sku for sku, units in order.lines if sale.available.get(sku, 0) < units]
        if short:
            back = min((sale.returns[sku] for sku in short if sku in sale.returns), default=0)
            return ("S", *(sale.available.get(sku, 0) for sku, _ in order.lines), back and max(back, now_ms))
        for sku, units in order.lines:
            sale.available[sku] -= units
            if quotas[sku]:
                sale.quota_used[order.shopper, sku] = sale.quota_used.get((order.shopper, sku), 0) + units
        sale.holds[order.id] = Hold("h", order.head, entry)
        return ("A",)

    def check(self) -> None:
        """What must hold after every step, whatever was asked: the journal alone gives the state."""
        sale = self.sale
        if sale is None:
            return
        supply: dict[int, int] = {}
        taken: dict[int, int] = {}
        of_order: dict[tuple[str, int], int] = {}  # units that an order has of a SKU
        for kind, payload in self.journal:
            if kind == "o":
                for line in payload.splitlines():
                    record = json.loads(line)
                    for sku, units in record["lines"]:
                        taken[sku] = taken.get(sku, 0) + units
                        of_order[record["id"], sku] = units
            elif payload["kind"] == "create":
                for name, units in payload["supply"].items():
                    supply[int(name)] = supply.get(int(name), 0) + units
            elif payload["kind"] == "adjust":
                supply[payload["sku"]] += payload["delta"]
            elif payload["kind"] == "release":
                for moved in payload["orders"]:
                    for sku, units in moved["lines"]:
                        taken[sku] -= units
                        of_order[moved["order"], sku] -= units
            elif payload["kind"] == "reserve_again" and payload["taken"]:
                for sku, units in payload["lines"]:
                    taken[sku] += units
                    of_order[payload["order"], sku] += units
        assert supply == sale.supply
        assert all(units >= 0 for units in of_order.values()), "an order gave back more than it had"
        for sku, units in sale.available.items():
            assert 0 <= units <= supply[sku]
            assert supply[sku] == units + taken.get(sku, 0)
