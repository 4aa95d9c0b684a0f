"""The folders for files that can be fetched again."""

from pathlib import Path

import pytest

from tasks.files.cache import cache_folder


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("robots") == tmp_path / "espalier" / "robots"
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # as if it were not set
    assert cache_folder("weights") == Path.home() / ".cache" / "espalier" / "weights"
