"""Generate the demo's web: thousands of crops of a few photographs, a LAION-style list of their URLs, and the ground
truth of every row, which the build never reads.

    <folder>/files/           the files that the server serves
    <folder>/urls/*.parquet   URL, TEXT and the other columns of LAION's tables: the input of the build
    <folder>/truth.parquet    the kind of each row and its expected outcome: the input of the scoreboard

The same rows and seed give the same bytes on any number of cores. Files are generated once per folder; a second call
rewrites only the tables, which contain the server's address.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.errors import UserError
from flows.demo import hazards, photographs, pictures
from flows.demo.hazards import HAZARDS, Hazard
from flows.demo.photographs import PHOTOGRAPHS, Box, describe, distinct_crops
from flows.demo.pictures import EXTENSION, LOOK_SHARES, LOOKS, ODD_ENCODINGS, Copy, Picture

DEFAULT_URL: Final = "http://127.0.0.1:8723"
EXACT_SHARE: Final = 0.08
REENCODED_SHARE: Final = 0.12
WRONG_CAPTION_SHARE: Final = 0.04
MIN_ROWS: Final = 300
"""Fewer rows would leave too few ordinary ones beside at least one row of every hazard."""
MAX_ROWS: Final = 3500
"""More rows would need more distinguishable crops than the photographs yield."""
INPUT_FILES: Final = 2

TRUTH: Final = pa.schema(
    [
        pa.field("url", pa.string(), metadata={"about": "as the input has it; unique (one row has none, null)"}),
        pa.field("caption", pa.string(), metadata={"about": "as the input has it"}),
        pa.field("concept", pa.string(), metadata={"about": "the photograph it is cut from; null where there is none"}),
        pa.field(
            "picture", pa.int32(), metadata={"about": "same number: same picture, perhaps in other bytes; or null"}
        ),
        pa.field("file", pa.string(), metadata={"about": "same file: same bytes; null where none is served"}),
        pa.field("hazard", pa.string(), metadata={"about": "null for ordinary rows"}),
        pa.field("expected_stage", pa.string(), metadata={"about": "who must reject it; null: it must come through"}),
        pa.field("expected_reason", pa.string(), metadata={"about": "with which reason"}),
        pa.field("duplicate_of", pa.string(), metadata={"about": "URL of the row that it copies"}),
        pa.field("duplicate_kind", pa.string(), metadata={"about": "exact or reencoded"}),
        pa.field("wrong_caption", pa.bool_(), metadata={"about": "the caption is of another concept"}),
    ]
)
_ROW: Final = pa.schema(
    [
        *TRUTH,
        pa.field("WIDTH", pa.int32()),
        pa.field("HEIGHT", pa.int32()),
        pa.field("similarity", pa.float32()),
        pa.field("LICENSE", pa.string()),
        pa.field("NSFW", pa.string()),
    ]
)


@dataclass(frozen=True)
class Plan:
    """The locations of the generated files."""

    folder: Path
    urls: Path
    """The folder of the input's Parquet files."""
    truth: Path
    rows: int
    base_url: str


