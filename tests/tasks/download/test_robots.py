"""robots.txt: the rules of RFC 9309, and the rule in the evidence."""

import pytest
from yarl import URL

from tasks.download._robots import Robots
from tasks.download._site_files import SiteFile

RULES = """\
User-agent: *
Disallow: /private
Disallow: /*.gif$
Allow: /private/open
Crawl-delay: 2

User-agent: gardener
User-agent: florist
Disallow: /roses
Crawl-delay: 0.5
"""
AT = 1_795_514_400.0  # 2026-11-24T10:00Z


def robots(text: str = RULES, token: str = "espalier", origin: str = "http://photos.example") -> Robots:
    return Robots(SiteFile(origin, text, AT), token)


@pytest.mark.parametrize(
    ("path", "token", "rule"),
    [
        ("/private/cat.jpg", "espalier", "Disallow: /private (user-agent *)"),
        ("/private", "espalier", "Disallow: /private (user-agent *)"),
        ("/private/open/cat.jpg", "espalier", None),  # the longer rule counts
        ("/a/b.gif", "espalier", "Disallow: /*.gif$ (user-agent *)"),
        ("/a/b.gif?x=1", "espalier", None),
        ("/roses/red.jpg", "espalier", None),
        ("/roses/red.jpg", "gardener", "Disallow: /roses (user-agent gardener)"),
        ("/roses/red.jpg", "Gardener", "Disallow: /roses (user-agent gardener)"),
        ("/roses/red.jpg", "florist", "Disallow: /roses (user-agent florist)"),
        ("/private/cat.jpg", "gardener", None),  # our own group replaces `*`
        ("/", "espalier", None),
    ],
)
def test_the_applied_rule_is_the_evidence(path: str, token: str, rule: str | None) -> None:
    refusal = robots(token=token).refusal(URL(f"http://photos.example{path}"))
    expected = rule and f"robots.txt of photos.example: {rule}, fetched 2026-11-24T10:00Z"
    assert refusal == expected


@pytest.mark.parametrize(
    ("named", "token", "ours"),
    [
        ("espalier", "espalier", True),
        ("ESPALIER/1.0", "espalier", True),
        ("Espalier/2.1 (+http://x.example)  # us", "espalier", True),
        ("espalier", "Espalier/1.0", True),
        ("esp", "espalier", False),  # another crawler, whose name ours begins with
        ("espalier-images", "espalier", False),
        ("pal", "espalier", False),
    ],
)
def test_the_group_of_an_agent(named: str, token: str, ours: bool) -> None:
    found = robots(f"User-agent: *\nDisallow: /\n\nUser-agent: {named}\nDisallow: /roses\nCrawl-delay: 3\n", token)
    assert (found.refusal(URL("http://photos.example/a.jpg")) is None) == ours
    assert found.refusal(URL("http://photos.example/roses/a.jpg")) is not None
    assert found.delay_s == (3 if ours else 0)


@pytest.mark.parametrize(("token", "delay_s"), [("espalier", 2), ("gardener", 0.5)])
def test_the_crawl_delay_of_a_group(token: str, delay_s: float) -> None:
    assert robots(token=token).delay_s == delay_s


@pytest.mark.parametrize(
    "text", ["", "<html><body>404</body></html>", "\0\0\xff", "Disallow: /", "User-agent: *\nDisallow:"]
)
def test_files_that_forbid_nothing(text: str) -> None:
    found = robots(text)
    assert (found.refusal(URL("http://photos.example/a.jpg")), found.delay_s) == (None, 0)


def test_spellings_of_one_path_are_one_path() -> None:
    found = robots("\ufeffUser-Agent: *\r\nDisallow: /caf%C3%A9/\r\nDisallow: /a b\r\nDisallow: /x$y")
    for path in ("/café/1.jpg", "/caf%c3%a9/1.jpg", "/a%20b", "/x$y/1"):
        assert found.refusal(URL(f"http://photos.example{path}")), path
    assert found.refusal(URL("http://photos.example/xy")) is None


def test_evidence_is_short_and_names_the_port() -> None:
    found = robots(f"User-agent: *\nDisallow: /{'a' * 5000}*", origin="https://photos.example:8443")
    refusal = found.refusal(URL(f"https://photos.example:8443/{'a' * 5000}.jpg"))
    assert refusal is not None
    assert refusal.startswith("robots.txt of photos.example:8443: Disallow: /aaa")
    assert len(refusal) < 200


@pytest.mark.timeout(120)
def test_a_hostile_file_takes_bounded_time() -> None:
    """Wildcards that make a backtracking matcher take exponential time, and as many rules as fit."""
    rules = "".join(f"Disallow: /{i}*a*a*a*a*a*a*a*a*b$\n" for i in range(15_000))
    found = robots(f"User-agent: *\n{rules}"[: 500 << 10])
    assert found.refusal(URL(f"http://photos.example/1{'a' * 2000}")) is None
