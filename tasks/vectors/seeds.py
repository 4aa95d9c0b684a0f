"""Seeds that are derived from other seeds. What they return is part of every stored result: it never changes."""

import hashlib

import numpy as np

from tasks.vectors import random_keys


def text_key(text: str) -> int:
    """Return a uniform 64-bit key of a text: the first 8 bytes of its SHA-256, big-endian."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def derived_seed(seed: int, label: str | int) -> int:
    """Return the seed (63 bits) of what `label` names: a stage of a recipe, a member of a stage, a step of training."""
    return text_key(f"{seed}/{label}") >> 1


def round_seed(seed: int, number: int) -> int:
    """Return the seed (63 bits) of a round of k-means.

    Not `derived_seed`: centroids that were fitted before depend on this one.
    """
    return int(random_keys.keys(np.array([number]), seed)[0]) >> 1
