"""Failed rows are counted by reason; one line shows how many there are, and the most frequent reasons."""

import pyarrow as pa

from catalog.schema import SAMPLE_ID
from catalog.version import TableState, VersionFacts
from flows.build.failed_rows import UNKNOWN, FailedRows, count_failed, failed_rows
from tests.flows.shelf import Shelf


def test_the_line_of_failed_rows(shelf: Shelf) -> None:
    reasons = ["timeout"] * 3 + ["dns_failed"] * 3 + ["not_found"] * 2 + ["tls_failed", "bad_url"]
    version = shelf.publish([shelf.images(0, [None, *reasons])], [shelf.samples(0, 1)])
    failed = failed_rows(shelf.dataset, version)
    assert failed is not None
    assert failed.line("espalier errors web") == (
        "10 of 11 rows failed: 3 dns_failed, 3 timeout, 2 not_found, 2 for 2 other reasons; "
        "`espalier errors web` shows them"
    )
    assert failed.describe() == {
        "rows": 10,
        "of": 11,
        "reasons": {"dns_failed": 3, "timeout": 3, "not_found": 2, "bad_url": 1, "tls_failed": 1},
    }


def test_a_line_of_few_reasons() -> None:
    assert FailedRows(1200, {}).line("x") == "0 of 1,200 rows failed"
    assert FailedRows(1, {"timeout": 1}).line("x") == "1 of 1 row failed: 1 timeout; `x` shows them"
    four = FailedRows(9000, {"timeout": 4000, "bad_url": 3, "tls_failed": 2, "not_found": 1})
    assert four.line("x") == (
        "4,006 of 9,000 rows failed: 4,000 timeout, 3 bad_url, 2 tls_failed, 1 for 1 other reason; `x` shows them"
    )
    assert four.rows == 4006


def test_only_a_version_with_images_has_failed_rows(shelf: Shelf) -> None:
    assert count_failed(shelf.dataset, []) == FailedRows(0, {})
    assert failed_rows(shelf.dataset, shelf.publish()) == FailedRows(0, {})
    samples = TableState(pa.schema([SAMPLE_ID]), [shelf.samples(0, 2)])
    bare = shelf.dataset.publish({"samples": samples}, VersionFacts("", "f" * 64, ""))
    assert failed_rows(shelf.dataset, bare) is None


def test_a_failure_without_a_reason_is_counted_as_unknown(shelf: Shelf) -> None:
    part = shelf.part(
        "images", 0, [{"status": "failed"}, {"status": "success"}, {"status": "failed", "reason": "bad_url"}]
    )
    found = count_failed(shelf.dataset, [part, shelf.images(1, ["bad_url"])])
    assert list(found.reasons.items()) == [("bad_url", 2), (UNKNOWN, 1)]
    assert found.of == 4
