"""Sales channels of others: what the house tells them, and a sandbox that is told."""
