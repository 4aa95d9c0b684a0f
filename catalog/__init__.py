"""Where data lives: schemas, parts, versions, image bytes and DuckDB. Knows nothing of `tasks` or `flows`."""
