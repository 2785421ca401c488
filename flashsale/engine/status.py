"""The live status that `flashsale up` shows on a terminal: orders/s, stock, ledger lag, conservation.

Reads Valkey and the ledger once a second through connections of its own; what is away is shown as away.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import redis.asyncio
from redis.exceptions import RedisError
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flashsale import merchandising
from flashsale.ledger import partitions, promises
from flashsale.ledger.movements import MOVED
from flashsale.ledger.pool import Ledger, LedgerAway
from flashsale.ledger.promises import LanePromise
from flashsale.merchandising import CommandRefused, SaleView
from flashsale.recovery import last_entry
from flashsale.reservation import commands, keys, server

EVERY_S = 1.0
RATE_OVER = 5  # readings; orders/s is the mean over them
SALES_SHOWN = 8
CONSERVATION_EVERY_S = 10.0  # it sums the ledger's rows
CONSERVATION_WITHIN_S = 5.0
LEDGER_TIMEOUT_S = 1.0

# Units that the ledger says are taken, by sale, in one snapshot with the mark up to which that is so.
_TAKEN = f"""
SELECT sale, sum(units)::int8 AS units FROM (
    SELECT sale, quantity AS units FROM orders, unnest(quantities) AS quantity
    UNION ALL SELECT sale, -units FROM movement WHERE {MOVED} AND sku IS NOT NULL
) AS moved GROUP BY sale
"""  # noqa: S608


@dataclass(slots=True)
class Reading:
    """One look at the engine."""

    at_s: float
    orders: int = 0  # ever accepted
    sales: list[SaleView] = field(default_factory=list)
    orders_by_sale: dict[str, int] = field(default_factory=dict)
    written: int = 0  # journal bytes ever
    backlog_bytes: int = 0
    newest_ms: int = 0  # of the journal
    mark_ms: int | None = None  # of the ledger; None: away
    caught_up: bool = False
    alerts: list[LanePromise] = field(default_factory=list)  # lanes that keep too few of their promises
    valkey_fault: str | None = None
    ledger_fault: str | None = None


async def show(redis_url: str, database_url: str, url: str) -> None:
    """Draw until cancelled."""
    valkey = server.connect(redis_url, answer_timeout_s=EVERY_S)
    ledger = Ledger(database_url, connections_max=2, timeout_s=LEDGER_TIMEOUT_S)
    slow_ledger = Ledger(database_url, connections_max=1, timeout_s=CONSERVATION_WITHIN_S)
    readings: deque[Reading] = deque(maxlen=RATE_OVER + 1)
    conservation = Text("not checked yet", style="dim")
    check_at = 0.0
    checking: asyncio.Task[Text] | None = None
    try:
        with Live(auto_refresh=False, transient=True) as live:
            while True:
                readings.append(await _read(valkey, ledger))
                if checking is None and time.monotonic() >= check_at:
                    checking = asyncio.create_task(_conservation(valkey, slow_ledger))
                if checking is not None and checking.done():
                    conservation, checking = checking.result(), None
                    check_at = time.monotonic() + CONSERVATION_EVERY_S
                # In a thread: a terminal that takes nothing (Ctrl-S) holds up what is drawn, not who restarts parts.
                await asyncio.to_thread(live.update, _drawn(readings, conservation, url), refresh=True)
                await asyncio.sleep(EVERY_S)
    finally:
        if checking is not None:
            checking.cancel()
        await ledger.close()
        await slow_ledger.close()
        await valkey.aclose()


async def _read(valkey: redis.asyncio.Redis, ledger: Ledger) -> Reading:
    reading = Reading(time.monotonic())
    try:
        reading.sales = await merchandising.list_sales(valkey)
        for view in reading.sales:
            held = await valkey.hlen(keys.holds(merchandising.PARTITION, view.sale.id))
            reading.orders_by_sale[view.sale.id] = int(held)
        reading.orders = sum(reading.orders_by_sale.values())
        partition = await commands.read_partition(valkey, merchandising.PARTITION)
        if partition is not None:
            reading.written, reading.backlog_bytes = partition.written, partition.written - partition.trimmed
        reading.newest_ms, _ = await last_entry(valkey, merchandising.PARTITION)
    except (RedisError, OSError, CommandRefused) as fault:
        reading.valkey_fault = str(fault) or type(fault).__name__
    try:
        async with ledger.connection() as connection:
            row = await partitions.get(connection, merchandising.PARTITION)
            if await promises.alerts(connection):
                reading.alerts = [each for each in await promises.overview(connection) if each.alert_ms is not None]
        if row is not None:
            reading.mark_ms = row.mark[0]
            reading.caught_up = row.mark_bytes >= reading.written
    except LedgerAway as fault:
        reading.ledger_fault = str(fault)
    return reading


async def _conservation(valkey: redis.asyncio.Redis, ledger: Ledger) -> Text:
    """supply = available + taken, where supply and available are Valkey's and taken is the ledger's, at one instant.

    While orders flow the ledger is behind: then only what both agree on can be said. `flashsale audit` is exact.
    """
    try:
        async with ledger.connection() as connection, connection.transaction(isolation="repeatable_read"):
            before = await partitions.get(connection, merchandising.PARTITION)
            taken = {row["sale"]: row["units"] for row in await connection.fetch(_TAKEN)}
        views = await merchandising.list_sales(valkey)
    except (RedisError, OSError, CommandRefused) as fault:
        return Text(f"not checked: {fault}", style="yellow")
    if before is None or any(view.state.written > before.mark_bytes for view in views):
        return Text(
            "orders are flowing; compared when the ledger has caught up (`flashsale audit` is exact)", style="dim"
        )
    now = time.strftime("%H:%M:%S")
    for view in views:
        supply, available = sum(view.state.supply), sum(view.state.available)
        ledger_units = taken.get(view.sale.number, 0)
        if supply != available + ledger_units:
            return Text(
                f"BROKEN at {now}: {view.sale.id} supply {supply} ≠ available {available} + taken {ledger_units}: "
                "run `flashsale audit`",
                style="bold red",
            )
    return Text(f"holds at {now}: supply = available + held + sold", style="green")


def _drawn(readings: deque[Reading], conservation: Text, url: str) -> RenderableType:
    newest, oldest = readings[-1], readings[0]
    seconds = newest.at_s - oldest.at_s
    rate = (newest.orders - oldest.orders) / seconds if seconds > 0 else 0.0
    facts = Table.grid(padding=(0, 2))
    facts.add_row("engine", f"{url}   Ctrl-C drains and stops")
    facts.add_row("orders", f"{newest.orders:,} accepted, {max(rate, 0):,.0f} a second")
    facts.add_row("ledger", _lag(newest))
    facts.add_row("conservation", conservation)
    for lane in newest.alerts:
        facts.add_row("promises", Text(_late(lane), style="yellow"))
    if newest.valkey_fault:
        facts.add_row("valkey", Text(f"away: {newest.valkey_fault}", style="red"))
    sales = Table("sale", "phase", "orders", "supply", "available", "taken", box=None, header_style="dim")
    for column in sales.columns[2:]:
        column.justify = "right"
    for view in newest.sales[-SALES_SHOWN:]:
        supply, available = sum(view.state.supply), sum(view.state.available)
        orders = newest.orders_by_sale.get(view.sale.id, 0)
        sales.add_row(
            view.sale.id, view.phase, f"{orders:,}", f"{supply:,}", f"{available:,}", f"{supply - available:,}"
        )
    return Group(facts, sales)


def _late(lane: LanePromise) -> str:
    share = lane.share
    return f"{lane.lane} to {lane.market}: {share.on_time} of the last {share.deliveries} on time, too few"


def _lag(reading: Reading) -> RenderableType:
    if reading.ledger_fault:
        return Text(
            f"away ({reading.ledger_fault}); orders go on, {reading.backlog_bytes:,} bytes wait", style="yellow"
        )
    if reading.caught_up or reading.mark_ms is None:
        return "caught up"
    lag_s = max(0, reading.newest_ms - reading.mark_ms) / 1000
    return f"{lag_s:.1f} s behind, {reading.backlog_bytes:,} bytes wait"
