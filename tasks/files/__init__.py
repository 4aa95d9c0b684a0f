"""Files that methods read: digests and weights."""
