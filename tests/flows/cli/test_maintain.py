"""The commands that check a catalog or remove something from it: what they show before they do it, and mistakes."""

import io
import json
from pathlib import Path

import pytest

from tests.flows.cli.conftest import check, filled, name_of
from tests.flows.conftest import Run, Web

MISTAKES = [
    ("keep_versions is 0, expected at least 1", "gc", "web", "--keep-versions", "0"),
    ("keep_versions is -1, expected at least 1", "gc", "web", "--keep-versions", "-1"),
    ("--keep-versions", "gc", "web", "--keep-versions", "x"),
    ("cannot be -1 hours old", "gc", "web", "--older-than-h", "-1"),
    ("cannot be nan hours old", "gc", "web", "--older-than-h", "nan"),
    ("did you mean 'web'?", "verify", "wep"),
    ("no version 9; there is: 1, 2", "verify", "web@9"),
    ("nothing to take down: name the rows with --file", "takedown", "web"),
    ("'all' is not one of 'none', 'bytes'", "takedown", "web", "--file", "{file}", "--copies", "all"),
    ("'/no/such.csv': it does not exist", "takedown", "web", "--file", "/no/such.csv"),
    ("it is a folder, expected a file", "takedown", "web", "--file", "{folder}"),
    ("it is a pipe without a writer", "takedown", "web", "--file", "{fifo}"),
    ("it is a device, expected a file", "takedown", "web", "--file", "/dev/zero"),
    ("it does not exist", "takedown", "web", "--file", "{file}\0"),
    ("has two columns 'url'", "takedown", "web", "--file", "{folder}/twice.csv"),
    ("cannot read", "takedown", "web", "--file", "{binary}"),
    ("cannot read", "takedown", "web", "--file", "{binary}.parquet"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=name_of)
def test_a_mistake_is_one_line(built: Web, run: Run, mistake: tuple[str, ...]) -> None:
    expected, *words = mistake
    check(words, *run(*filled(built, words), "--catalog", built.catalog), expected=expected)


def test_gc_shows_before_it_deletes(own: str, run: Run) -> None:
    words = ["gc", "web", "--catalog", own, "--keep-versions", "1", "--older-than-h", "0", "--json"]
    _, out, _ = run(*words)
    shown = json.loads(out)
    assert shown["files"]
    assert not shown["deleted"]
    _, out, _ = run(*words, "--delete")
    assert json.loads(out)["files"] == shown["files"]
    _, out, _ = run("sql", "select count(*) as n from web.samples", "--catalog", own, "--format", "json")
    assert json.loads(out) == [{"n": 2}]
    assert run("show", "web@1", "--catalog", own)[0] == 2


def test_verify_names_damage_until_it_is_repaired(own: str, run: Run) -> None:
    where = ["web", "--catalog", own]
    assert run("verify", *where)[0] == 0
    shard = next(Path(own, "web", "shards").rglob("*.tar"))
    name = shard.relative_to(Path(own, "web")).as_posix()
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    code, out, _ = run("verify", *where)
    assert code == 1
    assert out.splitlines()[0].startswith(f"{name}: digest: SHA-256 is ")
    assert "1 damaged file;" in out.splitlines()[-1]
    code, out, _ = run("verify", *where, "--json")
    assert (code, [damage["path"] for damage in json.loads(out)["damages"]]) == (1, [name])
    code, out, _ = run("verify", *where, "--repair")
    assert code == 0
    assert f"{name}: set aside" in out
    assert [path.name for path in Path(own, "web/_quarantine").rglob("*.tar")] == [shard.name]
    code, out, _ = run("gc", *where, "--older-than-h", "0")
    assert code == 0
    assert "1 damaged file set aside by `verify --repair`:" in out


def test_takedown_erases_with_yes_and_keeps_a_record(own: str, run: Run, tmp_path: Path) -> None:
    where = ["web", "--catalog", own]
    _, out, _ = run("sql", "select url from web.source where sample_id = 0", "--catalog", own, "--format", "json")
    url = json.loads(out)[0]["url"]
    file = tmp_path / "ids.csv"
    file.write_text(f"url\n{url}\n")
    code, out, _ = run("takedown", *where, "--file", str(file), "--dry-run")
    assert code == 0
    assert "2 samples would be taken down" in out
    code, out, _ = run("takedown", *where, "--file", str(file), "--reason", "asked to", "--json", "--yes")
    assert (code, json.loads(out)["published"]) == (0, "web@3")
    code, out, _ = run("takedown", *where, "--list")
    assert code == 0
    assert "asked to" in out
    words = ["takedown", *where, "--file", str(file), "-y"]
    check(words, *run(*words), expected="taken down before")
    words = ["why", "web", url, "--catalog", own]
    check(words, *run(*words), expected="was taken down: espalier takedown web --list")


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def test_nothing_is_erased_unasked(own: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal --yes is required; on one, what is reached is listed, and only a yes erases."""
    file = tmp_path / "ids.csv"
    file.write_text("sample_id\n1\n")
    words = ["takedown", "web", "--catalog", own, "--file", str(file)]
    before = _files(own)
    check(words, *run(*words), expected="give --yes, or --dry-run to look")
    for typed, expected in (("n\n", 2), ("y\n", 0)):
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", Terminal(typed))
            patch.setattr("sys.stderr.isatty", lambda: True, raising=False)
            code, out, err = run(*words, "--copies", "none")
        assert code == expected
        listed = " ".join(err.split())
        assert "1 sample would be taken down" in listed
        assert "samples by --copies: none 1, bytes 2, pixels 2, duplicates 2; this take-down used none" in listed
        if expected:
            assert "nothing was erased" in err
            assert _files(own) == before
    assert "1 sample taken down" in out


def _files(catalog: str) -> dict[Path, bytes]:
    """Return what the files of a catalog have, but for its lease."""
    return {p: p.read_bytes() for p in Path(catalog).rglob("*") if p.is_file() and p.name != "_lease"}
