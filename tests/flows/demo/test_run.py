"""The whole demo, small: planted, served, built as a flow, and held against the truth."""

import json
from pathlib import Path

import pytest

import flows.demo.run as demo

LEARNT = ("rows in a cluster of their concept", "wrong captions score low (AUC)")
"""What a model that was hardly trained need not reach."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_a_small_demo_finds_what_was_planted(
    tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = tmp_path / "demo.yaml"
    quick.write_text(demo.RECIPE.read_text().replace("steps: 200", "steps: 8").replace("k: 60", "k: 12"))
    for name in ("ESPALIER_DEMO_URLS", "ESPALIER_DEMO_HOST"):
        monkeypatch.setenv(name, "set by the demo")
    catalog = str(tmp_path / "catalog")
    demo.run(catalog, 300, "inline", as_json=True, recipe=quick)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert len(checks) == 11
    for name, check in checks.items():
        assert check["passed"] or name in LEARNT, check
    demo.run(catalog, 300, "inline", as_json=False, recipe=quick)  # everything is cached now
    facts = capsys.readouterr().out
    for word in ("Scoreboard", "of 11 checks passed", "Look at the report", "espalier errors demo"):
        assert word in facts
