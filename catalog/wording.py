"""Wording that all messages share."""


def amount(number: int, one: str, many: str | None = None) -> str:
    """Return a number of things: `1 row`, `2,000 rows`. `many`: the words for more than one, by default with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def plain_message(text: str) -> str:
    """Return a message without the prefixes that pydantic and typer add to the message of a check of ours."""
    return text.replace("Value error, ", "").replace("Assertion failed, ", "")
