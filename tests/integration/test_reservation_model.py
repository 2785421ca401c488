"""Every script against the pure model, step by step, on Valkey 9 and on Redis 7: same answers, same keys, same journal.

FLASHSALE_MODEL_STEPS sets how many steps a server gets (small by default; 20000 takes minutes).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flashsale.embedded import ValkeyServer
from flashsale.reservation import commands, keys, server
from flashsale.reservation.batch import script_keys
from flashsale.reservation.holds import unpack
from flashsale.reservation.movements import decode_entry, parse_entry_id
from flashsale.reservation.scripts import Script
from flashsale.sale.catalogue import Catalogue
from tests.model import Model, Move, Order, Refused

STEPS = int(os.environ.get("FLASHSALE_MODEL_STEPS", "1000"))
STEPS_AN_EXAMPLE = 40

SALE, NUMBER, EPOCH = "double11", 7, 3
SKUS_MAX = 24
FAR_MS = 4_000_000_000_000
"""The year 2096: no test runs into the edge of a window."""
QUOTAS = {sku: (0, 0, 3, 0, 10, 1)[sku % 6] for sku in range(SKUS_MAX)}
RESERVE = Script("reserve")

# Some SKUs are hot and their quotas small, some shoppers come again: so batches conflict with themselves.
skus = st.one_of(st.sampled_from([2, 5, 8]), st.integers(0, SKUS_MAX - 1))
ids = st.integers(0, 150)
units = st.sampled_from([1] * 8 + [2, 2, 3, 10_000])
lines = st.one_of(
    st.tuples(st.tuples(skus, units)),
    st.lists(st.tuples(skus, units), min_size=1, max_size=20, unique_by=lambda line: line[0]).map(tuple),
)
# Mostly right: a call that is refused shows little.
stocks = st.sampled_from([0, 1, 2, 3, 5, 8, 40, 40, 10**9, 10**9])
windows = st.sampled_from([(1, FAR_MS)] * 8 + [(1, FAR_MS + 1)] * 4 + [(FAR_MS - 1, FAR_MS), (1, 2)])
epochs = st.sampled_from([EPOCH] * 19 + [EPOCH - 1])
orders = st.lists(
    st.tuples(ids, st.integers(0, 2), lines, st.sampled_from([False] * 6 + [True]), st.integers(0, 40)),
    min_size=1,
    max_size=14,
)
# Movements of orders: which order, how, whether quota goes with it, the letter.
letters = st.sampled_from("hepsduc" * 2 + "HEPSDUC")
moves = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["all", "all", "part", "part", "again", "again", "beyond"]),
        st.booleans(),
        letters,
    ),
    min_size=1,
    max_size=8,
)


def used_id(number: int) -> bytes:
    """Twelve bytes that no text encoding takes."""
    return hashlib.blake2b(number.to_bytes(2), digest_size=12).digest()


def order_hex(number: int) -> str:
    return (bytes([0]) + NUMBER.to_bytes(2) + used_id(number)).hex()


def quota_field(shopper: int, sku: int) -> bytes:
    return hashlib.blake2b(bytes([shopper]), digest_size=10).digest() + sku.to_bytes(2)


def pack_batch(batch: list[Order]) -> list[bytes]:
    """ARGV 3 to 18 of reserve.lua, as its head describes them."""
    every = [(order, sku, quantity) for order in batch for sku, quantity in order.lines]
    counts = [len(order.lines) for order in batch]
    differing = [place for place, order in enumerate(batch, 1) if order.differing]
    quotas = [QUOTAS[sku] for _, sku, _ in every]
    return [
        b"".join(order.id for order in batch),
        b"".join(order.head for order in batch),
        b"".join(quota_field(order.shopper, sku) for order, sku, _ in every if QUOTAS[sku]),
        b"".join(sku.to_bytes(2) for _, sku, _ in every),
        b"".join(quantity.to_bytes(2) for _, _, quantity in every),
        b"".join(quota.to_bytes(2) for quota in quotas) if any(quotas) else b"",
        b"" if set(counts) == {1} else bytes(counts),
        b"".join(place.to_bytes(2) + b"\x04" for place in differing),
        b"".join(len(order.record).to_bytes(4) for order in batch),
        b"".join(order.record for order in batch),
        *[b""] * 6,
    ]


class Machine(RuleBasedStateMachine):
    """One partition in Valkey and the same one in the model."""

    def __init__(self, client: Any, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.client, self.run = client, run
        self.entries: list[tuple[str, str, Any, int]] = []  # id, field, payload, bytes: every entry ever seen
        self.lines_of: dict[bytes, tuple[int, tuple[tuple[int, int], ...]]] = {}
        self.numbers: dict[int, None] = {}  # of the accepted orders, in their order
        self.has: dict[bytes, dict[int, int]] = {}  # units that an order has now, by SKU index
        self.changes: dict[bytes, int] = {}  # number of an order's last change
        # What was ever sent for it, whatever became of it: its releases, and what took its units again.
        self.given: dict[bytes, list[Move]] = {}
        self.taken: dict[bytes, list[Move]] = {}
        self.trimmed = 0
        self.outbox = 0
        self.model = Model(EPOCH, 1)
        run(client.flushdb())
        run(client.hset(keys.partition(0), mapping={"epoch": EPOCH, "version": 1}))

    def both(self, ours: Callable[[], Any], theirs: Any) -> Any:
        """Runs the model's call and the script's; both answer or both refuse in the same way."""
        try:
            expected = ours()
        except Refused as refusal:
            fault = {
                "fenced": commands.Fenced,
                "unknown": commands.UnknownSale,
                "unknown-sku": commands.UnknownSku,
                "closed": commands.SaleClosed,
                "ended": commands.SaleEnded,
                "taken": commands.BelowTaken,
            }.get(refusal.answer[0], commands.Mismatch)
            with pytest.raises(fault) as raised:
                self.run(theirs)
            if isinstance(raised.value, commands.SupplyMismatch | commands.BelowTaken):
                assert (raised.value.supply, raised.value.available) == refusal.answer[1:]
            return None
        answer = self.run(theirs)
        return expected, answer

    def now_ms(self) -> int:
        seconds, microseconds = self.run(self.client.time())
        return int(seconds * 1000 + microseconds // 1000)

    @initialize(supply=st.lists(stocks, min_size=SKUS_MAX - 4, max_size=SKUS_MAX), window=windows)
    def begin(self, supply: list[int], window: tuple[int, int]) -> None:
        self.create(EPOCH, NUMBER, supply, window)

    @rule(
        epoch=epochs,
        number=st.sampled_from([NUMBER] * 9 + [NUMBER + 1]),
        supply=st.lists(stocks, max_size=SKUS_MAX),
        window=windows,
    )
    def create(self, epoch: int, number: int, supply: list[int], window: tuple[int, int]) -> None:
        done = self.both(
            lambda: self.model.create(epoch, number, *window, dict(enumerate(supply))),
            commands.create_sale(
                self.client,
                partition=0,
                epoch=epoch,
                sale_id=SALE,
                number=number,
                opens_at_ms=window[0],
                closes_at_ms=window[1],
                supply=supply,
            ),
        )
        assert done is None or done[0] == done[1]

    @rule(
        epoch=epochs,
        action=st.sampled_from(["open", "open", "pause", "resume", "resume", "close"]),
        rare=st.integers(0, 5),
    )
    def set_status(self, epoch: int, action: Any, rare: int) -> None:
        if action == "close" and rare:  # a closed sale takes no orders: let most runs live
            action = "open"
        before = self.now_ms()
        done = self.both(
            lambda: self.model.set_status(epoch, action, before),
            commands.set_status(self.client, partition=0, epoch=epoch, sale_id=SALE, action=action),
        )
        if done is None:
            return
        expected, window = done
        sale = self.model.sale
        assert sale is not None
        for place, name, value in ((1, "opens_at", window.opens_at_ms), (2, "closes_at", window.closes_at_ms)):
            if value != expected[place]:  # the script's clock went on since `before`
                assert expected[place] == before <= value <= self.now_ms()
                setattr(sale, name, value)
                self.model.journal[-1][1][name] = value
        assert window.status == expected[0]

    @rule(epoch=epochs, sku=st.integers(0, SKUS_MAX), action=st.sampled_from(["suspend", "unsuspend"]))
    def suspend(self, epoch: int, sku: int, action: str) -> None:
        theirs = commands.suspend if action == "suspend" else commands.unsuspend
        done = self.both(
            lambda: self.model.suspend(epoch, sku, action),
            theirs(self.client, partition=0, epoch=epoch, sale_id=SALE, sku=sku),
        )
        assert done is None or done[0] == done[1]

    @rule(epoch=epochs, sku=skus, to=stocks, off=st.sampled_from([0, 0, 0, 1]))
    def adjust(self, epoch: int, sku: int, to: int, off: int) -> None:
        expect = off + (self.model.sale.supply.get(sku, 0) if self.model.sale else 0)
        done = self.both(
            lambda: self.model.adjust(epoch, sku, to, expect),
            commands.adjust(self.client, partition=0, epoch=epoch, sale_id=SALE, sku=sku, to=to, expect=expect),
        )
        assert done is None or done[0] == done[1][:2]

    def move(self, pick: int, how: str, quota_back: bool, letter: str) -> Move | None:
        """A movement that gives back what an order has, or some of it; one that was sent before; or more than anybody
        ever had. None where that order has nothing."""
        accepted = list(self.numbers)
        if not accepted and pick < 57:
            return None
        number = accepted[pick % len(accepted)] if pick < 57 else 1000 + pick
        id = used_id(number)
        sent = self.given.setdefault(id, [])
        if how == "again" and sent:
            return sent[pick % len(sent)]
        given = self.has.get(id, {0: 1}).items()
        if how == "part":
            given = [(sku, 1 + (units - 1) * (pick % 3) // 3) for sku, units in given if units and (sku + pick) % 3]
        given = tuple((sku, units + 10**9 * (how == "beyond")) for sku, units in given if units)
        if not given:
            return None
        sent.append(self.moving(number, given, quota_back, letter))
        return sent[-1]

    def moving(self, number: int, lines: tuple[tuple[int, int], ...], quota_back: bool, letter: str) -> Move:
        """A new movement of the order."""
        id = used_id(number)
        shopper = self.lines_of.get(id, (0, ()))[0]
        quota = tuple(((shopper, sku), quantity) for sku, quantity in lines if QUOTAS[sku])
        self.changes[id] = self.changes.get(id, 1) + 1 + len(lines) % 2  # other changes may lie between two movements
        return Move(order_hex(number), self.changes[id], letter, lines, quota, quota_back)

    @staticmethod
    def asked(move: Move) -> commands.MovedOrder:
        quota = [(quota_field(*shopper_sku), quantity) for shopper_sku, quantity in move.quota]
        limits = [QUOTAS[sku] for (_, sku), _ in move.quota]
        return commands.MovedOrder(move.order_hex, move.number, move.letter, move.lines, quota, move.quota_back, limits)

    @rule(epoch=epochs, drawn=moves)
    def release(self, epoch: int, drawn: list[Any]) -> None:
        batch: dict[bytes, Move] = {}
        twice = []
        for each in drawn:
            move = self.move(*each)
            if move is None:
                continue
            if move.id in batch:  # what it has is known after the first: that one once more
                if self.given[move.id][-1] is move and move is not batch[move.id]:
                    self.given[move.id].pop()
                twice.append(batch[move.id])
            else:
                batch[move.id] = move
        given = [*batch.values(), *twice]
        self.outbox += 1
        done = self.both(
            lambda: self.model.release(epoch, self.outbox, given),
            commands.release(
                self.client,
                epoch=epoch,
                sale_id=SALE,
                outbox=self.outbox,
                orders=[self.asked(move) for move in given],
            ),
        )
        if done is None:
            return
        assert done[0] == done[1]
        for move, outcome in zip(given, done[0], strict=True):
            for sku, quantity in move.lines if outcome == "ok" else ():
                self.has[move.id][sku] -= quantity

    @rule(epoch=epochs, pick=st.integers(0, 60), quota=st.booleans(), letter=letters, again=st.integers(0, 3))
    def reserve_again(self, epoch: int, pick: int, quota: bool, letter: str, again: int) -> None:
        """An order that has nothing any more, the same one again, or one that was never seen."""
        bare = [number for number in self.numbers if not any(self.has[used_id(number)].values())]
        if not bare and pick < 50:
            return
        number = bare[pick % len(bare)] if bare and pick < 57 else 1000 + pick
        id = used_id(number)
        lines = self.lines_of.get(id, (0, ((0, 1),)))[1]
        sent = self.taken.setdefault(id, [])
        if again or not sent:
            sent.append(self.moving(number, lines, quota, letter))
        move = sent[-1]
        self.outbox += 1
        done = self.both(
            lambda: self.model.reserve_again(epoch, self.outbox, move, QUOTAS),
            commands.reserve_again(self.client, epoch=epoch, sale_id=SALE, outbox=self.outbox, order=self.asked(move)),
        )
        if done is None:
            return
        assert done[0] == done[1]
        if done[0] == "taken":
            self.has[id] = dict(lines)

    @rule(epoch=epochs, told=st.lists(st.tuples(st.integers(0, 60), letters), max_size=8))
    def mirror_status(self, epoch: int, told: list[tuple[int, str]]) -> None:
        accepted = list(self.numbers)
        named = [(accepted[pick % len(accepted)] if accepted else pick, letter) for pick, letter in told]
        done = self.both(
            lambda: self.model.mirror(epoch, [(used_id(number), letter) for number, letter in named]),
            commands.mirror_status(
                self.client,
                epoch=epoch,
                sale_id=SALE,
                letters=[(order_hex(number), letter) for number, letter in named],
            ),
        )
        assert done is None or done[0] == done[1]

    @rule(epoch=epochs, given=st.dictionaries(skus, st.sampled_from([-60_000, 5_000, 900_000]), max_size=8))
    def set_returns(self, epoch: int, given: dict[int, int]) -> None:
        if self.model.sale is None:
            return
        now_ms = self.now_ms()
        deadlines = {sku: now_ms + later for sku, later in given.items()}
        self.both(
            lambda: self.model.set_returns(epoch, deadlines),
            commands.set_returns(self.client, epoch=epoch, sale_id=SALE, deadlines=deadlines),
        )

    @rule(epoch=epochs, step=st.sampled_from([1, 1, 0, -1]))
    def publish(self, epoch: int, step: int) -> None:
        version = max(1, self.model.version + step)
        self.both(
            lambda: self.model.publish(epoch, version),
            commands.publish(self.client, partition=0, epoch=epoch, catalogue=Catalogue(version, ())),
        )

    @rule(epoch=epochs, behind=st.integers(0, 4))
    def trim(self, epoch: int, behind: int) -> None:
        if behind >= len(self.entries):
            return
        kept = len(self.entries) - behind
        mark = parse_entry_id(self.entries[kept - 1][0])
        total = sum(entry[3] for entry in self.entries[:kept])
        call = commands.trim(self.client, partition=0, epoch=epoch, mark=mark, written=total)
        if epoch != EPOCH:
            with pytest.raises(commands.Fenced):
                self.run(call)
            return
        assert self.run(call) == max(0, kept - self.trimmed)
        self.trimmed = max(self.trimmed, kept)

    @rule(epoch=epochs, stale=st.sampled_from([0] * 19 + [1]), drawn=orders)
    def reserve(self, epoch: int, stale: int, drawn: list[Any]) -> None:
        self.decide(epoch, stale, drawn)

    @rule(drawn=orders)
    def reserve_twice(self, drawn: list[Any]) -> None:
        """A broken connection: the same batch again."""
        self.decide(EPOCH, 0, drawn)
        self.decide(EPOCH, 0, drawn)

    def decide(self, epoch: int, stale: int, drawn: list[Any]) -> None:
        version = self.model.version + stale
        batch = []
        for number, shopper, order_lines, differing, padding in drawn:
            record = json.dumps({"id": order_hex(number), "lines": order_lines, "ü": "é" * padding}, ensure_ascii=False)
            head = b"h" + struct.pack(">Q", number) + version.to_bytes(3)
            batch.append(Order(used_id(number), head, shopper, order_lines, differing, record.encode() + b"\n"))
        answer = self.run(RESERVE.run(self.client, script_keys(0, SALE), [epoch, version, *pack_batch(batch)]))
        now_ms = answer[2] if len(answer) == 5 else 0
        try:
            expected = self.model.reserve(epoch, version, batch, QUOTAS, now_ms)
        except Refused as refusal:
            said = [b"fenced"] if refusal.answer == ("fenced",) else [b"stale", b"%d" % refusal.answer[1]]
            assert answer[:2] == said
            return
        outcomes, details, _, entry, backlog = answer
        assert outcomes.decode() == "".join(outcome[0] for outcome in expected)
        assert bool(entry) == ("A" in outcomes.decode())
        for (number, *_), order, outcome in zip(drawn, batch, expected, strict=True):
            if outcome == ("A",):
                self.numbers[number] = None
                self.lines_of[order.id] = (order.shopper, order.lines)
                self.has[order.id] = dict(order.lines)
        self.read_journal()
        flat: list[Any] = []
        for letter, *more in expected:
            flat += [self.hold(more[0])] if letter == "R" else more
        assert details == flat
        assert backlog == sum(entry[3] for entry in self.entries[self.trimmed :])

    def hold(self, id: bytes) -> bytes:
        """The bytes that the model expects of a used id: 22, and 3 once units of it moved."""
        assert self.model.sale is not None
        hold = self.model.sale.holds[id]
        ms, seq = parse_entry_id(self.entries[hold.entry][0])
        value = hold.letter.encode() + hold.head[1:] + ms.to_bytes(6) + seq.to_bytes(4)
        assert unpack(value).letter == hold.letter
        return value + (hold.number.to_bytes(3) if hold.number else b"")

    def read_journal(self) -> None:
        """Adds the entries that are new since the last look; each is what the model says, its bytes counted."""
        last = self.entries[-1][0] if self.entries else "-"
        found = self.run(self.client.xrange(keys.journal(0), f"({last}" if self.entries else "-"))
        for entry_id, fields in found:
            name, payload = ("o", fields[b"o"]) if b"o" in fields else ("m", fields[b"m"])
            said = payload if name == "o" else json.loads(payload)
            self.entries.append((entry_id.decode(), name, said, len(payload)))
            decoded = decode_entry(entry_id, fields)
            assert decoded.written == sum(entry[3] for entry in self.entries)
            assert (decoded.movement is None) == (name == "o")
        assert [(name, said) for _, name, said, _ in self.entries] == self.model.journal

    @invariant()
    def same(self) -> None:
        self.read_journal()
        self.model.check()
        assert self.run(self.client.xlen(keys.journal(0))) == len(self.entries) - self.trimmed
        partition = self.run(commands.read_partition(self.client))
        written = sum(entry[3] for entry in self.entries)
        trimmed = sum(entry[3] for entry in self.entries[: self.trimmed])
        assert partition == (EPOCH, self.model.version, "", written, trimmed)

        sale, state = self.model.sale, self.run(commands.read_state(self.client, SALE))
        if sale is None:
            assert state is None
            return
        assert (state.number, state.status) == (sale.number, sale.status)
        assert (state.opens_at_ms, state.closes_at_ms) == (sale.opens_at, sale.closes_at)
        assert state.suspended == sale.suspended
        assert dict(enumerate(state.supply)) == sale.supply
        assert dict(enumerate(state.available)) == sale.available
        assert state.last_entry == parse_entry_id(self.entries[-1][0])
        quota = self.run(self.client.hgetall(keys.quota(0, SALE)))
        assert quota == {quota_field(*who): b"%d" % used for who, used in sale.quota_used.items()}
        holds = self.run(self.client.hgetall(keys.holds(0, SALE)))
        assert holds == {id: self.hold(id) for id in sale.holds}
        returns = self.run(self.client.hgetall(keys.returns(0, SALE)))
        assert returns == {b"%d" % sku: b"%d" % at for sku, at in sale.returns.items()}


def test_scripts_do_what_the_model_does(either_valkey: ValkeyServer) -> None:
    with asyncio.Runner() as runner:
        client = server.connect(either_valkey.url)
        try:
            run_state_machine_as_test(  # type: ignore[no-untyped-call]
                lambda: Machine(client, runner.run),
                settings=settings(
                    max_examples=max(1, STEPS // STEPS_AN_EXAMPLE),
                    stateful_step_count=STEPS_AN_EXAMPLE,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(client.aclose())
