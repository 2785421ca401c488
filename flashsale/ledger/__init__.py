"""The ledger: PostgreSQL, what must be true for ever. One module a table family; of ours it imports the domain alone."""
