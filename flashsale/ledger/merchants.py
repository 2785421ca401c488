"""Merchants: whose products are sold, and in whose time zone they think."""

from __future__ import annotations

from dataclasses import dataclass

from flashsale.ledger.pool import Connection

HOUSE = "house"
"""The merchant of an import that names none: the platform itself."""


@dataclass(frozen=True, slots=True)
class MerchantRow:
    """`time_zone` is an IANA name."""

    id: str
    name: str
    time_zone: str
    created_ms: int


_COLUMNS = "id, name, time_zone, created_ms"


async def get(connection: Connection, merchant: str) -> MerchantRow | None:
    """The merchant of that id."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM merchant WHERE id = $1", merchant)  # noqa: S608
    return None if row is None else MerchantRow(*row)


async def all_merchants(connection: Connection) -> list[MerchantRow]:
    """Every merchant, by id."""
    return [MerchantRow(*row) for row in await connection.fetch(f"SELECT {_COLUMNS} FROM merchant ORDER BY id")]  # noqa: S608


async def put(connection: Connection, merchant: str, name: str, time_zone: str, now_ms: int) -> bool:
    """Makes the merchant, or changes its name and zone; False where it was so before."""
    done: str = await connection.execute(
        "INSERT INTO merchant AS m (id, name, time_zone, created_ms) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (id) DO UPDATE SET name = $2, time_zone = $3 WHERE (m.name, m.time_zone) <> ($2, $3)",
        merchant, name, time_zone, now_ms,
    )  # fmt: skip
    return done != "INSERT 0 0"
