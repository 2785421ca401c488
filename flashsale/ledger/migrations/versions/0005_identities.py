"""Verified identities, and the grants by which agents order for others.

No document's number is kept: an identity is a keyed hash of it. The key is made once and never changes, since the
import limit of a year counts by what it makes.
"""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0005"
down_revision = "0004"

SCHEMA = """
CREATE TABLE identity_key (
    only_one bool  PRIMARY KEY DEFAULT true CHECK (only_one),
    key      bytea NOT NULL CHECK (length(key) = 32)
);

CREATE TABLE identity (
    shopper     text  COLLATE "C" NOT NULL,
    identity    bytea NOT NULL,                 -- 10 bytes; the same person under two shoppers has the same
    country     text  COLLATE "C" NOT NULL,     -- whose document
    verified_ms int8  NOT NULL,
    PRIMARY KEY (shopper, identity)
);

-- Questions to the identity provider, kept as long as they count against a shopper's tries.
CREATE TABLE identity_try (
    shopper text COLLATE "C" NOT NULL,
    at_ms   int8 NOT NULL
);
CREATE INDEX identity_try_shopper ON identity_try (shopper, at_ms);

-- What a recipient reads of the grants; the log of them is the movements of kind grant.
CREATE TABLE agent_grant (
    id         text COLLATE "C" PRIMARY KEY,
    recipient  text COLLATE "C" NOT NULL,
    agent      text COLLATE "C" NOT NULL,
    granted_ms int8 NOT NULL,
    revoked_ms int8
);
CREATE UNIQUE INDEX agent_grant_in_force ON agent_grant (recipient, agent) WHERE revoked_ms IS NULL;
CREATE INDEX agent_grant_recipient ON agent_grant (recipient, id);
CREATE INDEX movement_grant ON movement ((detail ->> 'grant')) WHERE kind = 'grant';
CREATE INDEX orders_agent ON orders (agent, journal_ms) WHERE agent IS NOT NULL;
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
