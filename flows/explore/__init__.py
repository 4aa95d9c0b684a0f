"""What people ask of a catalog: search, export, explain, list, retry."""
