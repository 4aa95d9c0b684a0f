"""All heads in one product: equal to each head alone, with any batches, and null for rows without a vector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import RecipeError
from tasks.score import ScoreVectors
from tasks.score._heads import Stacked
from tasks.score.aesthetic_v2 import WIDTHS as V2
from tasks.score.nsfw import WIDTHS as NSFW
from tests.tasks.score.embeddings import linear_layers, rows, run, saved, usable, vectors_stage


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return five scorers over two embedding columns, `l14` and `b32`."""
    import torch

    folder = tmp_path_factory.mktemp("weights")
    v1 = saved(linear_layers((768, 1), [""]), folder / "v1.pt")
    v2 = saved(linear_layers(V2, [f"layers.{n}." for n in (0, 2, 4, 6, 7)]), folder / "v2.pt")
    paths = {}
    for variant in ("l14", "b32"):
        widths = NSFW[variant]
        state = linear_layers(widths, [f"linear_{i + 1}." for i in range(len(widths) - 1)])
        norm = {"norm.mean": torch.zeros(widths[0]), "norm.variance": torch.full((widths[0],), 1 / widths[0])}
        paths[variant] = saved(state | norm, folder / f"{variant}.pt")
    prompts = saved({"prompts": torch.randn(2, 768)}, folder / "prompts.pt")
    return [
        {"use": "aesthetic_v1", "encoder": "l14", "weights": v1},
        {"use": "nsfw", "name": "nsfw_b32", "variant": "b32", "encoder": "b32", "weights": paths["b32"]},
        {"use": "aesthetic_v2", "encoder": "l14", "weights": v2},
        {"use": "nsfw", "name": "nsfw_l14", "encoder": "l14", "weights": paths["l14"]},
        {"use": "violence", "encoder": "l14", "weights": prompts, "logit_scale": 1},
    ]


def test_all_heads_together_equal_each_alone(scorers: list[dict[str, Any]]) -> None:
    table, _ = rows(3000, l14=768, b32=512)
    together = run(vectors_stage(*scorers), table)
    assert together.schema.names[1:] == ["aesthetic_v1", "nsfw_b32", "aesthetic_v2", "nsfw_l14", "violence"]
    for scorer in scorers:
        alone = run(vectors_stage(scorer), table.select(["sample_id", scorer["encoder"]]))
        name = alone.schema.names[1]
        assert together[name].is_valid().to_numpy().tolist() == usable(3000).tolist()
        found, expected = (t[name].drop_null().to_numpy() for t in (together, alone))
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_one_product_per_embedding_column(scorers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = Stacked.__init__

    def count(self: Stacked, heads: Any, device: str) -> None:
        made.append(len(heads))
        real(self, heads, device)

    monkeypatch.setattr(Stacked, "__init__", count)
    table, _ = rows(30, l14=768, b32=512)
    step = vectors_stage(*scorers).open("cpu", {})
    for _ in range(2):  # two parts
        list(step(iter([table])))
    assert made == [4, 1]


@pytest.mark.parametrize("cut", [1000, 8192, 777])
def test_the_batches_change_no_byte(scorers: list[dict[str, Any]], cut: int) -> None:
    table, _ = rows(9000, l14=768, b32=512)
    stage = vectors_stage(*scorers)
    pieces = [table.slice(start, cut) for start in range(0, len(table), cut)]
    assert run(stage, *pieces).equals(run(stage, table))


def test_no_rows_and_no_vectors(scorers: list[dict[str, Any]]) -> None:
    table, _ = rows(20, l14=768, b32=512)
    stage = vectors_stage(*scorers)
    assert run(stage).num_rows == run(stage, table.slice(0, 0)).num_rows == 0
    gone = table.set_column(2, table.schema.field("b32"), pa.nulls(20, table.schema.field("b32").type))
    found = run(stage, gone)
    assert found["nsfw_b32"].null_count == 20
    assert found["nsfw_l14"].null_count == 4
    assert found["sample_id"].to_pylist() == list(range(20))


def test_the_default_column_is_the_first(scorers: list[dict[str, Any]]) -> None:
    unnamed = {key: value for key, value in scorers[0].items() if key != "encoder"}
    mixed = vectors_stage(unnamed, scorers[1], scorers[2])
    table, _ = rows(50, l14=768, b32=512)
    assert mixed.inputs({"embeddings": table.schema}) == {"embeddings": ("l14", "b32")}
    named = run(vectors_stage(scorers[0]), table.select(["sample_id", "l14"]))
    np.testing.assert_allclose(
        run(mixed, table)["aesthetic_v1"].drop_null().to_numpy(),
        named["aesthetic_v1"].drop_null().to_numpy(),
        atol=1e-5,
    )


def test_a_score_that_is_not_finite_is_null(tmp_path: Path) -> None:
    import torch

    state = {"weight": torch.zeros(1, 768), "bias": torch.tensor([float("inf")])}
    table, _ = rows(20, clip=768)
    found = run(vectors_stage({"use": "aesthetic_v1", "weights": saved(state, tmp_path / "sick.pt")}), table)
    assert found["aesthetic_v1"].null_count == 20


def test_rows_need_not_have_length_one(scorers: list[dict[str, Any]]) -> None:
    table, matrices = rows(100, bad=False, l14=768)
    longer = pa.FixedSizeListArray.from_arrays(pa.array((matrices["l14"] * np.float16(8)).ravel()), 768)
    stage = vectors_stage(scorers[0], scorers[3])
    one, two = run(stage, table), run(stage, table.set_column(1, table.schema.field("l14"), longer))
    for name in ("aesthetic_v1", "nsfw_l14"):
        np.testing.assert_allclose(one[name].to_numpy(), two[name].to_numpy(), atol=1e-5)


def test_mistakes_are_refused_before_anything_runs(scorers: list[dict[str, Any]]) -> None:
    table, _ = rows(l14=512, b32=512)
    available: Mapping[str, pa.Schema] = {"embeddings": table.schema}
    with pytest.raises(RecipeError, match="scorer 'aesthetic_v1': embedding column 'l14': found 512, expected 768"):
        vectors_stage(scorers[0]).inputs(available)
    with pytest.raises(RecipeError, match="no embedding column 'b23'; did you mean 'b32'"):
        vectors_stage(scorers[1] | {"encoder": "b23"}).inputs(available)
    lost = vectors_stage(scorers[0] | {"weights": str(scorers[0]["weights"]).replace("v1.pt", "v11.pt")})
    fitting, _ = rows(l14=768)
    with pytest.raises(RecipeError, match=r"no such file; did you mean '.*v1\.pt'"):
        lost.inputs({"embeddings": fitting.schema})
    with pytest.raises(RecipeError, match="there are no embeddings to read"):
        vectors_stage(scorers[0]).inputs({})


def test_the_fingerprint_depends_on_the_content_of_the_weights(scorers: list[dict[str, Any]], tmp_path: Path) -> None:
    moved, other = tmp_path / "moved.pt", tmp_path / "other.pt"
    moved.write_bytes(Path(scorers[0]["weights"]).read_bytes())
    saved(linear_layers((768, 1), [""], seed=9), other)
    stages = [vectors_stage(scorers[0] | {"weights": str(path)}) for path in (scorers[0]["weights"], moved, other)]
    one, same, different = (stage.parameters() for stage in stages)
    assert isinstance(stages[0], ScoreVectors)
    assert one == same != different
    assert str(tmp_path) not in str(same)
