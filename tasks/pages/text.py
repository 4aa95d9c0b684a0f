"""Format numbers and sanitise text for the card."""

import json
import unicodedata
from base64 import b64encode
from datetime import UTC, datetime
from math import isfinite
from typing import Final

SHOWN_CHARS: Final = 160

_INVISIBLE: Final = {"Cc", "Cf", "Cs", "Co", "Cn"}
"""Control, format (bidirectional overrides among them), surrogate, private and unassigned characters."""
_JOINERS: Final = {"\u200c", "\u200d"}
"""Format characters that scripts and emoji require."""

_MAGIC: Final = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF", "webp"))


def clean(text: object, limit: int = SHOWN_CHARS) -> str:
    """Return text as one line without invisible characters, with at most `limit` characters.

    It does not escape HTML: the template escapes everything.
    """
    head = str(text)[: 4 * limit]
    visible = "".join(
        " " if char.isspace() else char
        for char in head
        if char.isspace() or char in _JOINERS or unicodedata.category(char) not in _INVISIBLE
    )
    line = " ".join(visible.split())
    return line if len(line) <= limit and len(str(text)) <= 4 * limit else line[: limit - 1].rstrip() + "…"


def code(text: object, limit: int = 50_000) -> str:
    """Return text of several lines (a recipe) without invisible characters, except line ends and tabs."""
    kept = (char for char in str(text)[:limit] if char in "\n\t" or unicodedata.category(char) not in _INVISIBLE)
    return "".join(kept)


def count(number: float | None) -> str:
    """Return 1234567 as 1,234,567."""
    return "–" if number is None else f"{round(number):,}"


def compact(number: float | None) -> str:
    """Return 1234567 as 1.23 M; below 100,000 all digits."""
    if number is None:
        return "–"
    for power, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= power and number >= 1e5:
            return f"{number / power:.3g} {letter}" if number / power < 1000 else f"{number / power:.0f} {letter}"
    return count(number)


def percent(share: float | None) -> str:
    """Return 0.361 as 36.1 %. Only exactly 0 and 1 are shown as 0 % and 100 %."""
    if share is None:
        return "–"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %" if share not in (0, 1) else f"{100 * share:.0f} %"


def size(bytes_: float | None) -> str:
    """Return bytes in powers of 1000: 4554370 is 4.55 MB."""
    if bytes_ is None:
        return "–"
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes_ >= power:
            return f"{bytes_ / power:.3g} {unit}" if bytes_ / power < 1000 else f"{bytes_ / power:.0f} {unit}"
    return f"{bytes_:.0f} B"


def duration(seconds: float | None) -> str:
    """Return seconds as 0.42 s, 12.3 s, 4 min 05 s or 3 h 12 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float | None) -> str:
    """Return a measured value with at most four digits: 0.2941, 12.8, 1,024."""
    if value is None:
        return "–"
    if not isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def moment(time: object) -> str:
    """Return a time as 2026-03-14 09:26 UTC; text as it is."""
    if not isinstance(time, datetime):
        return clean(time, 40)
    return f"{time.astimezone(UTC) if time.tzinfo else time:%Y-%m-%d %H:%M} UTC"


def note(fact: object) -> str:
    """Format a note of a stage: a number, a word, the ends of a long list of numbers, or else JSON."""
    if isinstance(fact, float):
        return number(fact)
    if isinstance(fact, int) and not isinstance(fact, bool):
        return count(fact)
    if isinstance(fact, list) and len(fact) > 4 and all(isinstance(value, int | float) for value in fact):
        return f"{number(fact[0])} … {number(fact[-1])} ({len(fact)} values)"
    return clean(fact if isinstance(fact, str) else json.dumps(fact, default=str))


def data_uri(image: bytes | None) -> str:
    """Return a picture as a `data:` URI; empty if browsers do not support its format."""
    kind = next((name for magic, name in _MAGIC if (image or b"").startswith(magic)), "")
    return f"data:image/{kind};base64,{b64encode(image or b'').decode()}" if kind else ""
