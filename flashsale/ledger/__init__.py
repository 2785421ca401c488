"""The ledger: PostgreSQL, what must be true for ever. One module a table family; imports only the domain."""
