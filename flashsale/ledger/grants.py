"""Grants: which agent may order for which recipient, as the recipient reads them.

Valkey decides whether a grant is in force, and the movements of kind grant are its log; this table names the grants
and is written under the row's lock around the script that makes or ends one, so that the two can't cross.
"""

from typing import NamedTuple

from flashsale.ledger.pool import Connection


class GrantRow(NamedTuple):
    """A grant. `revoked_ms` None: it is in force."""

    id: str
    recipient: str
    agent: str
    granted_ms: int
    revoked_ms: int | None


class GrantChange(NamedTuple):
    """An entry of the log: from then on the agent could order (`on`), or no more."""

    at_ms: int
    on: bool


_FIELDS = ", ".join(GrantRow._fields)


async def add(connection: Connection, *, id: str, recipient: str, agent: str, now_ms: int) -> GrantRow:
    """The grant of the two that is in force; a new one under `id` where there is none."""
    while True:
        added = await connection.fetchrow(
            "INSERT INTO agent_grant (id, recipient, agent, granted_ms) VALUES ($1, $2, $3, $4)"  # noqa: S608
            f" ON CONFLICT (recipient, agent) WHERE revoked_ms IS NULL DO NOTHING RETURNING {_FIELDS}",
            *(id, recipient, agent, now_ms),
        )
        found = added or await connection.fetchrow(
            f"SELECT {_FIELDS} FROM agent_grant WHERE recipient = $1 AND agent = $2 AND revoked_ms IS NULL",  # noqa: S608
            *(recipient, agent),
        )
        if found is not None:  # else it was revoked between the two
            return GrantRow(*found)


async def lock(connection: Connection, id: str, recipient: str) -> GrantRow | None:
    """The recipient's grant of that id; nobody else changes it until this transaction ends."""
    row = await connection.fetchrow(
        f"SELECT {_FIELDS} FROM agent_grant WHERE id = $1 AND recipient = $2 FOR UPDATE",  # noqa: S608
        *(id, recipient),
    )
    return None if row is None else GrantRow(*row)


async def get(connection: Connection, id: str, recipient: str) -> GrantRow | None:
    """The recipient's grant of that id."""
    row = await connection.fetchrow(
        f"SELECT {_FIELDS} FROM agent_grant WHERE id = $1 AND recipient = $2",  # noqa: S608
        *(id, recipient),
    )
    return None if row is None else GrantRow(*row)


async def revoked(connection: Connection, id: str, now_ms: int) -> None:
    """The grant is in force no more."""
    await connection.execute("UPDATE agent_grant SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL", id, now_ms)


async def in_force(connection: Connection, recipient: str) -> int:
    """How many grants of the recipient's are in force."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM agent_grant WHERE recipient = $1 AND revoked_ms IS NULL", recipient
        )
    )


async def of_recipient(connection: Connection, recipient: str, limit: int, after: str | None) -> list[GrantRow]:
    """The recipient's grants, those that were revoked too, newest first; behind the grant `after`."""
    rows = await connection.fetch(
        f"SELECT {_FIELDS} FROM agent_grant WHERE recipient = $1 AND ($3::text IS NULL OR id < $3)"  # noqa: S608
        " ORDER BY id DESC LIMIT $2",
        *(recipient, limit, after),
    )
    return [GrantRow(*row) for row in rows]


async def history(connection: Connection, id: str) -> list[GrantChange]:
    """What the log has of a grant, oldest first."""
    rows = await connection.fetch(
        "SELECT journal_ms, (detail ->> 'on')::bool FROM movement WHERE kind = 'grant' AND detail ->> 'grant' = $1"
        " ORDER BY partition, journal_ms, journal_seq",
        id,
    )
    return [GrantChange(*row) for row in rows]