def plant(folder: Path, rows: int = 3000, seed: int = 0, base_url: str = DEFAULT_URL) -> Plan:
    """Plant a web of `rows` URLs into `folder`, to be served at `base_url` (`server.serve`).

    Raises UserError if `rows` is too small for every hazard, or larger than the photographs allow.
    """
    plan = Plan(folder, folder / "urls", folder / "truth.parquet", rows, base_url)
    stamp = folder / "planted.json"
    wanted = json.dumps({"rows": rows, "seed": seed, "code": _code_digest()})
    if not stamp.exists() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        planted = _Planner(rows, seed).run()
        _write_files(folder / "files", planted)
        pq.write_table(planted.table(), folder / "rows.parquet")
        stamp.write_text(wanted)
    _write_tables(plan, pq.read_table(folder / "rows.parquet"))
    return plan


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the planted web. `url` still contains the placeholders `{base}` and `{localhost}`."""

    url: str | None
    caption: str | None
    concept: str | None = None
    picture: int | None = None
    file: str | None = None
    hazard: Hazard | None = None
    duplicate_of: str | None = None
    duplicate_kind: str | None = None
    wrong_caption: bool = False
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Planted:
    """All rows and the files that they need."""

    rows: Sequence[Row]
    pictures: Sequence[Picture]
    copies: dict[str, list[Copy]]
    """By the file that is copied."""
    seed: int

    def table(self) -> pa.Table:
        """Return the rows with input and truth columns; URLs still contain placeholders."""
        rng = np.random.default_rng([self.seed, 7])
        similarity = np.where([row.wrong_caption for row in self.rows], 0.24, 0.31) + rng.normal(
            0, 0.02, len(self.rows)
        )
        licences = rng.choice(["?", "cc-by", "cc-by-sa", "publicdomain"], len(self.rows), p=[0.7, 0.1, 0.1, 0.1])
        columns: dict[str, list[Any]] = {name: [] for name in _ROW.names}
        for row, near, licence in zip(self.rows, similarity, licences, strict=True):
            rejects = row.hazard is not None and not row.hazard.survives
            values = {
                "url": row.url,
                "caption": row.caption,
                "concept": row.concept,
                "picture": row.picture,
                "file": row.file,
                "hazard": row.hazard.name if row.hazard else None,
                "expected_stage": row.hazard.stage if row.hazard and rejects else None,
                "expected_reason": row.hazard.reason if row.hazard and rejects else None,
                "duplicate_of": row.duplicate_of,
                "duplicate_kind": row.duplicate_kind,
                "wrong_caption": row.wrong_caption,
                "WIDTH": row.size[0] or None,
                "HEIGHT": row.size[1] or None,
                "similarity": float(near),
                "LICENSE": str(licence),
                "NSFW": "UNLIKELY",
            }
            for name, value in values.items():
                columns[name].append(value)
        return pa.table(columns, schema=_ROW)


def check_rows(rows: int) -> None:
    """Raise UserError if the demo cannot plant this number of rows."""
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise UserError(
            f"the demo plants at least {MIN_ROWS} rows, to hold every hazard, and at most {MAX_ROWS}, not {rows}"
        )


class _Planner:
    """Decides the kind of every row. Draws from one generator in a fixed order, so the seed determines the result."""

    def __init__(self, rows: int, seed: int) -> None:
        check_rows(rows)
        self.rows, self.seed = rows, seed
        self.rng = np.random.default_rng(seed)
        self.pictures: list[Picture] = []
        self.copies: dict[str, list[Copy]] = {}

    def run(self) -> Planted:
        hazardous = [hazard for hazard in HAZARDS for _ in range(max(1, round(hazard.rows * self.rows / 3000)))]
        exact, reencoded = round(EXACT_SHARE * self.rows), round(REENCODED_SHARE * self.rows)
        ordinary = self.rows - len(hazardous) - exact - reencoded
        shown = sum(hazard.file == "picture" or hazard.file in (*ODD_ENCODINGS, "png") for hazard in hazardous)
        cuts = _share_out(ordinary + shown, self.seed)
        order = self.rng.permutation(len(cuts))
        cut = iter([cuts[at] for at in order])
        plain = [self._ordinary(*next(cut)) for _ in range(ordinary)]
        troubled = [self._hazardous(hazard, number, cut) for number, hazard in enumerate(hazardous)]
        copied = self._exact(plain, exact) + self._reencoded(plain, reencoded)
        rows = self._with_wrong_captions(plain + copied) + troubled
        rows = [rows[at] for at in self.rng.permutation(len(rows))]
        return Planted(rows, self.pictures, self.copies, self.seed)

    def _picture(self, concept: str, box: Box, encoding: str) -> tuple[Picture, str]:
        """Make a picture of a crop; return it with a caption."""
        rng, number = self.rng, len(self.pictures)
        look = LOOKS[int(rng.choice(len(LOOKS), p=LOOK_SHARES))]
        flipped = bool(rng.random() < 0.3)
        side = min(box[2] - box[0], box[3] - box[1])
        limit = 240 if encoding == "png" else 534  # of the short side: 800 of the long one at 2:3
        short = int(np.exp(rng.uniform(np.log(96), np.log(max(97, min(limit, 4 * side))))))
        file = f"files/{number:05d}.{EXTENSION.get(encoding, 'jpg')}"
        tone, quality = float(rng.uniform(0.9, 1.1)), int(rng.integers(40, 96))
        picture = Picture(file, concept, box, flipped, look, tone, short, encoding, quality)
        self.pictures.append(picture)
        return picture, describe(concept, box, flipped, look, rng)

    def _ordinary(self, concept: str, box: Box) -> Row:
        encoding = str(self.rng.choice(["jpg", "png", "webp"], p=[0.80, 0.10, 0.10]))
        picture, caption = self._picture(concept, box, encoding)
        url = "{base}/" + picture.file
        return Row(url, caption, concept, len(self.pictures) - 1, picture.file, size=_size(picture))

    def _hazardous(self, hazard: Hazard, number: int, cut: Iterator[tuple[str, Box]]) -> Row:
        rng = self.rng
        if hazard.file == "picture" or hazard.file in (*ODD_ENCODINGS, "png"):
            concept, box = next(cut)
            picture, caption = self._picture(concept, box, "jpg" if hazard.file == "picture" else hazard.file)
            file, size = picture.file, _size(picture)
            row = Row(None, caption, concept, len(self.pictures) - 1, file, hazard, size=size)
        else:
            concept = str(rng.choice([photograph.name for photograph in PHOTOGRAPHS]))
            caption = describe(concept, (0, 0, 10**6, 10**6), False, "plain", rng)
            names = [name for name in pictures.assets() if name.startswith((f"{hazard.file}.", f"{hazard.file}-"))]
            file = f"files/{names[number % len(names)]}" if names else ""
            row = Row(None, caption, file=file or None, hazard=hazard)
        url = hazard.url
        if url is not None:
            served = f"mirror-{number}/{file}" if file and row.picture is None else file
            url = url.replace("{file}", served).replace("{n}", str(number))
        if hazard.caption is not None:
            row = replace(
                row, caption=hazard.caption.replace("{caption}", row.caption or "").replace("{long}", "long " * 4000)
            )
        return replace(row, url=url)

    def _exact(self, plain: Sequence[Row], count: int) -> list[Row]:
        """Copy rows under other hosts' paths; one in three has been copied already."""
        picked: list[int] = []
        for _ in range(count):
            again = picked and self.rng.random() < 1 / 3
            picked.append(int(self.rng.choice(picked)) if again else int(self.rng.integers(len(plain))))
        return [
            replace(
                plain[at],
                url=f"{{base}}/mirror-{number}/{plain[at].file}",
                caption=self._other_caption(plain[at]),
                duplicate_of=plain[at].url,
                duplicate_kind="exact",
            )
            for number, at in enumerate(picked)
        ]

    def _reencoded(self, plain: Sequence[Row], count: int) -> list[Row]:
        """Save pictures again: other quality, format and size, and up to 2 % of a side cut off."""
        rng = self.rng
        rows = []
        for number, at in enumerate(rng.choice(len(plain), count, replace=count > len(plain))):
            row = plain[int(at)]
            assert row.file is not None
            assert row.picture is not None
            encoding = str(rng.choice(["jpg", "webp", "png"], p=[0.75, 0.20, 0.05]))
            cut = tuple(float(edge) for edge in rng.uniform(0, 0.01, 4)) if rng.random() < 0.5 else (0.0,) * 4
            smallest = max(0.6, 90 / min(row.size))
            scale = float(rng.uniform(smallest, max(smallest, 1.4)))
            file = f"files/{row.picture:05d}-{number}.{EXTENSION.get(encoding, 'jpg')}"
            copy = Copy(file, cut, scale, encoding, int(rng.integers(30, 81)))  # type: ignore[arg-type]
            self.copies.setdefault(row.file, []).append(copy)
            rows.append(
                replace(
                    row,
                    url=f"{{base}}/{file}",
                    caption=self._other_caption(row),
                    file=file,
                    duplicate_of=row.url,
                    duplicate_kind="reencoded",
                    size=(round(row.size[0] * scale), round(row.size[1] * scale)),
                )
            )
        return rows

    def _other_caption(self, row: Row) -> str | None:
        """Return a copy's caption: half of them keep the one of what they copy."""
        assert row.picture is not None
        if self.rng.random() < 0.5:
            return row.caption
        picture = self.pictures[row.picture]
        return describe(picture.photograph, picture.box, picture.flipped, picture.look, self.rng)

    def _with_wrong_captions(self, rows: list[Row]) -> list[Row]:
        """Give some rows the caption of a row of another concept."""
        for at in self.rng.choice(len(rows), round(WRONG_CAPTION_SHARE * len(rows)), replace=False):
            others = self.rng.integers(len(rows), size=64)
            other = next(rows[int(o)] for o in others if rows[int(o)].concept != rows[int(at)].concept)
            rows[int(at)] = replace(rows[int(at)], caption=other.caption, wrong_caption=True)
        return rows


