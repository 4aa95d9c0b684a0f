"""A stored index is located, read and removed; one that is damaged is one line."""

from pathlib import Path

import pytest

from catalog.errors import NotFoundError, UserError
from flows.explore.index import budget_of, update
from flows.explore.stored_index import best_device, columns, drop, embedding_column, folder, kept
from tests.flows.vectors import Planted, brute_force


@pytest.fixture
def birds(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def test_an_index_is_read_as_it_was_stored(birds: Planted) -> None:
    assert (kept(birds.dataset, "clip"), columns(birds.dataset)) == (None, [])
    version = birds.publish(range(2))
    for column in ("clip_text", "clip"):
        update(birds.dataset, version, column, budget_of("flat", 100.0, 0.9))
    assert columns(birds.dataset) == ["clip", "clip_text"]
    found = kept(birds.dataset, "clip")
    assert found is not None
    paths = [file.path for file in birds.dataset.files(version, "embeddings")]
    assert sorted(found.parts) == sorted(paths)
    assert sorted(found.parts.values()) == [(0, 299), (1 << 24, (1 << 24) + 299)]
    assert (found.choice.kind, found.choice.dim) == ("flat", 32)
    ids, pictures, _ = birds.all(range(2))
    held_out = found.held_out()
    assert len(held_out.queries) > 0
    for mapped in (False, True):
        index = found.load(mapped)
        assert index.rows == 600
        nearest = index.search(pictures[5][None], 10, index.most_effort)[1][0].tolist()
        assert nearest == brute_force(ids, pictures, pictures[5], 10)
    drop(birds.dataset, "clip")
    assert (kept(birds.dataset, "clip"), columns(birds.dataset)) == (None, ["clip_text"])
    assert birds.dataset.storage.list(folder("clip")) == {}
    drop(birds.dataset, "clip")  # there is nothing to remove


def test_what_is_damaged_is_one_line(birds: Planted) -> None:
    version = birds.publish([0])
    made = update(birds.dataset, version, "clip", budget_of("flat", 100.0, 0.9))
    place = Path(birds.catalog.uri) / "birds" / folder("clip")
    (place / made.facts["files"]["index"]).write_bytes(b"no index")
    with pytest.raises(UserError) as caught:
        made.load()
    assert "\n" not in str(caught.value)
    (place / made.facts["files"]["index"]).unlink()
    with pytest.raises(NotFoundError, match="`espalier index birds` builds it again"):
        made.load()
    for damaged in (b"{}", b"", b"[1]", b"\xff", b'{"parts": []'):
        (place / "index.json").write_bytes(damaged)
        with pytest.raises(UserError, match=r"birds/_index/clip/index\.json says no index \(.*\): remove it") as caught:
            kept(birds.dataset, "clip")
        assert "\n" not in str(caught.value)
    assert columns(birds.dataset) == ["clip"]  # its remains
    drop(birds.dataset, "clip")
    assert kept(birds.dataset, "clip") is None


def test_the_column_of_a_name(birds: Planted) -> None:
    version = birds.publish([0])
    assert embedding_column(birds.dataset, version, "") == "clip"
    assert embedding_column(birds.dataset, version, "clip_text") == "clip_text"
    with pytest.raises(UserError, match="no embedding column 'clipp'; did you mean 'clip'"):
        embedding_column(birds.dataset, version, "clipp")


def test_the_device_is_one_that_torch_has() -> None:
    import torch

    assert torch.zeros(1, device=best_device()).device.type == best_device()
    assert (best_device() == "cuda") == torch.cuda.is_available()
