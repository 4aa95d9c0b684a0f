"""Names of classes: the published weights, word by word, and words that are excluded."""

import math
from collections import Counter

import numpy as np
import pytest

from tasks.concepts.names import class_tfidf, name_classes


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


def test_a_class_is_named_by_its_distinctive_words() -> None:
    documents = ["photo of a cat\ncat photo", "photo of a dog\ndog, photo", "photo"]
    names = name_classes(documents, terms=1)
    assert names == [["cat"], ["dog"], ["photo"]]


def test_classes_without_words_have_no_name() -> None:
    assert name_classes(["", "12 345 !!"]) == [[], []]
    assert name_classes(["", "cat"]) == [[], ["cat"]]


def test_words_of_other_scripts_are_included_and_long_ones_are_not() -> None:
    (name,) = name_classes(["кошка 猫咪 " + "x" * 10_000])
    assert set(name) == {"кошка", "猫咪"}


def test_letters_keep_their_marks() -> None:
    hindi, cafe = "\u0939\u093f\u0928\u094d\u0926\u0940", "caf\u00e9"  # vowel signs and a virama; an accent
    decomposed = "cafe\u0301"
    assert name_classes([hindi, f"{cafe} {decomposed}"]) == [[hindi], [cafe]]


def test_pairs_do_not_cross_captions() -> None:
    dogs = "\n".join(["dog"] * 64)
    names = name_classes([dogs, "\n".join(["black dog"] * 640)], terms=1)
    assert names[0] == ["dog"]  # "dog dog" stands in no caption
