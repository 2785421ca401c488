"""The decision alone: reserve.lua in batches of 256 against the leanest one-order script (one_order.lua).

A core's decisions/s is one over the CPU that Valkey takes for a decision, protocol included: what a wall clock says as
well, were the core never idle. Both in memory, the client on the other core and its commands built beforehand, records
of the size that the ledger gets. The one-order script, quota included both times, runs under redis-benchmark with 32
requests in each of 50 pipelines, which suits it best. Beside it stands the ordinary way's script (ordinary.lua), which
like ours answers a used id with its hold and takes several lines.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import hiredis
import redis

from bench.bench import PLENTY, QUOTA, SKUS, Bench
from bench.machine import FRONT_CORE, OTHER_CORE, BenchFault, pin
from bench.yardsticks import Valkey
from flashsale.reservation import keys
from flashsale.reservation.batch import script_keys
from flashsale.reservation.scripts import Script
from flashsale.sale.terms import PLAIN

FIGURES = ("decision-quota", "decision-free", "decision-quota-same", "decision-free-same")
BATCH = 256
IN_FLIGHT = 3  # batches sent ahead, so that the script never waits for the client
BATCHES = 1600
WARM_UP_BATCHES = 40
ONE_BY_ONE = 400_000
PIPELINES, PIPELINED = 50, 32
RANDOM_KEYS = "1000000000"  # redis-benchmark draws order and shopper below this; so few meet twice
RECEIVE_BYTES = 1 << 20
PARTITION, SALE, EPOCH, VERSION = 0, "bench", 1, 1
LEANEST, ORDINARY = "one_order.lua", "ordinary.lua"


def measure(bench: Bench, wanted: frozenset[str]) -> None:
    folder = bench.new_folder("decision")
    pin([os.getpid()], FRONT_CORE)
    try:
        for number in range(bench.repeat):
            with Valkey(folder / str(number), "memory", OTHER_CORE) as valkey:
                one = _one_by_one(bench, valkey, LEANEST)
                same = _one_by_one(bench, valkey, ORDINARY)
                batch = _in_batches(bench, valkey, QUOTA)
                batch_free = _in_batches(bench, valkey, 0)
            bench.add("decision-quota", batch / one)
            bench.add("decision-free", batch_free / one)
            bench.add("decision-quota-same", batch / same)
            bench.add("decision-free-same", batch_free / same)
    finally:
        pin([os.getpid()], OTHER_CORE)


def _note(bench: Bench, what: str, orders: int, wall_s: float, cpu_s: float) -> float:
    """Keeps what a way to decide took; returns the decisions/s of one core."""
    rate = orders / cpu_s
    bench.note(
        what,
        orders=orders,
        decisions_s=round(rate),
        wall_decisions_s=round(orders / wall_s),
        valkey_us=round(cpu_s / orders * 1e6, 2),
        busy=round(cpu_s / wall_s, 3),
    )
    return rate


# --- one order a call ---


def _one_by_one(bench: Bench, valkey: Valkey, file: str) -> float:
    client, orders = valkey.client, bench.sized(ONE_BY_ONE)
    client.flushall()
    names = [f"{{o}}:{SALE}:{name}" for name in ("stock", "buyers", "seen", "orders")]
    if file == LEANEST:
        client.set(names[0], PLENTY)
    else:
        client.hset(names[0], SKUS[0], PLENTY)
    sha = client.script_load(Path(__file__).with_name(file).read_text())
    payload = _record(b"0" * 30, 0)
    command = [
        "redis-benchmark",
        "-s",
        valkey.socket,
        "-n",
        str(orders),
        "-c",
        str(PIPELINES),
        "-P",
        str(PIPELINED),
    ]
    command += ["-r", RANDOM_KEYS, "-q", "EVALSHA", sha, "4", *names]
    if file == LEANEST:
        command += ["o__rand_int__", "u__rand_int__", "1", str(QUOTA), payload.decode()]
    else:
        hold = "0123456789abcdef2026-11-10T16:15:00.123Z"
        order = ["order-000000000000-__rand_int__", hold, payload.decode()]
        command += [*order, SKUS[0], "1", str(QUOTA), "shopper-__rand_int__"]
    before = valkey.cpu_s()
    done = subprocess.run(["taskset", "-c", str(FRONT_CORE), *command], capture_output=True, text=True, check=True)
    cpu_s = valkey.cpu_s() - before
    rates = re.findall(r"([\d.]+) requests per second", done.stdout)
    accepted = client.xlen(names[3])
    if not rates or accepted < 0.999 * orders:
        raise BenchFault(f"redis-benchmark: {accepted} of {orders} orders accepted: {done.stdout[-300:]}")
    return _note(bench, f"one order a call, {file}", orders, orders / float(rates[-1]), cpu_s)


# --- in batches ---


def _in_batches(bench: Bench, valkey: Valkey, quota: int) -> float:
    client = valkey.client
    client.flushall()
    far = 10**13
    client.hset(keys.partition(PARTITION), mapping={"epoch": EPOCH, "version": VERSION, "written": 0, "trimmed": 0})
    client.hset(
        keys.state(PARTITION, SALE),
        mapping={"number": 1, "status": "open", "opens_at": 0, "closes_at": far, "suspended": ""},
    )
    client.hset(keys.stock(PARTITION, SALE), mapping=dict.fromkeys(range(len(SKUS)), PLENTY))
    script = Script("reserve")
    client.script_load(script.source)
    batches = WARM_UP_BATCHES + bench.sized(BATCHES - WARM_UP_BATCHES)
    commands = list(_commands(client, script.sha, quota, batches))
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(valkey.socket)
        _send_all(wire, commands[:WARM_UP_BATCHES])
        before, began = valkey.cpu_s(), time.perf_counter()
        _send_all(wire, commands[WARM_UP_BATCHES:])
        wall_s, cpu_s = time.perf_counter() - began, valkey.cpu_s() - before
    name = "reserve.lua in batches of 256, " + ("with quota" if quota else "without quota")
    return _note(bench, name, (batches - WARM_UP_BATCHES) * BATCH, wall_s, cpu_s)


def _send_all(wire: socket.socket, commands: list[bytes]) -> None:
    """Sends the commands, a few ahead of the answers; raises BenchFault unless every order was accepted."""
    reader = hiredis.Reader()
    waiting = 0
    for command in [*commands, *[b""] * IN_FLIGHT]:
        wire.sendall(command)
        waiting += bool(command)
        while waiting >= (IN_FLIGHT if command else 1):
            while (answer := reader.gets()) is False:
                reader.feed(wire.recv(RECEIVE_BYTES))
            if isinstance(answer, Exception) or answer[0] != b"A" * BATCH:
                raise BenchFault(f"a batch was answered {str(answer)[:200]}")
            waiting -= 1


def _commands(client: redis.Redis, sha: str, quota: int, batches: int) -> Iterator[bytes]:
    """So many calls of reserve.lua as bytes; every order has an id and a shopper of its own."""
    names = script_keys(PARTITION, SALE)
    skus = [number % len(SKUS) for number in range(BATCH)]
    lines = struct.Struct(f">{BATCH}H").pack
    quotas = lines(*[quota] * BATCH) if quota else b""
    for _ in range(batches):
        ids = [os.urandom(12) for _ in range(BATCH)]
        heads = [b"h" + os.urandom(8) + VERSION.to_bytes(3, "big") for _ in range(BATCH)]
        fields = [os.urandom(10) + sku.to_bytes(2, "big") for sku in skus] if quota else []
        records = [_record(id_.hex().encode().rjust(30, b"0"), sku) for id_, sku in zip(ids, skus, strict=True)]
        sizes = struct.pack(f">{BATCH}I", *map(len, records))
        # each order has one line of one unit; no counts, none differs
        of_lines = [b"".join(fields), lines(*skus), lines(*[1] * BATCH), quotas, b"", b""]
        blobs = [b"".join(ids), b"".join(heads), *of_lines, sizes, b"".join(records), *[b""] * 6]
        yield _resp(b"EVALSHA", sha, len(names), *names, EPOCH, VERSION, *blobs)


def _resp(*words: bytes | str | int) -> bytes:
    raw = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


def _record(order_id: bytes, sku: int) -> bytes:
    """A journal record as the front writes it for an order of one line without optional fields."""
    return (
        b"%b\t1\tb17-%d\tbench-3f1c9a52-7d5e-4b0a-123456\tSG\tdirect\t\\N\t\\N\t{%d}\t{1}\t{89900}\t89900\tSGD\t1"
        b"\t\\\\x0123456789abcdef\t900000" + PLAIN.encode()
    ) % (order_id, 100_000 + sku, sku)
