"""Embedding columns, sampling and k-means."""
