"""Sizes of datasets and versions on disk or in the object store, images included."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from catalog import delta
from catalog.dataset import Dataset
from catalog.shards import FOLDER
from catalog.version import Version


def stored_bytes(dataset: Dataset) -> int:
    """Return the size in bytes of everything that is stored of a dataset: all versions, and unpublished files."""
    return sum(entry.bytes for entry in dataset.storage.scan())


def shard_bytes(dataset: Dataset) -> dict[str, int]:
    """Return stem -> size in bytes of every shard with its sidecar files."""
    sizes: dict[str, int] = {}
    for entry in dataset.storage.scan(FOLDER):
        stem = stem_of(entry.path)
        sizes[stem] = sizes.get(stem, 0) + entry.bytes
    return sizes


def image_bytes(dataset: Dataset, versions: Sequence[Version]) -> dict[int, int]:
    """Return version number -> size in bytes of the shards that hold its images.

    Versions share shards, so the sizes do not add up. Reads one column of the parts of `images`.
    """
    commits = {v.number: v.tables["images"].delta_version for v in versions if "images" in v.tables}
    parts = {n: [p.path for p in delta.files(dataset.storage, "images", n)] for n in set(commits.values())}
    shards = _shards(dataset, sorted({path for paths in parts.values() for path in paths}))
    sizes = shard_bytes(dataset)
    named = {n: {stem for path in paths for stem in shards.get(path, ())} for n, paths in parts.items()}
    total = {n: sum(sizes.get(stem, 0) for stem in stems) for n, stems in named.items()}
    return {v.number: total[commits[v.number]] if v.number in commits else 0 for v in versions}


def stem_of(path: str) -> str:
    """Return the common stem of a shard and its sidecar files: `00003-ab12` of `00003-ab12_stats.json`."""
    return PurePosixPath(path).name.removesuffix("_stats.json").partition(".")[0]


def _shards(dataset: Dataset, paths: Sequence[str]) -> dict[str, set[str]]:
    """Return part -> stems of the shards that its rows name."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    if not paths:
        return {}
    found: dict[str, set[str]] = {}
    rows = ds.dataset(list(paths), format="parquet", filesystem=dataset.storage.filesystem())
    if "shard" not in rows.schema.names:
        return {}
    for tagged in rows.scanner(columns=["shard"]).scan_batches():
        names = pc.unique(tagged.record_batch.column("shard")).drop_null().to_pylist()
        found.setdefault(tagged.fragment.path, set()).update(stem_of(name) for name in names)
    return found
