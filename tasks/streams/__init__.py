"""Streams of batches: rebatching, ordered concurrent maps."""
