"""The combined verdict: ties of all kinds form one graph, and one rule determines which of its rows are kept.

Rows with the same file, or the same pixels, are one node. Nodes are tied if they are perceptual or semantic copies, and
are processed in the order of preference:

- `order`: a node is removed if any preferred node, removed or not, is tied to it (SemDeDup's code).
- `greedy`: a node is removed only if a preferred node that is kept is tied to it.
- `components`: the first node of each connected component is kept.

With only semantic ties these are the rules of `_semantic.judge`. With every rule, the ties of a removed node lead to
one kept node, its representative, which is preferred to all nodes that it represents.
"""

from dataclasses import dataclass, field

import numpy as np

from tasks.deduplicate._base import Preference
from tasks.deduplicate._meaning import Meaning
from tasks.deduplicate._perceptual import Looks
from tasks.deduplicate._semantic import Rule
from tasks.deduplicate._ties import Pairs, Ties, roots


@dataclass
class Settled:
    """The verdict on the nodes, among n rows."""

    count: int
    """n."""
    looks: np.ndarray = field(init=False)
    """int64 (n,): a perceptual copy for which the row may be removed; -1 for none."""
    meaning: Ties = field(init=False)
    """The most similar semantic copy for which the row may be removed."""
    toward: np.ndarray = field(init=False)
    """int64 (n,): the next row on the path to its representative; -1 for kept rows, and rows that are not nodes."""

    def __post_init__(self) -> None:
        self.looks = np.full(self.count, -1, np.int64)
        self.meaning = Ties.of(self.count)
        self.toward = self.looks

    def follow(self) -> None:
        """Set the next row of each row to the row that it is tied to, perceptual before semantic."""
        self.toward = np.where(self.looks >= 0, self.looks, self.meaning.partner)


def settle(rule: Rule, order: Preference, looks: Looks | None, meaning: Meaning | None) -> Settled:
    """Apply a rule to the rows of `order`."""
    found = Settled(len(order.rank))
    if rule == "components":
        _components(found, order, looks, meaning)
    elif rule == "order":
        _order(found, order, looks, meaning)
    else:
        _greedy(found, order, looks, meaning)
    return found


def _order(found: Settled, order: Preference, looks: Looks | None, meaning: Meaning | None) -> None:
    if looks is not None:
        found.looks[order.row] = looks.first(order, order.row, order.row)
    if meaning is not None:
        found.meaning = meaning.before()
    found.follow()


def _components(found: Settled, order: Preference, looks: Looks | None, meaning: Meaning | None) -> None:
    links = [np.empty((0, 2), np.int64)]
    if looks is not None:
        links.append(looks.links(order))
        found.looks[order.row] = looks.first(order, order.row, order.row)
        rest = order.row[found.looks[order.row] < 0]  # tied to later rows only, or to none
        found.looks[rest] = looks.first(order.reversed(), rest, order.row)
    if meaning is not None:
        linked, found.meaning = meaning.linked()
        links.append(linked)
    first = order.row[roots(len(order.row), order.rank[np.concatenate(links)])]
    found.toward = np.full(found.count, -1, np.int64)
    found.toward[order.row] = np.where(first == order.row, -1, first)


def _greedy(found: Settled, order: Preference, looks: Looks | None, meaning: Meaning | None) -> None:
    if meaning is not None and looks is None and not meaning.across:
        found.meaning = meaning.greedy()
    else:
        open_, near = order.row, None
        while len(open_):
            if meaning is not None and near is None:
                near = meaning.near(open_)
            open_ = _round(found, order, open_, looks, meaning, near)
            near = None if near is None else near.among(open_, found.count)
    found.follow()


def _round(
    found: Settled,
    order: Preference,
    open_: np.ndarray,
    looks: Looks | None,
    meaning: Meaning | None,
    near: Pairs | None,
) -> np.ndarray:
    """Decide the undecided rows, int64 (m,), that can be decided; return the rest.

    A row that is tied to no earlier open row is kept; a row that is tied to a kept one is removed. `near`: all ties by
    meaning among open rows, where they fit into memory; else they are found again, in fewer rows each time.
    """
    blocked = np.zeros(found.count, bool)
    if looks is not None:
        blocked[open_] = looks.first(order, open_, open_) >= 0
    if near is not None:
        blocked[near.late] = True
    elif meaning is not None:
        blocked |= meaning.before(open_).partner >= 0
    stay, rest = open_[~blocked[open_]], open_[blocked[open_]]
    if looks is not None:
        found.looks[rest] = looks.first(order, rest, stay)
    if near is not None:
        stays = np.zeros(found.count, bool)
        stays[stay] = True
        of = stays[near.early]
        found.meaning.offer(near.late[of], near.early[of], near.cosine[of])
    elif meaning is not None:
        meaning.cover(found.meaning, rest, stay)
    still: np.ndarray = rest[(found.looks[rest] < 0) & (found.meaning.partner[rest] < 0)]
    return still
