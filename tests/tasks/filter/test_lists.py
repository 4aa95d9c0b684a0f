"""Words and lists in files: exact look-ups in lists of any length."""

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import SOURCE
from tasks.filter import Filter
from tasks.filter._lists import Entries, Listed, ListFile, Words, fails_words, read
from tasks.filter._predicate import connect

SCHEMA = pa.schema([*SOURCE, pa.field("licence", pa.string())])


def decided(stage: Filter, rows: int = 65536, **columns: list[Any]) -> list[tuple[Any, Any]]:
    count = len(next(iter(columns.values())))
    given_ = {"sample_id": range(count), **columns}
    source = pa.table([pa.array(given_.get(f.name, [None] * count), f.type) for f in SCHEMA], schema=SCHEMA)
    batches = Inputs.of(source=source).batches(stage.inputs({"source": SCHEMA}), rows)
    found = pa.concat_tables(stage.open("cpu", {})(batches))
    assert found.column("keep").to_pylist() == [reason is None for reason in found.column("reason").to_pylist()]
    return list(zip(found.column("reason").to_pylist(), found.column("evidence").to_pylist(), strict=True))


def listing(path: Path, *entries: str) -> str:
    path.write_text("\n".join(entries))
    return str(path)


def lists(**fields: Any) -> Filter:
    return Filter(lists=({"name": "listed", **fields},))


# ---- words


def test_a_caption_with_a_listed_word_is_kept(tmp_path: Path) -> None:
    file = listing(tmp_path / "words.txt", "fox", "  wolf ", "", "polar bear", "naïve")
    captions = ["a fox", "Fox", "fox.", "foxes", "wolf\tpack", "a polar bear", "so naïve", "", None, "x" * 200]
    found = decided(Filter(words={"no_animal": {"file": file}}), caption=captions)
    assert [reason for reason, _ in found] == [
        None, "no_animal", "no_animal", "no_animal", None, "no_animal", None, "no_animal", "no_animal", "no_animal",
    ]  # fmt: skip
    assert found[1][1] == "caption=Fox has no word of words.txt"
    assert found[8][1] == "caption=null has no word of words.txt"
    assert found[9][1] == f"caption={'x' * 80} has no word of words.txt"
    assert found[0][1] is None


def test_case_can_be_ignored(tmp_path: Path) -> None:
    file = listing(tmp_path / "words.txt", "fox", "Wolf", "ÉLAN")
    captions = ["a FOX", "wolf", "élan", "Élan", "foxes", None]
    found = decided(Filter(words={"none": {"file": file, "ignore_case": True}}), caption=captions)
    assert [reason for reason, _ in found] == [None, None, None, None, "none", "none"]


@given(
    st.lists(st.text(st.sampled_from("ab \t\n\u00a0é"), max_size=12), min_size=1, max_size=30),
    st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=3), max_size=10),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_are_found_as_by_a_set(tmp_path: Path, captions: list[str], words: list[str]) -> None:
    found = decided(Filter(words={"none": {"file": listing(tmp_path / "w.txt", *words)}}), rows=7, caption=captions)
    wanted = set(words)
    assert [reason is None for reason, _ in found] == [not wanted.isdisjoint(c.split()) for c in captions]


@pytest.mark.parametrize("behind", [b"\0", b"a", b"\x80\x80", b"\xa0", b"\xc3\x80", b"\xff"])
@pytest.mark.parametrize("caption", ["fox ", "a fox\u00a0", "fox\u3000", "fox \n"])
def test_bytes_after_the_last_caption_in_memory_are_ignored(tmp_path: Path, caption: str, behind: bytes) -> None:
    """A table's column may be copied to memory before other bytes, so the array itself is passed."""
    words = Words(file=listing(tmp_path / "words.txt", "fox"))
    data = caption.encode()
    ends = pa.array([0, len(data)], pa.int32()).buffers()[1]
    lying = pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(data + behind * 4)])
    with connect() as connection:
        fails, _ = fails_words(words, read(words), lying, connection)
    assert not fails[0]


