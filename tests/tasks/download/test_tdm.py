"""TDM reservations: the first matching rule applies, a header overrides it, a malformed file reserves nothing."""

import json
from collections.abc import Sequence

import pytest
from yarl import URL

from tasks.download._site_files import SiteFile
from tasks.download._tdm import MOST_RULES, Reservations, header_evidence, header_says

POLICY = "https://photos.example/policies/1"
RULES = [
    {"location": "/open/", "tdm-reservation": 0},
    {"location": "/raw/*.png$", "tdm-reservation": "1"},
    {"location": "/studio/", "tdm-reservation": 1, "tdm-policy": POLICY},
    {"location": "/studio/free/", "tdm-reservation": 0},
]


def reservation(rules: Sequence[object] | str, path: str) -> str | None:
    text = rules if isinstance(rules, str) else json.dumps(rules)
    file = SiteFile("https://photos.example", text, 1_795_514_400.0)
    return Reservations(file).reservation(URL(f"https://photos.example{path}"))


@pytest.mark.parametrize(
    ("path", "evidence"),
    [
        ("/open/a.jpg", None),
        ("/raw/deep/a.png", "location /raw/*.png$"),
        ("/raw/a.png?size=2", None),
        ("/studio/a.jpg", f"location /studio/, tdm-policy {POLICY}"),
        ("/studio/free/a.jpg", f"location /studio/, tdm-policy {POLICY}"),  # the first in sequence
        ("/Studio/a.jpg", None),
        ("/elsewhere.jpg", None),
    ],
)
def test_the_first_rule_that_matches_applies(path: str, evidence: str | None) -> None:
    expected = evidence and f"tdmrep.json of photos.example: {evidence}, fetched 2026-11-24T10:00Z"
    assert reservation(RULES, path) == expected


@pytest.mark.parametrize("location", ["/", "*", "/*"])
@pytest.mark.parametrize("said", [1, "1", " 1", 1.0, True])
def test_one_rule_can_reserve_everything(location: str, said: str | float | bool) -> None:
    assert reservation([{"location": location, "tdm-reservation": said}], "/a/b.jpg")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[" * 100_000, "null", "7", "[{}]", '[{"location": 1}]',
        '{"location": "/", "tdm-reservation": 1}', '["/"]',
        '[{"location": "", "tdm-reservation": 1}]', '[{"location": "/\\nAllow: /", "tdm-reservation": 1}]',
        '[{"location": "/"}]', '[{"location": "/", "tdm-reservation": 2}]', "<html>not found</html>",
    ],
)  # fmt: skip
def test_malformed_rules_reserve_nothing(text: str) -> None:
    assert reservation(text, "/a.jpg") is None


def test_a_location_may_hold_a_hash_and_a_long_policy_is_cut() -> None:
    rules = [{"location": "/a%23b", "tdm-reservation": 1, "tdm-policy": "https://p.example/" + "x" * 500}]
    evidence = reservation(rules, "/a%23b.jpg")
    assert evidence is not None
    assert len(evidence) < 200
    assert reservation([{"location": "/a#b", "tdm-reservation": 1}], "/a") is None


def test_rules_are_read_up_to_the_limit() -> None:
    rules = [{"location": f"/{i}/", "tdm-reservation": 1} for i in range(MOST_RULES + 1)]
    assert reservation(rules, f"/{MOST_RULES - 1}/a.jpg")
    assert reservation(rules, f"/{MOST_RULES}/a.jpg") is None


@pytest.mark.parametrize(("value", "says"), [("1", True), (" 1 ", True), ("0", False), ("", None), ("yes", None)])
def test_headers(value: str, says: bool | None) -> None:
    assert header_says({"tdm-reservation": value}) is says
    assert header_says({}) is None
    assert header_evidence({"tdm-policy": POLICY}) == f"tdm-reservation: 1, tdm-policy {POLICY}"
