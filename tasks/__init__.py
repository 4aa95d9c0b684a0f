"""The methods: batches in, columns out. Not Prefect tasks: `flows` makes Prefect tasks of them."""
