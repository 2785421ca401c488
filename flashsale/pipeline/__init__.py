"""Workers: what happens to an order after its answer. Imports the domain, the reservation and the ledger."""
