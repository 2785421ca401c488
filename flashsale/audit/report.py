"""What an audit says: faults, and what it counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FAULTS_MAX = 100  # named of each kind: a broken sale breaks every order, and nobody reads a million lines


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it must be. `invariant`: I1 to I7 of the design, `money`, `history`, `promise`,
    `parcel`, `settlement` or `unreachable`."""

    invariant: str
    detail: str
    sale: str | None = None
    sku: str | None = None
    order: str | None = None


@dataclass(slots=True)
class Counts:
    """`orders_ledger`: rows, `backlog`: orders in the journal alone, `orders_paid`: those that are paid and not
    cancelled, `units`: taken and not given back. `money`: by currency, in its minor units, what all payments come to:
    authorised = captured + released + open, captured = kept + refunded; of what is kept `refunding` is on its way back
    and `refund_failed` owed by hand. `orders_lost`: answered, and lost with an older ledger (recovery names them)."""

    orders_valkey: int = 0
    orders_ledger: int = 0
    backlog: int = 0
    orders_lost: int = 0
    orders_paid: int = 0
    payments: int = 0
    units: int = 0
    money: dict[str, dict[str, int]] = field(default_factory=dict)
    as_of: str = ""


@dataclass(slots=True)
class AuditReport:
    """What `flashsale audit --json` prints."""

    faults: list[Fault] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    lost: list[dict[str, Any]] = field(default_factory=list)
    """Orders that a recovery could only name: no fault that anything here could mend, and never left unsaid."""

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "faults": [asdict(fault) for fault in self.faults],
            "counts": asdict(self.counts),
            "lost": self.lost,
        }

    @property
    def remedy(self) -> str | None:
        """The command that mends what is wrong in Valkey alone, if something of that kind is."""
        rebuilt = ("I1", "I3", "I4")
        if not any(fault.invariant in rebuilt and "dead_letter" not in fault.detail for fault in self.faults):
            return None
        return "where Valkey differs from the ledger, `flashsale recover --force` builds it again from the ledger"
