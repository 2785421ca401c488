"""The ledger's schema, step by step, in plain SQL. Run by `flashsale.ledger.migrate`."""
