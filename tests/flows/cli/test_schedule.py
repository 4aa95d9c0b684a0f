"""The commands that build on a schedule: what they refuse. Their builds are tested with Prefect, in flows/schedule."""

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.flows.cli.conftest import check, filled, name_of
from tests.flows.conftest import Run, Web

NOWHERE = "http://127.0.0.1:1/api"
"""The address of a server that a mistake is found without."""
MISTAKES = [
    ("no recipe '/no/such.yaml'", "deploy", "/no/such.yaml", "--cron", "0 3 * * *"),
    ("--cron", "deploy", "{recipe}"),
    ("--cron 'every day' or --timezone 'UTC' is wrong", "deploy", "{recipe}", "--cron", "every day"),
    ("--cron '' or --timezone 'UTC' is wrong", "deploy", "{recipe}", "--cron", ""),
    ("'Mars/Olympus' is wrong", "deploy", "{recipe}", "--cron", "0 3 * * *", "--timezone", "Mars/Olympus"),
    ("--limit", "worker", "--limit", "0"),
    ("unexpected extra argument", "worker", "extra"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=name_of)
def test_a_mistake_is_one_line(built: Web, run: Run, mistake: tuple[str, ...]) -> None:
    expected, *words = mistake
    catalog = ["--catalog", built.catalog] if words[0] == "deploy" else []
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        check(words, *run(*filled(built, words), *catalog), expected=expected)


@pytest.mark.parametrize(
    "words", [["deploy", "{recipe}", "--cron", "0 3 * * *"], ["worker"]], ids=lambda words: words[0]
)
def test_a_schedule_needs_a_lasting_server(
    built: Web, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):  # other tests of this session may have a server
        check(words, *run(*filled(built, words)), expected="prefect server start")
