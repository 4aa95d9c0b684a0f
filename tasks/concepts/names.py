"""Names for classes of texts: the words and pairs of words that set each apart (class-based TF-IDF).

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
"""Characters of a caption that count: one may be megabytes long."""

_ASCII_WORD: Final = re.compile(r"\b[a-z]{2,24}\b")
"""What `_word` finds in ASCII text, several times as fast."""


def class_tfidf(counts: Any) -> Any:
    """Weigh the words of classes: W[t, c] = tf[t, c] * log(1 + A / f[t]).

    tf is how often word t is in class c, over the words of c; f how often in all classes; A the mean number of words
    of a class. Takes and returns a sparse matrix (classes, words).

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
    """Return the words and pairs of words that set each document apart, best first; none where it has no words.

    A document is captions, one a line: no pair has words of two. A term that shares a word with a better one is passed
    over. Ties fall in alphabetical order.
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
    """Yield the words of each line, without the commonest English ones, and the pairs of those that remain."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    for line in unicodedata.normalize("NFC", document).lower().splitlines():
        found = (_ASCII_WORD if line.isascii() else _word()).findall(line)
        words = [word for word in found if word not in ENGLISH_STOP_WORDS]
        yield from words
        yield from (f"{one} {other}" for one, other in pairwise(words))


@cache
def _word() -> re.Pattern[str]:
    """Return what a word is: 2 to 24 letters of any script, each with its marks (the vowel signs of Devanagari, say).

    No digits, and nothing as long as a hash or a broken URL. Scripts without spaces (Chinese, Thai) give whole phrases.
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
