"""Commits: the file set is exactly what was asked for, other readers agree, and writers that race lose nothing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from catalog import delta
from catalog.dataset import Dataset
from catalog.errors import BalanceError, DamagedError, NotFoundError, UserError
from catalog.parts import PartFile
from catalog.schema import SAMPLE_ID, SOURCE, score, vector


def source_rows(number: int, rows: int = 3) -> list[dict[str, object]]:
    return [{"sample_id": number << 24 | row, "url": f"http://x/{number}/{row}"} for row in range(rows)]


@pytest.fixture
def parts(dataset: Dataset, write_part: Callable[..., PartFile]) -> list[PartFile]:
    return [write_part(dataset, "source", number, source_rows(number)) for number in range(5)]


def test_a_commit_makes_the_table_exactly_the_parts(dataset: Dataset, parts: list[PartFile]) -> None:
    wanted = [parts[:2], parts, parts[3:], [], parts[1:4]]
    numbers = [delta.commit(dataset.storage, "source", SOURCE, some) for some in wanted]
    assert numbers == [0, 1, 2, 3, 4]
    for number, some in zip(numbers, wanted, strict=True):
        assert delta.files(dataset.storage, "source", number) == some
    assert delta.files(dataset.storage, "source") == wanted[-1]


def test_no_change_no_commit(dataset: Dataset, parts: list[PartFile]) -> None:
    for some in (parts[:2], parts[:2], parts[1::-1]):
        assert delta.commit(dataset.storage, "source", SOURCE, some) == 0
    assert delta.latest(dataset.storage, "source") == 0
    assert delta.latest(dataset.storage, "nothing") == -1


def test_an_empty_table_is_a_table(dataset: Dataset) -> None:
    assert delta.commit(dataset.storage, "source", SOURCE, []) == 0
    assert delta.files(dataset.storage, "source") == []
    assert delta.schema(dataset.storage, "source").equals(SOURCE, check_metadata=True)


def test_schema_may_change_while_parts_stay(dataset: Dataset, parts: list[PartFile]) -> None:
    delta.commit(dataset.storage, "source", SOURCE, parts)
    wider = SOURCE.append(pa.field("licence", pa.string()))
    number = delta.commit(dataset.storage, "source", wider, parts[1:])
    assert delta.schema(dataset.storage, "source", number).names == wider.names
    assert delta.files(dataset.storage, "source", number) == parts[1:]
    assert delta.files(dataset.storage, "source", 0) == parts
    assert delta.schema(dataset.storage, "source", 0).equals(SOURCE, check_metadata=True)


def test_data_files_are_not_touched(dataset: Dataset, parts: list[PartFile]) -> None:
    before = {p: dataset.storage.read(p) for p in dataset.storage.list("source")}
    delta.commit(dataset.storage, "source", SOURCE, parts)
    delta.commit(dataset.storage, "source", SOURCE, parts[:1])
    after = {p: dataset.storage.read(p) for p in dataset.storage.list("source") if p.endswith(".parquet")}
    assert after == before


def test_other_readers_see_vectors_as_lists_of_float32(dataset: Dataset, write_part: Callable[..., PartFile]) -> None:
    schema = pa.schema([SAMPLE_ID, vector("clip", 4, "of the image"), score("clip_score", "clip", 1, "cosine")])
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6, 4)).astype(np.float16)
    rows = [{"sample_id": i, "clip": list(v), "clip_score": 0.5} for i, v in enumerate(vectors)]
    part = write_part(dataset, "embeddings", 0, rows, schema)
    delta.commit(dataset.storage, "embeddings", schema, [part])
    place = dataset.storage.child("embeddings")
    table = DeltaTable(place.uri, storage_options=place.delta_options())
    assert table.to_pyarrow_table().schema.field("clip").type == pa.list_(pa.float32())
    for read in (table.to_pyarrow_table(), pa.table(table.scan().read_all())):
        seen = np.array(read.sort_by("sample_id").column("clip").to_pylist(), np.float32)
        np.testing.assert_array_equal(seen, vectors.astype(np.float32))
    assert delta.schema(dataset.storage, "embeddings").field("clip_score").metadata[b"role"] == b"score"


@pytest.mark.parametrize(
    ("kind", "registered"),
    [
        (pa.float16(), pa.float32()),
        (pa.list_(pa.float16(), 512), pa.list_(pa.float32())),
        (pa.large_list(pa.uint8()), pa.list_(pa.int16())),
        (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.uint64(), pa.int64()),
        (pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.timestamp("s"), pa.timestamp("us")),
        (pa.time64("us"), pa.string()),
        (pa.duration("ms"), pa.string()),
        (pa.null(), pa.string()),
        (pa.decimal256(50, 2), pa.string()),
        (pa.decimal128(10, 2), pa.decimal128(10, 2)),
        (pa.struct([("x", pa.float16())]), pa.struct([("x", pa.float32())])),
        (pa.map_(pa.string(), pa.uint32()), pa.map_(pa.string(), pa.int64())),
        (pa.binary(16), pa.binary()),
        (pa.date64(), pa.date32()),
    ],
    ids=str,
)
def test_every_arrow_type_can_be_registered(local_dataset: Dataset, kind: pa.DataType, registered: pa.DataType) -> None:
    delta.commit(local_dataset.storage, "odd", pa.schema([("x", kind)]), [])
    assert delta.schema(local_dataset.storage, "odd").field("x").type == registered


def test_bad_parts_are_refused_and_change_nothing(dataset: Dataset, parts: list[PartFile]) -> None:
    delta.commit(dataset.storage, "source", SOURCE, parts[:2])
    missing = PartFile("source/ff.parquet", 3, 100)
    longer = PartFile(parts[2].path, 3, parts[2].bytes + 1)
    for bad, error, words in (
        ([*parts, missing], DamagedError, "source/ff.parquet is damaged: it does not exist"),
        ([longer], DamagedError, f"has {parts[2].bytes} bytes, expected {parts[2].bytes + 1}"),
        ([parts[0], parts[0]], BalanceError, "listed twice"),
    ):
        with pytest.raises(error, match=words):
            delta.commit(dataset.storage, "source", SOURCE, bad)
    assert delta.latest(dataset.storage, "source") == 0
    assert delta.files(dataset.storage, "source") == parts[:2]


def test_what_is_not_there_is_one_line(dataset: Dataset, parts: list[PartFile]) -> None:
    delta.commit(dataset.storage, "source", SOURCE, parts)
    for table, version, message in (
        ("source", 9, "birds/source has no such commit"),
        ("no", None, "birds has no table 'no'"),
    ):
        with pytest.raises(NotFoundError, match=message) as caught:
            delta.files(dataset.storage, table, version)
        assert "\n" not in str(caught.value)


def test_names_that_differ_in_case_only_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="'URL' and 'url' differ only in case"):
        delta.commit(dataset.storage, "t", pa.schema([("URL", pa.string()), ("url", pa.string())]), [])


def test_racing_commits_all_happen(dataset: Dataset, parts: list[PartFile]) -> None:
    wanted = [parts[:n] for n in (1, 2, 3, 4, 5)]
    with ThreadPoolExecutor(5) as pool:
        numbers = list(pool.map(lambda some: delta.commit(dataset.storage, "source", SOURCE, some), wanted))
    assert sorted(numbers) == [0, 1, 2, 3, 4]
    for number, some in zip(numbers, wanted, strict=True):
        assert delta.files(dataset.storage, "source", number) == some


def test_of_racing_appends_to_one_number_one_wins(dataset: Dataset, parts: list[PartFile]) -> None:
    def append(part: PartFile) -> bool:
        try:
            delta.append(dataset.storage, "source", SOURCE, part, -1)
        except delta.OvertakenError:
            return False
        return True

    with ThreadPoolExecutor(5) as pool:
        won = list(pool.map(append, parts))
    assert sum(won) == 1
    assert delta.files(dataset.storage, "source") == [parts[won.index(True)]]


def test_old_commits_survive_checkpoints(local_dataset: Dataset, write_part: Callable[..., PartFile]) -> None:
    parts = [write_part(local_dataset, "source", number, source_rows(number)) for number in range(2)]
    for turn in range(120):
        delta.commit(local_dataset.storage, "source", SOURCE, parts[: 1 + turn % 2])
    log = local_dataset.storage.list("source/_delta_log")
    assert any("checkpoint" in path for path in log)
    for number in (0, 1, 57, 119):
        assert delta.files(local_dataset.storage, "source", number) == parts[: 1 + number % 2]


def test_remove_takes_parts_out(dataset: Dataset, parts: list[PartFile]) -> None:
    delta.commit(dataset.storage, "source", SOURCE, parts)
    delta.remove(dataset.storage, "source", [parts[1].path, "source/nothing.parquet"])
    assert delta.files(dataset.storage, "source") == [parts[0], *parts[2:]]
