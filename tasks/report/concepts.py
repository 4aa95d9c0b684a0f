"""The clusters as concepts: a name from their captions, how much of each is left, what lies at the centre."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tasks.report._base import Entry, Evidence, id_list
from tasks.report.pictures import describe

NAMED: Final = 1000
"""Clusters that compete for words; the largest ones."""
CAPTIONS: Final = 64
"""Captions of a cluster that its name is made from: those nearest to its centroid."""
CAPTION_CHARS: Final = 200
NEAREST: Final = 4
"""Pictures of a concept."""
TERMS: Final = 3
CURVE_POINTS: Final = 200

WORD: Final = r"(?u)\b[^\W\d_]{2,24}\b"
"""Two letters or more, of any script; no digits, and nothing as long as a hash or a broken URL."""


def concepts(evidence: Evidence, limit: int) -> Iterator[Entry]:
    """Yield the sections `balance` (one entry), `concept` (the `limit` largest) and `concept_image`."""
    if not evidence.has("clusters", "cluster", "distance"):
        return
    sizes = _sizes(evidence)
    if not sizes:
        return
    yield _balance(sizes)
    shown = sizes[:limit]
    nearest = _nearest(evidence, [row["cluster"] for row in sizes[:NAMED]])
    names = _names(evidence, nearest)
    for row in shown:
        yield Entry("concept", row | {"terms": names[row["cluster"]]})
    central = {row["cluster"]: nearest[row["cluster"]][:NEAREST] for row in shown}
    described = describe(evidence, {sample_id for ids in central.values() for sample_id in ids})
    for cluster, sample_ids in central.items():
        for sample_id in sample_ids:
            yield Entry("concept_image", described[sample_id] | {"cluster": cluster}, sample_id)


def class_tfidf(counts: Any) -> Any:
    """Weigh the words of classes: W[t, c] = tf[t, c] * log(1 + A / f[t]).

    tf is how often word t is in class c, over the words of c; f how often in all classes; A the mean number of words
    of a class. Takes and returns a sparse matrix (classes, words).

    Source: Grootendorst, BERTopic: Neural topic modeling with a class-based TF-IDF procedure, 2022, equation 1 (with
    the term frequency normalised by class, so that large classes do not win by size).
    """
    from scipy.sparse import csr_array, diags_array

    counts = csr_array(counts, dtype=np.float64)
    words = counts.sum(axis=1)
    frequency = counts.sum(axis=0)
    idf = np.log1p(words.mean() / np.maximum(frequency, 1))
    return csr_array(diags_array(1 / np.maximum(words, 1)) @ counts @ diags_array(idf))


def name_classes(documents: Sequence[str], terms: int = TERMS) -> list[list[str]]:
    """Return the words and pairs of words that set each document apart, best first; none where it has no words.

    A term that shares a word with a better one is passed over. Ties fall in alphabetical order.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(token_pattern=WORD, stop_words="english", ngram_range=(1, 2))
    try:
        counts = vectorizer.fit_transform(documents)
    except ValueError:  # no word in any document
        return [[] for _ in documents]
    weights = class_tfidf(counts)
    vocabulary = vectorizer.get_feature_names_out()
    return [_best(weights, row, vocabulary, terms) for row in range(len(documents))]


def effective_number(sizes: Sequence[int]) -> float:
    """Return exp of the entropy of the shares (the Hill number of order 1): k where k clusters are equally large."""
    counts = np.asarray([size for size in sizes if size > 0], dtype=np.float64)
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _sizes(evidence: Evidence) -> list[dict[str, Any]]:
    """Return size, rows kept and mean distance of every cluster, the largest first.

    The mean is a sum of integers (millionths): a sum of floats would depend on the order of DuckDB's threads.
    """
    query = f"""select cluster, count(*) as size,
            count(*) filter (where sample_id not in ({evidence.gone})) as kept,
            sum(round(distance * 1e6)::bigint)::double / 1e6 / count(*) as mean_distance
        from clusters where cluster is not null group by cluster order by size desc, cluster"""
    return evidence.rows(query)


def _balance(sizes: Sequence[dict[str, Any]]) -> Entry:
    curves = {}
    for key in ("size", "kept"):
        ranked = sorted((row[key] for row in sizes), reverse=True)
        places = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), CURVE_POINTS)).round().astype(int))
        curves[key] = {
            "effective": round(effective_number(ranked), 3),
            "empty": ranked.count(0),
            "ranks": (places + 1).tolist(),
            "rows": [ranked[place] for place in places],
        }
    return Entry("balance", {"clusters": len(sizes), "before": curves["size"], "after": curves["kept"]})


def _nearest(evidence: Evidence, clusters: Sequence[int]) -> dict[int, list[int]]:
    """Return the samples nearest to the centroids, nearest first: a bounded heap a cluster, no sort of all rows."""
    query = f"""select cluster, min({{'distance': distance, 'id': sample_id}}, {CAPTIONS}) as nearest
        from clusters where cluster in ({id_list(clusters)}) and distance is not null group by cluster"""
    found = {row["cluster"]: [near["id"] for near in row["nearest"]] for row in evidence.rows(query)}
    return {cluster: found.get(cluster, []) for cluster in clusters}


def _names(evidence: Evidence, nearest: dict[int, list[int]]) -> dict[int, list[str]]:
    captions = evidence.captions(sample_id for ids in nearest.values() for sample_id in ids)
    documents: dict[int, list[str]] = defaultdict(list)
    for cluster, sample_ids in nearest.items():
        for sample_id in sample_ids:
            documents[cluster].append(captions.get(sample_id, "")[:CAPTION_CHARS])
    texts = ["\n".join(documents[cluster]) for cluster in nearest]
    return dict(zip(nearest, name_classes(texts), strict=True))


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
