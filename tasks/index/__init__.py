"""Nearest-neighbour search by faiss indexes of embedding columns. No recipe stage: an index is made on demand."""
