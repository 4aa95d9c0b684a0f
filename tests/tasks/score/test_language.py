import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from catalog.errors import RecipeError
from catalog.schema import SOURCE
from tasks.score import Score
from tasks.score.language import MODEL_SHA256, Language, identified, load, model_path

SENTENCES = {
    "en": "A man in a red jacket walks his dog along the beach.",
    "de": "Ein Mann mit roter Jacke führt seinen Hund am Strand spazieren.",
    "fr": "Un homme en veste rouge promène son chien sur la plage.",
    "es": "Un hombre con chaqueta roja pasea a su perro por la playa.",
    "ru": "Мужчина в красной куртке гуляет с собакой по пляжу.",
    "ja": "赤いジャケットを着た男性が浜辺で犬の散歩をしている。",
    "zh": "一个穿红夹克的男人在海滩上遛狗。",
    "ar": "رجل يرتدي سترة حمراء يمشي مع كلبه على الشاطئ.",
}


def run(captions: Sequence[str | None], rows: int = 100) -> pa.Table:
    table = pa.table({"sample_id": pa.array(range(len(captions)), pa.int64()), "caption": pa.array(captions)})
    step = Language().open("cpu", {})
    return pa.concat_tables(step(table.slice(i, rows) for i in range(0, len(captions), rows)))


def test_the_model_is_fasttexts() -> None:
    assert hashlib.sha256(Path(model_path()).read_bytes()).hexdigest() == MODEL_SHA256


def test_languages_are_distinguished() -> None:
    found = run(list(SENTENCES.values()))
    assert found.column("language").to_pylist() == list(SENTENCES)
    assert all(0.5 < score <= 1 for score in found.column("language_score").to_pylist())


def test_line_breaks_are_spaces_and_nothing_else_is_changed() -> None:
    text = SENTENCES["de"]
    broken, joined, lower = run([text.replace(" ", "\n", 3), text, text.upper()]).to_pylist()
    assert (broken["language"], broken["language_score"]) == (joined["language"], joined["language_score"])
    assert lower["language_score"] != joined["language_score"]


def test_missing_text_has_no_language() -> None:
    found = run([None, "", "  \n\t", SENTENCES["en"]])
    assert found.column("language").to_pylist() == [None, None, None, "en"]
    assert found.column("language_score").null_count == 3


@pytest.mark.parametrize(
    "text", [b"caf\xe9 \xff", b"NUL \0 inside the text", b"x" * 300_000, "\ud800".encode("utf-8", "surrogatepass")]
)
def test_any_bytes_have_a_result(text: bytes) -> None:
    column = pa.chunked_array([pa.Array.from_buffers(pa.string(), 1, pa.array([text], pa.binary()).buffers())])
    languages, scores = identified(column, load())
    assert languages[0].is_valid
    assert 0 < scores[0].as_py() <= 1


def test_results_do_not_depend_on_batches_and_equal_texts_are_identified_once() -> None:
    captions = [*SENTENCES.values(), None, *SENTENCES.values()]
    assert run(captions).equals(run(captions, 3))
    asked = []
    identified(pa.chunked_array([pa.array(captions)]), lambda line: (asked.append(line), 1.0) and ("en", 1.0))
    assert sorted(asked) == sorted(SENTENCES.values())


def test_no_rows() -> None:
    languages, scores = identified(pa.chunked_array([pa.array([], pa.string())]), load())
    assert len(languages) == len(scores) == 0


def test_a_missing_column_and_one_that_is_not_text() -> None:
    with pytest.raises(RecipeError, match=r"no column 'captoin'; did you mean 'caption'\?"):
        Language(column="captoin").inputs({"source": SOURCE})
    with pytest.raises(RecipeError, match="is int64; expected text"):
        Language(column="sample_id").inputs({"source": SOURCE})
    assert Language().inputs({"source": SOURCE}) == {"source": ("caption",)}
    assert Language().output({}).names == ["sample_id", "language", "language_score"]


def test_it_is_a_scorer_and_a_stage() -> None:
    (stage,) = Score(scorers=[{"use": "language", "column": "title"}]).expand()
    assert stage == Language(column="title")
    assert (stage.name, stage.table) == ("language", "languages")


def test_no_downloader_is_loaded() -> None:
    code = "import sys; from tasks.score.language import load; load(); print('robust_downloader' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
