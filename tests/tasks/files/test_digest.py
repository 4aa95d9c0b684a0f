"""A file is its content: moving it changes nothing, changing it does."""

import hashlib
import os
from pathlib import Path

from tasks.files.digest import digest_of


def test_the_digest_is_of_the_content_as_it_is_now(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a")
    assert digest_of(one) == hashlib.sha256(b"a").hexdigest()
    one.rename(other)
    assert digest_of(other) == hashlib.sha256(b"a").hexdigest()
    other.write_bytes(b"b")
    os.utime(other, ns=(1, 1))
    assert digest_of(other) == hashlib.sha256(b"b").hexdigest()
