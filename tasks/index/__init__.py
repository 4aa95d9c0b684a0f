"""Nearest-neighbour search with faiss indexes of embedding columns. Not a stage: an index is built on demand."""
