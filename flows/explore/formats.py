"""Output formats of rows. Cheap to import, because the command line needs their names."""

from enum import StrEnum


class Format(StrEnum):
    """Output formats of rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"
