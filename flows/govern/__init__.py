"""Take-downs, verification and approval."""
