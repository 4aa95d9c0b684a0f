"""The ledger of take-downs of a dataset: the rows that must never come back, the records, and the pending order.

It is one JSON object in the dataset's state, `_state/takedowns.json`, which is replaced atomically:

    key         random: without it the digests reveal nothing, and they differ from those of other datasets
    urls        digests of the URLs that must not come back
    texts       digests of the captions of rows without a URL, and of broken records, that must not come back
    contents    digests of the SHA-256 of the bytes that must not come back
    pixels      digests of the SHA-256 of the pixels that must not come back
    pending     the plan in execution, written before anything is changed (`catalog.takedown.erase.ErasurePlan`)
    records     one a take-down: when, who, why, how many rows, which versions, files and ranges of shards; never a URL,
                a text or a pixel

Stages that make parts of `source` or `images` write those rows without content and with the reason `taken_down`, so
every later stage skips them. A part whose rows are independent keeps its fingerprint when rows are erased: it equals a
part that never had them. A part of a stage that sees whole tables (a pruning, a clustering, a report) does not, so the
take-downs that rewrote its inputs enter its fingerprint (`flows.build.plan`).
"""

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.dataset import Dataset
from catalog.errors import UserError
from catalog.rejection import rejects
from catalog.schema import FAILED, TAKEN_URL
from catalog.shards import Span
from catalog.storage import Storage

STATE: Final = "takedowns"
REASON: Final = "taken_down"

KINDS: Final = ("urls", "contents", "texts", "pixels")
"""The kinds of names that the ledger lists digests of."""
_DIGEST_BYTES: Final = 16
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>\\]+")
_SOURCE: Final = {"url": TAKEN_URL}
_IMAGES: Final = {"url": TAKEN_URL, "status": FAILED, "reason": REASON}


