"""Build, update and measure the faiss index of an embedding column, part by part. It is stored with its dataset.

    <dataset>/_index/<column>/index.json        what it is, which parts are in it, how well it finds; it names the
    <dataset>/_index/<column>/<name>.faiss      index and
    <dataset>/_index/<column>/<name>.npz        the held-out queries, with their exact neighbours

Both files are written under new names before the JSON refers to them, so a reader sees either the old or the new index.
An index belongs to no version: it holds a set of parts, and a search drops results from parts that its version lacks.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from catalog import lookup
from catalog import work as work_files
from catalog.dataset import Dataset
from catalog.errors import UserError, nearest
from catalog.parts import PartFile, fingerprint_of
from catalog.seal import digest_of, sealed_json
from catalog.version import Version
from catalog.wording import amount
from flows.build.code_version import code_version
from flows.explore.stored_index import TABLE, Kept, best_device, columns, drop, embedding_column, folder, kept
from tasks.encoders.encoder import encoder_of
from tasks.index.choose import Budget, Choice, choose
from tasks.index.held_out import HeldOut, K
from tasks.index.tune import Tuned, tune
from tasks.index.vector_index import VectorIndex, unit_blocks
from tasks.vectors.sample import Sample

if TYPE_CHECKING:
    from rich.console import Console

QUERIES: Final = 256
"""Held-out queries of each kind (pictures, captions); at most a tenth of the rows."""
GROWTH: Final = 4
"""An index is retrained when it holds this many times as many rows as when it was trained."""

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
Held = list[tuple[np.ndarray, np.ndarray]]
"""Blocks of (sample_id int64 (n,), vectors float16 (n, d))."""


def _no_progress(done: int, total: int) -> None:
    """Show nothing."""


def update(
    dataset: Dataset,
    version: Version,
    column: str = "",
    budget: Budget | None = None,
    progress: Progress = _no_progress,
    say: Say = lambda line: None,
    device: str | None = None,
) -> Kept:
    """Make the index of a column hold exactly a version's parts, and return it.

    Adds the parts that it lacks and removes those that the version no longer has. Rebuilds the index where that is
    impossible; `say` receives the reason, and a warning if the recall is below the requested one. The images that serve
    as queries of a new index are added after its recall has been measured. When an index grows they are already in it,
    which overestimates the recall of a graph slightly, so the search effort is never reduced then. Raises UserError if
    no index fits into the memory.
    """
    budget = budget or Budget()
    column = embedding_column(dataset, version, column)
    work = _Work(dataset, version, column, budget, progress, say, device)
    old = kept(dataset, column)
    reason = work.why_anew(old)
    if old is not None and reason is None:
        return work.grow(old)
    if old is not None:
        say(f"building the index again: {reason}")
    return work.build()


def forget(dataset: Dataset, sample_ids: np.ndarray) -> list[str]:
    """Remove samples from every index of a dataset and from its held-out queries; return what was done.

    An index that supports no removal, or cannot be read, is deleted. Nothing of the samples remains under `_index`.
    """
    done = []
    gone = np.unique(np.asarray(sample_ids, np.int64))
    for column in columns(dataset):
        old = kept(dataset, column)
        try:
            index = old.load() if old else None
            if old and index and index.can_remove:
                held_out = old.held_out()
                removed = index.remove(gone)
                held_out.remove(gone)
                facts = old.facts | {"rows": index.rows, "forgotten": old.facts.get("forgotten", 0) + removed}
                _keep(dataset, column, facts, index, held_out)
                done.append(f"index of {column}: {amount(removed, 'row')} taken out")
                continue
        except UserError:
            pass
        drop(dataset, column)
        done.append(f"index of {column}: removed; `espalier index {dataset.name} --column {column}` builds it again")
    return done


def budget_of(kind: str, memory_mb: float, recall: float) -> Budget:
    """Return the budget that command-line options describe. Raises UserError."""
    kinds = ("auto", "flat", "ivf", "hnsw", "ivfpq", "opq")
    if kind not in kinds:
        raise UserError(f"--kind is {kind!r}{nearest(kind, kinds)}")
    if not 0 < memory_mb < float("inf"):
        raise UserError(f"--memory-mb is {memory_mb:g}, expected more than 0")
    if not 0 < recall <= 1:
        raise UserError(f"--recall is {recall:g}, expected a share above 0 and at most 1")
    return Budget.model_validate({"kind": kind, "memory_mb": memory_mb, "recall": recall})


def render(made: Kept) -> str:
    """Render an index for a terminal."""
    facts = made.facts
    lines = [
        f"{made.dataset.name} {made.column}: {facts['factory']}, {amount(facts['rows'], 'row')} in "
        f"{amount(len(facts['parts']), 'part')}, {facts['bytes'] / 1e6:,.1f} MB, {facts['ms_per_query']:.2f} ms a query"
    ]
    effort = facts["effort"]
    setting = f" at {effort['name']} {effort['value']}" if effort["name"] else ""
    for what, found in facts[f"recall_at_{K}_rescored"].items():
        error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.3f}"
        lines.append(f"recall@{K} of {what} queries{setting}: {found['mean']:.3f}{error} ({found['queries']} held out)")
    if spent := facts.get("cpu_s"):  # an index of an older release does not record it
        parts = ", ".join(f"{seconds:.1f} to {what}" for what, seconds in spent.items())
        lines.append(f"CPU seconds: {sum(spent.values()):.1f}, of them {parts}")
    asked = facts["budget"]
    verdict = "met" if facts["met"] else "NOT met"
    lines.append(f"budget: {asked['memory_mb']:g} MB, recall {asked['recall']:g}, kind {asked['kind']}: {verdict}")
    return "\n".join(lines)


@contextmanager
def counted(console: "Console") -> Iterator[Progress]:
    """Provide a function that shows how many parts were read; it shows nothing if the console is not a terminal."""
    from rich.progress import Progress as Bars

    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("index", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@dataclass(frozen=True)
class _Work:
    """One update of the index of a column."""

    dataset: Dataset
    version: Version
    column: str
    budget: Budget
    progress: Progress
    say: Say
    device: str | None
    spent: "Spent" = field(default_factory=lambda: Spent())

    @property
    def parts(self) -> list[PartFile]:
        return self.dataset.files(self.version, TABLE)

    @property
    def dim(self) -> int:
        paths = [part.path for part in self.parts[:1]]
        if not paths:
            raise UserError(f"{self.version.label} has no vectors in {self.column!r}: there is nothing to index")
        return int(lookup.schema_of(self.dataset.storage, paths).field(self.column).type.list_size)

    @property
    def caption_column(self) -> str | None:
        """The caption column of the same encoder, if the indexed column is of images."""
        schema = self.dataset.schema(self.version, TABLE)
        name = f"{self.column}_text"
        return name if name in schema.names and encoder_name(schema, self.column) == self.column else None

    def why_anew(self, old: Kept | None) -> str | None:
        """Return why an index has to be rebuilt; None if the old one can be updated."""
        if old is None:
            return "there was none"
        was, rows = old.choice, sum(part.rows for part in self.parts)
        gone = old.parts.keys() - {part.path for part in self.parts}
        try:
            old.load(mapped=True)
        except UserError as error:
            return str(error)
        if was.dim != self.dim:
            return f"its vectors have {amount(was.dim, 'number')}, these {self.dim}"
        if self.budget.kind not in ("auto", was.kind):
            return f"it is of kind {was.kind}, and {self.budget.kind} was requested"
        if gone and was.kind == "hnsw":
            return f"a graph cannot forget, and {len(gone)} of its parts are gone"
        if was.bytes + (rows - was.rows) * was.bytes_per_vector > self.budget.memory_mb * 1e6:
            return f"it does not fit {self.budget.memory_mb:g} MB"
        now = choose(rows, self.dim, self.budget)
        if rows > GROWTH * was.rows and now.factory != was.factory:
            return f"{was.factory} was for {amount(was.rows, 'row')}, and there are {rows:,}"
        return None

    def build(self) -> Kept:
        """Sample training rows and queries, train, add all rows and measure."""
        with tempfile.TemporaryDirectory(prefix="index-", dir=work_files.make(self.dataset.storage)) as scratch:
            rows, held_out, training = self._drawn(Path(scratch))
            if not rows:
                raise UserError(f"{self.version.label} has no vectors in {self.column!r}: there is nothing to index")
            choice = choose(rows, self.dim, self.budget)
            sample = training[: choice.training_rows] if choice.training_rows else training[:0]
            device = (self.device or best_device()) if choice.lists else "cpu"  # only lists are learnt on it
            with self.spent.on("learn"):
                index = VectorIndex.train(choice, sample, self.version.seed, device)
            trained = len(sample)
        pictures = held_out.sample_ids[~held_out.captions]
        spans, last = self._fill(index, held_out, self.parts, 2, pictures)
        learnt = {"rows": trained, "seed": self.version.seed}
        return self._settle(choice, index, held_out, spans, learnt, last)

    def grow(self, old: Kept) -> Kept:
        """Remove old parts, add new ones and measure. Reads no part that the index already holds."""
        there = {part.path for part in self.parts}
        fresh = [part for part in self.parts if part.path not in old.parts]
        gone = [path for path in old.parts if path not in there]
        asked = self.budget.model_dump()
        if not fresh and not gone and old.facts["budget"] == asked:
            self.say(f"the index of {self.column} is up to date")
            return old
        index, held_out = old.load(), old.held_out()
        for path in gone:
            index.remove_span(*old.parts[path])
            held_out.remove_span(*old.parts[path])
        spans = {path: span for path, span in old.parts.items() if path in there}
        spans |= self._fill(index, held_out, fresh, 1)[0]
        self.say(
            f"{amount(len(fresh), 'part')} added, {len(gone)} taken out, {len(spans) - len(fresh)} left as they were"
        )
        return self._settle(
            old.choice, index, held_out, spans, old.facts["training"], least=old.facts["effort"]["value"]
        )

    def _drawn(self, scratch: Path) -> tuple[int, HeldOut, np.ndarray]:
        """Return (number of rows with a vector, queries, float16 training rows) from one pass over the parts."""
        total = sum(part.rows for part in self.parts)
        wanted = max((c.training_rows for c in _possible(total, self.dim, self.budget)), default=0)
        seed = self.version.seed
        training = Sample(scratch / "training.npy", max(wanted, 1) + 2 * QUERIES, self.dim, seed)
        queries_of_each = max(min(QUERIES, total // 10), 1)
        pictures = Sample(scratch / "pictures.npy", queries_of_each, self.dim, seed + 1)
        captions = Sample(scratch / "captions.npy", queries_of_each, self.dim, seed + 2)
        for done, part in enumerate(self.parts):
            self.progress(done, 2 * len(self.parts))
            for ids, vectors in self._blocks(part.path, self.column):
                with self.spent.on("draw"):
                    training.add(ids, vectors)
                    pictures.add(ids, vectors)
            for ids, vectors in self._blocks(part.path, self.caption_column) if self.caption_column else ():
                with self.spent.on("draw"):
                    captions.add(ids, vectors)
        (picture_ids, picture_rows), (caption_ids, caption_rows) = pictures.take(), captions.take()
        queries = HeldOut.of(
            np.concatenate([picture_ids, caption_ids]),
            np.concatenate([picture_rows, caption_rows]),
            np.repeat([False, True], [len(picture_ids), len(caption_ids)]),
        )
        ids, rows = training.take()
        others = np.flatnonzero(~np.isin(ids, picture_ids))
        some = others if len(others) >= wanted // 2 else np.arange(len(ids))  # a tiny dataset trains on all of it
        spread = np.linspace(0, len(some) - 1, min(len(some), wanted)).astype(np.int64)
        return training.seen, queries, np.array(rows[some[spread]])

    def _fill(
        self,
        index: VectorIndex,
        held_out: HeldOut,
        parts: Sequence[PartFile],
        passes: int,
        last: np.ndarray | None = None,
    ) -> tuple[dict[str, tuple[int, int]], Held]:
        """Add parts to the index and to the queries' exact neighbours; return their spans, and the rows of `last`.

        The rows of `last` are not added yet: a graph finds a row that it holds more easily than one that it lacks.
        """
        kept_back: Held = []
        for done, part in enumerate(parts):
            self.progress((passes - 1) * len(parts) + done, passes * len(parts))
            for ids, vectors in self._blocks(part.path, self.column):
                later = np.isin(ids, last) if last is not None else np.zeros(len(ids), bool)
                self._put(index, held_out, ids[~later], vectors[~later])
                kept_back.append((ids[later], vectors[later]))
        self.progress(passes * len(parts), passes * len(parts))
        return lookup.spans(self.dataset.storage, [part.path for part in parts]), kept_back

    def _put(self, index: VectorIndex, held_out: HeldOut, sample_ids: np.ndarray, vectors: np.ndarray) -> None:
        """Add rows to the index and to the exact neighbours of the queries."""
        for ids, rows in unit_blocks(sample_ids, vectors):
            with self.spent.on("add"):
                index.add(ids, rows)
            with self.spent.on("measure"):
                held_out.add(ids, rows)

    def _blocks(self, path: str, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the blocks of `lookup.blocks`; their time counts as reading."""
        blocks = lookup.blocks(self.dataset.storage, path, column)
        while True:
            with self.spent.on("read"):
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def _settle(
        self,
        choice: Choice,
        index: VectorIndex,
        held_out: HeldOut,
        spans: dict[str, tuple[int, int]],
        training: dict[str, Any],
        last: Held | None = None,
        least: int = 1,
    ) -> Kept:
        """Tune, add the last rows, report whether the budget is met, and store the index."""
        with self.spent.on("measure"):
            tuned = tune(index, held_out, self.budget.recall, choice.is_lossy, least)
        for ids, vectors in last or ():
            self._put(index, held_out, ids, vectors)
        found = tuned.worst(choice.is_lossy)
        met = found is None or found >= self.budget.recall
        if found is not None and not met:
            self.say(
                f"the recall is {found:.3f}, {self.budget.recall - found:.3f} short of the {self.budget.recall:g} "
                f"that was requested: give it more --memory-mb, or another --kind than {choice.kind}"
            )
        facts = {
            "column": self.column,
            "metric": "inner product of unit vectors",
            "factory": choice.factory,
            "choice": vars(choice),
            "rows": index.rows,
            "parts": [{"path": path, "low": low, "high": high} for path, (low, high) in sorted(spans.items())],
            "training": training,
            **_measured(tuned, choice, index),
            "met": met,
            "budget": self.budget.model_dump(),
            "cpu_s": self.spent.rounded(),
            "code_version": code_version(),
        }
        return _keep(self.dataset, self.column, facts, index, held_out)


