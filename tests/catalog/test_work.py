"""The work folder: in the dataset of a local catalog, otherwise in the machine's temporary folder."""

import stat
import tempfile
from pathlib import Path

import pytest

from catalog import work
from catalog.storage import Storage


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a temporary folder of this test alone."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_folder_of_a_local_dataset_is_in_it(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "birds", create=True)
    assert work.folder(storage) == tmp_path / "birds" / "_work"


def test_naming_the_folder_does_not_create_it(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "birds", create=True)
    assert not work.folder(storage).exists()


def test_making_the_folder_twice_keeps_its_files(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "birds", create=True)
    (work.make(storage) / "checkpoint").write_text("x")
    assert (work.make(storage) / "checkpoint").read_text() == "x"


def test_datasets_in_object_stores_have_a_folder_each(temporary: Path, bucket: str) -> None:
    birds, cats = (work.folder(Storage.open(f"{bucket}/{name}", create=True)) for name in ("birds", "cats"))
    assert birds != cats
    assert birds == work.folder(Storage.open(f"{bucket}/birds", create=True))
    assert birds.is_relative_to(temporary)


def test_the_folder_for_an_object_store_is_closed_to_other_users(temporary: Path, bucket: str) -> None:
    place = work.make(Storage.open(f"{bucket}/birds", create=True))
    assert place.is_relative_to(temporary)
    assert place.is_dir()
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