def test_captions_that_are_not_utf8_are_compared_like_any_other(tmp_path: Path) -> None:
    stage = Filter(words={"no_animal": {"file": listing(tmp_path / "words.txt", "fox")}})
    raw = pa.array([b"a fox caf\xe9", b"\xff\xfe", b"nul \0 fox"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    batch = pa.table({"sample_id": [0, 1, 2], "caption": bad})
    (found,) = stage.open("cpu", {})(iter([batch]))
    assert found.column("reason").to_pylist() == [None, "no_animal", None]


# ---- lists


def test_hosts_and_their_domains(tmp_path: Path) -> None:
    file = listing(tmp_path / "optout.txt", "Example.com", "*.wild.org", ".dotted.net", "https://full.url/path?q=1")
    urls = [
        "https://example.com/a.jpg", "http://img.CDN.example.com:8080/a", "http://notexample.com/", "http://com/",
        "https://user:pass@wild.org/x", "http://a.dotted.net./x", "http://full.url", "not a url", None, "http://[::1]/x",
    ]  # fmt: skip
    suffix = [reason for reason, _ in decided(lists(file=file, match="suffix"), url=urls)]
    assert suffix == ["listed", "listed", None, None, "listed", "listed", "listed", None, None, None]
    host = [reason for reason, _ in decided(lists(file=file, match="host"), url=urls)]
    assert host == ["listed", None, None, None, "listed", None, "listed", None, None, None]
    evidence = [text for _, text in decided(lists(file=file, match="suffix"), url=urls)]
    assert evidence[1] == "url=http://img.CDN.example.com:8080/a is in optout.txt as example.com"
    assert evidence[2] is None


def test_the_longest_domain_is_the_evidence(tmp_path: Path) -> None:
    file = listing(tmp_path / "optout.txt", "org", "b.c.org", "c.org")
    ((_, evidence),) = decided(lists(file=file, match="suffix"), url=["http://a.b.c.org/"])
    assert evidence == "url=http://a.b.c.org/ is in optout.txt as b.c.org"


def test_licences_that_are_allowed(tmp_path: Path) -> None:
    file = listing(tmp_path / "licences.txt", "cc-by-4.0", "cc0-1.0")
    found = decided(lists(file=file, column="licence", keep="present"), licence=["cc0-1.0", "CC0-1.0", "arr", None])
    assert [reason for reason, _ in found] == [None, "listed", "listed", "listed"]
    assert found[2][1] == "licence=arr is not in licences.txt"
    assert found[3][1] == "licence=null is not in licences.txt"


def test_predicates_come_first_and_all_failures_are_evidence(tmp_path: Path) -> None:
    stage = Filter(
        rules={"short": "len(caption) > 3"},
        words={"no_animal": {"file": listing(tmp_path / "words.txt", "fox")}},
        lists=(Listed(name="opted_out", file=listing(tmp_path / "hosts.txt", "a.org"), match="host"),),
    )
    found = decided(stage, caption=["cat", "a cat", "a fox", "fox"], url=["http://a.org", None, "http://a.org", None])
    assert [reason for reason, _ in found] == ["short", "no_animal", "opted_out", "short"]
    assert str(found[0][1]).split("; ") == [
        "caption=cat fails len(caption) > 3",
        "caption=cat has no word of words.txt",
        "url=http://a.org is in hosts.txt as a.org",
    ]


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "csv", "csv.gz", "parquet"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path, entries = tmp_path / f"list.{kind}", ["http://x/1", 'http://x/"2",3', "http://x/é"]
    table = pa.table({"id": [1, 2, 3], "link": entries})
    quoted = "".join(f'{i},"{e.replace(chr(34), chr(34) * 2)}"\n' for i, e in enumerate(entries))
    content = "\n".join(entries) + "\n" if kind.startswith("txt") else "id,link\n" + quoted
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    fields = {} if kind.startswith("txt") else {"entries": "link"}
    found = decided(lists(file=str(path), **fields), url=[*entries, "http://x/2"])
    assert [reason for reason, _ in found] == ["listed", "listed", "listed", None]


def test_lines_that_end_in_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"a.org\r\nb.org\r\n")
    found = decided(lists(file=str(tmp_path / "l.txt"), match="host"), url=["http://a.org", "http://b.org/x"])
    assert [reason for reason, _ in found] == ["listed", "listed"]


@pytest.mark.parametrize("seed", range(3))
def test_many_entries_are_found_as_by_a_set(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    entries = [f"http://h/{generator.randrange(60_000)}" for _ in range(40_000)]
    urls = [f"http://h/{generator.randrange(60_000)}" for _ in range(5_000)]
    found = decided(lists(file=listing(tmp_path / "l.txt", *entries)), rows=999, url=urls)
    known = set(entries)
    assert [reason is not None for reason, _ in found] == [url in known for url in urls]
    held = read(ListFile(file=str(tmp_path / "l.txt")))
    assert len(held.upper) == len(known)
    assert held.upper.nbytes + held.lower.nbytes == 16 * len(known)


def test_entries_that_share_half_of_their_hash() -> None:
    entries = Entries(np.array([3, 5, 5, 5, 9], np.uint64), np.array([0, 2, 1, 7, 9], np.uint64))
    asked = [(5, 7), (5, 1), (5, 3), (9, 9), (9, 8), (3, 0), (4, 0), (10, 0)]
    upper, lower = np.array(asked, np.uint64).T
    assert entries.contain(upper, lower).tolist() == [True, True, False, True, False, True, False, False]


def test_an_empty_list_matches_nothing(tmp_path: Path) -> None:
    file = listing(tmp_path / "none.txt", "", "  ")
    assert decided(lists(file=file), url=["", "http://x", None]) == [(None, None)] * 3
    assert [r for r, _ in decided(lists(file=file, keep="present"), url=["", None])] == ["listed"] * 2


def test_no_rows(tmp_path: Path) -> None:
    stage = lists(file=listing(tmp_path / "l.txt", "a"), match="suffix")
    (found,) = stage.open("cpu", {})(
        iter([pa.table({"sample_id": pa.array([], pa.int64()), "url": pa.array([], pa.string())})])
    )
    assert found.num_rows == 0


# ---- fingerprints and mistakes


def test_the_fingerprint_depends_on_content_and_not_on_path(tmp_path: Path) -> None:
    one, other = (lists(file=listing(tmp_path / name, "a", "b")) for name in ("one.txt", "other.txt"))
    assert one.parameters() == other.parameters()
    changed = lists(file=listing(tmp_path / "other.txt", "a", "b", "c")).parameters()
    assert changed != one.parameters()
    words = [Filter(words={"w": {"file": listing(tmp_path / f"{i}.txt", "a" * i)}}).parameters() for i in (1, 2)]
    assert words[0] != words[1]
    assert "lists" not in Filter(where="url = 'a'").parameters()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"file": "hots.txt"}, r"'hots\.txt': no such file; did you mean 'hosts\.txt'\?"),
        ({"file": "hosts.json"}, r"expected \.txt, \.csv \(both also \.gz\) or \.parquet"),
        ({"file": "hosts.txt", "column": "host"}, "expected `column: url` and `match: host` or `suffix`"),
        ({"file": "hosts.txt", "column": "licens"}, r"unknown column 'licens'; did you mean 'licence'\?"),
        ({"file": "hosts.txt", "column": "sample_id"}, "which is int64; expected text"),
    ],
)
def test_a_wrong_list_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    listing(tmp_path / "hosts.txt", "a.org")
    listing(tmp_path / "hosts.json", "{}")
    with pytest.raises(RecipeError, match=message):
        lists(**fields).inputs({"source": SCHEMA})


def test_a_file_of_several_columns_needs_a_name(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("id,link\n1,a\n")
    with pytest.raises(RecipeError, match="has columns id, link; specify one as `entries`"):
        read(ListFile(file=str(path)))
    with pytest.raises(RecipeError, match=r"has no column 'lnk'; did you mean 'link'\?"):
        read(ListFile(file=str(path), entries="lnk"))
    (tmp_path / "l.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(RecipeError, match="cannot be read"):
        read(ListFile(file=str(tmp_path / "l.parquet")))


def test_a_filter_requires_a_condition() -> None:
    with pytest.raises(ValidationError, match="either `where` or `rules`"):
        Filter()
    with pytest.raises(ValidationError, match="either `where` or `rules`"):
        Filter(where="a > 1", rules={"b": "b > 1"})