def encoder_name(schema: Any, column: str) -> str | None:
    """Return the name of the encoder that made a column; None if the column does not record it."""
    try:
        return encoder_of(schema, column).name
    except UserError:
        return None


class Spent:
    """CPU seconds of this process (all threads), by phase."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(("read", "draw", "learn", "add", "measure"), 0.0)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the CPU time of the block."""
        start = time.process_time()
        try:
            yield
        finally:
            self._seconds[what] += time.process_time() - start

    def rounded(self) -> dict[str, float]:
        """Return the seconds, to milliseconds."""
        return {what: round(seconds, 3) for what, seconds in self._seconds.items()}


def _possible(rows: int, dim: int, budget: Budget) -> list[Choice]:
    """Return the index type for this many rows, if one fits; rows without a vector may change it later."""
    try:
        return [choose(rows, dim, budget)]
    except UserError:
        return []


def _measured(tuned: Tuned, choice: Choice, index: VectorIndex) -> dict[str, Any]:
    names = {"flat": "", "hnsw": "efSearch"}
    return {
        "effort": {"name": names.get(choice.kind, "nprobe"), "value": tuned.effort},
        f"recall_at_{K}": tuned.recall,
        f"recall_at_{K}_rescored": tuned.rescored if choice.is_lossy else tuned.recall,
        "ms_per_query": tuned.ms_per_query,
        "bytes_per_vector": choice.bytes_per_vector,
    }


def _keep(dataset: Dataset, column: str, facts: dict[str, Any], index: VectorIndex, held_out: HeldOut) -> Kept:
    """Write both files under new names, then the JSON that refers to them; remove the old files."""
    place = folder(column)
    before = [path for path in dataset.storage.list(place) if not path.endswith(".json")]
    name = fingerprint_of(facts, index.rows)
    files = {"index": f"{name}.faiss", "held_out": f"{name}.npz"}
    with dataset.storage.writer(f"{place}/{files['index']}") as file:
        index.write(file)
    dataset.storage.put(f"{place}/{files['held_out']}", held_out.write())
    sizes = dataset.storage.list(place)
    digests = {}
    for file_name in files.values():
        *_, sha256 = digest_of(dataset.storage, f"{place}/{file_name}", sizes[f"{place}/{file_name}"])
        digests[file_name] = {"bytes": sizes[f"{place}/{file_name}"], "sha256": sha256}
    facts = facts | {"files": files, "bytes": digests[files["index"]]["bytes"], "digests": digests}
    dataset.storage.put(f"{place}/index.json", sealed_json(facts))
    dataset.storage.delete(path for path in before if path.rpartition("/")[2] not in files.values())
    return Kept(dataset, column, facts)
