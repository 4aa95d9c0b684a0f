"""Names for classes of texts: the words and pairs of words that distinguish each (class-based TF-IDF).

Source: Grootendorst, BERTopic: Neural topic modeling with a class-based TF-IDF procedure, 2022 (arXiv 2203.05794).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

TERMS: Final = 3
CAPTION_CHARS: Final = 200
"""Characters of a caption that are read: a caption may be megabytes long."""

_ASCII_WORD: Final = re.compile(r"\b[a-z]{2,24}\b")
"""Equivalent to `_word` for ASCII text, several times as fast."""


def class_tfidf(counts: Any) -> Any:
    """Weight the words of classes: W[t, c] = tf[t, c] * log(1 + A / f[t]).

    tf is the count of word t in class c, divided by the words of c; f its count in all classes; A the mean number of
    words per class. Takes and returns a sparse matrix (classes, words).

    Source: Grootendorst 2022, equation 1 (with the term frequency normalised by class, so that large classes do not
    win by size).
    """
    from scipy.sparse import csr_array, diags_array

    counts = csr_array(counts, dtype=np.float64)
    words = counts.sum(axis=1)
    frequency = counts.sum(axis=0)
    idf = np.log1p(words.mean() / np.maximum(frequency, 1))
    return csr_array(diags_array(1 / np.maximum(words, 1)) @ counts @ diags_array(idf))


def name_classes(documents: Sequence[str], terms: int = TERMS) -> list[list[str]]:
    """Return the words and pairs of words that distinguish each document, best first; empty if it has no words.

    A document is captions, one per line: pairs do not cross lines. A term that shares a word with a better one is
    skipped. Ties are in alphabetical order.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer=_terms)
    try:
        counts = vectorizer.fit_transform(documents)
    except ValueError:  # no word in any document
        return [[] for _ in documents]
    weights = class_tfidf(counts)
    vocabulary = vectorizer.get_feature_names_out()
    return [_best(weights, row, vocabulary, terms) for row in range(len(documents))]


def _terms(document: str) -> Iterator[str]:
    """Yield the words of each line, without English stop words, and the pairs of the remaining words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    for line in unicodedata.normalize("NFC", document).lower().splitlines():
        found = (_ASCII_WORD if line.isascii() else _word()).findall(line)
        words = [word for word in found if word not in ENGLISH_STOP_WORDS]
        yield from words
        yield from (f"{one} {other}" for one, other in pairwise(words))


@cache
def _word() -> re.Pattern[str]:
    """Return the pattern of a word: 2 to 24 letters of any script, with their marks (such as Devanagari vowel signs).

    Digits, hashes and URLs are excluded. Scripts without spaces (Chinese, Thai) yield whole phrases.
    """
    marks = "".join(chr(c) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
    return re.compile(rf"(?<![\w{marks}])(?:[^\W\d_][{marks}]*){{2,24}}(?![\w{marks}])")


def _best(weights: Any, row: int, vocabulary: npt.NDArray[np.object_], terms: int) -> list[str]:
    begin, end = weights.indptr[row], weights.indptr[row + 1]
    candidates = zip((-weights.data[begin:end]).round(9), vocabulary[weights.indices[begin:end]], strict=True)
    best: list[str] = []
    taken: set[str] = set()
    for _, term in sorted(candidates):
        if taken.isdisjoint(term.split()):
            best.append(str(term))
            taken.update(term.split())
        if len(best) == terms:
            break
    return best
