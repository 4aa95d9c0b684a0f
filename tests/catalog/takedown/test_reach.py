"""What a takedown reaches: each choice of copies, over any number of steps, against a search by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from catalog.dataset import Dataset
from catalog.edges import COPY
from catalog.parts import PartFile
from catalog.schema import EDGES, FAILED, SUCCESS, TAKEN_URL
from catalog.takedown.ledger import REASON, Ledger
from catalog.takedown.reach import CHOICES, Names, listed_rows, reach

WritePart = Callable[..., PartFile]


def image(sample_id: int, sha256: str, pixels: str, **more: Any) -> dict[str, Any]:
    return {"sample_id": sample_id, "status": SUCCESS, "sha256": sha256 * 32, "pixels_sha256": pixels * 32, **more}


@pytest.fixture
def birds(local_dataset: Dataset, write_part: WritePart) -> Dataset:
    """1 and 2 share a URL, 2 and 3 bytes, 3 and 4 pixels; 5 was rejected for 4, 6 for 5 by another stage; 7: alone."""
    urls = {1: "http://a", 2: "http://a", 3: "http://c", 4: "http://d", 5: "http://e", 6: "http://f", 7: "http://g"}
    write_part(local_dataset, "source", 1, [{"sample_id": i, "url": url} for i, url in urls.items() if i < 4])
    write_part(local_dataset, "source", 2, [{"sample_id": i, "url": url} for i, url in urls.items() if i >= 4])
    images = [image(1, "a1", "b1"), image(2, "a2", "b2"), image(3, "a2", "b2", final_url="http://led")]
    write_part(local_dataset, "images", 1, images)
    write_part(local_dataset, "images", 2, [image(4, "a4", "b2"), image(5, "a5", "b5"), image(6, "a6", "b6")])
    for number, (child, parent) in enumerate(((5, 4), (6, 5))):
        decision = {"sample_id": child, "stage": f"s{number}", "keep": False, "representative": parent}
        write_part(local_dataset, "decisions", number, [decision])
    return local_dataset


REACHED = {"none": [1, 2], "bytes": [1, 2, 3], "pixels": [1, 2, 3, 4], "duplicates": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("copies", CHOICES)
def test_each_choice_takes_more_and_all_are_counted(birds: Dataset, copies: str) -> None:
    found = reach(birds, Names(sample_ids=frozenset([1, 99])), copies)
    assert found.sample_ids["birds"].tolist() == REACHED[copies]
    assert found.choices == {choice: {"birds": len(ids)} for choice, ids in REACHED.items()}
    assert found.unknown == Names(sample_ids=frozenset([99]))
    assert found.copies == len(REACHED[copies]) - 1
    assert (found.names.sha256 == frozenset()) == (copies == "none")
    assert (found.names.pixels == frozenset()) == (copies in ("none", "bytes"))


def test_any_name_is_looked_for(birds: Dataset) -> None:
    for names in (Names(frozenset(["http://led"])), Names(sha256=frozenset(["a2" * 32]))):
        assert reach(birds, names).sample_ids["birds"].tolist() == [1, 2, 3]
    assert reach(birds, Names(frozenset(["http://x"]))).sample_ids["birds"].tolist() == []


def test_rows_that_were_taken_down_are_no_longer_met(birds: Dataset, write_part: WritePart) -> None:
    write_part(birds, "source", 3, [{"sample_id": 8, "url": TAKEN_URL}])
    write_part(birds, "images", 3, [{"sample_id": 8, "status": FAILED, "reason": REASON}])
    found = reach(birds, Names(sample_ids=frozenset([8])))
    assert found.sample_ids["birds"].tolist() == []
    assert found.unknown.sample_ids == {8}


def test_rows_without_a_url_are_known_by_their_text(local_dataset: Dataset, write_part: WritePart) -> None:
    texts = [{"sample_id": 1, "caption": "x"}, {"sample_id": 2, "caption": "x"}, {"sample_id": 3, "caption": "y"}]
    write_part(local_dataset, "source", 1, [*texts, {"sample_id": 4, "caption": "x", "url": "http://a"}])
    found = reach(local_dataset, Names(sample_ids=frozenset([1])))
    assert found.sample_ids["birds"].tolist() == [1, 2]
    ledger = Ledger()
    ledger = ledger.ordered(ledger.digests(found.names), None)
    assert listed_rows(local_dataset, ledger).tolist() == [1, 2]


def edge(child: int, of: str, parent: int, role: str = COPY) -> dict[str, Any]:
    return {"child": child, "parent_dataset": of, "parent_version": 1, "parent": parent, "role": role}


def test_edges_lead_to_what_was_made_and_to_what_was_copied(birds: Dataset, write_part: WritePart) -> None:
    """`drawn` was made of birds, `few` and `fewer` are copies; `drawn` in turn has a copy. `cats` has nothing to do."""
    from catalog.dataset import Catalog

    catalog = Catalog(birds.storage.uri.rpartition("/")[0])
    made = {
        "few": [edge(70, "birds", 7), edge(71, "birds", 4)],
        "fewer": [edge(700, "few", 70)],
        "drawn": [edge(10, "birds", 7, "init"), edge(11, "birds", 2, "init")],
        "redrawn": [edge(100, "drawn", 10)],
        "cats": [edge(5, "dogs", 7), edge(6, "cats", 5, "mix")],
    }
    for name, rows in made.items():
        dataset = catalog.dataset(name)
        write_part(dataset, "edges", 1, rows, EDGES)
        write_part(dataset, "source", 1, [{"sample_id": row["child"], "url": f"{name}/{row['child']}"} for row in rows])

    def reached(name: str, sample_id: int) -> dict[str, list[int]]:
        found = reach(catalog.dataset(name), Names(sample_ids=frozenset([sample_id])))
        return {name: ids.tolist() for name, ids in found.sample_ids.items()}

    everywhere = {"birds": [7], "drawn": [10], "few": [70], "fewer": [700], "redrawn": [100]}
    assert reached("birds", 7) == everywhere
    assert reached("fewer", 700) == everywhere, "a copy leads to what it was copied from"
    assert next(iter(reached("fewer", 700))) == "fewer"
    assert reached("drawn", 10) == {"drawn": [10], "redrawn": [100]}, "what was made leads to no photograph"
    assert reached("birds", 1) == {"birds": [1, 2, 3], "drawn": [11]}
    assert reached("cats", 5) == {"cats": [5, 6]}


def test_rings_end(local_dataset: Dataset, write_part: WritePart) -> None:
    """Rows that stand for each other, among many names."""
    n = 3_000
    write_part(local_dataset, "source", 1, [{"sample_id": i, "url": f"u{i}"} for i in range(n)])
    ring = [{"sample_id": i, "keep": False, "representative": (i + 1) % 3} for i in range(3)]
    write_part(local_dataset, "decisions", 1, ring)
    found = reach(local_dataset, Names(frozenset([f"u{i}" for i in range(n)])), "duplicates")
    assert np.array_equal(found.sample_ids["birds"], np.arange(n))
