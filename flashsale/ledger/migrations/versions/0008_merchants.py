"""Merchants, their products, and the catalogues that they import."""

from alembic import op
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

revision = "0008"
down_revision = "0007"

SCHEMA = """
CREATE TABLE merchant (
    id          text   COLLATE "C" PRIMARY KEY,
    name        text   NOT NULL,
    time_zone   text   NOT NULL,                -- IANA: times that the merchant writes without a zone are there
    created_ms  int8   NOT NULL
);

-- What a merchant has, sold or not. A sale's offer is a copy of its own.
CREATE TABLE product (
    merchant    text   COLLATE "C" NOT NULL,
    sku         text   COLLATE "C" NOT NULL,
    handle      text   COLLATE "C" NOT NULL,
    options     text[] NOT NULL,                -- name, value, name, value…
    title       jsonb  NOT NULL,                -- language -> text
    vendor      text,
    prices      jsonb  NOT NULL,                -- market -> minor units of its currency
    stock       int8,                           -- units, as the merchant said last
    quota       int4,
    weight_g    int4,
    hs_code     text,
    origin      text,
    barcode     text,
    updated_ms  int8   NOT NULL,
    PRIMARY KEY (merchant, sku)
);

CREATE TABLE catalogue_import (
    number      int8   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    merchant    text   COLLATE "C" NOT NULL,
    status      text   COLLATE "C" NOT NULL,    -- uploading, queued, applied, checked, faulty, failed
    market      text   NOT NULL,                -- whose currency the prices are in
    sale        text,                           -- whose offers the products become; NULL: no sale's
    decimal_mark text,
    dry_run     bool   NOT NULL,
    parts       int4   NOT NULL,
    at_ms       int8   NOT NULL,                -- not to be applied before
    created_ms  int8   NOT NULL,
    finished_ms int8,
    rows        int8   NOT NULL DEFAULT 0,
    created     int8   NOT NULL DEFAULT 0,
    updated     int8   NOT NULL DEFAULT 0,
    unchanged   int8   NOT NULL DEFAULT 0,
    offers      int8   NOT NULL DEFAULT 0,
    faults      int8   NOT NULL DEFAULT 0,
    warnings    int8   NOT NULL DEFAULT 0,
    error       text,
    findings    bytea                           -- JSON lines, packed with zlib
);
CREATE INDEX catalogue_import_merchant ON catalogue_import (merchant, number);

-- The file while it waits.
CREATE TABLE import_part (
    import      int8   NOT NULL REFERENCES catalogue_import (number) ON DELETE CASCADE,
    number      int4   NOT NULL,
    data        bytea  NOT NULL,
    PRIMARY KEY (import, number)
);
ALTER TABLE import_part ALTER COLUMN data SET STORAGE EXTERNAL;
"""


def upgrade() -> None:
    connection = op.get_bind().connection.dbapi_connection
    assert isinstance(connection, AsyncAdapt_asyncpg_connection)  # noqa: S101
    connection.run_async(lambda driver: driver.execute(SCHEMA))


def downgrade() -> None:
    raise NotImplementedError("the ledger is what must be true for ever: it is never taken apart")
