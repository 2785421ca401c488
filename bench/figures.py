"""The figures: what each one is called, what it must reach, what it aims at, and which way is better."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table. Without a reach it is only reported; `higher` says whether more is better."""

    name: str
    title: str
    reach: float | None
    aim: float | None
    higher: bool

    def verdict(self, samples: Sequence[float]) -> str:
        """The median against reach and aim."""
        median = statistics.median(samples)
        if self.aim is not None and self._at_least(median, self.aim):
            return "aim"
        if self.reach is None:
            return "reported"
        return "reached" if self._at_least(median, self.reach) else "MISSED"

    def _at_least(self, value: float, bound: float) -> bool:
        return value >= bound if self.higher else value <= bound


FIGURES = (
    Figure("orders-memory", "accepted orders/s ÷ ordinary way, 256 connections, in memory", 7, 12, True),
    Figure("orders-fsync", "the same, on disk before the answer", 6, 9, True),
    Figure("front", "front CPU an order, whole contract ÷ nginx, same POST", 3.8, 2.5, False),
    Figure("front-every-field", "  the same, every optional field sent", None, None, False),
    Figure("refusals", "refusals/s (sold out, decided by the script) ÷ ordinary way", 8, 12, True),
    Figure("decision-quota", "decisions/s on one Valkey core ÷ one-order script, with quota", 3, 4, True),
    Figure("decision-free", "  without quota", 4.5, 6, True),
    Figure("decision-quota-same", "  ÷ the ordinary way's script, with quota", None, None, True),
    Figure("decision-free-same", "  without quota", None, None, True),
    Figure("mixed", "CPU of an order where page and order alternate ÷ orders only", 1.2, 1.1, False),
    Figure("ledger", "ledger writer ÷ bare COPY of the same rows", 0.6, 0.8, True),
    Figure("growth", "CPU an order, all processes, at 10⁶ orders ÷ at 10⁴", 1.2, 1.05, False),
    Figure("memory", "bytes an order in Valkey, quota on, ledger caught up", 150, 110, False),
    Figure("payments", "payments/s, webhook to paid row ÷ orders/s into the ledger", 0.4, 0.8, True),
    Figure("payment-cpu", "  CPU of a payment, all processes ÷ of an order", None, None, False),
    Figure("expiry", "100,000 expired holds released, seconds", 30, 10, False),
    Figure("expiry-p99", "  p99 of orders during it ÷ before", 1.5, None, False),
    Figure("border", "CPU an order with landed cost and carrier held ÷ without, all processes", 1.15, None, False),
    Figure("border-front", "  the front's alone", None, None, False),
    Figure("channel-memory", "orders/s of a channel, 500 a request ÷ single orders, in memory", 3, None, True),
    Figure("channel-fsync", "  on disk before the answer", 3, None, True),
    Figure("committed", "socket to committed row: CPU an order, all processes ÷ nginx", None, 5, False),
)
NAMES = tuple(figure.name for figure in FIGURES)
