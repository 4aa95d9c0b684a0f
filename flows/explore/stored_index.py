"""Locate and read the stored faiss index of an embedding column.

Reading is separate from building (`flows.explore.index`), so that a search imports less.
"""

from dataclasses import dataclass
from typing import Any, Final

from catalog.dataset import Dataset
from catalog.errors import NotFoundError, UserError
from catalog.seal import opened_json
from catalog.version import Version
from tasks.index.choose import Choice
from tasks.index.held_out import HeldOut
from tasks.index.vector_index import VectorIndex
from tasks.vectors.columns import vector_column

TABLE: Final = "embeddings"


@dataclass(frozen=True)
class Kept:
    """A stored index: its JSON and its location."""

    dataset: Dataset
    column: str
    facts: dict[str, Any]

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """The indexed parts: path -> (lowest, highest) sample_id."""
        return {part["path"]: (part["low"], part["high"]) for part in self.facts["parts"]}

    @property
    def choice(self) -> Choice:
        """The index type and its parameters."""
        return Choice(**self.facts["choice"])

    def load(self, mapped: bool = False) -> VectorIndex:
        """Load the index, memory-mapped if `mapped`, for reading only. Raises UserError if it cannot be read."""
        path = f"{folder(self.column)}/{self.facts['files']['index']}"
        local = self.dataset.storage.local(path)
        if local is not None and not local.is_file():
            raise NotFoundError(f"{local} does not exist: `espalier index {self.dataset.name}` builds it again")
        data = None if local else self.dataset.storage.read(path)
        return VectorIndex.read(str(local) if local else None, data, self.choice.kind, mapped)

    def held_out(self) -> HeldOut:
        """Return the held-out queries with their exact neighbours among the indexed rows."""
        return HeldOut.read(self.dataset.storage.read(f"{folder(self.column)}/{self.facts['files']['held_out']}"))


def folder(column: str) -> str:
    """Return the folder of the index of a column, relative to its dataset."""
    return f"_index/{column}"


def kept(dataset: Dataset, column: str) -> Kept | None:
    """Return the index of a column, or None. Raises UserError if its JSON is damaged."""
    path = f"{folder(column)}/index.json"
    try:
        facts = opened_json(dataset.storage.read(path))
        return Kept(dataset, column, facts) if facts["parts"] is not None else None
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{dataset.storage.uri}/{path} says no index ({error}): remove it, index again") from error


def columns(dataset: Dataset) -> list[str]:
    """Return the columns that have an index, or the remains of one."""
    return sorted({path.split("/")[1] for path in dataset.storage.list("_index")})


def drop(dataset: Dataset, column: str) -> None:
    """Remove the index of a column."""
    dataset.storage.delete(sorted(dataset.storage.list(folder(column)), reverse=True))


def embedding_column(dataset: Dataset, version: Version, column: str) -> str:
    """Return the column of that name, by default the first. Raises UserError if there is no such column."""
    if TABLE not in version.tables:
        raise NotFoundError(f"{version.label} has no embeddings: its recipe has no stage `use: embed`")
    return vector_column({TABLE: dataset.schema(version, TABLE)}, column)


def best_device() -> str:
    """Return `cuda` if a CUDA device is available, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
