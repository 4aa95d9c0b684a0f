"""Group the members of a tar into samples by WebDataset's rule: a member's key is its name up to the first dot.

Members of one key belong together wherever they are in the tar. Ambiguous pairs are not guessed: if a key has a member
twice, its pictures are rows without captions.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import pyarrow as pa

from catalog.errors import UserError
from catalog.image_formats import DECODED, HEAD_BYTES, sniff
from tasks.sources._notes import Notes
from tasks.sources._tar import Member, members

IMAGES: Final = (
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jfif", "jpe", "heic", "heif", "jxl", "jp2",
)  # fmt: skip
"""Extensions of a sample's image, best first. If no member has one, a member whose bytes are an image is used."""
CAPTIONS: Final = ("txt", "caption", "text", "cap")
LABELS: Final = ("cls", "label")
JSON: Final = ("json",)
"""Extensions whose content is the caption, the class, and other columns."""

NO_IMAGE: Final = "no_image_member"
DUPLICATE: Final = "duplicate_key"
SPARSE: Final = "sparse_member"
"""Faults of rows."""
HIDDEN: Final = "hidden files in tars (such as macOS' ._ files) skipped"
META: Final = "files in tars that describe the tar (__...__) skipped"
UNREAD: Final = "files of samples that are not read (further pictures, masks, other endings)"

MAX_LATE: Final = 2_000_000
"""Members that are separated from others of their key are held in memory; a tar with more of them is refused."""
_MAX_SNIFFED: Final = 8
_NAME: Final = re.compile(r"^((?:.*/|)[^./][^./]*)(?:[.]([^/]*))?$")
_META: Final = re.compile(r"__[^/]*__($|/)")
# as in the webdataset library, except that it requires an extension


class Sample(NamedTuple):
    """One row: the members of its files."""

    key: str
    image: Member | None
    caption: Member | None = None
    label: Member | None = None
    json: Member | None = None
    fault: str | None = None
    detail: str | None = None


class _NamedMember(NamedTuple):
    """A member with its parsed name."""

    key: str
    extension: str
    member: Member


Keys = frozenset[int]
"""Hashes of the keys whose members are not adjacent, or occur twice."""


def scattered(file: pa.NativeFile, uri: str, notes: Notes) -> Keys:
    """Return the keys of a tar whose members must be collected first, by one pass over its headers.

    Counts in `notes` the members that belong to no sample.
    """
    seen: set[int] = set()
    again: set[int] = set()
    key: str | None = None
    extensions: set[str] = set()
    for part in _parts(file, uri, notes):
        if part.key != key:
            key, extensions = part.key, set()
            (again if hash(key) in seen else seen).add(hash(key))
        if part.extension in extensions:
            again.add(hash(key))
        extensions.add(part.extension)
    return frozenset(again)


def samples(file: pa.NativeFile, uri: str, apart: Keys, notes: Notes, max_late: int = MAX_LATE) -> Iterator[Sample]:
    """Yield the samples of a tar: those with adjacent members in order, then the others.

    Raises UserError if more than `max_late` members are separated from others of their sample.
    """
    late: dict[str, list[list[_NamedMember]]] = {}
    count = 0
    run: list[_NamedMember] = []
    for part in _ended(_parts(file, uri, Notes())):
        if run and (part is None or part.key != run[0].key):
            if hash(run[0].key) in apart:
                late.setdefault(run[0].key, []).append(run)
                count += len(run)
                if count > max_late:
                    raise UserError(
                        f"{uri}: more than {max_late:,} files are not next to others of their sample; sort it by name"
                    )
            else:
                yield from _of_run(run, file, notes)
            run = []
        if part is not None:
            run.append(part)
    for runs in late.values():
        yield from _of_runs(runs, file, notes)


def _ended(parts: Iterator[_NamedMember]) -> Iterator[_NamedMember | None]:
    yield from parts
    yield None


def _parts(file: pa.NativeFile, uri: str, notes: Notes) -> Iterator[_NamedMember]:
    for member in members(file, uri, notes):
        match = _NAME.match(member.name)
        base = member.name.rpartition("/")[2]
        if _META.match(member.name):
            notes.add(1, META, f"{uri}#{member.name}")
        elif match is None or base.startswith(".") or "__MACOSX/" in member.name:
            notes.add(1, HIDDEN, f"{uri}#{member.name}")
        else:
            yield _NamedMember(match[1], (match[2] or "").lower(), member)