def _share_out(count: int, seed: int) -> list[tuple[str, Box]]:
    """Return `count` crops, by photograph in proportion to their shares, as far as each yields them."""
    total = sum(photograph.share for photograph in PHOTOGRAPHS)
    wanted = [int(np.ceil(1.6 * count * photograph.share / total)) for photograph in PHOTOGRAPHS]

    def cut(at: int) -> list[Box]:
        return distinct_crops(PHOTOGRAPHS[at].name, wanted[at], np.random.default_rng([seed, 1, at]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yielded = list(pool.map(cut, range(len(PHOTOGRAPHS))))
    if sum(map(len, yielded)) < count:
        raise UserError(
            f"the photographs yield {sum(map(len, yielded))} distinguishable pictures, and {count} are needed: "
            "ask for fewer rows"
        )
    given = np.zeros(len(PHOTOGRAPHS), int)
    holds = np.asarray([len(boxes) for boxes in yielded])
    share = np.asarray([photograph.share for photograph in PHOTOGRAPHS])
    for _ in range(count):  # to the one that is furthest below its share
        given[np.argmin(np.where(given < holds, given / share, np.inf))] += 1
    return [
        (photograph.name, box)
        for photograph, boxes, number in zip(PHOTOGRAPHS, yielded, given, strict=True)
        for box in boxes[:number]
    ]


def _size(picture: Picture) -> tuple[int, int]:
    wide, high = picture.box[2] - picture.box[0], picture.box[3] - picture.box[1]
    scale = picture.short_px / min(wide, high)
    return round(wide * scale), round(high * scale)


def _write_files(folder: Path, planted: Planted) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, data in pictures.assets().items():
        (folder / name).write_bytes(data)

    def write(picture: Picture) -> None:
        data = pictures.encode(pictures.render(picture), picture.encoding, picture.quality)
        (folder.parent / picture.file).write_bytes(data)
        for copy in planted.copies.get(picture.file, ()):
            (folder.parent / copy.file).write_bytes(pictures.encode_again(data, copy))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV and Pillow let go of the interpreter while they encode
        list(pool.map(write, planted.pictures))


def _write_tables(plan: Plan, rows: pa.Table) -> None:
    """Write the input and the truth, with the server's address in their URLs."""
    for column in ("url", "duplicate_of"):
        filled = pc.replace_substring(rows[column], "{base}", plan.base_url)
        filled = pc.replace_substring(filled, "{localhost}", plan.base_url.replace("127.0.0.1", "localhost"))
        at = rows.schema.get_field_index(column)
        rows = rows.set_column(at, rows.schema.field(at), filled)
    pq.write_table(rows.select(TRUTH.names), plan.truth)
    names = [name for name in _ROW.names if name not in TRUTH.names]
    source = rows.select(["url", "caption", *names]).rename_columns(["URL", "TEXT", *names])
    plan.urls.mkdir(parents=True, exist_ok=True)
    each = -(-len(source) // INPUT_FILES)
    for part in range(INPUT_FILES):
        pq.write_table(source.slice(part * each, each), plan.urls / f"part-{part}.parquet")


def _code_digest() -> str:
    """Return a digest of the code that determines the bytes of the files."""
    digest = hashlib.sha256()
    for module in (__file__, hazards.__file__, photographs.__file__, pictures.__file__):
        digest.update(Path(str(module)).read_bytes())
    return digest.hexdigest()
