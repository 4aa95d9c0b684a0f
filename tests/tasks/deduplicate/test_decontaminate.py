"""Evaluation images in a dataset: each kind of copy is found, reported and removed, and nothing else."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from catalog.inputs import Inputs
from catalog.schema import DECISIONS, IMAGES, SAMPLE_ID, vector
from tasks import images as pictures
from tasks.deduplicate.decontaminate import Decontaminate
from tasks.encoders.encoder import Encoder
from tasks.encoders.model import load
from tests.helpers import LocalRun, check_numbers
from tests.pictures import encoded, picture


def photo(seed: int) -> Any:
    """Return a picture with detail: uint8 (240, 320, 3)."""
    rough = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return picture(seed=seed) // 2 + np.kron(rough, np.ones((20, 20, 1), np.uint8)) // 2


def images_of(data: list[bytes]) -> pa.Table:
    """Return the compared columns of `images`, as written by `download`."""
    headers = [pictures.inspect(d) for d in data]
    return pa.table(
        {
            "sample_id": np.arange(len(data)) * 2,
            "status": ["success"] * len(data),
            "sha256": [hashlib.sha256(d).hexdigest() for d in data],
            "pixels_sha256": [pictures.pixels_sha256(d, h) for d, h in zip(data, headers, strict=True)],
            "phash": pa.array([pictures.phash(pictures.decode(d)) for d in data], pa.int64()),
        }
    )


def write_set(path: Path, data: Sequence[bytes | None], nested: bool = False) -> Path:
    column = pa.array([{"bytes": d, "path": "x"} for d in data]) if nested else pa.array(data, pa.binary())
    pq.write_table(pa.table({"image": column}), path)
    return path


def run_of(stage: Decontaminate, inputs: Inputs, folder: Path, **at_once: int) -> tuple[pa.Table, dict[str, Any]]:
    run = LocalRun(folder)
    table = pa.concat_tables(stage.run(inputs, run, **at_once))
    assert table.schema == DECISIONS
    check_numbers(table)
    named = {
        None: [],
        "contaminated_perceptual": ["row", "bits"],
        "contaminated_semantic": ["row", "cosine", "epsilon"],
    }
    for reason, numbers in zip(table["reason"].to_pylist(), table["numbers"].to_pylist(), strict=True):
        assert [name for name, _ in numbers or ()] == named.get(reason, ["row"])
    return table, run.notes


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_exact_pixel_and_perceptual_copies(tmp_path: Path, seed: int, nested: bool) -> None:
    first = seed * 100
    secret = [encoded(photo(first + i), "PNG") for i in range(4)]
    again = encoded(photo(first + 1), "PNG", compress_level=1)  # other bytes, the same pixels
    shrunk = encoded(pictures.resize(photo(first + 2), 160, "keep_ratio"), quality=60)
    ours = [encoded(photo(first + 50 + i), quality=90) for i in range(20)]
    data = [*ours[:5], secret[0], again, shrunk, *ours[5:]]
    path = write_set(tmp_path / "eval.parquet", [None, b"no image", *secret], nested)
    stage = Decontaminate.model_validate(
        {"sets": [{"name": "secret", "path": str(path), "image": "image"}], "pixels": True, "radius": 6}
    )
    table, notes = run_of(stage, Inputs.of(images=images_of(data)), tmp_path)
    assert np.flatnonzero(~table["keep"].to_numpy()).tolist() == [5, 6, 7]
    assert table["reason"].to_pylist()[5:8] == ["contaminated_exact", "contaminated_pixels", "contaminated_perceptual"]
    evidence = table["evidence"].to_pylist()
    assert evidence[4:7] == [
        "in none of the evaluation sets", "same SHA-256 as row 2 of secret", "same pixels as row 3 of secret"
    ]  # fmt: skip
    assert evidence[7].startswith("perceptual hash ")
    assert evidence[7].endswith(" bits from that of row 4 of secret")
    assert table["similarity"].to_pylist()[5:8] == [1.0, 1.0, None]
    assert table["representative"].null_count == len(data)
    assert notes["kept"] == 20
    assert notes["sets"]["secret"] == {
        "images": 6,
        "usable": 5,
        "contaminated_exact": 1,
        "contaminated_pixels": 1,
        "contaminated_perceptual": 1,
        "contaminated_semantic": 0,
    }  # fmt: skip  (what is no image still has bytes)


def embedded(vectors: np.ndarray, **metadata: str) -> pa.Table:
    half = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    field = vector("clip", vectors.shape[1], "", **metadata)
    return pa.table([np.arange(len(vectors)) * 2, half], schema=pa.schema([SAMPLE_ID, field]))


def test_semantic_copies_by_the_encoder_of_the_column(tmp_path: Path, tiny_clip: tuple[Path, Path]) -> None:
    """The evaluation images go through the encoder that made the column; a bad one is skipped."""
    config, weights = tiny_clip
    encoder = Encoder(name="clip", model=str(config), pretrained=str(weights))
    secret = [encoded(photo(i), quality=95) for i in range(3)]
    data = [encoded(photo(50 + i), quality=95) for i in range(4)] + [encoded(photo(1), quality=70)]
    vectors, good = load(encoder, "cpu", {}).unit_images(data)
    assert good.all()
    others, _ = load(encoder, "cpu", {}).unit_images(secret)
    cosine = vectors @ others.T
    epsilon = 1 - float((cosine[4, 1] + np.delete(cosine, 4, axis=0).max()) / 2)
    tables = {"embeddings": embedded(vectors, encoder=encoder.model_dump_json())}
    path = write_set(tmp_path / "eval.parquet", [secret[0], b"\xff\xd8\xff broken", secret[1], secret[2]])
    stage = Decontaminate.model_validate(
        {"sets": [{"name": "secret", "path": str(path), "image": "image"}], "exact": False, "radius": None,
         "epsilon": epsilon}
    )  # fmt: skip
    assert stage.inputs({"embeddings": tables["embeddings"].schema}) == {"embeddings": ("clip",)}
    table, _ = run_of(stage, Inputs.of(**tables), tmp_path)
    assert table["reason"].to_pylist() == [None] * 4 + ["contaminated_semantic"]
    assert table["evidence"][4].as_py().startswith("cosine ")
    assert " to row 2 of secret, epsilon " in table["evidence"][4].as_py()
    assert table["similarity"][4].as_py() == pytest.approx(cosine[4, 1], abs=2e-3)


@pytest.mark.parametrize("targets", [7, 16_384])
@pytest.mark.parametrize("seed", range(2))
def test_given_columns_against_the_full_product(tmp_path: Path, seed: int, targets: int) -> None:
    """Hashes and vectors from files, two sets: every row by its definition, with any blocks."""
    rng = np.random.default_rng(seed)
    n, m = 300, 50
    hashes, theirs = rng.integers(-(2**63), 2**63 - 1, n), rng.integers(-(2**63), 2**63 - 1, m)
    hashes[:20] = theirs[:20] ^ (np.int64(1) << rng.integers(0, 60, 20)) ^ (np.int64(1) << rng.integers(0, 60, 20))
    vectors, others = (rng.normal(size=(k, 16)).astype(np.float16) for k in (n, m))
    vectors[10:40] = others[10:40] + (0.2 * rng.normal(size=(30, 16))).astype(np.float16)
    vectors[50], others[49] = 0, np.nan
    made = pa.FixedSizeListArray.from_arrays(pa.array(others.ravel()), 16)
    table = pa.table({"hash": theirs, "made": made})
    for number, piece in enumerate((table.slice(0, 30), table.slice(30))):
        pq.write_table(piece, tmp_path / f"{number}.parquet")
    sets = [
        {"name": f"s{i}", "path": str(tmp_path / f"{i}.parquet"), "phash": "hash", "vector": "made"} for i in (0, 1)
    ]
    stage = Decontaminate.model_validate({"sets": sets, "exact": False, "radius": 2, "epsilon": 0.05})
    images = pa.table({"sample_id": np.arange(n) * 2, "status": ["success"] * n, "phash": hashes})
    inputs = Inputs.of(images=images, embeddings=embedded(vectors))
    found, notes = run_of(stage, inputs, tmp_path, rows=37, targets=targets)
    bits = np.bitwise_count((hashes[:, None] ^ theirs[None]).view(np.uint64))
    with np.errstate(invalid="ignore", divide="ignore"):
        one, other = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True)
                      for v in (vectors, others))  # fmt: skip
        cosines = np.nan_to_num(one @ other.T, nan=-1)
    looks, means = np.any(bits <= 2, axis=1), np.any(cosines > 0.95, axis=1)
    reasons = [None, "contaminated_semantic", "contaminated_perceptual"]
    expected = [reasons[2 if look else int(mean)] for look, mean in zip(looks, means, strict=True)]
    assert looks.sum() >= 20
    assert (means & ~looks).sum() > 5
    assert found["reason"].to_pylist() == expected
    for row in np.flatnonzero(looks | means).tolist():
        at = int((bits[row] if looks[row] else -cosines[row]).argmin())
        assert f"row {at % 30} of s{at // 30}" in found["evidence"][row].as_py()
    assert notes["sets"]["s0"]["images"] == 30
    assert notes["sets"]["s1"]["images"] == 20


def test_completed_chunks_are_not_made_again(tmp_path: Path) -> None:
    """Chunks of a killed run are read; a partially written one is ignored, and made from the file."""
    secret = [encoded(photo(i), quality=95) for i in range(5)]
    path = write_set(tmp_path / "eval.parquet", secret)
    stage = Decontaminate.model_validate({"sets": [{"name": "s", "path": str(path), "image": "image"}]})
    inputs = Inputs.of(images=images_of([secret[4], secret[1], encoded(photo(9), quality=95)]))
    first, _ = run_of(stage, inputs, tmp_path, chunk_rows=2)
    chunks = sorted((tmp_path / "checkpoints").glob("*"))
    assert len(chunks) == 3
    assert first["reason"].to_pylist() == ["contaminated_exact", "contaminated_exact", None]
    chunks[2].with_suffix(".fresh").write_bytes(chunks[2].read_bytes()[:100])
    chunks[2].unlink()
    write_set(path, [encoded(photo(20 + i), quality=95) for i in range(4)] + secret[4:])  # only chunk 2 is as before
    second, _ = run_of(stage, inputs, tmp_path, chunk_rows=2)
    assert second.equals(first)
    assert sorted((tmp_path / "checkpoints").glob("*")) == chunks
    for chunk in chunks:
        chunk.unlink()
    third, _ = run_of(stage, inputs, tmp_path, chunk_rows=2)
    assert third["reason"].to_pylist() == ["contaminated_exact", None, None]


def test_the_content_of_the_sets_is_in_the_fingerprint(tmp_path: Path) -> None:
    path, moved = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_set(path, [b"one"])
    stage = {"sets": [{"name": "s", "path": str(path), "image": "image"}]}
    before = Decontaminate.model_validate(stage).parameters()
    path.rename(moved)
    stage["sets"][0]["path"] = str(moved)
    assert Decontaminate.model_validate(stage).parameters() == before
    write_set(moved, [b"other bytes"])
    assert Decontaminate.model_validate(stage).parameters() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere.parquet"}, r"set 's': cannot read 'nowhere\.parquet': it does not exist"),
        ({"path": __file__}, "is not a readable Parquet file"),
        ({"image": "imag"}, r"has no column 'imag'; did you mean 'image'\?"),
        ({"image": None, "phash": "image"}, "column 'image' is binary, expected 64-bit integers"),
        ({"image": None, "vector": "vector"}, "set 's' gives vector, but rows are compared by sha256, phash"),
    ],
)
def test_invalid_sets(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "eval.parquet"
    made = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2, np.float32)), 2)
    pq.write_table(pa.table({"image": pa.array([b"x"]), "vector": made}), path)
    stage = Decontaminate.model_validate({"sets": [{"name": "s", "path": str(path), "image": "image"} | change]})
    with pytest.raises(RecipeError, match=message):
        stage.inputs({"images": IMAGES})


def test_other_mistakes(tmp_path: Path) -> None:
    path = write_set(tmp_path / "eval.parquet", [None, b"not an image"])
    one = {"name": "s", "path": str(path), "image": "image"}
    with pytest.raises(ValidationError, match="two sets are named 's'"):
        Decontaminate.model_validate({"sets": [one, one]})
    with pytest.raises(ValidationError, match="specify at least one column"):
        Decontaminate.model_validate({"sets": [{"name": "s", "path": str(path)}]})
    with pytest.raises(RecipeError, match="nothing to do"):
        Decontaminate.model_validate({"sets": [one], "exact": False, "radius": None}).inputs({"images": IMAGES})
    with pytest.raises(RecipeError, match="put a stage `use: download` before it"):
        Decontaminate.model_validate({"sets": [one]}).inputs({})
    available = {"images": IMAGES, "embeddings": embedded(np.ones((1, 2))).schema}
    with pytest.raises(RecipeError, match="has no encoder"):
        Decontaminate.model_validate({"sets": [one], "epsilon": 0.1, "encoder": "clip"}).inputs(available)
    stage = Decontaminate.model_validate({"sets": [one], "exact": False})
    with pytest.raises(UserError, match=r"no row of .* has anything to compare by \(phash\)"):
        run_of(stage, Inputs.of(images=images_of([encoded(photo(0))])), tmp_path)


def test_no_rows(tmp_path: Path) -> None:
    path = write_set(tmp_path / "eval.parquet", [encoded(photo(0))])
    stage = Decontaminate.model_validate({"sets": [{"name": "s", "path": str(path), "image": "image"}]})
    run = LocalRun(tmp_path)
    assert list(stage.run(Inputs.of(images=IMAGES.empty_table()), run)) == []
    assert run.notes["kept"] == 0


VIT = {"model": "ViT-B-32", "pretrained": "random"}


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (VIT, VIT, None),
        (VIT, VIT | {"model": "ViT-B-16"}, "other settings"),
        ({"trained": "small"}, {"trained": "small"}, "a model that its recipe trained"),
    ],
)
def test_vectors_of_a_version_are_compared_only_if_one_encoder_made_them(
    theirs: dict[str, str], ours: dict[str, str], message: str | None
) -> None:
    def embeddings(settings: dict[str, str]) -> pa.Schema:
        return pa.schema([SAMPLE_ID, vector("clip", 8, "", encoder=json.dumps({"name": "clip"} | settings))])

    stage = Decontaminate.model_validate(
        {"sets": [{"name": "exam", "version": "real"}], "exact": False, "radius": None, "epsilon": 0.1}
    )
    available = {"images": IMAGES, "embeddings": embeddings(ours), "real.embeddings": embeddings(theirs)}
    if message is None:
        assert stage.inputs(available) == {"embeddings": ("clip",), "real.embeddings": ("clip",)}
    else:
        with pytest.raises(RecipeError, match=message):
            stage.inputs(available)
