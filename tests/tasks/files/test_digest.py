"""Digests depend on the content of a file: moving it changes nothing."""

import hashlib
import os
from pathlib import Path

from tasks.files.digest import digest_of


def test_the_digest_is_that_of_the_current_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a")
    assert digest_of(one) == hashlib.sha256(b"a").hexdigest()
    one.rename(other)
    assert digest_of(other) == hashlib.sha256(b"a").hexdigest()
    other.write_bytes(b"b")
    os.utime(other, ns=(1, 1))
    assert digest_of(other) == hashlib.sha256(b"b").hexdigest()
