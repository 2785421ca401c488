"""What was answered and is in no ledger: orders that Valkey held when it was rebuilt, named one by one.

An order whose client sends its key again gets the same id, so that it is an order then, and lost no longer.
"""

import json
from typing import Any, NamedTuple

from flashsale.ledger.pool import Connection


class LostOrder(NamedTuple):
    """An order as Valkey held it. `sale_id`: the sale's name, `sale` its number. `status`: what Valkey called it.
    `known`: the ledger has the order, and lost what became of it. `units`: SKU -> units that the lost orders of its
    sale held together, as JSON; None where they can't be told. `journal_ms`: the order's time."""

    id: str
    sale: int
    sale_id: str
    status: str
    known: bool
    units: str | None
    journal_ms: int
    journal_seq: int

    def as_dict(self) -> dict[str, Any]:
        """What is said of it: id, sale, status, units and the order's time (ms)."""
        units = None if self.units is None else json.loads(self.units)
        return {"order": self.id, "sale": self.sale_id, "status": self.status, "units": units, "at_ms": self.journal_ms}


_COLUMNS = ", ".join(LostOrder._fields)
_LOST = "NOT l.known AND NOT EXISTS (SELECT FROM orders AS o WHERE o.id = l.id)"


async def first(connection: Connection, limit: int) -> list[LostOrder]:
    """The oldest orders that are lost still."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM lost_order AS l WHERE {_LOST} ORDER BY journal_ms, journal_seq, id LIMIT $1",  # noqa: S608
        limit,
    )
    return [LostOrder(*row) for row in rows]


async def count(connection: Connection) -> int:
    """How many orders are lost still."""
    return int(await connection.fetchval(f"SELECT count(*) FROM lost_order AS l WHERE {_LOST}"))  # noqa: S608
