"""What commands print: results on standard output as JSON, tables or styled text; messages on standard error."""

import json
import os
import sys
from typing import Any


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    import pyarrow as pa

    from flows.explore.export import table_text

    print(table_text(pa.Table.from_pylist(rows), 1000) if rows else "nothing")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str, ensure_ascii=False))


def print_rich(value: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 110))).print(value)


def print_message(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr)
