"""Verified identities: the key that they are made under, who was verified as whom and when, and the tries.

A document's number never comes here.
"""

import secrets
from typing import NamedTuple

from flashsale.ledger.pool import Connection

KEY_BYTES = 32


class IdentityRow(NamedTuple):
    """A shopper's verified identity (10 bytes) by a document of that country."""

    shopper: str
    identity: bytes
    country: str
    verified_ms: int


_FIELDS = ", ".join(IdentityRow._fields)


async def key(connection: Connection) -> bytes:
    """The key under which identities are made: made by whoever needs it first, and the same ever after."""
    await connection.execute(
        "INSERT INTO identity_key (key) VALUES ($1) ON CONFLICT (only_one) DO NOTHING", secrets.token_bytes(KEY_BYTES)
    )
    return bytes(await connection.fetchval("SELECT key FROM identity_key"))


async def find(connection: Connection, shopper: str, identity: bytes) -> IdentityRow | None:
    """The identity, if the shopper has shown it."""
    row = await connection.fetchrow(
        f"SELECT {_FIELDS} FROM identity WHERE shopper = $1 AND identity = $2",  # noqa: S608
        *(shopper, identity),
    )
    return None if row is None else IdentityRow(*row)


async def verified(
    connection: Connection, *, shopper: str, identity: bytes, country: str, now_ms: int
) -> IdentityRow | None:
    """Notes a verified identity; the one that stands, which an earlier time keeps."""
    await connection.execute(
        "INSERT INTO identity (shopper, identity, country, verified_ms) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        *(shopper, identity, country, now_ms),
    )
    return await find(connection, shopper, identity)


async def take_try(connection: Connection, shopper: str, *, now_ms: int, within_ms: int, most: int) -> int:
    """Counts a question to the identity provider; 0, or the milliseconds until one is free again, of `most` within
    `within_ms`. Call it in a transaction."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('identity ' || $1, 0))", shopper)
    await connection.execute("DELETE FROM identity_try WHERE shopper = $1 AND at_ms <= $2", shopper, now_ms - within_ms)
    tries = await connection.fetch("SELECT at_ms FROM identity_try WHERE shopper = $1 ORDER BY at_ms", shopper)
    if len(tries) >= most:
        return max(1, int(tries[0][0]) + within_ms - now_ms)
    await connection.execute("INSERT INTO identity_try (shopper, at_ms) VALUES ($1, $2)", shopper, now_ms)
    return 0


async def give_back_try(connection: Connection, shopper: str, now_ms: int) -> None:
    """The question that was counted at that time was not answered: it counts no more."""
    await connection.execute(
        "DELETE FROM identity_try WHERE ctid ="
        " (SELECT ctid FROM identity_try WHERE shopper = $1 AND at_ms = $2 LIMIT 1)",
        *(shopper, now_ms),
    )
