"""Take-downs: the ledger, what a take-down reaches, and erasing it."""