def _of_runs(runs: list[list[_NamedMember]], file: pa.NativeFile, notes: Notes) -> Iterator[Sample]:
    """Yield the samples of one key whose members are in several places, or occur twice."""
    parts = [part for run in runs for part in run]
    extensions = [part.extension for part in parts]
    if len(set(extensions)) == len(extensions):
        yield from _of_run(parts, file, notes)
        return
    whole = _repeated(runs)
    if whole:
        for one in whole:
            yield from _of_run(one, file, notes)
        return
    names = ", ".join(part.member.name for part in parts[:6])
    pictures = [part for part in parts if _ending(part.extension) in IMAGES] or _by_bytes(parts, file)
    if not pictures:
        yield Sample(parts[0].key, None, fault=NO_IMAGE, detail=f"it has {names}")
    for part in pictures:
        yield _checked(Sample(part.key, part.member, fault=DUPLICATE, detail=f"the tar has {names}"))


def _repeated(runs: Sequence[list[_NamedMember]]) -> list[list[_NamedMember]]:
    """Return whole samples if runs repeat one sequence of several extensions (jpg, txt, jpg, txt); else []."""
    first = [part.extension for part in runs[0]]
    size = next(n for n in range(1, len(first) + 1) if first == first[:n] * (len(first) // n))
    pattern = first[:size]
    if size < 2 or len(set(pattern)) < size:
        return []
    whole = [run[at : at + size] for run in runs for at in range(0, len(run), size)]
    return whole if all([part.extension for part in one] == pattern for one in whole) else []


def _of_run(parts: Sequence[_NamedMember], file: pa.NativeFile, notes: Notes) -> Iterator[Sample]:
    """Yield the rows of members of one key with distinct extensions."""
    pictures = sorted(
        (p for p in parts if _ending(p.extension) in IMAGES), key=lambda p: IMAGES.index(_ending(p.extension))
    )
    plain = [p for p in pictures if "." not in p.extension]
    chosen = plain[:1] or pictures
    if not chosen:
        chosen = _by_bytes(parts, file)[:1]
    by_place = {p.member.offset: i for i, p in enumerate(parts)}
    rows = [_sample(parts, p) for p in sorted(chosen, key=lambda p: by_place[p.member.offset])]
    rows = rows or [_sample(parts, None)]
    read = {member.offset for row in rows for member in row[1:5] if member is not None} | {
        p.member.offset for p in chosen
    }
    unread = [p.member.name for p in parts if p.member.offset not in read]
    notes.add(len(unread), UNREAD, unread[0] if unread else "")
    yield from rows


def _sample(parts: Sequence[_NamedMember], picture: _NamedMember | None) -> Sample:
    """Return the row of a picture, or of a sample without one, with its texts."""
    stem = picture.extension.rpartition(".")[0] if picture else ""
    caption, label, json = (_text(parts, stem, kind) for kind in (CAPTIONS, LABELS, JSON))
    if picture is not None:
        return _checked(Sample(picture.key, picture.member, caption, label, json))
    names = ", ".join(part.member.name for part in parts[:6])
    return Sample(parts[0].key, None, caption, label, json, NO_IMAGE, f"it has {names}")


def _checked(sample: Sample) -> Sample:
    """Return a sample, without its image if that is stored sparsely."""
    if sample.image is None or not sample.image.sparse:
        return sample
    return sample._replace(image=None, fault=SPARSE, detail=f"{sample.image.name} is stored with holes")


def _text(parts: Iterable[_NamedMember], stem: str, endings: tuple[str, ...]) -> Member | None:
    """Return a picture's text: with the same stem (22.05.jpg, 22.05.txt), else with the bare key (22.txt), else, if the
    picture has the bare key, with any stem (22.en.txt)."""
    found = [(p, p.extension.rpartition(".")[0]) for p in parts if _ending(p.extension) in endings]
    for wanted in dict.fromkeys((stem, "")):
        mine = [p for p, of in found if of == wanted and not p.member.sparse]
        if mine:
            return min(mine, key=lambda p: endings.index(_ending(p.extension))).member
    return found[0][0].member if found and not stem and not found[0][0].member.sparse else None


def _by_bytes(parts: Sequence[_NamedMember], file: pa.NativeFile) -> list[_NamedMember]:
    """Return the members whose bytes are a picture, among the first few with unknown endings."""
    known = (*CAPTIONS, *LABELS, *JSON)
    unknown = [p for p in parts if _ending(p.extension) not in known and p.member.size and not p.member.sparse]
    return [
        part
        for part in unknown[:_MAX_SNIFFED]
        if sniff(bytes(file.read_at(min(HEAD_BYTES, part.member.size), part.member.offset))) in DECODED
    ]


def _ending(extension: str) -> str:
    return extension.rpartition(".")[2]
