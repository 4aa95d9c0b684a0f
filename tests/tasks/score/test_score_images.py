"""Scorers of pixels in one pass: rows are in order, one decode serves all scorers, bad images are null."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import RecipeError
from tasks.score.score_images import _AHEAD, ScoreImages
from tasks.score.watermark import network
from tests.pictures import jpeg
from tests.tasks.score.embeddings import run, saved


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(saved(network().state_dict(), tmp_path_factory.mktemp("watermark") / "watermark.safetensors"))


def stage(weights: Path, **fields: int) -> ScoreImages:
    return ScoreImages.model_validate({"scorers": [{"use": "watermark", "weights": str(weights)}]} | fields)


def rows(images: list[bytes | None]) -> pa.Table:
    return pa.table({"sample_id": range(len(images)), "image": pa.array(images, pa.large_binary())})


def test_the_batches_change_no_bit_and_bad_images_are_null(weights: Path) -> None:
    images = [jpeg(64, 48, seed=i) if i % 3 else b"junk" for i in range(7)] + [None, b"", jpeg()[:500]]
    table = rows(images)
    whole = run(stage(weights, batch_size=4), table)
    cut = run(stage(weights, batch_size=4, decode_threads=1), table.slice(0, 3), table.slice(3, 0), table.slice(3))
    assert whole.equals(cut)
    assert whole["watermark"].is_null().to_pylist() == [i % 3 == 0 for i in range(7)] + [True] * 3


def test_one_decode_serves_every_scorer(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.images

    calls: list[int] = []
    real = tasks.images.decode
    monkeypatch.setattr(tasks.images, "decode", lambda data: calls.append(1) or real(data))
    scorers = [{"use": "watermark", "name": name, "weights": str(weights)} for name in ("one", "two")]
    step = ScoreImages.model_validate({"scorers": scorers}).open("cpu", {})
    (found,) = step(iter([rows([jpeg(40, 40, seed=i) for i in range(3)])]))
    assert len(calls) == 3
    np.testing.assert_array_equal(found["one"].to_numpy(), found["two"].to_numpy())


def test_prefetching_is_bounded_and_input_errors_are_raised(weights: Path) -> None:
    taken: list[int] = []

    def broken() -> Iterator[pa.Table]:
        for number in range(9):
            taken.append(number)
            if number == 8:
                raise OSError("disk gone")
            yield rows([b"junk"])

    step = stage(weights, batch_size=1).open("cpu", {})(broken())
    assert next(iter(step))["watermark"].null_count == 1
    assert len(taken) <= _AHEAD + 1
    with pytest.raises(OSError, match="disk gone"):
        list(step)


def test_no_rows(weights: Path) -> None:
    assert run(stage(weights)).num_rows == run(stage(weights), rows([])).num_rows == 0


def test_it_needs_images(weights: Path) -> None:
    with pytest.raises(RecipeError, match="score_images needs the table 'images'"):
        stage(weights).inputs({})


def test_threads_change_no_fingerprint(weights: Path) -> None:
    assert stage(weights, decode_threads=9).parameters() == stage(weights).parameters()
    assert stage(weights, batch_size=9).parameters() != stage(weights).parameters()
