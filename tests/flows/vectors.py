"""A dataset of planted vectors, without pictures: what an index and a search are tried on."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from catalog.dataset import Catalog, Dataset
from catalog.parts import PartFile, PartWriter
from catalog.schema import SAMPLE_ID, SOURCE, field, vector
from catalog.version import TableState, Version, VersionFacts
from tasks.encoders.encoder import ENCODER

DIM = 32
ENCODED_BY = {ENCODER: '{"name": "clip", "model": "ViT-B-32", "pretrained": "random"}'}
EMBEDDINGS = pa.schema(
    [SAMPLE_ID, vector("clip", DIM, "pictures", **ENCODED_BY), vector("clip_text", DIM, "captions", **ENCODED_BY)]
)
SAMPLES = pa.schema([*SOURCE, field("width", pa.int32(), "pixels")])


def planted(number: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ids, picture vectors, caption vectors) of one part: 40 groups, captions moved away from pictures."""
    rng = np.random.default_rng([seed, number])
    centres = np.random.default_rng(seed).standard_normal((40, DIM))
    pictures = centres[rng.integers(0, 40, rows)] + 0.5 * rng.standard_normal((rows, DIM))
    captions = pictures + 0.7 * rng.standard_normal((rows, DIM)) + 1.0
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (pictures, captions)]
    return (number << 24) + np.arange(rows, dtype=np.int64), *(x.astype(np.float16) for x in unit)


def column(vectors: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Return vectors as the tables hold them; null where `missing`."""
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1], mask=mask)


class Planted:
    """A dataset whose parts are planted, and published as they come."""

    def __init__(self, folder: Path, rows: int = 300, seed: int = 0) -> None:
        self.catalog = Catalog(folder, create=True)
        self.dataset: Dataset = self.catalog.dataset("birds")
        self.rows, self.seed = rows, seed

    def publish(
        self,
        numbers: Iterable[int],
        without: frozenset[int] = frozenset(),
        attempt: int = 0,
        held: Sequence[str] = (),
    ) -> Version:
        """Publish the version of these parts. Rows `without` are not in them (of `attempt`: another fingerprint)."""
        tables: dict[str, list[PartFile]] = {"source": [], "embeddings": [], "samples": []}
        for number in numbers:
            ids, pictures, captions = planted(number, self.rows, self.seed)
            stays = ~np.isin(ids, list(without))
            ids, pictures, captions = ids[stays], pictures[stays], captions[stays]
            changed = attempt if not stays.all() else 0
            facts = {
                "sample_id": ids,
                "url": [f"http://h/{i}.jpg" for i in ids],
                "caption": [f"bird {i}" for i in ids],
                "label": pa.nulls(len(ids), pa.string()),
            }
            content = {
                "source": pa.table(facts, schema=SOURCE),
                "embeddings": pa.table([pa.array(ids), column(pictures), column(captions)], schema=EMBEDDINGS),
                "samples": pa.table(facts | {"width": pa.array(ids & 0xFFFFFF, pa.int32())}, schema=SAMPLES),
            }
            for table, rows in content.items():
                with PartWriter(self.dataset.storage, table, f"{number + 1000 * changed:032x}", rows.schema) as writer:
                    writer.write(rows)
                tables[table].append(writer.part())
        schemas = {"source": SOURCE, "embeddings": EMBEDDINGS, "samples": SAMPLES}
        states = {table: TableState(schemas[table], parts) for table, parts in tables.items()}
        digest = f"{sorted(numbers)}{attempt}"
        return self.dataset.publish(states, VersionFacts("dataset: birds\n", digest, "test"), held)

    def all(self, numbers: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (ids, pictures, captions) of parts, float32 unit rows."""
        found = [planted(number, self.rows, self.seed) for number in numbers]
        ids, *vectors = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        rows = [x.astype(np.float32) for x in vectors]
        return ids, *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)


def brute_force(ids: np.ndarray, vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """Return the ids of the k nearest rows, nearest first, ties by id."""
    scores = vectors @ query
    found: list[int] = ids[np.lexsort((ids, -scores))[:k]].tolist()
    return found
