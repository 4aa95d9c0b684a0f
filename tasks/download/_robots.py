"""robots.txt: which URLs of a host a crawler may request, by which rule, and at which interval.

Source: RFC 9309, parsed by protego: the group of our name, or else that of `*`; in it the longest rule that matches,
`Allow` before `Disallow`. `Crawl-delay` is not part of the RFC, and is obeyed too. If a file names agents with a
version, as in `User-agent: name/1.0`, the version is ignored.
"""

import re
from typing import Any, Final

from protego import Protego
from protego._utils import _quote_path
from yarl import URL

from tasks.download._site_files import SiteFile

PATH: Final = "/robots.txt"
AGENT: Final = "espalier"
"""Our product token unless the recipe specifies one."""
_RULE_CHARACTERS: Final = 80
_VERSION: Final = re.compile(r"(?im)^([ \t]*user-?agent[ \t]*:[ \t]*[a-z0-9._-]+)/[^\r\n#]*")


class Robots:
    """One host's rules for the agent `token`. A host without the file (empty text) allows everything."""

    def __init__(self, file: SiteFile, token: str) -> None:
        self._file = file
        self._group = _group(file.text.removeprefix("\ufeff"), token.partition("/")[0].strip().lower())
        self.delay_s: float = (self._group.crawl_delay if self._group else None) or 0.0
        """Seconds between requests that `Crawl-delay` asks for; 0 without it."""

    def refusal(self, url: URL) -> str | None:
        """Return the rule that forbids a URL, as evidence, or None if the URL is allowed."""
        text = str(url.with_fragment(None))
        if self._group is None or self._group.can_fetch(text):
            return None
        host = self._file.origin.partition("://")[2]
        return f"robots.txt of {host}: {self._rule(text)}, fetched {self._file.when}"

    def _rule(self, url: str) -> str:
        """Return the rule that forbids a URL. Protego does not return it, so its search is repeated here."""
        path = _quote_path(url)
        rule = next(r.value._pattern for r in self._group._rules if r.field == "disallow" and r.value.match(path))
        return f"Disallow: {rule[:_RULE_CHARACTERS]} (user-agent {self._group.user_agent})"


def _group(text: str, name: str) -> Any:
    """Return protego's rules for one agent, None if there are none. Protego itself also accepts a group whose name is
    a prefix of ours; RFC 9309, section 2.2.1, requires the whole name."""
    groups = Protego.parse(_VERSION.sub(r"\1", text))._user_agents if text else {}
    return groups.get(name) or groups.get("*")