class Listed(Protocol):
    """Names of rows (`catalog.takedown.reach.Names`)."""

    @property
    def urls(self) -> frozenset[str]: ...
    @property
    def sha256(self) -> frozenset[str]: ...
    @property
    def texts(self) -> frozenset[str]: ...
    @property
    def pixels(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Ledger:
    """The takedowns of one dataset. Picklable; changed only by `with_` methods and `save`."""

    key: str = field(default_factory=lambda: secrets.token_hex(32))
    urls: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()
    pixels: frozenset[str] = frozenset()
    pending: Mapping[str, Any] | None = None
    records: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """Return the ledger in a dataset's storage; an empty one if nothing was ever taken down."""
        kept = _dataset(storage).state(STATE)
        if not kept:
            return cls()
        listed = {kind: frozenset(kept.get(kind, ())) for kind in KINDS}  # older ledgers lack some kinds
        return cls(kept["key"], **listed, pending=kept["pending"], records=tuple(kept["records"]))

    def save(self, storage: Storage) -> None:
        """Store the ledger, replacing the old one atomically."""
        listed = {kind: sorted(self.listed(kind)) for kind in KINDS}
        about = {"key": self.key, "pending": self.pending, "records": list(self.records)}
        _dataset(storage).set_state(STATE, about | listed)

    @property
    def is_empty(self) -> bool:
        """Whether the ledger lists nothing, so that no row has to be hidden."""
        return not any(map(self.listed, KINDS))

    def listed(self, kind: str) -> frozenset[str]:
        """Return the digests of one of KINDS."""
        found: frozenset[str] = getattr(self, kind)
        return found

    def digests(self, names: "Listed") -> dict[str, list[str]]:
        """Return the digests that would be listed for some names: kind -> digests, ascending."""
        return {
            "urls": sorted(map(self.url, names.urls)),
            "contents": sorted(map(self.content, names.sha256)),
            "texts": sorted(map(self.text, names.texts)),
            "pixels": sorted(map(self.picture, names.pixels)),
        }

    def ordered(self, digests: Mapping[str, Iterable[str]], order: Mapping[str, Any] | None) -> Self:
        """Return a ledger that also lists the result of `digests`, with a pending order."""
        urls, contents, texts, pixels = (self.listed(kind).union(digests.get(kind, ())) for kind in KINDS)
        pending = None if order is None else dict(order)
        return replace(self, urls=urls, contents=contents, texts=texts, pixels=pixels, pending=pending)

    def done(self, record: Mapping[str, Any]) -> Self:
        """Return a ledger without a pending order and with one more record."""
        return replace(self, pending=None, records=(*self.records, dict(record)))

    def rewritten(self) -> Counter[str]:
        """Return part -> the number of take-downs that rewrote it; results computed from all of its rows are stale."""
        return Counter(path for record in self.records for path in record.get("files", ()))

    def erased(self, shard: str) -> list[Span]:
        """Return the ranges of a shard that replace erased samples, ascending."""
        found = (span for record in self.records for span in record.get("erased", {}).get(shard, ()))
        return sorted({(int(begin), int(end)) for begin, end in found})

    def url(self, url: str) -> str:
        """Return the digest of a URL: keyed BLAKE2b, 128 bits, hex."""
        return self._digest(b"url", url)

    def content(self, sha256: str) -> str:
        """Return the digest of content that is given by its SHA-256 (hex)."""
        return self._digest(b"content", sha256.lower())

    def picture(self, pixels_sha256: str) -> str:
        """Return the digest of the pixels of an image, given by their SHA-256 (hex)."""
        return self._digest(b"pixels", pixels_sha256.lower())

    def text(self, caption: str) -> str:
        """Return the digest of a caption, or of the text of a broken record."""
        return self._digest(b"text", caption)

    def _digest(self, kind: bytes, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=self._key, person=kind).hexdigest()

    @cached_property
    def _key(self) -> bytes:
        return bytes.fromhex(self.key)

    def hide(self, table: str, rows: pa.Table) -> pa.Table:
        """Return rows of a table as a stage yields them, those that were taken down without their content."""
        if table == "source":
            return self.hide_source(rows)
        return self.hide_images(rows) if table == "images" else rows

    def hide_source(self, rows: pa.Table) -> pa.Table:
        """Return rows of a source with the content of taken-down rows removed."""
        return blank("source", rows, self.hidden_source(rows))

    def hidden_source(self, rows: pa.Table) -> np.ndarray:
        """Return which rows of a source were taken down: bool (n,)."""
        if not (self.urls or self.texts) or "url" not in rows.column_names:
            return np.zeros(rows.num_rows, bool)
        gone = self._listed(rows.column("url"), self.url, self.urls)
        nameless = np.asarray(pc.is_null(rows.column("url")))
        for column in ("caption", "row_detail"):
            if self.texts and column in rows.column_names:
                gone |= nameless & self._listed(rows.column(column), self.text, self.texts)
        return gone

    def hide_images(self, rows: pa.Table) -> pa.Table:
        """Return rows of images (as a stage yields them, with bytes); taken-down rows become failed, without bytes."""
        return blank("images", rows, self.hidden_images(rows))

    def hidden_images(self, rows: pa.Table) -> np.ndarray:
        """Return which rows of images were taken down, by their own columns: bool (n,)."""
        gone = np.zeros(rows.num_rows, bool)
        if self.is_empty:
            return gone
        if "url" in rows.column_names:
            gone |= np.asarray(rejects(rows.column("url"), "url"))
        for name, digest, known in (
            ("final_url", self.url, self.urls),
            ("sha256", self.content, self.contents),
            ("pixels_sha256", self.picture, self.pixels),
        ):
            if name in rows.column_names:
                gone |= self._listed(rows.column(name), digest, known)
        return gone

    def scrubbed(self, text: str) -> str:
        """Return text with every taken-down URL replaced by TAKEN_URL."""
        if self.url(text) in self.urls:
            return TAKEN_URL
        return _URL.sub(lambda found: TAKEN_URL if self.url(found[0]) in self.urls else found[0], text)

    def _listed(self, column: pa.ChunkedArray, digest: Any, known: frozenset[str]) -> np.ndarray:
        """Return which values are listed: bool (n,)."""
        values = column.to_pylist() if known else []
        found = (value is not None and digest(value) in known for value in values)
        return np.fromiter(found, bool, len(values)) if known else np.zeros(len(column), bool)


def check_none_pending(dataset: Dataset) -> Ledger:
    """Return the ledger. Raises UserError if a take-down was interrupted, because files and logs may disagree."""
    ledger = Ledger.read(dataset.storage)
    if ledger.pending is not None:
        raise UserError(
            f"a takedown of {dataset.name!r} was interrupted; complete it first: espalier takedown {dataset.name}"
        )
    return ledger


def blank(table: str, rows: pa.Table, gone: np.ndarray) -> pa.Table:
    """Return rows of `source` or `images` in which some, bool (n,), keep only their sample_id and TAKEN_URL, and in
    `images` the status and the reason."""
    if not gone.any():
        return rows
    constant = _IMAGES if table == "images" else _SOURCE
    places = pa.array(np.arange(rows.num_rows), mask=gone)
    for at, column in enumerate(rows.schema):
        if column.name == "sample_id":
            continue
        values = rows.column(at).take(places)
        if column.name in constant:
            values = pc.if_else(pa.array(gone), pa.scalar(constant[column.name], column.type), values)
        rows = rows.set_column(at, column, values)
    return rows


def _dataset(storage: Storage) -> Dataset:
    return Dataset(storage.uri.rpartition("/")[2], storage)
