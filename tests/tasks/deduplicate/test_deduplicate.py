"""The stage: one verdict over all kinds, against its definition; recipes, and empty inputs."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, IMAGES, vector
from tasks.deduplicate import Deduplicate
from tasks.deduplicate._base import Best, order_columns
from tasks.deduplicate._limits import Limits
from tests.helpers import LocalRun, check_numbers

EMBEDDINGS = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", 2, ""), pa.field("clip_score", pa.float32())])


def world() -> Inputs:
    """Rows 0 and 1 are one file; 2 means the same as 0 and scores higher; 3 is alone; 4 failed."""
    images = pa.table({"sample_id": [0, 1, 2, 3, 4], "status": ["success"] * 4 + ["failed"],
                       "sha256": ["a" * 64, "a" * 64, "b" * 64, "c" * 64, None]})  # fmt: skip
    vectors = pa.array([[1, 0], [1, 0], [1, 0.01], [0, 1], None], pa.list_(pa.float16(), 2))
    scores = pa.array([0.1, 0.2, 0.3, 0.1, None], pa.float32())
    return Inputs.of(images=images, embeddings=pa.table([[0, 1, 2, 3, 4], vectors, scores], schema=EMBEDDINGS))


@pytest.mark.parametrize("rule", ["order", "greedy", "components"])
def test_kinds_in_order(tmp_path: Path, rule: str) -> None:
    stage = Deduplicate.model_validate({"keep": "clip_score", "semantic": {"rule": rule}})
    run = LocalRun(tmp_path)
    table = pa.concat_tables(stage.run(world(), run))
    assert table.schema == DECISIONS
    assert table["sample_id"].to_pylist() == [0, 1, 2, 3]
    # row 0 is a copy of row 1, but row 2, which stands for both, has other bytes
    assert table["reason"].to_pylist() == ["duplicate_semantic", "duplicate_semantic", None, None]
    # row 1 stood for row 0 until row 2 stood for row 1: a representative is a row that stays
    assert table["representative"].to_pylist() == [2, 2, None, None]
    assert table["similarity"][0].as_py() == table["similarity"][1].as_py() == pytest.approx(0.99995, abs=1e-4)
    assert table["evidence"].to_pylist()[2:] == ["stands for 2 copies", "no copy found"]
    assert {name: run.notes[name] for name in ("rows", "kept", "duplicate_exact", "duplicate_semantic")} == {
        "rows": 4, "kept": 2, "duplicate_exact": 0, "duplicate_semantic": 2,
    }  # fmt: skip


def test_no_rows(tmp_path: Path) -> None:
    inputs = Inputs.of(images=IMAGES.empty_table(), embeddings=EMBEDDINGS.empty_table())
    stage = Deduplicate.model_validate({"semantic": {}, "perceptual": {}})
    assert sum(table.num_rows for table in stage.run(inputs, LocalRun(tmp_path))) == 0


def test_what_it_reads() -> None:
    available = {"images": IMAGES, "embeddings": EMBEDDINGS, "clusters": CLUSTERS}
    assert Deduplicate().inputs(available) == {"images": ("sha256",)}
    stage = Deduplicate.model_validate({"keep": "largest", "perceptual": {}, "semantic": {"clusters": 9}})
    assert stage.inputs(available) == {"images": ("sha256", "phash", "width", "height"), "embeddings": ("clip",)}
    stage = Deduplicate.model_validate({"semantic": {"order": "clip_score"}})
    assert stage.inputs(available)["embeddings"] == ("clip", "clip_score")
    assert stage.inputs(available)["clusters"] == ("cluster", "distance")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"exact": False}, "nothing to do"),
        ({"keep": "widht"}, "did you mean 'width'?"),
        ({"keep": {"best": "clip_scor"}}, "no column of numbers 'clip_scor' to order duplicates by; did you mean"),
        ({"semantic": {"encoder": "clop"}}, "did you mean 'clip'?"),
    ],
)
def test_wrong_recipes(recipe: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        Deduplicate.model_validate(recipe).inputs({"images": IMAGES, "embeddings": EMBEDDINGS})


@pytest.mark.parametrize(
    ("semantic", "message"),
    [
        ({"epsilon": 0}, r"semantic\.epsilon\n  Input should be greater than 0"),
        ({"rule": "best"}, r"semantic\.rule\n  Input should be 'order', 'greedy' or 'components'"),
        ({"clusters": 0}, r"semantic\.clusters\.constrained-int\n  Input should be greater than 0"),
        ({"epsilonn": 0.1}, r"semantic\.epsilonn\n  Extra inputs are not permitted"),
    ],
)
def test_refused_fields(semantic: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Deduplicate.model_validate({"semantic": semantic})


def test_same_bytes_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = pa.array(list(rng.normal(size=(500, 2)).astype(np.float16)), pa.list_(pa.float16(), 2))
    inputs = Inputs.of(embeddings=pa.table([np.arange(500), vectors, np.ones(500, np.float32)], schema=EMBEDDINGS))
    stage = Deduplicate.model_validate(
        {"exact": False, "semantic": {"clusters": 7, "order": "random", "epsilon": 1e-4}}
    )
    one, two, other = (
        pa.concat_tables(stage.run(inputs, LocalRun(tmp_path / str(i), seed=seed))) for i, seed in enumerate((1, 1, 2))
    )
    assert one.equals(two)
    assert not one.equals(other)


def graph(seed: int, n: int = 240) -> tuple[Inputs, dict[str, np.ndarray]]:
    """Return rows with randomly overlapping copies of four kinds, and their origins.

    Pixels decide hash and vector, bytes decide pixels; vectors lie in a few clumps, hashes in chains of near ones.
    """
    rng = np.random.default_rng(seed)
    pictures = n // 2
    vectors = rng.normal(size=(8, 6))[rng.integers(0, 8, pictures)] + 0.35 * rng.normal(size=(pictures, 6))
    hashes = rng.integers(-(2**63), 2**63 - 1, pictures)
    for at in range(pictures // 2, pictures):  # two bits from an earlier one
        low, high = rng.choice(63, 2, replace=False).tolist()
        hashes[at] = hashes[rng.integers(0, at)] ^ (1 << low) ^ (1 << high)
    picture = rng.integers(0, pictures, n)
    file = picture * 2 + rng.integers(0, 2, n)
    score = rng.integers(0, 40, n).astype(np.float32)
    digest = [[hashlib.sha256(f"{kind}{i}".encode()).hexdigest() for i in of] for kind, of in
              (("b", file), ("p", picture))]  # fmt: skip
    ids = np.arange(n) * 3
    columns = {"sample_id": ids, "sha256": digest[0], "pixels_sha256": digest[1], "phash": hashes[picture]}
    images = pa.table(columns | {"score": score, "status": ["success"] * n})
    half = vectors[picture].astype(np.float16)
    embedded = pa.FixedSizeListArray.from_arrays(pa.array(half.ravel()), 6)
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", 6, "")])
    unit = half.astype(np.float64) / np.linalg.norm(half.astype(np.float64), axis=1, keepdims=True)
    near = np.bitwise_count((hashes[picture][:, None] ^ hashes[picture][None]).view(np.uint64))
    facts = {"file": file, "picture": picture, "bits": near, "cosine": unit @ unit.T, "score": score}
    return Inputs.of(images=images, embeddings=pa.table([ids, embedded], schema=schema)), facts


def by_definition(facts: dict[str, np.ndarray], rule: str, kinds: set[str]) -> np.ndarray:
    """Return which rows are kept, row by row: bool (n,). Ties of all kinds, in the order of the score."""
    n = len(facts["score"])
    order = sorted(range(n), key=lambda i: (-facts["score"][i], i))
    first: dict[tuple[str, int], int] = {}
    nodes = []
    for i in order:
        same = [(kind, int(facts[of][i])) for kind, of in (("exact", "file"), ("pixels", "picture")) if kind in kinds]
        if not any(key in first for key in same):
            nodes.append(i)
        first |= dict.fromkeys(same, i)
    tied = np.zeros((n, n), bool)
    tied |= (facts["bits"] <= 3) & ("perceptual" in kinds)
    tied |= (facts["cosine"] > 0.97) & ("semantic" in kinds)
    stay: list[int] = []
    if rule == "components":
        seen: set[int] = set()
        for i in nodes:
            stay += [] if i in seen else [i]
            reached = {i} - seen
            while reached:
                seen |= reached
                reached = {j for j in nodes if j not in seen and tied[j, list(reached)].any()}
    else:
        for place, i in enumerate(nodes):
            before = stay if rule == "greedy" else nodes[:place]
            if not tied[i, before].any():
                stay.append(i)
    return np.isin(np.arange(n), stay)


KINDS: list[dict[str, Any]] = [
    {"pixels": True, "perceptual": {}, "semantic": {}},
    {"perceptual": {}, "semantic": {}},
    {"exact": False, "pixels": True, "semantic": {}},
    {"exact": False, "perceptual": {}},
    {"pixels": True},
]


@pytest.mark.parametrize("held", [True, False], ids=["held", "in rounds"])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "+".join(kinds))
@pytest.mark.parametrize("rule", ["order", "greedy", "components"])
@pytest.mark.parametrize("seed", range(3))
def test_the_verdict_equals_its_definition(
    tmp_path: Path, seed: int, rule: str, kinds: dict[str, Any], held: bool
) -> None:
    """Kept rows are as defined; every removed row has a preferred kept representative, to which it is tied."""
    limits = Limits() if held else Limits(pairs_in_memory=0)
    inputs, facts = graph(seed)
    semantic = {"epsilon": 0.03, "rule": rule, "clusters": 4, "borders": 4, "reach": "certain"}
    recipe = {"keep": {"best": "score"}} | kinds | ({"semantic": semantic} if "semantic" in kinds else {})
    run = LocalRun(tmp_path)
    table = pa.concat_tables(Deduplicate.model_validate(recipe).run(inputs, run, limits))
    asked = {k for k in ("pixels", "perceptual", "semantic") if k in kinds} | ({"exact"} - {*kinds})
    expected = by_definition(facts, rule if "semantic" in kinds else "greedy", asked)
    keep = table["keep"].to_numpy()
    assert run.notes.get("border_rows_cut_short", 0) == 0
    assert 5 < keep.sum() < len(keep) - 20
    assert (keep == expected).all()
    gone = np.flatnonzero(~keep)
    stands = table["representative"].to_numpy(zero_copy_only=False)[gone].astype(int) // 3
    assert keep[stands].all()
    score = facts["score"]
    assert ((score[stands] > score[gone]) | ((score[stands] == score[gone]) & (stands < gone))).all()
    check_ties(facts, table, gone, stands)
    check_numbers(table)
    names = [{name for name, _ in numbers or ()} for numbers in table["numbers"].to_pylist()]
    for evidence, found in zip(table["evidence"].to_pylist(), names, strict=True):
        assert ("bits" in found) == ("perceptual hash " in evidence)
        assert ({"cosine", "epsilon"} <= found) == ("cosine " in evidence)
        assert ("copies" in found) == ("stands for " in evidence)


def check_ties(facts: dict[str, np.ndarray], table: pa.Table, gone: np.ndarray, stands: np.ndarray) -> None:
    """Each reason is true for the row and the one in its evidence; for equal content also for the representative."""
    reasons, evidence = table["reason"].to_pylist(), table["evidence"].to_pylist()
    for i, representative in zip(gone.tolist(), stands.tolist(), strict=True):
        shown = evidence[i].split("; ")
        of_content = re.match(r"same (SHA-256|pixels) as ", shown[0])
        if of_content and reasons[i] in ("duplicate_perceptual", "duplicate_semantic"):
            twin = int(re.search(r" (\d+), a copy itself", shown[0])[1]) // 3  # type: ignore[index]
            content = "file" if of_content[1] == "SHA-256" else "picture"
            assert facts[content][i] == facts[content][twin]
            shown = shown[1:]
        words = shown[0]
        named = re.search(r" (\d+), a copy itself", words)
        direct = representative if named is None else int(named[1]) // 3
        assert named is None or not table["keep"][direct].as_py()
        assert "its representative" in words or named is not None
        file, picture = (facts[what][i] == facts[what][representative] for what in ("file", "picture"))
        tie = {
            "duplicate_exact": file and words == "same SHA-256 as its representative",
            "duplicate_pixels": picture and evidence[i].endswith("same pixels as its representative"),
            "duplicate_perceptual": words.startswith("perceptual hash "),
            "duplicate_semantic": words.startswith("cosine "),
        }
        assert tie[reasons[i]], evidence[i]
        if not of_content:
            near = {"perceptual": facts["bits"][i, direct] <= 3, "semantic": facts["cosine"][i, direct] > 0.97}
            assert near[reasons[i].removeprefix("duplicate_")], evidence[i]


def test_evidence_lists_all_ties(tmp_path: Path) -> None:
    """0 is kept; 1 is its perceptual and semantic copy; 2 is 1's file; 3 has 1's pixels; 4 is tied to 1, not to 0."""
    angle = np.deg2rad([0, 10, 10, 10, 20])
    vectors = pa.array(np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16).tolist(),
                       pa.list_(pa.float16(), 2))  # fmt: skip
    images = pa.table({"sample_id": np.arange(5), "status": ["success"] * 5,
                       "sha256": [c * 64 for c in "abbcd"], "pixels_sha256": [c * 64 for c in "01113"],
                       "phash": [0xFFFF, 0xFFFE, 0xFFFE, 0xFFFE, -1]})  # fmt: skip
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", 2, "")])
    inputs = Inputs.of(images=images, embeddings=pa.table([np.arange(5), vectors], schema=schema))
    stage = Deduplicate.model_validate(
        {"pixels": True, "perceptual": {"radius": 1}, "semantic": {"rule": "order", "epsilon": 0.03}, "keep": "first"}
    )
    table = pa.concat_tables(stage.run(inputs, LocalRun(tmp_path)))
    cosine = str(round(float(table["similarity"][1].as_py()), 4))
    far = str(round(float(np.cos(np.deg2rad(10))), 2))
    near = (
        f"perceptual hash 1 bits from that of its representative; cosine {cosine} to its representative, epsilon 0.03"
    )
    assert table["representative"].to_pylist() == [None, 0, 0, 0, 0]
    assert table["evidence"].to_pylist()[:4] == [
        "stands for 4 copies",
        near,
        f"same SHA-256 as 1, a copy itself; {near}",
        f"same pixels as 1, a copy itself; {near}",
    ]
    assert table["reason"].to_pylist()[1:4] == ["duplicate_perceptual"] * 3
    assert table["evidence"][4].as_py().startswith(f"cosine {far}")
    assert table["evidence"][4].as_py().endswith(" to 1, a copy itself, epsilon 0.03")
    similarity = table["similarity"].to_pylist()
    assert similarity[1] == similarity[2] == similarity[3] == pytest.approx(np.cos(np.deg2rad(10)), abs=1e-3)
    assert similarity[4] == pytest.approx(np.cos(np.deg2rad(20)), abs=1e-3)


def test_the_published_method_with_everything_else_off(tmp_path: Path) -> None:
    """No other kind, no borders: each cluster by the published rule, hardest first."""
    rng = np.random.default_rng(4)
    rows = (rng.normal(size=(6, 5))[rng.integers(0, 6, 400)] + 0.3 * rng.normal(size=(400, 5))).astype(np.float16)
    cluster = rng.integers(0, 5, 400)
    distance = rng.random(400).astype(np.float32)
    half = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 5)
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", 5, "")])
    clusters = pa.table([np.arange(400), pa.array(cluster, pa.int32()), distance], schema=CLUSTERS)
    inputs = Inputs.of(embeddings=pa.table([np.arange(400), half], schema=schema), clusters=clusters)
    stage = Deduplicate.model_validate({"exact": False, "semantic": {"epsilon": 0.02, "borders": 0}})
    table = pa.concat_tables(stage.run(inputs, LocalRun(tmp_path)))
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    keep = np.ones(400, bool)
    for c in range(5):
        mine = np.flatnonzero(cluster == c)
        mine = mine[np.argsort(-distance[mine], kind="stable")]
        keep[mine] = np.triu(unit[mine] @ unit[mine].T, 1).max(axis=0) <= 1 - 0.02
    assert 50 < keep.sum() < 350
    assert (table["keep"].to_numpy() == keep).all()


@pytest.mark.parametrize("keep", ["clip_score", {"best": "clip_score"}])
def test_the_best_copy_by_both_forms_of_keep(tmp_path: Path, keep: Any) -> None:
    stage = Deduplicate.model_validate({"keep": keep})
    assert stage.inputs({"images": IMAGES, "embeddings": EMBEDDINGS})["embeddings"] == ("clip_score",)
    table = pa.concat_tables(stage.run(world(), LocalRun(tmp_path)))
    assert table["keep"].to_pylist() == [False, True, True, True]


def test_contradictory_orders_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"keep is 'largest', but semantic\.order is 'hard': a group has one"):
        Deduplicate.model_validate({"keep": "largest", "semantic": {"order": "hard"}})
    Deduplicate.model_validate({"keep": {"best": "clip_score"}, "semantic": {"order": "clip_score"}})


def test_the_order_may_come_from_any_table_of_scores() -> None:
    rows = pa.schema([("sample_id", pa.int64()), ("watermark", pa.float32()), ("label", pa.string())])
    available = {"images": IMAGES, "image_scores": rows, "clusters": CLUSTERS}
    assert order_columns(Best(best="watermark"), available) == {"image_scores": ("watermark",)}
    with pytest.raises(RecipeError, match="no column of numbers 'distance'"):
        order_columns(Best(best="distance"), available)
