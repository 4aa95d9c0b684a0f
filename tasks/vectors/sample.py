"""A uniform sample of embeddings, drawn in one pass and stored in a memory map."""

from pathlib import Path

import numpy as np

from tasks.vectors import mapped, random_keys


class Sample:
    """A uniform sample without replacement, drawn in one pass: the rows with the smallest keys (bottom-k sampling).

    Which rows it contains depends on the seed and the ids alone, not on their order or batches. Vectors are stored in a
    memory map at `path`, float16, of about 1.25 times the sample's size (`take` writes a second one where the rows have
    to be sorted). In memory are 16 bytes a sampled row, and one block.
    """

    def __init__(self, path: Path, rows: int, dim: int, seed: int) -> None:
        self.seen = 0
        self._rows, self._seed, self._filled = rows, seed, 0
        slots = rows + max(rows // 4, 1024)
        self._vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(slots, dim))
        self._ids = np.empty(slots, np.int64)
        self._keys = np.empty(slots, np.uint64)
        self._limit = np.uint64(0xFFFFFFFFFFFFFFFF)

    def add(self, sample_ids: np.ndarray, vectors: np.ndarray) -> None:
        """Offer rows: ids int64 (n,), vectors (n, d). Rows without a direction are neither taken nor `seen`."""
        good = mapped.usable(vectors)
        self.seen += int(good.sum())
        keys = random_keys.keys(sample_ids, self._seed)
        wanted = np.flatnonzero(good & (keys <= self._limit))
        while len(wanted):
            now, wanted = np.split(wanted, [len(self._ids) - self._filled])
            to = slice(self._filled, self._filled + len(now))
            self._vectors[to], self._ids[to], self._keys[to] = vectors[now], sample_ids[now], keys[now]
            self._filled += len(now)
            if self._filled == len(self._ids):
                self._shrink()
        mapped.release(self._vectors)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids int64 (m,) ascending, vectors float16 (m, d), a memory map) of the sample."""
        self._shrink()
        ids = self._ids[: self._filled]
        if (ids[1:] > ids[:-1]).all():  # already sorted: no second copy
            return ids, self._vectors[: self._filled]
        order = np.argsort(ids)
        sorted_path = Path(str(self._vectors.filename) + ".sorted")
        shape = (max(self._filled, 1), self._vectors.shape[1])
        out = np.lib.format.open_memmap(sorted_path, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, self._filled, mapped.PIECE_ROWS):
            piece = order[start : start + mapped.PIECE_ROWS]
            out[start : start + len(piece)] = self._vectors[piece]
            mapped.release(self._vectors)
            mapped.release(out)
        return ids[order], out[: self._filled]

    def _shrink(self) -> None:
        """Keep the `rows` smallest keys, moving as few rows as possible."""
        if self._filled <= self._rows:
            return
        smallest = np.argpartition(self._keys[: self._filled], self._rows - 1)[: self._rows]
        kept = np.zeros(self._filled, bool)
        kept[smallest] = True
        holes = np.flatnonzero(~kept[: self._rows])
        movers = self._rows + np.flatnonzero(kept[self._rows :])
        self._ids[holes], self._keys[holes] = self._ids[movers], self._keys[movers]
        for start in range(0, len(holes), mapped.PIECE_ROWS):
            piece = slice(start, start + mapped.PIECE_ROWS)
            self._vectors[holes[piece]] = self._vectors[movers[piece]]
            mapped.release(self._vectors)
        self._filled = self._rows
        self._limit = self._keys[: self._rows].max()
