"""Words of erased rows: replaced where they stand whole, however a file spells them, and nothing else is touched."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from catalog.dataset import Dataset
from catalog.parts import PartFile, PartWriter
from catalog.schema import SOURCE, TAKEN_URL
from catalog.takedown.ledger import Ledger
from catalog.takedown.scrub import TAKEN_TEXT, Scrubber, Words, scrub, words_of
from catalog.version import TableState, VersionFacts

WritePart = Callable[..., PartFile]
URL = "http://host.example/a.jpg"
FILE = "/data/pictures/jane_doe.jpg"
CAPTION = 'Jane "JD" Doe, at home in Köln'


@pytest.fixture
def scrubber() -> Scrubber:
    words = Words(frozenset([URL, FILE]), frozenset(["jane_doe.jpg"]), frozenset([CAPTION, "fox", "duplicate_exact"]))
    return Scrubber(words, Ledger())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"GET {URL}: 404, see {URL}.", f"GET {TAKEN_URL}: 404, see {TAKEN_URL}."),
        (f"{URL}?x=1 {URL}x {URL}/b http://host.example/a", f"{URL}?x=1 {URL}x {URL}/b http://host.example/a"),
        (f"cannot read {FILE!r}", f"cannot read '{TAKEN_URL}'"),
        ("no file 'jane_doe.jpg' but xjane_doe.jpg", f"no file '{TAKEN_TEXT}' but xjane_doe.jpg"),
        (f"row {CAPTION!r} {json.dumps(CAPTION)}", f"row '{TAKEN_TEXT}' \"{TAKEN_TEXT}\""),
        ("a fox, duplicate_exact", "a fox, duplicate_exact"),
    ],
)
def test_texts(scrubber: Scrubber, text: str, expected: str) -> None:
    assert scrubber.text(text) == expected


def test_values(scrubber: Scrubber) -> None:
    given = {"a": [URL, {"b": f"x {CAPTION}"}], FILE: 1, "n": 7, "none": None}
    assert scrubber.value(given) == {"a": [TAKEN_URL, {"b": f"x {TAKEN_TEXT}"}], "n": 7, "none": None}


def test_recipes_stay_recipes(scrubber: Scrubber) -> None:
    plain = "# of ours\ndataset: web\nstages:\n- use: duplicate_exact # fox\n  where: url <> 'http://x'\n"
    assert scrubber.recipe(plain) == plain
    where = f"caption <> '{CAPTION}' and url <> '{URL}'" + " and true" * 30
    long = yaml.safe_dump({"dataset": "web", "stages": [{"use": "filter", "where": where}]})
    assert CAPTION not in long, "YAML folds it, and escapes it"
    said = yaml.safe_load(scrubber.recipe(long))
    assert said["stages"][0]["where"].startswith(f"caption <> '{TAKEN_TEXT}' and url <> '{TAKEN_URL}'")
    saved = yaml.safe_load(scrubber.recipe("dataset: few\nsaved_search: {from: web@1, text: fox, how: fox}\n"))
    assert saved["saved_search"] == {"from": "web@1", "text": TAKEN_TEXT, "how": "fox"}


def test_words_are_read_while_they_are_there(local_dataset: Dataset, write_part: WritePart) -> None:
    extra = pa.schema([*SOURCE, pa.field("local_path", pa.string())])
    rows = [{"sample_id": 1, "url": FILE, "caption": CAPTION, "local_path": FILE}, {"sample_id": 2, "url": URL}]
    write_part(local_dataset, "source", 1, [*rows, {"sample_id": 3, "url": TAKEN_URL}], extra)
    assert words_of(local_dataset, np.array([1, 3])) == Words(
        frozenset([FILE]), frozenset(["jane_doe.jpg"]), frozenset([CAPTION])
    )


def test_everything_beside_the_samples_is_cleaned(
    local_dataset: Dataset, scrubber: Scrubber, write_part: WritePart, facts: VersionFacts
) -> None:
    """Tables of facts with nested texts and notes, runs, versions, state, also under names that no log knows."""
    storage = local_dataset.storage
    schema = pa.schema([("name", pa.string()), ("list", pa.list_(pa.struct([("x", pa.string())]))), ("n", pa.int64())])
    with PartWriter(storage, "facts", "ab" * 16, schema) as writer:
        writer.notes |= {"example": CAPTION}
        writer.write(pa.table({"name": ["x", URL], "list": [[{"x": CAPTION}], None], "n": [1, 2]}, schema=schema))
    local_dataset.record_run({"run_id": "1", "stage": "filter", "error": f"{URL} is bad", "rows": 3})
    local_dataset.set_state("notes", {"files": {FILE: [1], "y": 2}})
    source = write_part(local_dataset, "source", 1, [{"sample_id": 1, "url": URL, "caption": CAPTION}])
    stages: list[dict[str, Any]] = [
        {"name": "search", "use": "search", "table": "source", "parameters": {"text": "fox"}}
    ]
    recipe = f"dataset: birds\nwhy: {json.dumps(CAPTION)}\n"
    about = VersionFacts(recipe, "1" * 64, "0", [{"uri": FILE}], stages, 1)
    local_dataset.publish({"source": TableState(SOURCE, [source])}, about)
    stray = next(iter(storage.list("versions")))
    storage.put("versions/00000009-00.parquet", storage.read(stray) if stray.endswith(".parquet") else b"")

    for _ in range(2):  # it may be repeated
        scrub(local_dataset, np.array([1]), [], scrubber)
    (run,) = local_dataset.runs().to_pylist()
    assert (run["error"], run["rows"]) == (f"{TAKEN_URL} is bad", 3)
    part = pq.read_table(storage.local("facts/" + "ab" * 16 + ".parquet"))
    assert part.to_pylist() == [
        {"name": "x", "list": [{"x": TAKEN_TEXT}], "n": 1}, {"name": TAKEN_URL, "list": None, "n": 2},
    ]  # fmt: skip
    assert json.loads(part.schema.metadata[b"espalier.notes"]) == {"example": TAKEN_TEXT}
    assert local_dataset.state("notes") == {"files": {"y": 2}}
    version = local_dataset.version()
    assert (version.inputs[0]["uri"], version.stages[0]["parameters"]) == (TAKEN_URL, {"text": TAKEN_TEXT})
    assert yaml.safe_load(version.recipe) == {"dataset": "birds", "why": TAKEN_TEXT}
    for path in storage.list():
        if not path.startswith("source/"):  # the rows' own content is erased after it
            data = storage.read(path)
            said = str(pq.read_table(pa.BufferReader(data)).to_pylist()).encode() if path.endswith(".parquet") else b""
            assert not any(word.encode() in data + said for word in (URL, FILE, CAPTION)), path


def test_many_words_cost_little(scrubber: Scrubber) -> None:
    many = Scrubber(Words(frozenset(f"http://h/{i}" for i in range(20_000))), Ledger())
    assert many.text("see http://h/17 and http://h/x") == f"see {TAKEN_URL} and http://h/x"
