"""The ledger: what is listed is hidden, nothing else; and what it keeps says nothing to who has not got the row."""

from pathlib import Path

import pyarrow as pa
import pytest

from catalog.dataset import Catalog, Dataset
from catalog.errors import UserError
from catalog.schema import FAILED, TAKEN_URL
from catalog.takedown.ledger import REASON, STATE, Ledger, check_none_pending
from catalog.takedown.reach import Names

URL = "https://host.example/a.jpg"
SHA = "ab" * 32


@pytest.fixture
def ledger() -> Ledger:
    empty = Ledger(key="01" * 32)
    return empty.ordered(empty.digests(Names(frozenset([URL]), frozenset([SHA]))), {}).done({"at": "now"})


def test_source_rows_lose_everything_but_their_id(ledger: Ledger) -> None:
    rows = pa.table(
        {
            "sample_id": pa.array([1, 2, 3]),
            "url": pa.array([URL, URL + "?", None]),
            "caption": ["a", "b", "c"],
            "status": pa.array([7, 8, 9]),  # a column of the user's, which only happens to be called so
            "tags": pa.array([["x"], ["y"], None]),
            "box": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        }
    )
    hidden = ledger.hide_source(rows)
    assert hidden.schema == rows.schema
    assert hidden.slice(1) == rows.slice(1)
    nothing = {"caption": None, "status": None, "tags": None, "box": None}
    assert hidden.to_pylist()[0] == {"sample_id": 1, "url": TAKEN_URL} | nothing
    assert Ledger().hide_source(rows) is rows


def test_images_are_known_by_url_by_where_it_led_and_by_bytes(ledger: Ledger) -> None:
    rows = pa.table(
        {
            "sample_id": pa.array([1, 2, 3, 4]),
            "status": ["failed", "success", "success", "success"],
            "reason": pa.array(["bad_scheme", None, None, None], pa.string()),
            "sha256": pa.array([None, "cd" * 32, SHA.upper(), "ef" * 32]),
            "final_url": pa.array([None, URL, None, None], pa.string()),
            "url": [TAKEN_URL, "http://x/2", "http://x/3", "http://x/4"],
            "image": pa.array([None, b"2", b"3", b"4"], pa.large_binary()),
        }
    )
    hidden = ledger.hide_images(rows)
    assert hidden.slice(3) == rows.slice(3)
    for row in hidden.to_pylist()[:3]:
        assert {k: v for k, v in row.items() if v is not None and k != "sample_id"} == {
            "status": FAILED,
            "reason": REASON,
            "url": TAKEN_URL,
        }


def test_text_is_scrubbed_of_listed_urls_alone(ledger: Ledger) -> None:
    text = f'see "{URL}" and <{URL}>, not {URL}x'
    assert ledger.scrubbed(text) == f'see "{TAKEN_URL}" and <{TAKEN_URL}>, not {URL}x'
    assert ledger.scrubbed(URL) == TAKEN_URL


def test_it_is_kept_and_says_nothing(tmp_path: Path, ledger: Ledger) -> None:
    dataset = Catalog(tmp_path, create=True).dataset("birds")
    ledger.save(dataset.storage)
    assert Ledger.read(dataset.storage) == ledger
    kept = dataset.storage.read(f"_state/{STATE}.json").decode()
    assert URL not in kept
    assert SHA not in kept
    assert Ledger().url(URL) != Ledger().url(URL), "every dataset has a key of its own"


def test_nothing_is_planned_while_one_is_pending(local_dataset: Dataset, ledger: Ledger) -> None:
    check_none_pending(local_dataset)
    ledger.ordered({}, {"sample_ids": []}).save(local_dataset.storage)
    with pytest.raises(UserError, match=r"was interrupted; .* espalier takedown birds"):
        check_none_pending(local_dataset)
