"""robots.txt: which URLs of a host a crawler may ask for, by which rule, and how far apart.

Source: RFC 9309, parsed by protego: the most specific group of our name or of `*`, in it the longest rule that matches,
`Allow` before `Disallow`. `Crawl-delay` is no part of the RFC, and is obeyed too.
"""

from typing import Final

from protego import Protego
from protego._utils import _quote_path
from yarl import URL

from tasks.download.site_files import SiteFile

PATH: Final = "/robots.txt"
AGENT: Final = "espalier"
"""The product token that we answer to where a recipe gives none."""
_RULE_CHARACTERS: Final = 80


class Robots:
    """One host's rules for the agent `token`. A host without the file (empty text) allows everything."""

    def __init__(self, file: SiteFile, token: str) -> None:
        self._file = file
        self._token = token
        self._rules = Protego.parse(file.text.removeprefix("\ufeff")) if file.text else None
        delay_s = self._rules.crawl_delay(token) if self._rules else None
        self.delay_s: float = delay_s or 0.0
        """Seconds from one request to the next that `Crawl-delay` asks for; 0 where it asks for nothing."""

    def refusal(self, url: URL) -> str | None:
        """Return the rule that forbids a URL, as evidence, or None where it may be asked for."""
        text = str(url.with_fragment(None))
        if self._rules is None or self._rules.can_fetch(text, self._token):
            return None
        host = self._file.origin.partition("://")[2]
        return f"robots.txt of {host}: {self._rule(text)}, fetched {self._file.when}"

    def _rule(self, url: str) -> str:
        """Return the rule that forbids a URL. Protego says whether, not why: this looks where it looks."""
        assert self._rules is not None
        group = self._rules._get_matching_rule_set(self._token)
        assert group is not None
        path = _quote_path(url)
        rule = next(r.value._pattern for r in group._rules if r.field == "disallow" and r.value.match(path))
        return f"Disallow: {rule[:_RULE_CHARACTERS]} (user-agent {group.user_agent})"
