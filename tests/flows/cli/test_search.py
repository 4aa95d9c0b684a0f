"""The commands that find samples: what they answer, and mistakes, with and without vectors in the dataset."""

import json
import os
from pathlib import Path

import pytest

from tests.flows.cli.conftest import check, filled, name_of
from tests.flows.conftest import Run, Web
from tests.flows.vectors import Planted

MISTAKES = [
    ("give one of --text, --image and --like; found none of them", "search", "web"),
    ("--text is empty", "search", "web", "--text", ""),
    ("found --text and --like", "search", "web", "--text", "x", "--like", "1"),
    ("--top is 0, expected at least 1", "search", "web", "--text", "x", "--top", "0"),
    ("--top is -1, expected at least 1", "search", "web", "--text", "x", "--top", "-1"),
    ("--unique is nan, expected a cosine", "search", "web", "--text", "x", "--unique", "nan"),
    ("--unique is 2, expected a cosine", "search", "web", "--text", "x", "--unique", "2"),
    ("'Web' cannot name a dataset", "search", "web", "--text", "x", "--save", "Web"),
    ("'web' is a dataset that was built", "search", "web", "--text", "x", "--save", "web"),
    ("'' cannot name a dataset", "search", "web", "--text", "x", "--save", ""),
    ("web@2 has no embeddings", "search", "web", "--image", "{file}"),
    ("cannot write '/no/such/folder/x.html'", "search", "web", "--text", "x", "--html", "/no/such/folder/x.html"),
    ("it is a folder", "search", "web", "--text", "x", "--html", "{folder}"),
    ("web@2 has no embeddings: its recipe has no stage `use: embed`", "search", "web", "--text", "x"),
    ("web@2 has no embeddings", "index", "web"),
    ("there is: auto, flat, hnsw, ivf, ivfpq, opq", "index", "web", "--kind", "tree"),
    ("--recall is nan, expected a share", "index", "web", "--recall", "nan"),
    ("--recall is 2, expected a share", "index", "web", "--recall", "2"),
    ("--memory-mb is -1, expected more than 0", "index", "web", "--memory-mb", "-1"),
    ("--memory-mb is nan, expected more than 0", "index", "web", "--memory-mb", "nan"),
]
BIRDS = [
    ("--top is 0", "search", "--top", "0"),
    ("--unique is nan", "search", "--unique", "nan"),
    ("--unique is -5", "search", "--unique", "-5"),
    ("no column 'widht'; did you mean 'width'?", "search", "--where", "widht > 1"),
    ("--where is not one SQL condition", "search", "--where", "("),
    ("--where is not one SQL condition", "search", "--where", "1; 2"),
    ("cannot contain aggregates", "search", "--where", "sum(width) > 1"),
    ("disabled", "search", "--where", "width > (select count(*) from read_csv('/etc/passwd'))"),
    ("x", "search", "--where", "error('x')"),
    ("no embedding column 'nope'; there is: clip, clip_text", "search", "--column", "nope"),
    ("cannot write", "search", "--html", "/no/such/folder/x.html"),
    ("it is a folder", "search", "--html", "{folder}"),
    ("'birds' is a dataset that was built", "search", "--save", "birds"),
    ("cannot name a dataset", "search", "--save", "x" * 99),
    ("birds@1 has no sample 99999", "search", "--like", "99999"),
    ("birds@1 has no sample -1", "search", "--like", "-1"),
    ("birds@1 has no sample 9999", "search", "--like", "9" * 30),
    ("it does not exist", "search", "--image", "/no/such.jpg"),
    ("it is a folder", "search", "--image", "{folder}"),
    ("it is a pipe", "search", "--image", "{fifo}"),
    ("it is a device", "search", "--image", "/dev/zero"),
    ("--recall is nan", "index", "--recall", "nan"),
    ("--recall is 0", "index", "--recall", "0"),
    ("--memory-mb is nan", "index", "--memory-mb", "nan"),
    ("--memory-mb is -1", "index", "--memory-mb", "-1"),
    ("there is: auto, flat", "index", "--kind", "tree"),
    ("no embedding column 'nope'; there is: clip, clip_text", "index", "--column", "nope"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=name_of)
def test_a_mistake_is_one_line(built: Web, run: Run, mistake: tuple[str, ...]) -> None:
    expected, *words = mistake
    check(words, *run(*filled(built, words), "--catalog", built.catalog), expected=expected)


def test_a_mistake_about_vectors_is_one_line(built: Web, run: Run, tmp_path: Path) -> None:
    Planted(tmp_path / "catalog").publish([0])
    at = ["--catalog", str(tmp_path / "catalog")]
    for expected, command, *rest in BIRDS:
        words = filled(built, rest)
        like = ["--like", "3"] if command == "search" and not {"--like", "--image"} & set(words) else []
        check([command, *words], *run(command, "birds", *like, *words, *at), expected=expected)
    os.mkfifo(tmp_path / "pipe.jpg")
    words = ["search", "birds", "--image", str(tmp_path / "pipe.jpg"), *at]
    check(words, *run(*words), expected="it is a pipe")


def test_what_a_search_prints(run: Run, tmp_path: Path) -> None:
    """Results are printed as a table or JSON, and how they were found on standard error."""
    Planted(tmp_path).publish([0])
    words = ["search", "birds", "--like", "3", "--catalog", str(tmp_path)]
    code, out, err = run(*words, "--top", "2")
    assert (code, "(2 rows)" in out) == (0, True)
    assert err.startswith("birds@1, clip: exact")
    code, out, _ = run(*words, "--top", "1000000000", "--json")
    assert (code, len(json.loads(out)["hits"])) == (0, 299)
    code, out, _ = run(*words, "--json", "--column", "clip_text", "--where", "width < 10")
    found = json.loads(out)
    assert (code, found["query"]["column"], len(found["hits"])) == (0, "clip_text", 9)
    assert len(json.loads(run(*words, "--json")[1])["hits"]) == 20
