import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, SOURCE
from tasks.report._base import Evidence
from tasks.report.concepts import class_tfidf, concepts, effective_number, name_classes
from tests.tasks.report.gallery import CONCEPTS, Gallery


def reference_tfidf(classes: list[list[str]]) -> list[dict[str, float]]:
    """BERTopic's equation 1, word by word."""
    frequency = Counter(word for words in classes for word in words)
    mean = sum(map(len, classes)) / len(classes)
    return [
        {w: n / len(words) * math.log(1 + mean / frequency[w]) for w, n in Counter(words).items()} for words in classes
    ]


def test_class_tfidf_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(12)]
    classes = [rng.choice(vocabulary, size).tolist() for size in (5, 40, 17)]
    counts = np.array([[words.count(word) for word in vocabulary] for words in classes])
    weights = class_tfidf(counts).toarray()
    for row, expected in zip(weights, reference_tfidf(classes), strict=True):
        assert row == pytest.approx([expected.get(word, 0.0) for word in vocabulary])


def test_a_class_is_named_by_what_only_it_says() -> None:
    documents = ["photo of a cat\ncat photo", "photo of a dog\ndog, photo", "photo"]
    names = name_classes(documents, terms=1)
    assert names == [["cat"], ["dog"], ["photo"]]


def test_classes_without_words_have_no_name() -> None:
    assert name_classes(["", "12 345 !!"]) == [[], []]
    assert name_classes(["", "cat"]) == [[], ["cat"]]


def test_words_of_other_scripts_count_and_endless_ones_do_not() -> None:
    (name,) = name_classes(["кошка 猫咪 " + "x" * 10_000])
    assert set(name) == {"кошка", "猫咪"}


@pytest.mark.parametrize("k", [1, 2, 7])
def test_effective_number_of_equal_clusters_is_their_number(k: int) -> None:
    assert effective_number([5] * k + [0, 0]) == pytest.approx(k)


def test_effective_number_in_closed_form() -> None:
    assert effective_number([2, 1, 1]) == pytest.approx(2**1.5)
    assert effective_number([]) == 0


def planted() -> Inputs:
    clusters = [
        (0, 7, 0.5),
        (1, 7, 0.1),
        (2, 7, 0.1),
        (3, 7, 0.3),
        (4, 7, 0.2),
        (5, 3, 0.0),
        (6, None, None),
        (7, 3, None),
    ]
    rows = [dict(zip(("sample_id", "cluster", "distance"), row, strict=True)) for row in clusters]
    decisions = [{"sample_id": i, "stage": "p", "keep": i not in (0, 2, 5)} for i in range(8)]
    return Inputs.of(
        alive_only=False,
        source=pa.Table.from_pylist(
            [{"sample_id": i, "caption": "a sheep" if i < 5 else None} for i in range(8)], SOURCE
        ),
        clusters=pa.Table.from_pylist(rows, CLUSTERS),
        decisions=pa.Table.from_pylist(decisions, DECISIONS),
    )


def test_sizes_kept_and_nearest_are_exact() -> None:
    entries = list(concepts(Evidence(planted()), limit=5))
    first, second = [e.content for e in entries if e.section == "concept"]
    assert (first["cluster"], first["size"], first["kept"], first["terms"]) == (7, 5, 3, ["sheep"])
    assert first["mean_distance"] == pytest.approx((0.5 + 0.1 + 0.1 + 0.3 + 0.2) / 5, abs=1e-6)
    assert (second["cluster"], second["size"], second["kept"], second["terms"]) == (3, 2, 1, [])
    shown = [(e.content["cluster"], e.sample_id, e.content["kept"]) for e in entries if e.section == "concept_image"]
    assert shown == [(7, 1, True), (7, 2, False), (7, 4, True), (7, 3, True), (3, 5, False)]


def test_balance_ranks_before_and_after() -> None:
    (balance,) = [e.content for e in concepts(Evidence(planted()), limit=5) if e.section == "balance"]
    assert balance["before"]["rows"] == [5, 2]
    assert balance["after"]["rows"] == [3, 1]
    assert balance["after"]["effective"] == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), abs=1e-3
    )


def test_only_the_largest_are_shown() -> None:
    shown = [e.content["cluster"] for e in concepts(Evidence(planted()), limit=1) if e.section == "concept"]
    assert shown == [7]


def test_names_find_the_planted_captions(photos: Gallery) -> None:
    texts = [text.replace(",", "").split() for text in CONCEPTS.values()]
    for entry in concepts(Evidence(photos.inputs), limit=12):
        if entry.section == "concept":
            words = {word for term in entry.content["terms"] for word in term.split()}
            assert len(words & set(texts[entry.content["cluster"]])) >= 2
